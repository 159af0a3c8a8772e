from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge import Rule, judge, pooled_sigma
from runner.trial import Verdict

RULE = Rule(sigma_prior=0.003, sigma_prior_weight=4, tau=0.0005, k=2.0)


def test_a_gain_beyond_the_noise_is_kept() -> None:
    found = judge(1.60, [1.65, 1.652, 1.648], 0.003, RULE)

    assert found.verdict is Verdict.KEEP
    assert math.isclose(found.gain, 0.05)
    assert math.isclose(found.threshold, 2 * 0.003 * math.sqrt(1 + 1 / 3))


def test_a_gain_within_the_noise_is_not() -> None:
    assert judge(1.645, [1.65], 0.003, RULE).verdict is Verdict.DISCARD


def test_without_noise_the_smallest_gain_still_counts() -> None:
    assert judge(1.6496, [1.65], 0.0, RULE).verdict is Verdict.DISCARD
    assert judge(1.6494, [1.65], 0.0, RULE).verdict is Verdict.KEEP


def test_ties_never_move_the_branch() -> None:
    rule = Rule(sigma_prior=0.0, sigma_prior_weight=0, tau=0.0, k=2.0)

    assert judge(1.65, [1.65], 0.0, rule).verdict is Verdict.DISCARD


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_compares(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        judge(bad, [1.65], 0.003, RULE)
    with pytest.raises(ValueError, match="not finite"):
        judge(1.65, [bad], 0.003, RULE)


def test_sigma_is_the_prior_until_something_was_repeated() -> None:
    assert math.isclose(pooled_sigma(RULE, [[1.65]]), 0.003)


def test_sigma_pools_by_degrees_of_freedom() -> None:
    # Sample variance of the group is 1e-4 with 2 degrees of freedom, the prior's 9e-6 counts for 4.
    assert math.isclose(pooled_sigma(RULE, [[1.64, 1.65, 1.66]]), math.sqrt((4 * 9e-6 + 2 * 1e-4) / 6))


@given(st.lists(st.floats(0.5, 5), min_size=1, max_size=9), st.floats(0.5, 5), st.floats(0, 0.1))
def test_keeping_is_monotone_in_the_score(champion: list[float], score: float, sigma: float) -> None:
    if judge(score, champion, sigma, RULE).verdict is Verdict.KEEP:
        assert judge(score - 0.01, champion, sigma, RULE).verdict is Verdict.KEEP
