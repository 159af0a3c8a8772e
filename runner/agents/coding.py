"""Pure parts of the tuner: constants as Optuna's parameters and back, and as coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping

from runner.agents.moves import ends, tidy
from runner.agents.space import Dimension
from runner.literals import Value, spell_value

EXPLAINED = {
    "perturbation": "A perturbation of the champion, drawn without looking at results:",
    "wide perturbation": "A wide perturbation of the champion, because what was drawn first had been tried:",
    "combination": "Near misses put together, since each may be a small gain that noise hid:",
    "estimator": "Drawn by a tree-structured Parzen estimator over {scored} scored trials:",
}
"""How a setting was drawn, for a proposal's rationale."""


def encode(dimension: Dimension, value: Value) -> float | str:
    """A value as a parameter: a power by its exponent, a choice by its spelling."""
    if dimension.choices:
        return spell_value(next(choice for choice in dimension.choices if choice == value))
    assert isinstance(value, int | float)
    if dimension.power_of_two:
        return round(math.log2(max(1, value)))
    return int(value) if dimension.whole else float(value)


def decode(dimension: Dimension, param: float | str, current: Value) -> Value:
    """The value that a parameter stands for; a power that rounds to the champion's odd value is that value."""
    if dimension.choices:
        return next(choice for choice in dimension.choices if spell_value(choice) == param)
    assert isinstance(param, int | float)
    if encode(dimension, current) == param:
        return current
    return tidy(dimension, 2.0**param if dimension.power_of_two else param)


def coordinates(dimensions: Mapping[str, Dimension], setting: Mapping[str, Value]) -> list[float]:
    """A setting as a point whose distance from another is measured in ranges: a number's place in its range, and for each choice
    a coordinate of its own, so that two different ones are one range apart.
    """
    point: list[float] = []
    for name, dimension in dimensions.items():
        value = setting[name]
        if dimension.choices:
            point += [math.sqrt(0.5) * (choice == value) for choice in dimension.choices]
            continue
        low, high = ends(dimension)
        assert isinstance(value, int | float)
        scale = math.log if dimension.log or dimension.power_of_two else float
        point.append((scale(value) - scale(low)) / (scale(high) - scale(low)))
    return point
