from __future__ import annotations

import math

import pytest

from runner.noise import Z90, chi_square, pooled, student


def test_sigma_is_the_prior_until_something_was_repeated() -> None:
    assert math.isclose(pooled(0.003, 4, [[1.65], [1.5]]).sigma, 0.003)


def test_sigma_pools_by_degrees_of_freedom() -> None:
    # Sample variance of the group is 1e-4 with 2 degrees of freedom, the prior's 9e-6 counts for 4.
    found = pooled(0.003, 4, [[1.64, 1.65, 1.66], [1.2]])

    assert math.isclose(found.sigma, math.sqrt((4 * 9e-6 + 2 * 1e-4) / 6))
    assert found.freedom == 6


def test_every_repeated_file_counts() -> None:
    found = pooled(0.0, 0, [[1.0, 1.02], [2.0, 2.04, 2.02]])

    assert math.isclose(found.sigma, math.sqrt((2e-4 + 8e-4) / 3))


def test_without_a_prior_and_without_repeats_there_is_no_interval() -> None:
    found = pooled(0.003, 0, [[1.65]])

    assert (found.sigma, found.interval) == (0.0, None)


@pytest.mark.parametrize(
    ("freedom", "low", "high", "within"),
    [(4, 0.711, 9.488, 0.04), (6, 1.635, 12.592, 0.02), (12, 5.226, 21.026, 0.005), (30, 18.493, 43.773, 0.001)],
)
def test_quantiles_of_chi_square_are_those_of_the_tables(freedom: int, low: float, high: float, within: float) -> None:
    assert chi_square(Z90, freedom) == pytest.approx(high, rel=within)
    assert chi_square(-Z90, freedom) == pytest.approx(low, rel=within)


@pytest.mark.parametrize("freedom", [1, 2, 3])
def test_few_degrees_of_freedom_give_a_positive_quantile(freedom: int) -> None:
    assert 0 < chi_square(-Z90, freedom) < freedom < chi_square(Z90, freedom)


def test_the_interval_holds_sigma_and_shrinks() -> None:
    few, many = pooled(0.001, 4, []), pooled(0.001, 40, [])
    assert few.interval is not None
    assert many.interval is not None
    assert few.interval[0] < many.interval[0] < 0.001 < many.interval[1] < few.interval[1]
    # chi-square(4) at 5 % and 95 %: 0.711 and 9.488
    assert few.interval == pytest.approx((0.001 * math.sqrt(4 / 9.488), 0.001 * math.sqrt(4 / 0.711)), rel=0.02)


@pytest.mark.parametrize(
    ("freedom", "quantiles", "within"),
    [(4, (2.132, 2.776, 3.747, 4.604), 0.015), (6, (1.943, 2.447, 3.143, 3.707), 0.004), (30, (1.697, 2.042, 2.457, 2.750), 0.001)],
)
def test_quantiles_of_students_law_are_those_of_the_tables(
    freedom: int, quantiles: tuple[float, ...], within: float
) -> None:
    normal = (1.6449, 1.9600, 2.3263, 2.5758)

    assert [student(z, freedom) for z in normal] == pytest.approx(quantiles, rel=within)


def test_without_a_degree_of_freedom_nothing_is_sure() -> None:
    assert student(2.0, 0) == math.inf
    assert student(0.0, 0) == 0.0
