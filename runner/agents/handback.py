"""Read what a hostile program left in a folder, after it ended: regular files of limited size, and nothing by a detour."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from runner.errors import StateError

DEEPEST = 40
"""Folders in folders."""


class NotHandedBackError(Exception):
    """A file is not there, or is none that is read; says why."""


def read_text(folder: Path, name: str, most: int) -> str:
    """The text of a file that lies in `folder` itself.  Raises `NotHandedBackError`."""
    try:
        # Not blocking, or a pipe would be waited for.
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotHandedBackError(f"{name} is gone") from None
    except OSError as error:
        what = "is a link" if (folder / name).is_symlink() else f"cannot be read ({error.strerror})"
        raise NotHandedBackError(f"{name} {what}") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise NotHandedBackError(f"{name} is no regular file")
        if found.st_nlink != 1:
            raise NotHandedBackError(f"{name} is one file under {found.st_nlink} names")
        if found.st_size > most:
            raise NotHandedBackError(f"{name} has {found.st_size:,} bytes; {most:,} are read")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(most)
    finally:
        os.close(handle)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise NotHandedBackError(f"{name} is not UTF-8 text") from None


def too_much(folder: Path, *, most_bytes: int, most_files: int) -> str | None:
    """Why a folder that is still being written holds more than it should, or None.

    It is an estimate: files that have no name any more are not seen.
    """
    size = files = 0
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        if depth > DEEPEST:
            return f"its folder is more than {DEEPEST} folders deep"
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    files += 1
                    found = entry.stat(follow_symlinks=False)
                    size += found.st_blocks * 512
                    if size > most_bytes or files > most_files:
                        return f"it left more than {most_bytes >> 20} MiB or {most_files:,} files in its folder"
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append((place / entry.name, depth + 1))
        except OSError:  # closed, or gone meanwhile
            continue
    return None


def remove(folder: Path) -> None:
    """Remove a folder, whatever is in it and however deep.  Raises `StateError`."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
        if not os.path.lexists(folder):
            return
        # Not shutil.rmtree: it ends at the depth of Python's stack.
        subprocess.run([*command, "--", folder], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if os.path.lexists(folder):
        message = f"{folder} cannot be removed; remove it by hand and run the same command again"
        raise StateError(message)
