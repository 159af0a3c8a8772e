"""What a run's trials say about a search space: a point for each file that differs from the champion's in tuned constants alone.

Whoever proposed a file, its score is as good as any other.  But what a constant is worth depends on the rest of the file, so a score that
was measured on another structure says nothing here and is left out until the champion has that structure again.  Everything is
made anew from the records and from the files that the trials left, so there is no state that could be lost, torn or told twice.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from runner.agents.moves import Region, Setting
from runner.constants import find_constants
from runner.errors import UsageError
from runner.literals import Value
from runner.trial import Record

MOST = 300
"""Files are looked at, the newest: reading one takes 30 ms, and what lies further back says little of today's champion."""

Source = Callable[[int], str | None]
"""The file that a trial proposed; None if it left none."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A setting that was measured."""

    commit: str
    setting: Setting
    score: float
    """Mean of all measurements of the file."""


@dataclass(frozen=True, kw_only=True)
class _File:
    structure: str
    values: Mapping[str, Value]


class Study:
    """The trials of one run over one space."""

    def __init__(self, names: Collection[str], source: Source) -> None:
        """`names` are the constants of the space."""
        self._names, self._source = names, source
        self._marks: dict[int, str | None] = {}
        self._files: dict[int, _File | None] = {}

    def points(self, champion: str, where: Region, history: Sequence[Record]) -> list[Point]:
        """The newest files that were scored and have the structure of the file `champion`, oldest first; `where` is the space over that file."""
        wanted = structure(champion, self._names)
        found = []
        scored = [one for one in history if one.val_bpb is not None and math.isfinite(one.val_bpb)]
        for commit, records in list(_by_commit(scored).items())[-MOST:]:
            scores = [one.val_bpb for one in records if one.val_bpb is not None]
            file = self._file(records[0].trial)
            setting = _setting(file.values, where) if file is not None and file.structure == wanted else None
            if setting is not None:
                found.append(Point(commit=commit, setting=setting, score=math.fsum(scores) / len(scores)))
        return found

    def tried(self, history: Sequence[Record]) -> set[str]:
        """Fingerprints of every file that was proposed, as far as they are known: refused ones left no file but maybe a token."""
        marks = {self._mark(record.trial) for record in history}
        tokens = {record.token.rpartition(" ")[2] for record in history if record.token}
        return {mark for mark in marks if mark is not None} | tokens

    def text(self, trial: int) -> str | None:
        """The file that a trial proposed, if it left one; not kept, since a run has thousands."""
        return self._source(trial)

    def _mark(self, trial: int) -> str | None:
        if trial not in self._marks:
            text = self.text(trial)
            self._marks[trial] = None if text is None else fingerprint(text)
        return self._marks[trial]

    def _file(self, trial: int) -> _File | None:
        if trial not in self._files:
            self._files[trial] = self._read(trial)
        return self._files[trial]

    def _read(self, trial: int) -> _File | None:
        text = self.text(trial)
        if text is None:
            return None
        try:
            values = {name: found.value for name, found in find_constants(text).items() if name in self._names}
        except UsageError:
            return None
        return _File(structure=structure(text, self._names), values=values)


def structure(source: str, names: Collection[str]) -> str:
    """Equal for two files that differ in the values of the constants `names`, in layout and in comments alone.

    Raises SyntaxError if it does not parse.
    """
    tree = ast.parse(source.removeprefix("\ufeff"))
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)) if name in names:
                statement.value = ast.Constant(value=None)
    return hashlib.sha256(ast.dump(tree).encode(errors="surrogatepass")).hexdigest()


def fingerprint(source: str) -> str:
    """Names a whole file: two proposals with the same one are the same."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _by_commit(history: Sequence[Record]) -> dict[str, list[Record]]:
    """Baselines, and champions that were measured again, are one file."""
    found: dict[str, list[Record]] = {}
    for record in history:
        if record.commit is not None:
            found.setdefault(record.commit, []).append(record)
    return found


def _setting(values: Mapping[str, Value], where: Region) -> Setting | None:
    """The values as a setting of the space, or None if one of them cannot be expressed in it."""
    setting = {name: values[name] for name in where.dimensions if name in values}
    if setting.keys() != where.dimensions.keys():
        return None
    return setting if all(_fits(where, name, value) for name, value in setting.items()) else None


def _fits(where: Region, name: str, value: Value) -> bool:
    dimension, current = where.dimensions[name], where.current[name]
    if value == current:
        return True
    if dimension.choices:
        return value in dimension.choices
    if type(value) is not type(current) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return not (dimension.log and value <= 0) and not (dimension.power_of_two and (value <= 0 or int(value) & (int(value) - 1)))
