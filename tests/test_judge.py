from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.judge import Case, Judgement, Next, Rule, Sample, judge
from runner.noise import Noise, student

SIGMA = 0.003
RULE = Rule(
    sigma_prior=SIGMA,
    sigma_prior_weight=4,
    tau=0.002,
    k=2.0,
    k_at_once=2.5,
    near=0.4,
    repeats=3,
    champion_measurements=8,
    quarantine=0.25,
    simpler_by=0.05,
    simpler_k=1.0,
)
SURE = 10_000
"""Degrees of freedom that make Student's law the normal one."""


def case(candidate: list[float], champion: list[float], sigma: float = SIGMA, best: list[float] | None = None) -> Case:
    return Case(
        candidate=Sample(tuple(candidate)),
        champion=Sample(tuple(champion)),
        best=Sample(tuple(best or champion)),
        noise=Noise(sigma=sigma, freedom=SURE),
        champion_tries=len(champion),
    )


def look(candidate: list[float], champion: list[float], sigma: float = SIGMA, rule: Rule = RULE) -> Judgement:
    return judge(case(candidate, champion, sigma), rule)


def test_a_clear_gain_is_kept_at_once() -> None:
    found = look([1.60], [1.65, 1.652, 1.648])

    assert found.next is Next.KEEP
    assert math.isclose(found.gain, 0.05)
    assert found.threshold == pytest.approx(2.5 * SIGMA * math.sqrt(1 + 1 / 3), rel=1e-3)
    assert found.reason == (
        "gain +0.05000 is more than the 0.00866 needed (2.5 standard errors of 0.00346); 1 measurement against 3 of the champion"
    )


def test_a_clear_loss_is_discarded_at_once() -> None:
    assert look([1.66], [1.65, 1.652, 1.648]).next is Next.DISCARD


def test_near_the_line_who_was_measured_less_often_is_measured_again() -> None:
    assert look([1.645], [1.65, 1.65, 1.65]).next is Next.REPEAT
    assert look([1.645], [1.65]).next is Next.REPEAT_CHAMPION
    assert look([1.645, 1.645], [1.65, 1.65]).next is Next.REPEAT_CHAMPION
    assert look([1.645, 1.645], [1.65, 1.65, 1.65]).next is Next.REPEAT


def test_once_repeated_fewer_standard_errors_are_enough() -> None:
    champion = [1.65] * 8
    error = SIGMA * math.sqrt(1 / 2 + 1 / 8)

    assert look([1.65 - 2.1 * error] * 2, champion).next is Next.KEEP
    assert look([1.65 - 1.9 * error] * 2, champion).next is Next.REPEAT


def test_after_three_repeats_the_means_decide() -> None:
    champion = [1.65] * 8
    error = SIGMA * math.sqrt(1 / 4 + 1 / 8)

    assert look([1.65 - 2.1 * error] * 4, champion).next is Next.KEEP
    assert look([1.65 - 1.9 * error] * 4, champion).next is Next.DISCARD


def test_no_measurement_is_left_out() -> None:
    # The unlucky one counts as much as the others.
    assert look([1.63, 1.63, 1.63, 1.71], [1.65] * 8).gain == pytest.approx(0.0)


def test_a_poorly_known_sigma_asks_for_more() -> None:
    sure, unsure = (
        judge(replace(case([1.64], [1.65] * 3), noise=Noise(sigma=SIGMA, freedom=freedom)), RULE).threshold
        for freedom in (SURE, 4)
    )

    assert unsure == pytest.approx(sure * student(2.5, 4) / 2.5, rel=1e-3)
    assert unsure > 1.3 * sure


def test_no_noise_at_all_needs_no_degrees_of_freedom() -> None:
    assert judge(replace(case([1.64], [1.65]), noise=Noise(sigma=0.0, freedom=0)), RULE).next is Next.KEEP


def test_a_champion_is_not_measured_without_end() -> None:
    tired = replace(case([1.645], [1.65]), champion_tries=8)

    assert judge(tired, RULE).next is Next.REPEAT


def test_without_noise_the_smallest_gain_still_counts() -> None:
    assert look([1.6481], [1.65], 0.0).next is not Next.KEEP
    assert look([1.6479], [1.65], 0.0).next is Next.KEEP


def test_ties_never_move_the_branch() -> None:
    rule = replace(RULE, tau=0.0)

    assert look([1.65], [1.65], 0.0, rule).next is Next.DISCARD


