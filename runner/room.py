"""Whether a disk has room for what comes next, asked before a trial is spent on it."""

from __future__ import annotations

import os
from pathlib import Path

from runner.errors import StateError

SPARE_BYTES = 16 << 20
"""For the journal, the views and what else is small."""
SPARE_FILES = 64


def refuse_full(folder: Path, needed: int) -> None:
    """Raise `StateError` if the file system of `folder` has no room for `needed` bytes and a few small files."""
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < needed + SPARE_BYTES:
        message = (
            f"{folder} has {free >> 20:,} MB free, and the next trial may need {(needed + SPARE_BYTES) >> 20:,} MB: free some and "
            "run the same command again; nothing that was recorded is lost"
        )
        raise StateError(message)
    if disk.f_files and disk.f_favail < SPARE_FILES:  # some file systems count none
        message = f"{folder} has room for {disk.f_favail} more files, too few for a trial: remove some and run the same command again"
        raise StateError(message)
