"""Pure: how much a trial computed, what more than the baselines' costs it, and where it is stopped.

A budget in steps does not bound what happens in a step, start-up has the image's own files to learn from, and time in claim
and audit is time to train on.  So what each phase uses is measured, from its start to its exit: processor seconds of the
container where the budget is in steps, seconds on the wall where it is in seconds.  What exceeds the baselines' median is
charged in bits per byte, at the rate that twice the computation of a training is worth; far beyond it a trial is stopped.

Of claim and audit the claim is charged: training that goes on there has to go on in both, or their answers disagree, and the
audit could save what it spends by answering for its cuts alone.  What one part saves another may use.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runner.phases import Cap
from runner.settings import Budget
from runner.task import Task
from runner.trial import Compute, Record, Result, Verdict

STARTUP_WORTH = 0.5
"""Of the same work after the gate.  Nine trainings of it, on the text that an image has, were worth a third of one at `tiny`."""
OVERRUN = 1.01
"""A timed trial may exit this much later than its budget; later is `timed_out`."""
FIRST_CAP_SECONDS = 1800.0
"""Cap of a phase that has no budget in seconds and no baseline yet to derive one from."""
CPU_CAP, CPU_CAP_SECONDS = 1.25, 5.0
"""A phase may use this many times the baselines' processor seconds, both start-ups included, and so many more: a file that runs out of memory
takes seconds to get there and shall end as that.  What is used below the cap is charged."""
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
    reference: Compute | None = None
    """The baselines' medians; None: nothing is known yet, nothing is charged."""
    counts_cpu: bool = False
    """Whether computation is processor seconds, which are then capped too."""

    def of(self, phase: str, *, times: float = 1.0) -> Cap:
        """The cap of `train`, `claim` or `audit`; `times`: how much more is asked than in the baselines' phase."""
        cpu = None
        if self.reference is not None and self.counts_cpu:
            cpu = times * CPU_CAP * (getattr(self.reference, phase) + self.reference.startup) + CPU_CAP_SECONDS
        return Cap(seconds=float(getattr(self, phase)) * times, cpu_seconds=cpu)


def caps(task: Task, records: Sequence[Record]) -> Caps:
    """From the budget where it is in seconds, else from the run's own baselines."""
    baselines = [record for record in records if record.verdict is Verdict.BASELINE]
    on_gpu = any(record.gpu is not None for record in baselines)
    seconds = [record.seconds for record in baselines]
    known = [record.compute_seconds for record in baselines if record.compute_seconds is not None]
    if len(baselines) < task.judge.baselines:
        known = []  # a baseline is trusted, and what others are charged against
    return Caps(
        train=task.budget.seconds * OVERRUN
        if task.budget.seconds is not None
        else _derived([one.train for one in seconds], on_gpu=False),
        claim=_derived([one.claim for one in seconds], on_gpu=on_gpu),
        audit=_derived([one.audit for one in seconds], on_gpu=on_gpu),
        reference=typical(known),
        counts_cpu=task.budget.seconds is None,
    )


def typical(known: Sequence[Compute]) -> Compute | None:
    """The median of each phase; None of nothing."""
    if not known:
        return None
    parts = ("train", "claim", "audit", "startup")
    return Compute(**{part: statistics.median([getattr(one, part) for one in known]) for part in parts})


def computed(budget: Budget, *, train: Result, claim: Result, audit: Result) -> Compute | None:
    """What the phases used; None if the engine could not tell."""
    parts = []
    for one in (train, claim, audit):
        if budget.seconds is not None:
            parts.append((one.startup_seconds, one.seconds))
        elif one.cpu_seconds is None or one.startup_cpu_seconds is None:
            return None
        else:
            parts.append((one.startup_cpu_seconds, one.cpu_seconds - one.startup_cpu_seconds))
    startup = parts[0][0] + parts[1][0]
    return Compute(train=parts[0][1], claim=parts[1][1], audit=parts[2][1], startup=startup)


def charge(budget: Budget, used: Compute | None, reference: Compute | None) -> float | None:
    """Bits per byte for what was `used` beyond the `reference`; None if either is unknown."""
    if used is None or reference is None or reference.train <= 0:
        return None
    more = used.train - reference.train + used.claim - reference.claim
    more += STARTUP_WORTH * (used.startup - reference.startup)
    part = max(0.0, more) / reference.train
    return budget.bpb_per_doubling * max(0.0, math.log2((1 + part) / (1 + budget.tolerance)))


def slack(budget: Budget) -> float:
    """What computation that is not charged is worth at most, bits per byte."""
    return budget.bpb_per_doubling * math.log2(1 + budget.tolerance)


def step_seconds(records: Sequence[Record]) -> float | None:
    """What a step of the baselines took, the slowest of them; None: unknown."""
    known = [
        record.seconds.train / record.steps
        for record in records
        if record.verdict is Verdict.BASELINE and record.seconds.train is not None and record.steps
    ]
    return max(known, default=None)


def _derived(values: Sequence[float | None], *, on_gpu: bool) -> float:
    known = _median(values)
    if known is None:
        return FIRST_CAP_SECONDS
    factor, more = WALL_ON_GPU if on_gpu else WALL_ON_CPU
    return factor * known + more


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
