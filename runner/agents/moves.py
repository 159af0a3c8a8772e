"""Pure steps in a search space: what a constant may become, and what must hold between constants.

A *setting* maps every constant that is tuned to its value.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

from runner.agents.space import Dimension
from runner.constants import Constant
from runner.errors import UsageError
from runner.literals import Value, spell_value

TOTAL, DEVICE = "TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE"
"""One optimiser step takes whole forward passes: the first is a multiple of the second times a row's length."""
SHORTEST, LONGEST = 0.1, 0.3
"""A perturbation moves a constant by this part of its range."""

Setting = dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class Region:
    """The part of the space that the champion's file has, and where the champion stands in it."""

    dimensions: Mapping[str, Dimension]
    current: Mapping[str, Value]
    fixed: Mapping[str, Value]
    """Constants of the file that are not tuned but may bind those that are."""
    sequence_length: int


def region(space: Mapping[str, Dimension], constants: Mapping[str, Constant], sequence_length: int) -> Region:
    """The space over the champion's constants; ranges grow to hold the champion.

    Raises `UsageError` naming the constant if the space does not fit its type.
    """
    values = {name: constant.value for name, constant in constants.items()}
    found = {name: _fitted(name, space[name], values[name]) for name in space if name in values}
    return Region(
        dimensions=found,
        current={name: values[name] for name in found},
        fixed={name: value for name, value in values.items() if name not in found},
        sequence_length=sequence_length,
    )


def tidy(dimension: Dimension, value: float) -> float:
    """The nearest value that a person would write: on the grid, whole if it must be, else of three digits."""
    low, high = ends(dimension)
    if dimension.power_of_two:
        return 1 << round(math.log2(min(high, max(low, value))))
    if dimension.step is not None:
        value = low + round((value - low) / dimension.step) * dimension.step
        value = float(f"{value:.12g}")
    elif not dimension.whole:
        value = float(f"{value:.3g}")
    value = min(high, max(low, value))
    return round(value) if dimension.whole else value


def perturb(where: Region, chance: random.Random, *, count: int, reach: float = 1.0) -> Setting:
    """The champion's setting with `count` constants moved; `reach` stretches the steps."""
    setting = dict(where.current)
    names = list(where.dimensions)
    for name in chance.sample(names, min(count, len(names))):
        setting[name] = _moved(where.dimensions[name], setting[name], chance, reach)
    return repair(where, setting)


def repair(where: Region, setting: Mapping[str, Value]) -> Setting:
    """The nearest setting in which every multiple is one and the batch sizes divide."""
    repaired = dict(setting)
    for name, dimension in where.dimensions.items():
        unit = {**where.fixed, **repaired}.get(dimension.multiple_of or "")
        value = repaired[name]
        if isinstance(unit, int) and isinstance(value, int) and unit > 0:
            repaired[name] = _multiple(dimension, value, unit) or where.current[name]
    return _with_whole_batches(where, repaired)


def describe(before: Mapping[str, Value], after: Mapping[str, Value], limit: int | None = 72) -> str:
    """What changed, as in `MATRIX_LR 0.01 -> 0.027, WARMDOWN 0.5 -> 0.6`; what does not fit is counted."""
    changes = [
        f"{name} {spell_value(before[name])} -> {spell_value(value)}"
        for name, value in after.items()
        if before[name] != value
    ]
    for shown in range(len(changes), 0, -1):
        hidden = len(changes) - shown
        text = ", ".join(changes[:shown]) + (f" and {hidden} more" if hidden else "")
        if limit is None or len(text) <= limit:
            return text
    return (
        f"{len(changes)} constants" if len(changes) > 1 else (changes[0][: (limit or 72)] if changes else "")
    )


def ends(dimension: Dimension) -> tuple[float, float]:
    """Low and high of a range."""
    assert dimension.low is not None and dimension.high is not None  # noqa: PT018 - one fact
    return dimension.low, dimension.high


def _fitted(name: str, dimension: Dimension, value: Value) -> Dimension:
    if dimension.choices:
        kinds = {type(choice) for choice in dimension.choices}
        if type(value) not in kinds and not (isinstance(value, float) and int in kinds):
            raise UsageError(
                f"{name} is {spell_value(value)} in the champion's file, the space offers {dimension.choices[0]!r}"
            )
        known = any(choice == value for choice in dimension.choices)
        return dimension if known else replace(dimension, choices=(*dimension.choices, value))
    if isinstance(value, bool | str | tuple):
        raise UsageError(
            f"{name} is {spell_value(value)} in the champion's file, the space has a range of numbers for it"
        )
    low, high = ends(dimension)
    if isinstance(value, int) and not dimension.whole:
        low, high = math.ceil(low), math.floor(high)
    log = dimension.log and value > 0
    whole = dimension.whole or isinstance(value, int)
    return replace(dimension, low=min(low, value), high=max(high, value), log=log, whole=whole)


def _moved(dimension: Dimension, value: Value, chance: random.Random, reach: float) -> Value:
    if dimension.choices:
        return chance.choice([choice for choice in dimension.choices if choice != value])
    assert isinstance(value, int | float)
    way = chance.choice((-1, 1))
    size = chance.uniform(SHORTEST, LONGEST) * reach
    for sign in (way, -way):
        moved = tidy(dimension, _step(dimension, value, sign * size))
        if moved != value:
            return moved
    return value


def _step(dimension: Dimension, value: float, size: float) -> float:
    """`value` moved by the part `size` of the range, at least to the next value there is; clipped by `tidy`."""
    low, high = ends(dimension)
    if dimension.power_of_two:
        powers = max(1, round(abs(size) * math.log2(high / low)))
        return value * 2.0**powers if size > 0 else value / 2.0**powers
    moved = value * (high / low) ** size if dimension.log else value + size * (high - low)
    grain = dimension.step or (1 if dimension.whole else 0)
    return value + math.copysign(max(abs(moved - value), grain), size)


def _multiple(dimension: Dimension, value: int, unit: int) -> int | None:
    """The multiple of `unit` nearest to `value` within the range, or None."""
    low, high = ends(dimension)
    first, last = max(1, math.ceil(low / unit)), math.floor(high / unit)
    return None if first > last else min(last, max(first, round(value / unit))) * unit


def _with_whole_batches(where: Region, setting: Setting) -> Setting:
    total, device = ({**where.fixed, **setting}.get(name) for name in (TOTAL, DEVICE))
    if not (isinstance(total, int) and isinstance(device, int)) or min(total, device) < 1:
        return setting
    if total % (device * where.sequence_length) == 0:
        return setting
    if TOTAL in where.dimensions:
        fitting = _multiple(where.dimensions[TOTAL], total, device * where.sequence_length)
        if fitting is not None:
            return {**setting, TOTAL: fitting}
    return _with_device_batch(where, setting, total, device)


def _with_device_batch(where: Region, setting: Setting, total: int, device: int) -> Setting:
    """The rows of a pass nearest to `device` that divide the total; the champion's batch if there are none."""
    if DEVICE in where.dimensions and total % where.sequence_length == 0:
        low, high = ends(where.dimensions[DEVICE])
        rows = total // where.sequence_length
        sizes = range(max(1, int(low)), int(high) + 1)
        powers = where.dimensions[DEVICE].power_of_two
        fitting = [size for size in sizes if rows % size == 0 and not (powers and size & (size - 1))]
        if fitting:
            return {**setting, DEVICE: min(fitting, key=lambda size: abs(math.log(size / device)))}
    champions = {name: where.current[name] for name in (TOTAL, DEVICE) if name in where.current}
    return {**setting, **champions}
