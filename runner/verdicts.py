"""Pure: what a trial of a run needs next, from the records so far and from what was measured of it.

Everything is read off the journal each time that it is asked for, so a run that was killed goes on where it was.

What is compared is val_bpb with its charge.  A busy machine adds to processor seconds and never takes from them, so of several
measurements of a file the smallest charge is the nearest to what it computes.  A champion has that one, and the baseline, which
others are charged against, has none.  A candidate whose charge alone costs it the keep is measured again; it has its smallest
charge too, but then it must also be good where it computed least, or it could compute more in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from runner.judge import Case, Judgement, Next, Rule, Sample, judge
from runner.ledger import OpenTrial
from runner.measure import Measurement
from runner.noise import Noise, pooled
from runner.records import brief, has_score, measurements_of
from runner.settings import JudgeOptions
from runner.trial import Ending, Measured, Record, Verdict

NOISE_IN_SLACKS = 15.0
"""Charges up to so many slacks were seen on honest work beside busy neighbours (docs/score.md)."""
UNJUDGED = (Verdict.CRASH, Verdict.INVALID, Verdict.ABANDONED)
"""Verdicts whose scores, if there are any, are not believed."""


SETS_THE_MARK = "the mark that every candidate is measured against"
KNOWN_BETTER = "one more measurement of the champion: the mean of all of them counts"


class Do(StrEnum):
    """What the loop can do for a trial."""

    MEASURE = "measure"
    CONFIRM = "confirm"
    MEASURE_CHAMPION = "measure the champion"
    CONCLUDE = "conclude"


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a trial needs next."""

    do: Do
    index: int = 0
    """Which measurement is made or confirmed."""
    reason: str = ""
    verdict: Verdict | None = None
    """If it is concluded."""
    judgement: Judgement | None = None


def rule_of(options: JudgeOptions, *, maximise: bool) -> Rule:
    """The rule that a task's options make."""
    return Rule(
        sigma_prior=options.sigma_prior,
        sigma_prior_weight=options.sigma_prior_weight,
        tau=options.tau,
        k=options.k,
        k_at_once=options.k_at_once,
        near=options.near,
        repeats=options.repeats,
        champion_measurements=options.champion_measurements,
        quarantine=options.quarantine,
        simpler_by=options.simpler_by,
        simpler_k=options.simpler_k,
        maximise=maximise,
    )


def next_step(opened: OpenTrial, records: Sequence[Record], base: str, rule: Rule, *, smaller: float) -> Step:
    """What the trial `opened` needs next.

    `base` is the baseline's commit, `smaller` the part of the champion's code that the candidate does without.
    """
    measured = measurements_of(opened)
    if not measured:
        return Step(do=Do.MEASURE)
    repeat = bool(opened.proposed.get("repeat"))
    for index, one in enumerate(measured):
        if not has_score(one):
            return Step(do=Do.CONCLUDE, verdict=_without_score(one, repeat=repeat), reason=_failure(opened, index, one))
    broken = next((one.guards_broken for one in measured if one.guards_broken), None)
    if opened.proposed["baseline"] and broken is not None:
        # Within bounds that the unmodified file breaks there is nothing to search for.
        return Step(do=Do.CONCLUDE, verdict=Verdict.CRASH, reason=broken)
    if repeat or opened.proposed["baseline"]:
        verdict = Verdict.REPEAT if repeat else Verdict.BASELINE
        return Step(do=Do.CONCLUDE, verdict=verdict, reason=SETS_THE_MARK if verdict is Verdict.BASELINE else KNOWN_BETTER)
    if broken is not None:
        return Step(do=Do.CONCLUDE, verdict=Verdict.DISCARD, reason=broken)
    case = _case(measured, records, base, rule, smaller)
    found = judge(case, rule)
    if found.next is Next.DISCARD and len(measured) <= rule.repeats and _may_be_noise(measured):
        free = replace(case, candidate=Sample(scores=_scores(measured), errors=case.candidate.errors))
        if judge(free, rule).next is not Next.DISCARD:
            return Step(do=Do.MEASURE, index=len(measured), reason=f"{found.reason}; its charge decides, so it is measured again", judgement=found)
    return _after(found, opened, measured)


def _after(found: Judgement, opened: OpenTrial, measured: Sequence[Measurement]) -> Step:
    match found.next:
        case Next.REPEAT:
            return Step(do=Do.MEASURE, index=len(measured), reason=found.reason, judgement=found)
        case Next.REPEAT_CHAMPION:
            return Step(do=Do.MEASURE_CHAMPION, reason=found.reason, judgement=found)
        case Next.DISCARD:
            return Step(do=Do.CONCLUDE, verdict=Verdict.DISCARD, reason=found.reason, judgement=found)
    for index in range(len(measured)):
        if index not in opened.confirmed:
            return Step(do=Do.CONFIRM, index=index, reason=found.reason, judgement=found)
    audited = all(one.audit is not None for one in measured)
    reason = f"{found.reason}; confirmed by a second audit" if audited else found.reason
    return Step(do=Do.CONCLUDE, verdict=Verdict.KEEP, reason=reason, judgement=found)


def with_verdict(record: Record, step: Step, noise: Noise) -> Record:
    """The record with what the last step says."""
    assert step.verdict is not None
    record = replace(record, verdict=step.verdict, reason=step.reason)
    if record.val_bpb is None:
        return record
    record = replace(record, sigma=noise.sigma, sigma_interval=noise.interval)
    if step.judgement is None:
        return record
    return replace(record, gain=step.judgement.gain, threshold=step.judgement.threshold)


