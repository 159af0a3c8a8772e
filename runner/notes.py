"""What one measurement writes into the journal while it is made, and what of it was written before the runner died.

A container whose result is in the journal, and whose files are still what they were, is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from runner.durable import file_sha256
from runner.ledger import Event
from runner.trial import Ending, Result

STEPS = ("trained", "claimed", "audited")
"""Each rests on the one before it."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """Of one measurement, or of its confirmation."""

    write: Callable[..., None] = field(default=lambda *_, **__: None)
    """Writes down an event and what belongs to it; it is on the disk when the call returns."""
    steps: Callable[[], Sequence[Event]] = field(default=tuple)
    """Gives the events of this measurement so far that are in `STEPS`, oldest first."""

    def known(self, event: str, **facts: object) -> Event | None:
        """The last event of that name with those facts, unless what it rests on was made anew after it."""
        for one in reversed(self.steps()):
            if one["event"] == event and all(one[name] == value for name, value in facts.items()):
                return one
            if STEPS.index(one["event"]) < STEPS.index(event):
                break
        return None

    @property
    def audits(self) -> int:
        """How many audits the measurement had before it was to be confirmed."""
        audited = takewhile(lambda one: one["event"] == "audited", reversed(self.steps()))
        return max((one["number"] for one in audited if one["do"] == "measure"), default=0)


def result_to_json(result: Result, folder: Path, files: Sequence[str]) -> Event:
    """A container's result as JSON values; `files` in `folder` are what came out of it, and are named with their digests."""
    log_path = str(result.log_path) if result.log_path else None
    return {**asdict(result), "outputs": {name: file_sha256(folder / name) for name in files}, "log_path": log_path}


def result_from_json(value: Event, folder: Path) -> Result | None:
    """The inverse, with those files as outputs; None if one is not there any more, or is another."""
    files: dict[str, str] = value["outputs"]
    if not all((folder / name).is_file() and file_sha256(folder / name) == digest for name, digest in files.items()):
        return None
    fields: dict[str, Any] = {
        **value,
        "ending": Ending(value["ending"]),
        "outputs": tuple((name, folder / name) for name in files),
        "log_path": Path(value["log_path"]) if value["log_path"] else None,
    }
    return Result(**fields)
