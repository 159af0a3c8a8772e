"""Pure: several files that change constants alone, put together into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from runner.agents.study import structure
from runner.constants import Constant, find_constants, set_constants
from runner.errors import UsageError
from runner.literals import Value


@dataclass(frozen=True, kw_only=True)
class Combination:
    """What files have in common with none of them alone."""

    used: tuple[int, ...]
    """Which of the files are in it, by their place."""
    changes: Mapping[str, Value]
    """The constants that they set together."""
    source: str
    """The champion's file with these."""


def combine(champion: str, sources: Sequence[str]) -> Combination | None:
    """Everything that `sources` change in the file `champion`, the first ones first; None if fewer than two fit together.

    A file that changes more than constants is left out, and so is one that wants another value than an earlier one for the same constant.
    """
    return _combined(champion, tuple(sources))


@lru_cache(maxsize=2)  # the same near misses are put together for each prompt until there are others
def _combined(champion: str, sources: tuple[str, ...]) -> Combination | None:
    try:
        before = find_constants(champion)
    except UsageError:
        return None
    changes: dict[str, Value] = {}
    used: list[int] = []
    for place, source in enumerate(sources):
        more = _changes(champion, before, source)
        if more and all(changes.get(name, value) == value for name, value in more.items()) and more.keys() - changes.keys():
            changes |= more
            used.append(place)
    if len(used) < 2:
        return None
    return Combination(used=tuple(used), changes=changes, source=set_constants(champion, changes))


def _changes(champion: str, before: Mapping[str, Constant], source: str) -> dict[str, Value]:
    """The constants that `source` sets otherwise; none if it changes anything else."""
    try:
        after = find_constants(source)
        if structure(source, before.keys()) != structure(champion, before.keys()):
            return {}
        found = {name: after[name].value for name in before if name in after and after[name].value != before[name].value}
        set_constants(champion, found)  # of a type that fits
    except UsageError:
        return {}
    return found
