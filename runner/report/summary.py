"""Pure: what the records of a run amount to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from runner.money import Account
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
    last: Record | None
    """The trial with the highest number."""
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


@dataclass(kw_only=True)
class Tally:
    """A summary while it grows: one record after another is added, in the order in which they were judged.

    What is measured under one commit is the trial that proposed it and, later, its repeats; so only the baseline's scores
    and the champion's have to be kept.
    """

    counts: Counter[Verdict] = field(default_factory=Counter)
    first: Record | None = None
    """The first baseline."""
    kept: Record | None = None
    """The trial with the highest number that was kept."""
    last: Record | None = None
    noted: Record | None = None
    """The last one with an estimate of the noise."""
    score_level: str | None = None
    metric: str | None = None
    maximise: bool = False
    account: Account = field(default_factory=Account)
    first_scores: list[float] = field(default_factory=list)
    kept_scores: list[float] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Take in one more record."""
        self.counts[record.verdict] += 1
        self.account.add(record)
        if self.first is None and record.verdict is Verdict.BASELINE:
            self.first = record
        if record.verdict is Verdict.KEEP and _later(record, self.kept):
            self.kept, self.kept_scores = record, []
        for of, scores in ((self.first, self.first_scores), (self.kept, self.kept_scores)):
            if of is not None and _same_tree(record, of):
                scores.extend(_scores(record))
        if _later(record, self.last):
            self.last = record
        if record.sigma is not None and _later(record, self.noted):
            self.noted = record
        self.score_level = self.score_level or record.score_level
        self.metric = self.metric or record.metric
        self.maximise = self.maximise or record.maximise

    def summary(self) -> Summary:
        """What all of them amount to."""
        return Summary(
            counts={verdict: self.counts[verdict] for verdict in Verdict},
            baseline=_mean(self.first_scores),
            sigma=self.noted.sigma if self.noted else None,
            sigma_interval=self.noted.sigma_interval if self.noted else None,
            best=self.kept or self.first,
            best_score=_mean(self.kept_scores if self.kept else self.first_scores),
            last=self.last,
            score_level=self.score_level,
            metric=self.metric,
            maximise=self.maximise,
        )


def tally(records: Iterable[Record]) -> Tally:
    """Of all `records`."""
    found = Tally()
    for record in records:
        found.add(record)
    return found


def summarise(records: Iterable[Record]) -> Summary:
    """Everything that tables, plots and `status` have in common."""
    return tally(records).summary()


def scored(record: Record) -> float | None:
    """The record's score, or None if it has none that can be compared."""
    return record.val_bpb if record.val_bpb is not None and math.isfinite(record.val_bpb) else None


def tree_scores(records: Sequence[Record], of: Sequence[Record]) -> list[float | None]:
    """For each record in `of` the mean over every measurement of the tree that it measured."""
    found: dict[str | int, list[float]] = {one.commit or one.trial: [] for one in of}
    for record in records:
        if (scores := found.get(record.commit or record.trial)) is not None:
            scores.extend(_scores(record))
    return [_mean(found[one.commit or one.trial]) for one in of]


def _same_tree(record: Record, of: Record) -> bool:
    return record is of or (of.commit is not None and record.commit == of.commit)


def _scores(record: Record) -> list[float]:
    """Of its measurements."""
    score = scored(record)
    return [] if score is None else [one.val_bpb for one in record.measurements if one.val_bpb is not None] or [score]


def _mean(scores: Sequence[float]) -> float | None:
    return math.fsum(scores) / len(scores) if scores else None


def _later(record: Record, than: Record | None) -> bool:
    return than is None or record.trial > than.trial


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
