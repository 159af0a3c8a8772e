"""What a run costs: what models were paid for proposals, and the GPU's hours; and what one invocation may still spend.

Unknown is unknown: a proposal whose price nobody knows is counted, and never added as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner.errors import AgentError
from runner.trial import Record, Spent, Verdict

FREE = frozenset({"tuner", "replay", "hand", "baseline", "runner", "selftest"})
"""Who proposes and asks no model that the runner knows of."""
HOUR = 3600.0
NOTHING = Spent(cost_usd=0.0, prompt_tokens=0, completion_tokens=0)
"""Of a proposal for which nobody was asked."""


class TooDearError(AgentError):
    """The next call could cost more than is left; nothing is wrong but the limit."""


@dataclass(frozen=True, kw_only=True)
class Paid:
    """What models were paid."""

    proposals: int = 0
    """Of agents that ask a model, those that came to nothing included."""
    usd: float = 0.0
    """The sum of what is known."""
    unpriced: int = 0
    """Proposals whose cost is not known."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0
    """Proposals whose tokens are not known."""

    @property
    def known_usd(self) -> float | None:
        """The sum, or None if nothing of it is known."""
        return None if self.proposals and self.unpriced == self.proposals else self.usd

    def tokens(self) -> tuple[int, int] | None:
        """In and out, or None if nothing of it is known."""
        return None if self.proposals and self.uncounted == self.proposals else (self.prompt_tokens, self.completion_tokens)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a run has cost so far."""

    paid: Paid
    gpu_hours: float | None
    """None: it does not run on a GPU."""
    gpu_usd_per_hour: float | None
    """None: nobody said."""

    @property
    def gpu_usd(self) -> float | None:
        """None: not known, or no GPU."""
        return None if self.gpu_hours is None or self.gpu_usd_per_hour is None else self.gpu_hours * self.gpu_usd_per_hour

    @property
    def total_usd(self) -> float | None:
        """None if a part of it is not known."""
        if self.paid.unpriced or (self.gpu_hours is not None and self.gpu_usd is None):
            return None
        return self.paid.usd + (self.gpu_usd or 0.0)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What some more trials will cost, if they are like those before."""

    trials: int
    hours: float | None
    model_usd: float | None
    gpu_usd: float | None
    """None: not known, or no GPU."""
    gpu: bool

    @property
    def total_usd(self) -> float | None:
        """None if a part of it is not known."""
        if self.model_usd is None or (self.gpu and self.gpu_usd is None):
            return None
        return self.model_usd + (self.gpu_usd or 0.0)


