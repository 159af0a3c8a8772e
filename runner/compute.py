"""Pure: how much a trial computed, what more than the baselines' costs it, and where it is stopped.

A budget in steps does not bound what happens in a step, and time after training (claim and audit) is time to train on.  So
everything after the gates of the three phases is added up: processor seconds of the containers where the budget is in
steps, seconds on the wall where it is in seconds.  What exceeds the baselines' median is charged in bits per byte, at the
rate that twice the computation is worth; far beyond it a trial is stopped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runner.phases import Cap
from runner.settings import Budget
from runner.task import Task
from runner.trial import Record, Result, Verdict

OVERRUN = 1.01
"""A timed trial may exit this much later than its budget; later is `timed_out`."""
FIRST_CAP_SECONDS = 1800.0
"""Cap of a phase that has no budget in seconds and no baseline yet to derive one from."""
CPU_CAP = 1.25
"""A trial may use this many times the baselines' median of processor seconds."""
WALL_ON_CPU = (4.0, 10.0)
"""Factor and seconds on the baselines' median of a phase: neighbours take time, and processor seconds are counted apart."""
WALL_ON_GPU = (1.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Caps:
    """What the phases of a trial may take after their gates."""

    train: float
    """Seconds on the wall."""
    claim: float
    audit: float
    cpu_seconds: float | None = None
    """Processor seconds of all three together; None: not known yet, or not what the budget is made of."""
    reference: float | None = None
    """The baselines' median of what the charge is made of; None: nothing is charged."""

    def of(self, phase: str, used: float | None = None, *, times: float = 1.0) -> Cap:
        """The cap of `train`, `claim` or `audit` when the phases before it `used` so many processor seconds.

        `times`: how much more is asked than in the baselines' phase.
        """
        left = None if self.cpu_seconds is None else max(self.cpu_seconds - (used or 0.0), 1.0) * times
        return Cap(seconds=float(getattr(self, phase)) * times, cpu_seconds=left)


def caps(task: Task, records: Sequence[Record]) -> Caps:
    """From the budget where it is in seconds, else from the run's own baselines."""
    baselines = [record for record in records if record.verdict is Verdict.BASELINE]
    on_gpu = any(record.gpu is not None for record in baselines)
    seconds = [record.seconds for record in baselines]
    timed = task.budget.seconds is not None
    reference = _median([record.compute_seconds for record in baselines])
    return Caps(
        train=task.budget.seconds * OVERRUN
        if task.budget.seconds is not None
        else _derived([one.train for one in seconds], on_gpu=False),
        claim=_derived([one.claim for one in seconds], on_gpu=on_gpu),
        audit=_derived([one.audit for one in seconds], on_gpu=on_gpu),
        cpu_seconds=None if timed or reference is None else CPU_CAP * reference,
        reference=reference,
    )


def computed(budget: Budget, results: Sequence[Result]) -> float | None:
    """What the phases used after their gates: wall seconds or processor seconds; None if the engine could not tell."""
    used = [one.seconds if budget.seconds is not None else one.cpu_seconds for one in results]
    return None if None in used else math.fsum(one for one in used if one is not None)


def charge(budget: Budget, used: float | None, reference: float | None) -> float | None:
    """Bits per byte for what was `used` beyond the `reference`; None if either is unknown."""
    if used is None or reference is None or reference <= 0:
        return None
    over = used / (reference * (1 + budget.tolerance))
    return budget.bpb_per_doubling * math.log2(over) if over > 1 else 0.0


def slack(budget: Budget) -> float:
    """What computation that is not charged is worth at most, bits per byte."""
    return budget.bpb_per_doubling * math.log2(1 + budget.tolerance)


def _derived(values: Sequence[float | None], *, on_gpu: bool) -> float:
    known = _median(values)
    if known is None:
        return FIRST_CAP_SECONDS
    factor, more = WALL_ON_GPU if on_gpu else WALL_ON_CPU
    return factor * known + more


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
