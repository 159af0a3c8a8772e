"""Proposals from a file or a folder, one after the other: for tests, demonstrations and reproducing a night.

A JSONL file has one object a line::

    {"idea": "...", "why": "...", "risk": "...", "kind": "optimizer",
     "source": "<whole file>" | "constants": {"DEPTH": 9} | "patch": "<unified diff>"
     | "edits": [{"search": "...", "replace": "..."}]}

A folder has `*.patch` and `*.diff` (what stands before the diff is idea and rationale) and `*.py` (whole
files), taken in the order of their names.  The folder of a run has what its agents proposed, as it was proposed, and
what was refused of it.  All of it is read and checked before the first trial; what does
not fit the champion when its turn comes is refused, and the next one follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from runner.agents.edits import Edit, RefusedEditError, apply_edits, apply_patch
from runner.constants import set_constants
from runner.errors import StateError, UsageError
from runner.ledger import JOURNAL, read, trial_folder
from runner.literals import Value
from runner.trial import Kind, Proposal, Record, Refusal

MAX_BYTES = 64 << 20
NOBODY = ("baseline", "runner")
"""Who measures and proposes nothing."""
_CHANGES = ("source", "constants", "patch", "edits")
_WORDS = ("idea", "why", "risk", "kind")


@dataclass(frozen=True, kw_only=True)
class _Item:
    idea: str
    why: str = ""
    risk: str = ""
    kind: Kind = Kind.OTHER
    change: Callable[[str], str]
    """The champion's file to the proposed one; raises `RefusedEditError` or `UsageError`."""


class ReplayAgent:
    """See the module's docstring."""

    name = "replay"

    def __init__(self, path: Path) -> None:
        """Read all proposals.  Raises `UsageError` naming file and line."""
        if (path / JOURNAL).is_file():
            self._items = _run(path)
        else:
            self._items = _folder(path) if path.is_dir() else _jsonl(path)

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
        """The proposal after the last one on record; None when all had their turn."""
        done = [
            int(record.token) for record in history if record.agent == self.name and record.token.isdecimal()
        ]
        number = max(done, default=-1) + 1
        if number >= len(self._items):
            return None
        item = self._items[number]
        try:
            source = item.change(champion)
        except (RefusedEditError, UsageError) as error:
            return Refusal(agent=self.name, idea=item.idea, reason=str(error), token=str(number))
        return Proposal(
            agent=self.name,
            idea=item.idea,
            why=item.why,
            risk=item.risk,
            kind=item.kind,
            source=source,
            token=str(number),
        )


# A JSONL file -----------------------------------------------------------------------------------


