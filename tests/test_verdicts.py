from __future__ import annotations

import pytest

from runner.ledger import OpenTrial
from runner.measure import Measurement
from runner.records import measurement_to_json
from runner.settings import JudgeOptions
from runner.trial import Ending, Measured, Record, Seconds, Verdict
from runner.verdicts import Do, Step, champion_is_stale, champion_of, next_step, noise, rule_of, sample_of
from tests.records import baseline, record

OPTIONS = JudgeOptions(sigma_prior=0.003, sigma_prior_weight=4, tau=0.002, remeasure_champion_every=3)
RULE = rule_of(OPTIONS, maximise=False)
BASE = "b" * 40


def one(score: float | None, charge: float | None = None) -> tuple[Measured, ...]:
    return (Measured(seed=1, val_bpb=score, charge=charge),)


def scored(trial: int, verdict: Verdict, score: float, **more: object) -> Record:
    return record(trial, verdict, score, measurements=one(score), **more)


BASELINES = [baseline(number, 1.65, measurements=one(score)) for number, score in enumerate([1.65, 1.652, 1.648])]


def measurement(score: float | None, ending: Ending = Ending.FINISHED, **more: object) -> Measurement:
    return Measurement(ending=ending, reason="scored", val_bpb=score, seconds=Seconds(total=1.0), **more)  # type: ignore[arg-type]


def after(*measured: Measurement, confirmed: frozenset[int] = frozenset(), role: str = "") -> Step:
    event = {"trial": 9, "baseline": role == "baseline", "repeat": role == "repeat"}
    opened = OpenTrial(
        trial=9, proposed=event, measured=tuple(measurement_to_json(found) for found in measured), confirmed=confirmed
    )
    return next_step(opened, BASELINES, BASE, RULE, smaller=0.0)


def test_first_it_is_measured() -> None:
    assert (after().do, after().index) == (Do.MEASURE, 0)


def test_a_clear_gain_is_confirmed_and_then_kept() -> None:
    first = after(measurement(1.5))
    assert (first.do, first.index) == (Do.CONFIRM, 0)
    last = after(measurement(1.5), confirmed=frozenset([0]))
    assert (last.do, last.verdict) == (Do.CONCLUDE, Verdict.KEEP)


def test_what_is_near_the_line_is_measured_again() -> None:
    step = after(measurement(1.645))
    assert (step.do, step.index) == (Do.MEASURE, 1)


@pytest.mark.parametrize(
    ("role", "verdict"), [("baseline", Verdict.BASELINE), ("repeat", Verdict.REPEAT), ("", Verdict.DISCARD)]
)
def test_only_candidates_are_compared(role: str, verdict: Verdict) -> None:
    step = after(measurement(1.9), role=role)
    assert (step.do, step.verdict, step.judgement is None) == (Do.CONCLUDE, verdict, role != "")


@pytest.mark.parametrize(("role", "verdict"), [("baseline", Verdict.CRASH), ("", Verdict.DISCARD)])
def test_a_broken_guard_is_the_reason_and_makes_no_baseline(role: str, verdict: Verdict) -> None:
    step = after(measurement(1.1, guards_broken="size is 11, above 10"), role=role)
    assert (step.do, step.verdict, step.reason) == (Do.CONCLUDE, verdict, "size is 11, above 10")


def test_what_does_not_reproduce_is_not_kept() -> None:
    step = after(measurement(None, Ending.NOT_REPRODUCED), confirmed=frozenset([0]))
    assert (step.verdict, step.reason) == (Verdict.CRASH, "when it was confirmed: scored")


def test_charges_are_compared_and_slack_is_not() -> None:
    assert after(measurement(1.5, charge=0.2, slack=0.01)).verdict is Verdict.DISCARD
    kept = record(3, Verdict.KEEP, 1.6, measurements=one(1.6, charge=0.1))
    assert sample_of([*BASELINES, kept], kept.commit or "").scores == (1.6 + 0.1,)


def charged(score: float, charge: float) -> Measurement:
    return measurement(score, charge=charge, slack=0.01)


def test_a_charge_that_a_busy_machine_explains_is_looked_at_again() -> None:
    first = after(charged(1.6, 0.06))
    assert (first.do, first.index) == (Do.MEASURE, 1)
    assert "its charge decides" in first.reason
    assert after(charged(1.6, 0.06), charged(1.6, 0.001)).do is Do.CONFIRM
    assert after(charged(1.6, 0.2)).verdict is Verdict.DISCARD  # nothing honest explains so much
    assert after(charged(1.6, 0.06), *[charged(1.6, 0.05)] * RULE.repeats).verdict is Verdict.DISCARD


def test_who_computes_less_once_must_be_as_good_there() -> None:
    """More computation in all measurements but one would otherwise have the charge of that one."""
    more = [charged(1.6, 0.06)] * RULE.repeats
    assert after(*more, charged(1.65, 0.0)).verdict is Verdict.DISCARD
    assert after(*more, charged(1.6, 0.0)).do is Do.CONFIRM


def test_a_busy_machine_beside_the_baselines_makes_no_candidate_better() -> None:
    busy = [baseline(number, 1.65, measurements=one(1.65, charge=0.1)) for number in range(3)]
    again = record(3, Verdict.REPEAT, 1.65, commit=BASE, measurements=one(1.65, charge=0.2))
    assert sample_of([*busy, again], BASE).scores == (1.65,) * 4
    assert noise([*busy, again], RULE).sigma < RULE.sigma_prior


def test_the_champion_is_the_last_kept_one() -> None:
    records = [*BASELINES, scored(3, Verdict.KEEP, 1.6), scored(4, Verdict.DISCARD, 1.7), scored(5, Verdict.KEEP, 1.5)]
    assert champion_of(records, BASE) == records[5].commit
    assert champion_of(BASELINES, BASE) == BASE


def test_noise_is_learnt_from_every_repeat_but_not_from_what_is_not_believed() -> None:
    known = noise(BASELINES, RULE)
    assert known.freedom == 4 + 2
    twice = record(3, Verdict.DISCARD, 1.7, measurements=(*one(1.7), *one(1.71)))
    again = record(4, Verdict.REPEAT, 1.651, commit=BASE, measurements=one(1.651))
    liar = record(5, Verdict.CRASH, None, measurements=(*one(1.0), *one(2.0)))
    assert noise([*BASELINES, twice, again, liar], RULE).freedom == 4 + 3 + 1
    assert noise(BASELINES, RULE, [1.7, 1.71]).freedom == known.freedom + 1


def test_a_champion_is_stale_after_so_many_trials_that_used_a_container() -> None:
    later = [scored(number, Verdict.DISCARD, 1.7) for number in (3, 4, 5)]
    refused = record(6, Verdict.INVALID, None)
    assert champion_is_stale([*BASELINES, *later], BASE, OPTIONS)
    assert not champion_is_stale([*BASELINES, *later[:2], refused], BASE, OPTIONS)
    assert not champion_is_stale([*BASELINES, *later], BASE, JudgeOptions(remeasure_champion_every=0))
    assert not champion_is_stale([*BASELINES, *later], BASE, JudgeOptions(remeasure_champion_every=3, champion_measurements=3))
