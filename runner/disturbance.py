"""Pure: whether something else had the GPU or slowed it down while a trial was timed on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SEEN = 2
"""A foreign process counts when it was seen so often, a second apart: one that only looks at the card is gone by then."""
SLOWED = 3


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the driver says of a GPU at one moment."""

    memory_bytes: int
    """In use, by whomever."""
    processes: tuple[int, ...] = ()
    """Process numbers of those that compute on it, as the host counts them."""
    slowed: str | None = None
    """Why its clocks are lower than they could be, if that is not its normal limit of power."""


class Watch:
    """Collects readings of one trial's GPU."""

    def __init__(self, ours: Callable[[int], bool | None]) -> None:
        """`ours`: whether a process belongs to the trial's container; None: it is gone, or cannot be seen from here."""
        self._ours = ours
        self._foreign: dict[int, int] = {}
        self._slowed: dict[str, int] = {}

    def note(self, reading: Reading) -> None:
        """One more reading."""
        for process in reading.processes:
            if self._ours(process) is False:
                self._foreign[process] = self._foreign.get(process, 0) + 1
        if reading.slowed is not None:
            self._slowed[reading.slowed] = self._slowed.get(reading.slowed, 0) + 1

    @property
    def disturbed(self) -> str | None:
        """What voids the trial's score, in words; None: nothing was seen."""
        found = [f"process {process} computed on its GPU too" for process, seen in self._foreign.items() if seen >= SEEN]
        found += [f"its GPU was slowed down ({why})" for why, seen in self._slowed.items() if seen >= SLOWED]
        return "; ".join(found[:3]) or None