def together(calls: Sequence[Spent]) -> Spent:
    """Of several calls; a sum is known only if every part of it is."""
    return Spent(
        cost_usd=_sum([one.cost_usd for one in calls]),
        prompt_tokens=_whole(_sum([one.prompt_tokens for one in calls])),
        completion_tokens=_whole(_sum([one.completion_tokens for one in calls])),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return sum(known) if known and len(known) == len(values) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _with(total: Paid, one: Spent) -> Paid:
    counted = one.prompt_tokens is not None and one.completion_tokens is not None
    return Paid(
        proposals=total.proposals + 1,
        usd=total.usd + (one.cost_usd or 0.0),
        unpriced=total.unpriced + (one.cost_usd is None),
        prompt_tokens=total.prompt_tokens + (one.prompt_tokens or 0),
        completion_tokens=total.completion_tokens + (one.completion_tokens or 0),
        uncounted=total.uncounted + (not counted),
    )


@dataclass(kw_only=True)
class Account:
    """What the records of a run add up to, while they grow."""

    paid: Paid = field(default_factory=Paid)
    seconds: float = 0.0
    """Of all measurements."""
    measured: int = 0
    """Trials with any."""
    ideas: int = 0
    """Trials that tried something new."""

    def add(self, record: Record) -> None:
        """Take in one more record."""
        if record.agent not in FREE:
            self.paid = _with(self.paid, _spent(record))
        seconds = measured_seconds(record)
        self.seconds += seconds
        self.measured += seconds > 0
        self.ideas += record.verdict not in (Verdict.BASELINE, Verdict.REPEAT)

    def trial_seconds(self, otherwise: float | None = None) -> float | None:
        """What a trial takes: the mean of those that were measured, else `otherwise`."""
        return self.seconds / self.measured if self.measured else otherwise


def account(records: Iterable[Record]) -> Account:
    """Of all `records`."""
    found = Account()
    for record in records:
        found.add(record)
    return found


def _spent(record: Record) -> Spent:
    return Spent(cost_usd=record.cost_usd, prompt_tokens=record.prompt_tokens, completion_tokens=record.completion_tokens)


def measured_seconds(record: Record) -> float:
    """Wall seconds of all measurements of a trial, containers and copies included."""
    known = [one.seconds for one in record.measurements if one.seconds is not None]
    return math.fsum(known) if known else record.seconds.total or 0.0


def costs(spent: Account, waiting: Iterable[Spent] = (), *, gpu: bool, gpu_usd_per_hour: float | None) -> Costs:
    """What a run has cost: its records, and proposals that are `waiting`: under way, or come to nothing; `gpu`: it runs on one."""
    paid = spent.paid
    for one in waiting:
        paid = _with(paid, one)
    return Costs(paid=paid, gpu_hours=spent.seconds / HOUR if gpu else None, gpu_usd_per_hour=gpu_usd_per_hour if gpu else None)


def forecast(
    spent: Account,
    *,
    trials: int | None,
    hours: float | None,
    gpu: bool,
    gpu_usd_per_hour: float | None,
    asks: bool | None = None,
    baselines: int = 0,
    at_least: float | None = None,
) -> Forecast | None:
    """For so many more `trials` or `hours`, whichever ends first; None if neither is known in trials.

    `asks`: whether they are proposed by a model; None: as those before.  `baselines` are measured first.  `at_least`: seconds of a trial as long as none was measured.
    """
    seconds = spent.trial_seconds(at_least)
    fitting = None if hours is None or not seconds else math.ceil(hours * HOUR / seconds)
    counts = [one for one in (trials, fitting) if one is not None]
    if not counts:
        return None
    number = min(counts)
    paid = spent.paid
    if asks is False or (asks is None and not paid.proposals):
        each: float | None = 0.0
    elif paid.proposals == paid.unpriced:
        each = None
    else:
        # Of a hybrid's proposals most ask nobody, and are among these at 0.
        each = paid.usd / ((paid.proposals - paid.unpriced) if asks else spent.ideas)
    taken = None if seconds is None else (number + baselines) * seconds / HOUR
    return Forecast(
        trials=number,
        hours=taken,
        model_usd=None if each is None else number * each,
        gpu_usd=taken * gpu_usd_per_hour if gpu and taken is not None and gpu_usd_per_hour is not None else None,
        gpu=gpu,
    )


def _nowhere(_event: str, **_fields: Any) -> None:
    """For an invocation that keeps no journal."""


class Purse:
    """What one invocation may spend, and has spent; every call of a model goes through it.

    Of a trial that an earlier invocation began the GPU's seconds count here, and the proposal, which was paid for then, does not.
    """

    def __init__(
        self, limit: float | None = None, *, gpu_usd_per_hour: float | None = None, journal: Callable[..., None] = _nowhere
    ) -> None:
        """`limit` in dollars; None: whatever it costs.  `gpu_usd_per_hour`: None if there is no GPU, or no price.
        `journal` writes down an event with its fields.
        """
        self._limit, self._gpu, self._journal = limit, gpu_usd_per_hour, journal
        self._models, self._hours, self._dearest, self._next = 0.0, 0.0, 0.0, 0.0

    @property
    def limited(self) -> bool:
        """True if a cost that is not known could break the limit."""
        return self._limit is not None

    @property
    def spent(self) -> float:
        """Dollars, of models and of the GPU if that has a price."""
        return self._models + self._hours * (self._gpu or 0.0)

    def check(self, most: float | None) -> None:
        """Before a call that costs at most so many dollars; None: not known, then as much as the dearest so far.

        Raises `TooDearError` if that and the trial that follows could cost more than is left.
        """
        reason = self._refuse(self._dearest if most is None else most, "one more proposal")
        if reason is not None:
            raise TooDearError(reason)

    def pay(self, agent: str, spent: Spent) -> None:
        """After a call of `agent`, at once: what happens next is not known."""
        self._models += spent.cost_usd or 0.0
        self._dearest = max(self._dearest, spent.cost_usd or 0.0)
        self._journal("paid", agent=agent, cost_usd=spent.cost_usd, prompt_tokens=spent.prompt_tokens, completion_tokens=spent.completion_tokens)

    def expect(self, seconds: float | None) -> None:
        """So long the next trial will probably take."""
        self._next = (seconds or 0.0) / HOUR * (self._gpu or 0.0)

    def used(self, record: Record) -> None:
        """A trial was measured."""
        self._hours += measured_seconds(record) / HOUR

    def empty(self) -> str | None:
        """Why no further trial is begun, or None."""
        return self._refuse(0.0, "one more trial") if self._gpu else None

    def _refuse(self, most: float, what: str) -> str | None:
        needed = most + self._next
        if self._limit is None or (self.spent < self._limit and self.spent + needed <= self._limit):
            return None
        return f"${self.spent:.4f} of ${self._limit:g} are spent, and {what} could cost ${needed:.4f}"
