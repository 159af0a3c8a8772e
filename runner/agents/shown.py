"""What a run's files show a model: sources, diffs, ends of logs, the brief, hints, ideas and notes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.agents.combine import combine
from runner.agents.plateau import near_misses, since_keep
from runner.agents.prompt import DETAILED, NO_SCORE, Facts, Try
from runner.difftext import unified_diff
from runner.durable import append_durably
from runner.errors import UsageError
from runner.ledger import trial_folder
from runner.literals import spell_value
from runner.report.summary import NO_IDEAS
from runner.report.text import plain
from runner.trial import REFUSED, Record

HINTS, IDEAS, NOTES = "hints.jsonl", "ideas.md", "notes.md"
MAX_BYTES = 256 << 10
"""Of the brief and of each of the person's files; a longer one would not fit into a prompt."""
HINTS_SHOWN, IDEAS_SHOWN = 10, 5
HINT_LIMIT = 2000
LOG_TAIL_BYTES = 8 << 10


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where everything lies, and what is fixed for a run."""

    run: Path
    """The run's folder."""
    brief: Path
    ideas: Path
    editable: str
    hardware: str
    budget: str
    metric: str

    def source(self, trial: int) -> str | None:
        """The file that a trial proposed, as it was measured or refused; None: there is none, or nothing to mend in it."""
        folder = trial_folder(self.run, trial)
        path = next((path for path in (folder / "train.py", folder / REFUSED) if path.is_file()), None)
        return None if path is None else path.read_bytes().decode(errors="replace")

    def facts(self, champion: str, history: Sequence[Record]) -> Facts:
        """Everything for the next prompt; the person's files are read anew each time.  Raises `UsageError` without a brief."""
        near = near_misses(history)
        return Facts(
            brief=read_brief(self.brief),
            editable=self.editable,
            champion=champion,
            hardware=self.hardware,
            budget=self.budget,
            metric=self.metric,
            tries=tuple(self._tries(history)),
            near=tuple(self._near(champion, near)),
            together=self._together(champion, near, history),
            hints=hints(self.run)[-HINTS_SHOWN:],
            ideas=waiting(_text(self.ideas), history)[:IDEAS_SHOWN],
            notes=_text(self.run / NOTES),
        )

    def _near(self, champion: str, near: Sequence[Record]) -> Iterator[Try]:
        for record in near:
            yield Try(record=record, diff=unified_diff(champion, self.source(record.trial) or "", self.editable))

    def _together(self, champion: str, near: Sequence[Record], history: Sequence[Record]) -> str:
        """What `near` are together, unless that was tried."""
        found = combine(champion, [self.source(record.trial) or "" for record in near])
        if found is None or any(self._is(record.trial, found.source.encode()) for record in since_keep(history)):
            return ""
        tries = " and ".join(str(near[at].trial) for at in found.used)
        lines = "\n".join(f"SET {name} = {spell_value(value)}" for name, value in found.changes.items())
        return f"Tries {tries} together, which nobody tried yet:\n\n{lines}"

    def _is(self, trial: int, data: bytes) -> bool:
        """Whether a trial proposed this very file; others are hardly ever read for it."""
        path = trial_folder(self.run, trial) / "train.py"
        return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data

    def _tries(self, history: Sequence[Record]) -> Iterator[Try]:
        """Files are read only for what a prompt may show of them: a run has thousands of trials."""
        made = {record.commit: record.trial for record in reversed(history) if record.commit is not None}
        told = {one.trial for one in [one for one in history if one.verdict not in NO_IDEAS][-DETAILED:]}
        failed = next((one for one in reversed(history) if one.verdict in NO_SCORE and one.log_path is not None), None)
        for record in history:
            diff = ""
            if record.trial in told and record.commit is not None and record.parent in made:
                diff = unified_diff(self.source(made[record.parent]) or "", self.source(record.trial) or "", self.editable)
            yield Try(record=record, diff=diff, log_tail=_tail(Path(str(record.log_path))) if record is failed else "")


def proposed(run: Path, trial: int) -> str | None:
    """The file that a trial of the run in the folder `run` proposed, or None if it left none: it was refused."""
    path = trial_folder(run, trial) / "train.py"
    return path.read_bytes().decode(errors="replace") if path.is_file() else None


def add_hint(run: Path, text: str, at: str) -> None:
    """Write down what the person asks for; the next proposal sees it.  Raises `UsageError` if there is nothing in it."""
    if not text.strip():
        message = "there is nothing in this hint"
        raise UsageError(message)
    if len(text) > HINT_LIMIT:
        message = f"a hint has at most {HINT_LIMIT} characters; what is longer belongs into the brief"
        raise UsageError(message)
    # On a line of its own, whatever a full disk left of the one before.
    append_durably(run / HINTS, f"\n{json.dumps({'at': at, 'text': text.strip()})}\n".encode())


def hints(run: Path) -> list[str]:
    """What the person asked for, oldest first; a line that was cut by a full disk is left out."""
    found = []
    for line in _text(run / HINTS).splitlines():
        try:
            found.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def waiting(ideas: str, history: Sequence[Record]) -> list[str]:
    """The items of a list in Markdown that no try has as its idea."""
    items = [plain(line.strip()[2:]) for line in ideas.splitlines() if line.strip()[:2] in ("- ", "* ")]
    taken = {plain(record.idea).casefold() for record in history} if items else set()
    return [item for item in items if item and item.casefold() not in taken]


def read_brief(path: Path) -> str:
    """The person's page.  Raises `UsageError` if there is none, or a far too long one."""
    if not path.exists():
        message = f"{path}: there is no brief; write one, a model has nothing else to go by"
        raise UsageError(message)
    return _text(path)


def _text(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        message = f"{path}: more than {MAX_BYTES >> 10} KiB, which fits into no prompt"
        raise UsageError(message)
    return data.decode(errors="replace")


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