def test_what_a_liar_could_hide_is_not_enough() -> None:
    found = judge(replace(case([1.62], [1.65] * 3), detectable=0.04), RULE)

    assert found.next is not Next.KEEP
    assert found.threshold == 0.04
    assert "what an audit might miss" in found.reason


def test_the_audits_own_error_widens_the_line() -> None:
    sure = look([1.64], [1.65] * 3).threshold
    unsure = judge(replace(case([1.64], [1.65] * 3), candidate=Sample((1.64,), (0.004,))), RULE).threshold

    assert unsure == pytest.approx(2.5 * math.sqrt(SIGMA**2 * 4 / 3 + 0.004**2), rel=1e-3)
    assert unsure > sure


def test_an_implausible_gain_is_measured_again_and_then_kept_with_a_remark() -> None:
    assert look([1.3], [1.65] * 3).next is Next.REPEAT
    assert "implausibly large" in look([1.3], [1.65] * 3).reason
    again = look([1.3, 1.31], [1.65] * 3)
    assert again.next is Next.KEEP
    assert "quarantined" in again.reason
    assert look([1.3], [1.65] * 3, rule=replace(RULE, quarantine=None)).next is Next.KEEP


def test_an_implausible_gain_that_does_not_come_again_is_no_gain() -> None:
    assert look([1.3, 1.99], [1.65] * 3).next is not Next.KEEP


def test_less_code_that_is_no_worse_is_kept() -> None:
    smaller = replace(case([1.6505] * 4, [1.65] * 8), smaller=0.1, noise=Noise(sigma=0.001, freedom=9))

    found = judge(smaller, RULE)
    assert found.next is Next.KEEP
    assert found.reason.startswith("simplification: 10% less code, and not worse than the best so far")
    assert judge(replace(smaller, smaller=0.04), RULE).next is Next.DISCARD
    assert judge(replace(smaller, candidate=Sample((1.6525,) * 4)), RULE).next is Next.DISCARD


def test_less_code_is_measured_again_before_it_is_called_no_worse() -> None:
    assert judge(replace(case([1.651], [1.65] * 3), smaller=0.1), RULE).next is Next.REPEAT


def test_small_losses_of_simplifications_cannot_add_up() -> None:
    """Each is measured against the best so far, which the champion may be worse than."""
    best, score, kept = 1.65, 1.65, 0
    for _ in range(50):
        loss = score + 0.001
        one = replace(
            case([loss] * 4, [score] * 8, 0.0005, [best] * 8), smaller=0.1, noise=Noise(sigma=0.0005, freedom=9)
        )
        if judge(one, RULE).next is Next.KEEP:
            score, kept = loss, kept + 1
    assert kept == 1
    assert score <= best + RULE.tau


def test_a_metric_that_should_grow_is_kept_when_it_does() -> None:
    rule = replace(RULE, maximise=True)

    assert look([1.70], [1.65] * 3, rule=rule).next is Next.KEEP
    assert look([1.60], [1.65] * 3, rule=rule).next is Next.DISCARD
    assert look([1.70], [1.65] * 3, rule=rule).gain == pytest.approx(0.05)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_compares(bad: float) -> None:
    for odd in (case([bad], [1.65]), case([1.65], [bad]), case([1.65], [1.65], best=[bad])):
        with pytest.raises(ValueError, match="not finite"):
            judge(odd, RULE)


SCORES = st.floats(0.5, 5)


@given(st.lists(SCORES, min_size=1, max_size=9), st.lists(SCORES, min_size=1, max_size=4), st.floats(0, 0.1))
def test_keeping_is_monotone_in_the_score(champion: list[float], scores: list[float], sigma: float) -> None:
    rule = replace(RULE, quarantine=None)
    if look(scores, champion, sigma, rule).next is Next.KEEP:
        assert look([score - 0.01 for score in scores], champion, sigma, rule).next is Next.KEEP


@given(st.lists(SCORES, min_size=1, max_size=9), st.lists(SCORES, min_size=4, max_size=4), st.floats(0, 0.1))
def test_the_search_for_certainty_ends(champion: list[float], scores: list[float], sigma: float) -> None:
    tired = replace(case(scores, champion, sigma), champion_tries=RULE.champion_measurements)

    assert judge(tired, RULE).next in {Next.KEEP, Next.DISCARD}
