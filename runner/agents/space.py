"""The search space: which constants of train.py the tuner may change, and how far (`trainer/space.yaml`).

::

    constants:
      MATRIX_LR: {low: 0.005, high: 0.2, log: true}
      DEPTH: {low: 4, high: 24, int: true}
      TOTAL_BATCH_SIZE: {low: 2**14, high: 2**20, power_of_two: true}
      MODEL_DIM: {low: 256, high: 1024, multiple_of: HEAD_DIM}
      WINDOW_PATTERN: {choices: [SSSL, SSSSL, L]}
    presets:
      smoke:
        DEPTH: {high: 6}           # laid over the above, key by key
        TOTAL_BATCH_SIZE: null     # not changed under this preset

A person edits it; a constant that train.py does not have is skipped, so one file serves many trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.constants import NAME
from runner.errors import UsageError
from runner.fields import check_section, key, unknown_key
from runner.literals import Value
from runner.yamlfile import as_mapping, read_mapping, show


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """What one constant may be: a range of numbers, or a list of choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    """Steps are factors, not differences."""
    whole: bool = False
    step: float | None = None
    """Values lie on a grid that starts at `low`."""
    power_of_two: bool = False
    multiple_of: str | None = None
    """Name of the constant that this one must be a multiple of."""
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Written:
    """The keys of one constant in the file."""

    low: float | None = key(None)
    high: float | None = key(None)
    log: bool = key(default=False)
    int: bool = key(default=False)
    step: float | None = key(None, above=0)
    power_of_two: bool = key(default=False)
    multiple_of: str | None = key(None)


def load_space(path: Path, preset: str | None = None, where: str | None = None) -> dict[str, Dimension]:
    """The space in the file `path` under `preset`, by constant, in the file's order.

    `where` is how messages call the file.  Raises `UsageError` naming file and key.
    """
    where = where or f"{path.parent.name}/{path.name}"
    raw = read_mapping(path, where)
    for name in raw:
        if name not in ("constants", "presets"):
            raise unknown_key(where, "", name, ("constants", "presets"))
    merged = _constants(raw.get("constants"), where, "constants")
    presets = as_mapping(raw.get("presets") or {}, f"{where}: presets")
    changes = {name: _constants(value, where, f"presets.{name}") for name, value in presets.items()}
    labels = dict.fromkeys(merged, "constants")
    for name, change in changes.get(preset or "", {}).items():
        merged[name] = _laid_over(merged.get(name), change)
        labels[name] = f"presets.{preset}"
    return {
        name: _dimension(keys, f"{where}: {labels[name]}.{name}")
        for name, keys in merged.items()
        if keys is not None
    }


_Keys = dict[str, Any] | None


def _constants(raw: object, where: str, section: str) -> dict[str, _Keys]:
    checked: dict[str, _Keys] = {}
    for name, value in as_mapping(raw or {}, f"{where}: {section}").items():
        if not NAME.fullmatch(name):
            raise UsageError(f"{where}: {section}.{name}: a constant's name is in upper case")
        checked[name] = None if value is None else _keys(value, where, f"{section}.{name}.")
    return checked


def _keys(raw: object, where: str, prefix: str) -> dict[str, Any]:
    given = dict(as_mapping(raw, f"{where}: {prefix.removesuffix('.')}"))
    choices = given.pop("choices", None)
    checked = check_section(_Written, given, where, prefix)
    if choices is None:
        return checked
    if checked:
        raise UsageError(f"{where}: {prefix}choices: goes alone, not with {', '.join(checked)}")
    return {"choices": _choices(choices, f"{where}: {prefix}choices")}


def _choices(raw: object, label: str) -> tuple[Value, ...]:
    if not isinstance(raw, list) or len(raw) < 2:
        raise UsageError(f"{label}: must be a list of two or more values, not {show(raw)}")
    choices = tuple(tuple(item) if isinstance(item, list) else item for item in raw)
    for choice in choices:
        for item in choice if isinstance(choice, tuple) else (choice,):
            if not isinstance(item, int | float | str | bool):
                raise UsageError(
                    f"{label}: {show(item)} is not a number, text, true, false or a list of these"
                )
    if len({repr(choice) for choice in choices}) != len(choices):
        raise UsageError(f"{label}: a value comes twice")
    return choices


def _laid_over(base: _Keys, change: _Keys) -> _Keys:
    if base is None or change is None or "choices" in base or "choices" in change:
        return change
    return {**base, **change}


def _dimension(keys: Mapping[str, Any], label: str) -> Dimension:
    if "choices" in keys:
        return Dimension(choices=keys["choices"])
    written = _Written(**keys)
    if written.low is None or written.high is None:
        raise UsageError(f"{label}: give low and high, or choices")
    if written.low >= written.high:
        raise UsageError(f"{label}: low ({written.low:g}) must be below high ({written.high:g})")
    if written.log and written.low <= 0:
        raise UsageError(f"{label}: log needs a low above 0, not {written.low:g}")
    if written.step is not None and (written.log or written.power_of_two):
        raise UsageError(f"{label}: step does not go with log or power_of_two")
    whole = written.int or written.power_of_two or written.multiple_of is not None
    ends = (written.low, written.high, *([written.step] if written.step is not None else []))
    if whole and not all(end.is_integer() for end in ends):
        raise UsageError(f"{label}: low, high and step of a whole number must be whole")
    if written.power_of_two and not all(_is_power_of_two(end) for end in (written.low, written.high)):
        raise UsageError(f"{label}: low and high must be powers of two")
    return Dimension(
        low=written.low,
        high=written.high,
        log=written.log,
        whole=whole,
        step=written.step,
        power_of_two=written.power_of_two,
        multiple_of=written.multiple_of,
    )


def _is_power_of_two(value: float) -> bool:
    return value >= 1 and int(value) & (int(value) - 1) == 0
