"""Files that are on the disk, whole, when the call returns."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from runner.errors import StateError


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` and wait for the disk; whoever reads it sees the old file or the whole new one.

    Makes the folder if it is not there.  Raises `StateError` naming the path.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        message = f"cannot write {path}: {error.strerror}. Nothing recorded is lost; mend it and run the same command again"
        raise StateError(message) from error


def append_durably(path: Path, data: bytes) -> None:
    """Put `data` at the end of `path` and wait for the disk.  Raises `StateError` naming the path."""
    try:
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}. Mend it and run the same command again"
        raise StateError(message) from error


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
