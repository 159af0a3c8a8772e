"""How a run stands, without reading all of its journal.

After each judged trial the runner puts what the journal amounts to so far into a file beside it, and whoever looks folds in only
what came after.  The file is a view like results.tsv: it holds for the journal that has the same beginning and the same bytes
before the place that it names, and else, or if it is damaged, the journal is read from its start.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import ledger
from runner.errors import StateError
from runner.ledger import JOURNAL, Event, State, record_from_json, record_to_json
from runner.money import Account, Paid
from runner.report.files import replace_file
from runner.report.summary import Summary, Tally
from runner.trial import Record, Verdict

STANDING = "standing.json"
VERSION = 1
"""Of what is in the file.  It also does not hold for a program whose records or tallies have other fields."""
EDGE = 64 << 10
"""Bytes of the journal, at its beginning and before the place, that must be the same.  It is only appended to."""
MANY = 100
"""Trials that are quickly read."""
RECORDS = ("first", "kept", "last", "noted")
"""Fields of a tally that are records."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What `status` needs."""

    state: State
    """Without its records."""
    summary: Summary
    account: Account

    @property
    def open_trial(self) -> int | None:
        """The candidate under way."""
        return self.state.open.trial if self.state.open else None


def look(folder: Path) -> Standing:
    """How the run in `folder` stands.  Raises `StateError` if the journal is damaged in what is read of it.

    Where much had to be read and no runner is there to do it, the file is written for whoever looks next.
    """
    state, tally, size = _fold(folder)
    if len(state.records) > MANY and not ledger.is_held(folder):
        with suppress(StateError):  # of somebody who may only look
            _save(folder, state, tally, size)
    return Standing(state=dataclasses.replace(state, records=[]), summary=tally.summary(), account=tally.account)


def save(folder: Path) -> None:
    """Bring the file up to date, unless a trial is under way: then the next one does.  Raises `StateError`."""
    _save(folder, *_fold(folder))


def _save(folder: Path, state: State, tally: Tally, size: int) -> None:
    settled = state.settled()
    if settled is None:
        return
    value = {"version": _version(), "bytes": size, "edges": _edges(folder / JOURNAL, size), "state": settled, "tally": _to_json(tally)}
    text = json.dumps(value)
    replace_file(folder / STANDING, f"{_digest(text.encode())}\n{text}".encode())


def _fold(folder: Path) -> tuple[State, Tally, int]:
    """The state, whose records are only those that are not in the file yet, the tally of all, and the journal's size."""
    known = _known(folder)
    if known is not None:
        try:
            return _further(folder, *known)
        except StateError:
            pass  # said with the number of the line when everything is read
    return _further(folder, State(), Tally(), 0)


def _further(folder: Path, state: State, tally: Tally, start: int) -> tuple[State, Tally, int]:
    size = ledger.read_on(folder, state, start)
    for record in state.records:
        tally.add(record)
    return state, tally, size


def _known(folder: Path) -> tuple[State, Tally, int] | None:
    """What the file says, if it is whole and of this journal."""
    try:
        digest, _, text = (folder / STANDING).read_bytes().partition(b"\n")
        if digest.decode() != _digest(text):
            return None
        value = json.loads(text)
        if value["version"] != _version() or value["edges"] != _edges(folder / JOURNAL, value["bytes"]):
            return None
        return State(**value["state"]), _from_json(value["tally"]), value["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _edges(path: Path, size: int) -> str:
    """A digest of the first and the last bytes of the journal's first `size`, and of how many there are."""
    with path.open("rb") as journal:
        first = journal.read(min(EDGE, size))
        journal.seek(max(0, size - EDGE))
        last = journal.read(min(EDGE, size))
    return _digest(f"{len(first)} {len(last)} ".encode() + first + last)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _version() -> list[Any]:
    return [VERSION, *(field.name for kind in (State, Tally, Account, Paid, Record) for field in dataclasses.fields(kind))]


def _to_json(tally: Tally) -> Event:
    value = {field.name: getattr(tally, field.name) for field in dataclasses.fields(Tally)}
    records = {name: record_to_json(value[name]) for name in RECORDS if value[name] is not None}
    return {**value, "counts": dict(tally.counts), "account": dataclasses.asdict(tally.account), **records}


def _from_json(value: Event) -> Tally:
    records = {name: record_from_json(value[name]) for name in RECORDS if value[name] is not None}
    counts = Counter({Verdict(verdict): count for verdict, count in value["counts"].items()})
    spent = Account(**{**value["account"], "paid": Paid(**value["account"]["paid"])})
    return Tally(**{**value, "counts": counts, "account": spent, **records})
