"""Which files a run has tried already, and what a proposal has to pass before a trial is spent on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runner.compute import Caps
from runner.trial import Ending, Progress, Suggested

FINGERPRINTS = "fingerprints.jsonl"
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
    suggestion: Suggested | None = None
    """What became of the tuner's, if it began with one."""
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
    rules: str | None = None
    """By what rules fingerprints are made, if they are worth keeping: those made by others are not compared with them."""


def _not_the_champion(source: str, champion: str, tried: Mapping[str, int]) -> Barred | None:  # noqa: ARG001 - the seam
    return Barred(reason="the proposed file is the champion's own", mendable=False) if source == champion else None


OPEN = Gate(fingerprint=lambda source: source, refuse=_not_the_champion)
"""Lets everything pass but the champion itself."""


class Fingerprints:
    """The fingerprints of a run's candidates, in a file of the run's folder; what the file lacks is made anew.

    A file like the shipped one takes 25 ms, so without them going on with a run of 10,000 trials would begin with minutes.
    """

    def __init__(self, path: Path, gate: Gate) -> None:
        self._path, self._gate = path, gate
        self._known = dict(_lines(path, gate.rules)) if gate.rules else {}

    def of(self, commit: str, source: Callable[[], str]) -> str | None:
        """That of the file in `commit`, a candidate's; `source` gives the file if it is needed."""
        if commit not in self._known:
            self._known[commit] = mark = self._gate.fingerprint(source())
            if self._gate.rules:
                line = json.dumps({"rules": self._gate.rules, "commit": commit, "fingerprint": mark})
                with suppress(OSError), self._path.open("a") as file:
                    file.write(f"\n{line}\n")  # on a line of its own, whatever a full disk left of the one before
        return self._known[commit]


def _lines(path: Path, rules: str) -> Iterator[tuple[str, str | None]]:
    if not path.exists():
        return
    for line in path.read_text(errors="replace").splitlines():
        try:
            value = json.loads(line)
            if value["rules"] == rules:
                yield value["commit"], value["fingerprint"]
        except (ValueError, KeyError, TypeError):
            continue


def tried_in(trials: Iterable[tuple[int, str | None, Path]], fingerprints: Fingerprints) -> dict[str, int]:
    """The first trial of each fingerprint; each of `trials` has its number, its commit and the folder with its file."""
    found: dict[str, int] = {}
    for trial, commit, folder in trials:
        path = folder / "train.py"
        if commit is None or not path.is_file():
            continue
        mark = fingerprints.of(commit, partial(_text, path))
        if mark is not None:
            found.setdefault(mark, trial)
    return found


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")
