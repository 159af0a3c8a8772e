"""Pure parts of the tuner: constants as Optuna's parameters and back, and what is read from the ledger.

A kind of range is part of a parameter's name, because Optuna refuses a parameter that changes its kind: the
space file may be edited and the champion may change while a study goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

from runner.agents.moves import tidy
from runner.agents.space import Dimension
from runner.constants import find_constants
from runner.literals import Value, spell_value
from runner.trial import Record, Verdict

EXPLAINED = {
    "perturbation": "A perturbation of the champion, drawn without looking at results:",
    "wide perturbation": "A wide perturbation of the champion, because what was drawn first had been tried:",
    "estimator": "Drawn by a tree-structured Parzen estimator over {scored} scored trials:",
}
"""How a setting was drawn, for a proposal's rationale."""


def parameter(name: str, dimension: Dimension) -> str:
    """The constant's name in the study."""
    if dimension.choices:
        listed = json.dumps([spell_value(choice) for choice in dimension.choices])
        return f"{name}:choice-{hashlib.sha256(listed.encode()).hexdigest()[:6]}"
    if dimension.power_of_two:
        return f"{name}:power"
    return f"{name}:{'whole' if dimension.whole else 'real'}{'-log' if dimension.log else ''}"


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


def unspell(text: str) -> Value:
    """The value of a literal that `spell_value` wrote."""
    return find_constants(f"X = {text}")["X"].value


def champion_score(history: Sequence[Record]) -> float | None:
    """Mean of all measurements of the tree that the branch points at."""
    kept = [record.commit for record in history if record.verdict is Verdict.KEEP]
    baselines = [record.commit for record in history if record.verdict is Verdict.BASELINE]
    champion = (kept or baselines or [None])[-1]
    scores = [r.val_bpb for r in history if r.commit == champion and r.val_bpb is not None]
    return math.fsum(scores) / len(scores) if champion is not None and scores else None


def fingerprint(source: str) -> str:
    """Names a whole file: two proposals with the same one are the same."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]
