"""Differences of two texts, made by ourselves: no configuration of a repository has a say in them."""

from __future__ import annotations

import difflib
from functools import lru_cache


@lru_cache(maxsize=32)  # every prompt shows the last few tries
def unified_diff(before: str, after: str, name: str) -> str:
    """The diff of two texts, made by the host: git's own would run the repository's filters."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{name}", f"b/{name}"
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
