"""Which files a run has tried already, and what a proposal has to pass before a trial is spent on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from runner.compute import Caps
from runner.trial import Ending, Progress

Fingerprint = Callable[[str], str | None]
"""Equal for two sources that are the same experiment; None if the source does not parse."""


@dataclass(frozen=True, kw_only=True)
class Barred:
    """Why no trial is spent on a proposal."""

    reason: str
    """In plain words; quotes neither the source nor the data set."""
    mendable: bool = True
    """Whether its author could change it so that it passes and is still the same idea."""
    ending: Ending | None = None
    """Of the dry run, if that is what it did not pass."""
    seconds: float | None = None
    log_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A proposal that is written down and has a folder, as a gate looks at it that needs more than its text."""

    trial: int
    folder: Path
    """With `train.py`, as proposed."""
    source: str
    champion: str
    """The file that it is a change of."""
    agent: str
    seed: int
    caps: Caps
    """Of its measurement."""
    step_seconds: float | None
    """Of the baselines' training; None: unknown."""
    memory_gb: float | None
    """Of the champion; None: unknown."""
    created: Callable[[str, str], None]
    """Told phase and container before each container starts."""
    progress: Callable[[Progress], None]


Refuse = Callable[[str, str, Mapping[str, int]], Barred | None]
"""Source, the champion's source and the trial of each fingerprint that was tried: why no trial is spent, or None."""
Examine = Callable[[Candidate], Barred | None]
"""Why no trial is spent on a candidate, or None; raises what a sandbox raises."""


def _passed(candidate: Candidate) -> None:  # noqa: ARG001 - the seam
    return None


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a proposal has to pass: `refuse` looks at the text alone, `examine` comes after and may run it."""

    fingerprint: Fingerprint
    refuse: Refuse
    examine: Examine = _passed


def _not_the_champion(source: str, champion: str, tried: Mapping[str, int]) -> Barred | None:  # noqa: ARG001 - the seam
    return Barred(reason="the proposed file is the champion's own", mendable=False) if source == champion else None


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