def _jsonl(path: Path) -> list[_Item]:
    lines = _read(path).splitlines()
    return [_object(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _object(line: str, where: str) -> _Item:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{where}: must be an object")
    for name in raw:
        if name not in (*_WORDS, *_CHANGES):
            raise UsageError(f"{where}: {name}: unknown key (known: {', '.join((*_WORDS, *_CHANGES))})")
    words = {name: _text(raw, name, where) for name in _WORDS}
    if not words["idea"].strip():
        raise UsageError(f"{where}: idea is missing")
    kind = words["kind"] or Kind.OTHER
    if kind not in set(Kind):
        raise UsageError(f"{where}: kind: {kind!r} is not one of {', '.join(Kind)}")
    given = [name for name in _CHANGES if name in raw]
    if len(given) != 1:
        raise UsageError(f"{where}: give exactly one of {', '.join(_CHANGES)}")
    change = _change(raw, given[0], where)
    return _Item(
        idea=_one_line(words["idea"]), why=words["why"], risk=words["risk"], kind=Kind(kind), change=change
    )


def _change(raw: Mapping[str, object], name: str, where: str) -> Callable[[str], str]:
    if name == "source":
        return partial(_whole, _text(raw, name, where))
    if name == "patch":
        return partial(_patched, _text(raw, name, where))
    if name == "edits":
        return partial(_edited, _edits(raw[name], where))
    return partial(_set, _constants(raw[name], where))


def _constants(raw: object, where: str) -> dict[str, Value]:
    if not isinstance(raw, dict) or not raw:
        raise UsageError(f"{where}: constants: must be an object with a value for each name")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
    for name, value in values.items():
        if not all(
            isinstance(item, int | float | str) for item in (value if isinstance(value, tuple) else (value,))
        ):
            raise UsageError(
                f"{where}: constants.{name}: must be a number, text, true, false or a list of these"
            )
    return values


def _edits(raw: object, where: str) -> list[Edit]:
    if not isinstance(raw, list) or not raw:
        raise UsageError(f"{where}: edits: must be a list of objects with search and replace")
    for edit in raw:
        if not isinstance(edit, dict) or set(edit) != {"search", "replace"}:
            raise UsageError(f"{where}: edits: each has search and replace, and nothing else")
    return [Edit(search=_text(edit, "search", where), replace=_text(edit, "replace", where)) for edit in raw]


def _text(raw: Mapping[str, object], name: str, where: str) -> str:
    value = raw.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{where}: {name}: must be text")
    return value


# A folder ---------------------------------------------------------------------------------------


def _folder(path: Path) -> list[_Item]:
    files = sorted(
        file for file in path.iterdir() if file.suffix in (".patch", ".diff", ".py") and file.is_file()
    )
    if not files:
        raise UsageError(f"{path}: holds no .patch, .diff or .py file")
    return [_whole_file(file) if file.suffix == ".py" else _patch_file(file) for file in files]


def _whole_file(file: Path) -> _Item:
    return _Item(idea=_name(file), change=partial(_whole, _read(file)))


def _patch_file(file: Path) -> _Item:
    text = _read(file)
    begin = re.search(r"^(diff --git |--- \S)", text, re.MULTILINE)
    if begin is None:
        raise UsageError(f"{file}: holds no unified diff")
    idea, why = _message(text[: begin.start()])
    return _Item(idea=idea or _name(file), why=why, change=partial(_patched, text[begin.start() :]))


def _message(text: str) -> tuple[str, str]:
    """Idea and rationale before a diff; of a mailed patch the subject and the body."""
    text = re.split(r"^---\s*$", text, maxsplit=1, flags=re.MULTILINE)[0]
    mailed = re.search(r"^Subject: (?:\[[^]]*\] ?)?(.*(?:\n[ \t].*)*)", text, re.MULTILINE)
    if mailed and re.match(r"From[ :]", text):
        body = text[mailed.end() :].partition("\n\n")[2]
        return _one_line(mailed[1]), body.strip()
    first, _, rest = text.strip().partition("\n")
    return _one_line(first), rest.strip()


def _name(file: Path) -> str:
    return re.sub(r"[-_]+", " ", re.sub(r"^\d+[-_]", "", file.stem)).strip() or file.name


# The folder of a run ---------------------------------------------------------------------------


def _run(folder: Path) -> list[_Item]:
    try:
        records = read(folder).records
    except StateError as error:
        raise UsageError(f"{folder}: {error}") from error
    found = [_recorded(folder, record) for record in records if record.agent not in NOBODY]
    if not found:
        raise UsageError(f"{folder}: no agent has proposed anything in this run")
    return found


def _recorded(folder: Path, record: Record) -> _Item:
    path = trial_folder(folder, record.trial) / "train.py"
    change = partial(_whole, _read(path)) if path.is_file() else partial(_refused, record.reason)
    return _Item(idea=record.idea, why=record.why, risk=record.risk, kind=Kind(record.kind), change=change)


# Changing the champion --------------------------------------------------------------------------


def _whole(text: str, champion: str) -> str:  # noqa: ARG001 - replaced as a whole
    return text


def _refused(reason: str, champion: str) -> str:  # noqa: ARG001 - whatever it is
    raise RefusedEditError(reason)


def _patched(diff: str, champion: str) -> str:
    return apply_patch(champion, diff)


def _edited(edits: Sequence[Edit], champion: str) -> str:
    return apply_edits(champion, edits)


def _set(values: Mapping[str, Value], champion: str) -> str:
    return set_constants(champion, values)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