def noise(records: Sequence[Record], rule: Rule, more: Sequence[float] = ()) -> Noise:
    """Of one measurement: the prior, and everything that was measured more than once; `more` are scores of one more file."""
    trees: dict[str | None, list[Record]] = {}
    for record in records:
        if record.verdict not in UNJUDGED:
            trees.setdefault(record.commit, []).append(record)
    # Most of many thousands were measured once, which says nothing about the noise.
    again = [tree for tree in trees.values() if len(tree) > 1 or len(tree[0].measurements) > 1]
    groups = [[one.val_bpb for record in tree for one in record.measurements if one.val_bpb is not None] for tree in again]
    return pooled(rule.sigma_prior, rule.sigma_prior_weight, [group for group in (*groups, list(more)) if group])


def sample_of(records: Sequence[Record], commit: str) -> Sample:
    """Every score of the tree `commit`."""
    measured = [
        one
        for record in records
        if record.commit == commit and record.verdict not in UNJUDGED
        for one in record.measurements
    ]
    baseline = any(record.verdict is Verdict.BASELINE and record.commit == commit for record in records)
    charges = [one.charge for one in measured if one.val_bpb is not None and one.charge is not None]
    least = 0.0 if baseline else min(charges, default=0.0)
    return _sample(measured, lambda _: least)


def champion_of(records: Sequence[Record], base: str) -> str:
    """The commit that the branch should be at."""
    return next((record.commit for record in reversed(records) if record.verdict is Verdict.KEEP and record.commit), base)


def champion_is_stale(records: Sequence[Record], base: str, options: JudgeOptions) -> bool:
    """True if the champion was not measured for so long that it is time to do so."""
    champion = champion_of(records, base)
    if not options.remeasure_champion_every or _tries(records, champion) >= options.champion_measurements:
        return False
    last = max(record.trial for record in records if record.commit == champion)
    later = [record for record in records if record.trial > last and record.verdict is not Verdict.INVALID]
    return len(later) >= options.remeasure_champion_every


def _case(measured: Sequence[Measurement], records: Sequence[Record], base: str, rule: Rule, smaller: float) -> Case:
    champion = champion_of(records, base)
    champions = [base, *(record.commit for record in records if record.verdict is Verdict.KEEP and record.commit)]
    trees = _trees(records, champions)
    samples = [sample_of(trees[commit], commit) for commit in champions]
    best = (max if rule.maximise else min)(samples, key=lambda sample: sample.mean)
    told = [brief(one, confirmed=False) for one in measured]
    added = _least_charge(measured) + _worse_where_least_was_computed(measured)
    candidate = _sample(told, lambda _: added)
    detectable = [one.audit.detectable_blind for one in measured if one.audit is not None]
    return Case(
        candidate=candidate,
        champion=sample_of(trees[champion], champion),
        best=best,
        noise=noise(records, rule, _sample(told, lambda _: 0.0).scores),
        champion_tries=_tries(records, champion),
        detectable=max(detectable, default=0.0),
        smaller=smaller,
    )


def _trees(records: Sequence[Record], commits: Sequence[str]) -> dict[str, list[Record]]:
    """The records of each of `commits`, in one pass: a long run has many thousands, and a hundred champions."""
    found: dict[str, list[Record]] = {commit: [] for commit in commits}
    for record in records:
        if record.commit in found:
            found[record.commit].append(record)
    return found


def _scores(measured: Sequence[Measurement]) -> tuple[float, ...]:
    return tuple(one.val_bpb for one in measured if one.val_bpb is not None)


def _least_charge(measured: Sequence[Measurement]) -> float:
    return min((one.charge or 0.0 for one in measured if one.val_bpb is not None), default=0.0)


def _may_be_noise(measured: Sequence[Measurement]) -> bool:
    """Whether a busy machine explains the smallest charge."""
    slack = max((one.slack or 0.0 for one in measured), default=0.0)
    return 0 < _least_charge(measured) <= NOISE_IN_SLACKS * slack


def _worse_where_least_was_computed(measured: Sequence[Measurement]) -> float:
    """By how much the score with the smallest charge is worse than the mean; 0 if it is better, or nothing was charged."""
    known = [(one.charge, one.val_bpb) for one in measured if one.val_bpb is not None and one.charge is not None]
    if len(known) < 2:
        return 0.0
    least = min(charge for charge, _ in known)
    score = max(score for charge, score in known if charge == least)
    return max(0.0, score - sum(score for _, score in known) / len(known)) if any(charge > 0 for charge, _ in known) else 0.0


def _sample(measured: Sequence[Measured], charge: Callable[[Measured], float]) -> Sample:
    known = [(one.val_bpb + charge(one), one.standard_error) for one in measured if one.val_bpb is not None]
    return Sample(
        scores=tuple(score for score, _ in known),
        errors=tuple(error for _, error in known if error is not None),
    )


def _tries(records: Sequence[Record], commit: str) -> int:
    return sum(max(len(record.measurements), 1) for record in records if record.commit == commit)


def _without_score(measured: Measurement, *, repeat: bool) -> Verdict:
    if measured.ending is Ending.INVALID_ENVIRONMENT:
        return Verdict.ABANDONED
    return Verdict.REPEAT if repeat else Verdict.CRASH


def _failure(opened: OpenTrial, index: int, measured: Measurement) -> str:
    if index in opened.confirmed:
        return f"when it was confirmed: {measured.reason}"
    return measured.reason if index == 0 else f"measurement {index + 1}: {measured.reason}"
