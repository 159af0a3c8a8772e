"""What a trial says of itself: shown to people, believed by nobody.  Anything odd is left out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.trial import Result

SUMMARY_KEYS = 32
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Told:
    """A training's own words."""

    summary: tuple[tuple[str, str], ...]
    losses: tuple[tuple[int, float], ...]
    """(step, training loss)."""
    steps: int | None
    tokens: int | None


def told_by(train: Result) -> Told:
    """Summary, loss curve, steps and tokens as the training tells them."""
    summary = _numbers(_json(train.output("summary.json")))
    told = _json(train.output("progress.json"))
    steps = summary.get("num_steps")
    millions = summary.get("total_tokens_M")
    tokens = told.get("tokens")
    if not _whole(tokens):
        tokens = round(millions * 1e6) if millions is not None and millions >= 0 else None
    return Told(
        summary=tuple((name, f"{value:g}") for name, value in summary.items()),
        losses=_curve(told.get("losses")),
        steps=int(steps) if steps is not None and steps >= 0 else None,
        tokens=tokens,
    )


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _numbers(value: dict[str, Any]) -> dict[str, float]:
    pairs = list(value.items())[:SUMMARY_KEYS]
    return {
        name[:40]: float(number)
        for name, number in pairs
        # A name that cannot be printed would end whatever shows it later.
        if name.isascii() and name.isidentifier() and isinstance(number, int | float) and not isinstance(number, bool) and _sane(number)
    }


def _curve(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, list):
        return ()
    points = [point for point in value[:CURVE_POINTS] if isinstance(point, list) and len(point) == 2]
    return tuple(
        (step, float(loss))
        for step, loss in points
        if _whole(step) and isinstance(loss, int | float) and _sane(loss)
    )


def _sane(number: float) -> bool:
    return -1e15 < number < 1e15


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15
