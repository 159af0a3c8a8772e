"""Pure: records as an agent is told them, with scores no finer than they are known.

Whoever sees a score to the last digit can search on the validation rows themselves, trial by trial; rounded to half of
its standard error it still says everything about the idea (docs/verdict.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from runner.trial import Record, Verdict


def told(records: Sequence[Record]) -> tuple[Record, ...]:
    """All records as an agent is told them."""
    return tuple(told_one(record) for record in records)


class Teller:
    """Tells the records of one run again and again; none of them changes, so each is made ready once."""

    def __init__(self) -> None:
        self._told: dict[int, Record] = {}

    def told(self, records: Sequence[Record]) -> tuple[Record, ...]:
        """What `told` gives."""
        for record in records:
            if record.trial not in self._told:
                self._told[record.trial] = told_one(record)
        return tuple(self._told[record.trial] for record in records)


def told_one(record: Record) -> Record:
    """One record as an agent is told it; the same each time, whatever is known about the noise by then.

    What broke a guard has no score from which anything should be learnt.
    """
    if record.val_bpb is None or record.guards_broken:
        return replace(record, val_bpb=None, gain=None, measurements=(), audit=None)
    step = _standard_error(record) / 2
    return replace(
        record,
        val_bpb=_rounded(record.val_bpb, step),
        gain=_rounded(record.gain, step),
        threshold=_rounded(record.threshold, step),
        charge=_rounded(record.charge, step),
        reason=_reason(record, step),
        measurements=(),
        audit=None,
    )


def _standard_error(record: Record) -> float:
    """Of the mean of the trial's measurements."""
    audit = record.audit.standard_error if record.audit else 0.0
    return math.sqrt((record.sigma or 0.0) ** 2 / max(len(record.measurements), 1) + audit**2)


def _rounded(value: float | None, step: float) -> float | None:
    if value is None or step <= 0:
        return value
    digits = max(0, 3 - math.floor(math.log10(step)))
    return round(round(value / step) * step, digits)


def _reason(record: Record, step: float) -> str:
    if record.gain is None or record.threshold is None:
        return record.reason
    gain, needed = _rounded(record.gain, step), _rounded(record.threshold, step)
    verb = "more than" if record.verdict is Verdict.KEEP and record.gain > record.threshold else "not more than"
    simpler = "; kept as a simplification" if record.verdict is Verdict.KEEP and verb == "not more than" else ""
    return f"gain {gain:+g} is {verb} the {needed:g} needed{simpler}"
