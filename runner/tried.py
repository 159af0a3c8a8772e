"""Which files a run has tried already, and whether a proposal is worth a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Fingerprint = Callable[[str], str | None]
"""Equal for two sources that are the same experiment; None if the source does not parse."""
Refuse = Callable[[str, str, Mapping[str, int]], str | None]
"""Source, the champion's source and the trial of each fingerprint that was tried: why no trial is spent, or None."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a proposal has to pass; `runner.gates` has the real ones."""

    fingerprint: Fingerprint
    refuse: Refuse


def _not_the_champion(source: str, champion: str, tried: Mapping[str, int]) -> str | None:  # noqa: ARG001 - the seam
    return "the proposed file is the champion's own" if source == champion else None


OPEN = Gate(fingerprint=lambda source: source, refuse=_not_the_champion)
"""Lets everything pass but the champion itself."""


def tried_in(folders: Iterable[tuple[int, Path]], fingerprint: Fingerprint) -> dict[str, int]:
    """The first trial of each fingerprint among the files that trials left in their folders."""
    found: dict[str, int] = {}
    for trial, folder in folders:
        path = folder / "train.py"
        mark = fingerprint(path.read_bytes().decode(errors="replace")) if path.is_file() else None
        if mark is not None:
            found.setdefault(mark, trial)
    return found
