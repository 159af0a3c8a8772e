from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.errors import StateError
from runner.room import SPARE_BYTES, refuse_full


def test_what_fits_passes(tmp_path: Path) -> None:
    refuse_full(tmp_path, 0)


def test_what_does_not_fit_is_refused_with_both_figures(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize

    # Others use the disk too: a gigabyte more than there is.
    with pytest.raises(StateError, match=rf"{tmp_path} has [\d,]+ MB free, and the next trial may need {(free + (1 << 30) + SPARE_BYTES) >> 20:,} MB"):
        refuse_full(tmp_path, free + (1 << 30))
