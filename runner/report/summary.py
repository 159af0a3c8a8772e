"""Pure: what the records of a run amount to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runner.trial import Record, Verdict


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The state of a run in numbers."""

    counts: dict[Verdict, int]
    baseline: float | None
    """Mean of the baseline's measurements."""
    sigma: float | None
    """Standard deviation of one measurement, as last estimated."""
    best: Record | None
    """The champion: the last kept trial, else the first baseline."""
    best_score: float | None
    """The champion's val_bpb; the baseline's mean as long as nothing was kept."""

    @property
    def trials(self) -> int:
        """Judged trials, baselines not counted."""
        return sum(count for verdict, count in self.counts.items() if verdict is not Verdict.BASELINE)


def summarise(records: Sequence[Record]) -> Summary:
    """Everything that tables, plots and `status` have in common."""
    baselines = [
        score
        for record in records
        if record.verdict is Verdict.BASELINE and (score := scored(record)) is not None
    ]
    kept = [record for record in records if record.verdict is Verdict.KEEP]
    firsts = [record for record in records if record.verdict is Verdict.BASELINE]
    baseline = math.fsum(baselines) / len(baselines) if baselines else None
    best = kept[-1] if kept else firsts[0] if firsts else None
    return Summary(
        counts={verdict: sum(record.verdict is verdict for record in records) for verdict in Verdict},
        baseline=baseline,
        sigma=next((record.sigma for record in reversed(records) if record.sigma is not None), None),
        best=best,
        best_score=scored(kept[-1]) if kept else baseline,
    )


def scored(record: Record) -> float | None:
    """The record's val_bpb, or None if it has none that can be compared."""
    return record.val_bpb if record.val_bpb is not None and math.isfinite(record.val_bpb) else None


def ranks(records: Sequence[Record]) -> dict[int, int]:
    """Place of every trial that has a score, 1 for the lowest, by trial number; equal scores share a place."""
    scores = sorted(score for record in records if (score := scored(record)) is not None)
    places = {score: place for place, score in reversed(list(enumerate(scores, 1)))}
    return {record.trial: places[score] for record in records if (score := scored(record)) is not None}
