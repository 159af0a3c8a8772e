"""Files that are on the disk, whole, when the call returns."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from runner.errors import StateError

PARTIAL = ".partial"
"""How a file's name ends, and a dot is how it begins, until all of it is there."""


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait for the disk; whoever reads it sees the old file or the whole new one.

    Makes the folder if it is not there.  Raises `StateError` naming the path.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        make_folder(path.parent)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        message = f"cannot write {path}: {error.strerror}. Nothing recorded is lost; mend it and run the same command again"
        raise StateError(message) from error


def append_durably(path: Path, data: bytes) -> None:
    """Put `data` at the end of `path` and wait for the disk.  Raises `StateError` naming the path."""
    try:
        there = path.exists()
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not there:
            sync_folder(path.parent)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}. Mend it and run the same command again"
        raise StateError(message) from error


def drop_partial(folder: Path) -> None:
    """Remove what a process that died had not written to its end, in this folder and not below it."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def make_folder(path: Path, *, mode: int = 0o777) -> None:
    """Make the folder and those above it, each on the disk in the one above; nothing where it is there.  Raises `OSError`."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=mode, exist_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a file's own bytes are, a rename is not.  Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that knows no such thing
            raise
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
