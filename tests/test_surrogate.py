"""Predictions of scores, against functions that are known."""

from __future__ import annotations

import math
import random

import pytest

from runner.agents.coding import coordinates
from runner.agents.space import Dimension
from runner.agents.surrogate import FEWEST, predict


def bowl(point: list[float]) -> float:
    return 1.5 + 0.1 * sum((value - 0.4) ** 2 for value in point)


def drawn(number: int, seed: int = 1, size: int = 3) -> list[list[float]]:
    draw = random.Random(seed)
    return [[draw.random() for _ in range(size)] for _ in range(number)]


def test_too_little_is_not_made_more_of() -> None:
    points = drawn(FEWEST)
    assert predict(points[1:], [bowl(point) for point in points[1:]], points[0], noise=0.001) is None
    assert predict(points, [1.5] * FEWEST, points[0], noise=0.001) is None
    assert predict(points, [bowl(point) for point in points], points[0], noise=0.001) is not None


def test_a_smooth_function_is_found_within_what_is_said_of_it() -> None:
    known, asked = drawn(40), drawn(200, seed=2)
    scores = [bowl(point) for point in known]
    errors = []
    for point in asked:
        found = predict(known, scores, point, noise=0.0005)
        assert found is not None
        assert found.points == 40
        errors.append((found.mean - bowl(point)) / found.standard_deviation)
    assert sum(abs(error) < 2 for error in errors) > 0.9 * len(errors)
    assert max(abs(error) for error in errors) < 6


def test_far_from_everything_nothing_is_known() -> None:
    known = drawn(20)
    scores = [bowl(point) for point in known]
    near, far = predict(known, scores, known[0], noise=0.001), predict(known, scores, [50.0] * 3, noise=0.001)
    assert near is not None
    assert far is not None
    assert near.standard_deviation < 0.01 < far.standard_deviation
    assert far.mean == pytest.approx(sum(scores) / len(scores))


def test_noise_alone_is_not_taken_for_a_valley() -> None:
    draw = random.Random(3)
    known = drawn(30)
    scores = [1.5 + draw.gauss(0, 0.01) for _ in known]
    lucky = min(range(30), key=scores.__getitem__)
    found = predict(known, scores, known[lucky], noise=0.01)
    assert found is not None
    assert abs(found.mean - 1.5) < abs(scores[lucky] - 1.5)


def test_coordinates_are_parts_of_the_ranges() -> None:
    dimensions = {
        "LR": Dimension(low=0.01, high=1.0, log=True), "DEPTH": Dimension(low=2, high=6, whole=True),
        "BATCH": Dimension(low=2**8, high=2**12, power_of_two=True, whole=True), "PATTERN": Dimension(choices=("L", "SL", "SSL")),
    }  # fmt: skip
    point = coordinates(dimensions, {"LR": 0.1, "DEPTH": 3, "BATCH": 2**9, "PATTERN": "SL"})
    other = coordinates(dimensions, {"LR": 0.1, "DEPTH": 3, "BATCH": 2**9, "PATTERN": "L"})
    assert point == pytest.approx([0.5, 0.25, 0.25, 0.0, math.sqrt(0.5), 0.0])
    assert math.dist(point, other) == pytest.approx(1.0)
