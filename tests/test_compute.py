from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from runner.compute import FIRST_CAP_SECONDS, Caps, caps, charge, computed, slack
from runner.settings import Budget
from runner.task import Task, load_task
from runner.trial import Ending, Record, Result, Seconds, Verdict

STEPS = Budget(steps=100, bpb_per_doubling=0.15, tolerance=0.01)
SECONDS = Budget(seconds=300, bpb_per_doubling=0.05, tolerance=0.005)


@pytest.fixture
def task() -> Task:
    return load_task(Path(__file__).parents[1], "smoke")


def baseline(number: int, cpu: float | None, gpu: str | None = None) -> Record:
    return Record(
        trial=number,
        tag="t",
        commit="c",
        parent=None,
        agent="baseline",
        idea="baseline",
        verdict=Verdict.BASELINE,
        gpu=gpu,
        compute_seconds=cpu,
        seconds=Seconds(train=20.0 + number, claim=2.0, audit=4.0),
    )


def test_the_same_computation_costs_nothing_and_less_earns_nothing() -> None:
    assert charge(STEPS, 50.0, 50.0) == 0
    assert charge(STEPS, 20.0, 50.0) == 0
    assert charge(STEPS, 50.0 * 1.01, 50.0) == pytest.approx(0, abs=1e-12)


def test_twice_the_computation_costs_what_it_is_worth() -> None:
    assert charge(STEPS, 101.0, 50.0) == pytest.approx(0.15)
    assert charge(STEPS, 202.0, 50.0) == pytest.approx(0.30)


@pytest.mark.parametrize(("used", "reference"), [(None, 50.0), (50.0, None), (50.0, 0.0)])
def test_what_is_not_known_is_not_charged(used: float | None, reference: float | None) -> None:
    assert charge(STEPS, used, reference) is None


def test_what_goes_uncharged_is_worth_less_than_one_sigma() -> None:
    for preset in ("smoke", "tiny", "h100", "24gb", "12gb", "8gb"):
        loaded = load_task(Path(__file__).parents[1], preset)
        assert slack(loaded.budget) < loaded.judge.sigma_prior, preset


def test_a_budget_in_steps_adds_processor_seconds_and_one_in_seconds_adds_the_wall() -> None:
    results = [Result(ending=Ending.FINISHED, reason="", seconds=10.0, cpu_seconds=15.0) for _ in range(3)]

    assert computed(STEPS, results) == 45.0
    assert computed(SECONDS, results) == 30.0


def test_one_phase_that_the_engine_could_not_measure_makes_the_sum_unknown() -> None:
    known = Result(ending=Ending.FINISHED, reason="", seconds=10.0, cpu_seconds=15.0)
    unknown = Result(ending=Ending.FINISHED, reason="", seconds=10.0)

    assert computed(STEPS, [known, unknown]) is None
    assert computed(SECONDS, [known, unknown]) == 20.0


def test_before_there_is_a_baseline_caps_are_wide_and_nothing_is_charged(task: Task) -> None:
    assert caps(task, []) == Caps(train=FIRST_CAP_SECONDS, claim=FIRST_CAP_SECONDS, audit=FIRST_CAP_SECONDS)


def test_caps_follow_the_median_baseline(task: Task) -> None:
    found = caps(task, [baseline(0, 40.0), baseline(1, 50.0), baseline(2, 90.0)])

    assert found.reference == 50.0
    assert found.cpu_seconds == 62.5
    assert (found.train, found.claim, found.audit) == (4 * 21.0 + 10, 18.0, 26.0)


def test_claim_and_audit_are_tight_on_a_gpu(task: Task) -> None:
    found = caps(task, [baseline(number, 50.0, gpu="GPU-1") for number in range(3)])

    assert (found.claim, found.audit) == (3.5, 6.5)


def test_what_one_phase_used_is_not_left_for_the_next() -> None:
    known = Caps(train=100.0, claim=10.0, audit=10.0, cpu_seconds=60.0)

    assert known.of("train").cpu_seconds == 60.0
    assert known.of("claim", 45.0).cpu_seconds == 15.0
    assert known.of("audit", 59.9).cpu_seconds == 1.0
    assert known.of("audit", times=2.0).seconds == 20.0


def test_a_charge_grows_without_a_jump() -> None:
    steps = [charge(STEPS, used, 50.0) or 0.0 for used in (50.4, 50.5, 50.6, 51.0, 52.0, 60.0)]

    assert steps == sorted(steps)
    assert max(later - former for former, later in itertools.pairwise(steps)) < 0.15 * math.log2(1.2)
