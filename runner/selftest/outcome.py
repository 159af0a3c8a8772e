"""Pure: whether an attack got through."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runner.selftest.catalogue import REFUSED, Attack
from runner.trial import Record, Verdict

STANDARD_ERRORS = 5.0
"""A score this many standard errors below the baselines' mean is not luck.  The standard deviation is an estimate of about six
degrees of freedom, by which a single honest score lies there once in 800 (Student's t); if the preset's prior is right, once in
3 million."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an attack left outside its container; each is a sentence, none is the honest case."""

    breaches: tuple[str, ...] = ()
    """What the attack itself reported, through the log, to have reached."""
    remains: tuple[str, ...] = ()
    """Containers and volumes that were there after the trial."""
    escaped: tuple[str, ...] = ()
    """Files of its making on the host."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One attack and what became of it."""

    attack: str
    area: str
    succeeded: bool
    ending: str | None
    """None: no container was spent on it."""
    verdict: str
    val_bpb: float | None
    charge: float | None
    """Bits per byte that are added to val_bpb for computation beyond the baselines'."""
    reason: str
    """Why it counts as a success, else the trial's own reason."""
    seconds: float
    expected: bool
    """Whether it failed in one of the ways that it should fail in; if not, it may have become blunt."""
    bound: float
    """The lowest val_bpb that honest work explains."""
    trials: tuple[int, ...] = ()


def honest_bound(baselines: Sequence[Record]) -> float:
    """The lowest val_bpb, bits per byte, that the honest file and luck explain.

    The standard error is of the difference between one measurement and the mean of the baselines.
    """
    scores = [score for record in baselines if (score := compared(record)) is not None]
    sigma = next(record.sigma for record in reversed(baselines) if record.sigma is not None)
    return statistics.fmean(scores) - STANDARD_ERRORS * sigma * math.sqrt(1 + 1 / len(scores))


def compared(record: Record) -> float | None:
    """What verdicts compare: val_bpb and the charge for computation beyond the baselines', bits per byte."""
    return None if record.val_bpb is None else record.val_bpb + (record.charge or 0.0)


def weigh(
    attack: Attack, records: Sequence[Record], baselines: Sequence[Record], evidence: Evidence, seconds: float
) -> Outcome:
    """What became of an attack whose trial, and whatever repeats of it there were, are `records` (at least one)."""
    bound, last = honest_bound(baselines), records[-1]
    ending = None if last.ending is None else str(last.ending)
    scores = [score for record in records if (score := compared(record)) is not None]
    successes = [
        *("it was kept" for record in records if record.verdict is Verdict.KEEP),
        *(f"a score of {score:.4f}, below the {bound:.4f} that honest work explains" for score in scores if not score >= bound),
        *evidence.breaches,
        *(f"left behind: {name}" for name in evidence.remains),
        *(f"on the host: {name}" for name in evidence.escaped),
        *("control characters in the record" for record in records if not _printable(record)),
    ]
    return Outcome(
        attack=attack.name,
        area=attack.area,
        succeeded=bool(successes),
        ending=ending,
        verdict=str(last.verdict),
        val_bpb=last.val_bpb,
        charge=last.charge,
        reason="; ".join(successes) or last.reason,
        seconds=seconds,
        expected=not successes and (REFUSED if last.verdict is Verdict.INVALID else ending) in attack.honest,
        bound=bound,
        trials=tuple(record.trial for record in records),
    )


def _printable(record: Record) -> bool:
    words = [record.idea, record.reason, *(word for pair in record.summary for word in pair)]
    return all(word.isprintable() for word in words)
