from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from runner.compute import FIRST_CAP_SECONDS, Caps, caps, charge, computed, slack
from runner.settings import Budget
from runner.task import Task, load_task
from runner.trial import Compute, Ending, Record, Result, Seconds, Verdict

STEPS = Budget(steps=100, bpb_per_doubling=0.15, tolerance=0.01)
SECONDS = Budget(seconds=300, bpb_per_doubling=0.05, tolerance=0.005)


@pytest.fixture
def task() -> Task:
    return load_task(Path(__file__).parents[1], "smoke")


def used(train: float, claim: float = 4.0, audit: float = 10.0, startup: float = 5.0) -> Compute:
    return Compute(train=train, claim=claim, audit=audit, startup=startup)


def baseline(number: int, cpu: float, gpu: str | None = None) -> Record:
    return Record(
        trial=number,
        tag="t",
        commit="c",
        parent=None,
        agent="baseline",
        idea="baseline",
        verdict=Verdict.BASELINE,
        gpu=gpu,
        compute_seconds=used(cpu),
        seconds=Seconds(train=20.0 + number, claim=2.0, audit=4.0),
    )


BASE = used(50.0)


def test_the_same_computation_costs_nothing_and_less_earns_nothing() -> None:
    assert charge(STEPS, BASE, BASE) == 0
    assert charge(STEPS, used(20.0, 1.0, 2.0, 1.0), BASE) == 0
    assert charge(STEPS, used(50.0 * 1.01), BASE) == pytest.approx(0, abs=1e-12)


def test_twice_the_training_costs_what_it_is_worth() -> None:
    assert charge(STEPS, used(100.0), BASE) == pytest.approx(0.15 * math.log2(2 / 1.01))
    assert charge(STEPS, used(200.0), BASE) == pytest.approx(0.15 * math.log2(4 / 1.01))


def test_work_before_the_gates_costs_half_as_much_as_work_after_them() -> None:
    assert charge(STEPS, used(50.0, startup=105.0), BASE) == charge(STEPS, used(100.0), BASE)


def test_training_in_the_claim_is_charged_whatever_the_audit_saves() -> None:
    assert charge(STEPS, used(50.0, 54.0, 60.0), BASE) == charge(STEPS, used(100.0), BASE)
    assert charge(STEPS, used(50.0, 54.0, 1.0), BASE) == charge(STEPS, used(100.0), BASE)


def test_what_one_part_saves_another_may_use_and_no_more() -> None:
    assert charge(STEPS, used(40.0, 14.0), BASE) == 0
    assert charge(STEPS, used(40.0, 64.0), BASE) == charge(STEPS, used(100.0), BASE)


@pytest.mark.parametrize(("spent", "reference"), [(None, BASE), (BASE, None), (BASE, used(0.0))])
def test_what_is_not_known_is_not_charged(spent: Compute | None, reference: Compute | None) -> None:
    assert charge(STEPS, spent, reference) is None


def test_what_goes_uncharged_is_worth_less_than_one_sigma() -> None:
    for preset in ("smoke", "tiny", "h100", "24gb", "12gb", "8gb"):
        loaded = load_task(Path(__file__).parents[1], preset)
        assert slack(loaded.budget) < loaded.judge.sigma_prior, preset


def result(wall: float, cpu: float | None) -> Result:
    return Result(
        ending=Ending.FINISHED,
        reason="",
        startup_seconds=7.0,
        seconds=wall,
        cpu_seconds=cpu,
        startup_cpu_seconds=1.5,
    )


def test_a_budget_in_steps_counts_processor_seconds_and_one_in_seconds_the_wall() -> None:
    phases = {"train": result(10.0, 15.0), "claim": result(2.0, 3.0), "audit": result(4.0, 5.0)}

    assert computed(STEPS, **phases) == Compute(train=13.5, claim=1.5, audit=3.5, startup=3.0)
    assert computed(SECONDS, **phases) == Compute(train=10.0, claim=2.0, audit=4.0, startup=14.0)


def test_one_phase_that_the_engine_could_not_measure_makes_it_unknown() -> None:
    phases = {"train": result(10.0, 15.0), "claim": result(2.0, None), "audit": result(4.0, 5.0)}

    assert computed(STEPS, **phases) is None
    assert computed(SECONDS, **phases) is not None


def test_before_there_is_a_baseline_caps_are_wide_and_nothing_is_charged(task: Task) -> None:
    wide = FIRST_CAP_SECONDS
    found = caps(task, [])

    assert found == Caps(train=wide, claim=wide, audit=wide, counts_cpu=True)
    assert found.of("train").cpu_seconds is None


def test_caps_follow_the_median_baseline(task: Task) -> None:
    found = caps(task, [baseline(0, 40.0), baseline(1, 50.0), baseline(2, 90.0)])

    assert found.reference == used(50.0)
    assert found.of("train").cpu_seconds == 1.25 * (50.0 + 5.0) + 5.0
    assert found.of("audit", times=2.0).cpu_seconds == 2 * 1.25 * (10.0 + 5.0) + 5.0
    assert (found.train, found.claim, found.audit) == (4 * 21.0 + 10, 18.0, 26.0)


def test_a_baseline_is_not_charged_by_another(task: Task) -> None:
    assert caps(task, [baseline(0, 40.0), baseline(1, 50.0)]).reference is None


def test_claim_and_audit_are_tight_on_a_gpu(task: Task) -> None:
    found = caps(task, [baseline(number, 50.0, gpu="GPU-1") for number in range(3)])

    assert (found.claim, found.audit) == (3.5, 6.5)


def test_a_charge_grows_without_a_jump() -> None:
    steps = [charge(STEPS, used(spent), BASE) or 0.0 for spent in (50.4, 50.5, 50.6, 51.0, 52.0, 60.0)]

    assert steps == sorted(steps)
    assert max(later - former for former, later in itertools.pairwise(steps)) < 0.15 * math.log2(1.2)
