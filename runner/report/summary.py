"""Pure: what the records of a run amount to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runner.trial import Record, Verdict

NO_IDEAS = (Verdict.BASELINE, Verdict.REPEAT)
"""Verdicts of measurements that try nothing new."""
UNJUDGED = (*NO_IDEAS, Verdict.ABANDONED)
AUDITED = "audited"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The state of a run in numbers."""

    counts: dict[Verdict, int]
    baseline: float | None
    """Mean of the baseline's measurements, those that were made of it as champion included."""
    sigma: float | None
    """Standard deviation of one measurement, as last estimated."""
    sigma_interval: tuple[float, float] | None
    """90 % interval of sigma."""
    best: Record | None
    """The champion: the last kept trial, else the first baseline."""
    best_score: float | None
    """Mean of all measurements of the champion."""
    score_level: str | None
    metric: str | None
    """What a reported score is; None: val_bpb."""
    maximise: bool
    """True if a higher score is better."""

    @property
    def trials(self) -> int:
        """Judged trials; baselines, champions measured again and what was abandoned not counted."""
        return sum(count for verdict, count in self.counts.items() if verdict not in UNJUDGED)

    @property
    def unverified(self) -> bool:
        """True if the run's scores are somebody's word."""
        return self.score_level is not None and self.score_level != AUDITED

    @property
    def name(self) -> str:
        """What the score is called."""
        return self.metric or "val_bpb"


def summarise(records: Sequence[Record]) -> Summary:
    """Everything that tables, plots and `status` have in common."""
    kept = [record for record in records if record.verdict is Verdict.KEEP]
    firsts = [record for record in records if record.verdict is Verdict.BASELINE]
    best = kept[-1] if kept else firsts[0] if firsts else None
    last = next((record for record in reversed(records) if record.sigma is not None), None)
    return Summary(
        counts={verdict: sum(record.verdict is verdict for record in records) for verdict in Verdict},
        baseline=tree_score(records, firsts[0]) if firsts else None,
        sigma=last.sigma if last else None,
        sigma_interval=last.sigma_interval if last else None,
        best=best,
        best_score=tree_score(records, best) if best else None,
        score_level=next((record.score_level for record in records if record.score_level), None),
        metric=next((record.metric for record in records if record.metric), None),
        maximise=any(record.maximise for record in records),
    )


def scored(record: Record) -> float | None:
    """The record's score, or None if it has none that can be compared."""
    return record.val_bpb if record.val_bpb is not None and math.isfinite(record.val_bpb) else None


def tree_score(records: Sequence[Record], of: Record) -> float | None:
    """Mean over every measurement of the tree that `of` measured."""
    scores: list[float] = []
    for record in records:
        score = scored(record)
        if record is of or (of.commit is not None and record.commit == of.commit):
            single = [one.val_bpb for one in record.measurements if one.val_bpb is not None]
            scores += [] if score is None else single or [score]
    return math.fsum(scores) / len(scores) if scores else None


def unverified(record: Record) -> bool:
    """True if the record has a score that is somebody's word."""
    return scored(record) is not None and record.score_level not in {None, AUDITED}


def ranks(records: Sequence[Record]) -> dict[int, int]:
    """Place of every trial that has a score, 1 for the best, by trial number; equal scores share a place.

    A champion that was measured again takes no place, nor does what broke a guard.
    """
    known = {
        record.trial: -score if record.maximise else score
        for record in records
        if record.verdict is not Verdict.REPEAT and not record.guards_broken and (score := scored(record)) is not None
    }
    places = {score: place for place, score in reversed(list(enumerate(sorted(known.values()), 1)))}
    return {trial: places[score] for trial, score in known.items()}
