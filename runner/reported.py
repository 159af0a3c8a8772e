"""Pure: the metric that a command reports on its standard output, read strictly.

A line states a metric if it begins with the metric's name and then, after blanks at most, `:` or `=`.  Exactly one line
may state each metric, and nothing but one decimal number may follow.  Anything else gives no score: a parser that
takes the last of several lines, or the first number in one, is a parser that can be talked into a score by accident.

Nothing here shows that the number is true.  The command runs in the candidate's own container, and the level of such a
score is called `reported`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from runner.settings import Guard, ScoreOptions

SCORE_LEVEL = "reported"
LARGEST = 1e15
"""Beyond this, differences of scores and their squares lose their meaning long before a float overflows."""
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
_NOT_FINITE = re.compile(rb"(?i)[+-]?(?:nan|inf|infinity)")
_LONGEST = 64
"""Characters behind the `:`; what is longer is no number that somebody printed."""
_SHOWN = 40


class RefusedMetricError(Exception):
    """The output does not state the metric, or not once, or not as a number."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What the output states."""

    value: float
    """The metric, in its own unit and direction."""
    guards: tuple[tuple[str, float], ...]
    """The guard metrics, in the order of the task's file."""
    broken: str | None
    """Which guards are outside their bounds, in words; None if all hold."""


def parse(output: bytes, options: ScoreOptions) -> Metrics:
    """The metric and the guards that `options` names, from the whole standard output of one command.

    Raises `RefusedMetricError`; its text is plain words and printable ASCII.
    """
    assert options.metric is not None
    stated = _statements(output, {options.metric, *(guard.name for guard in options.guards)})
    values = {name: _only_value(name, found, output) for name, found in stated.items()}
    guards = tuple((guard.name, values[guard.name]) for guard in options.guards)
    return Metrics(value=values[options.metric], guards=guards, broken=_broken(options.guards, values))


def _statements(output: bytes, names: Iterable[str]) -> Mapping[str, list[re.Match[bytes]]]:
    """Every line that states one of `names`; group 2 is what stands behind `:` or `=`."""
    stated: dict[str, list[re.Match[bytes]]] = {name: [] for name in sorted(names)}
    either = b"|".join(re.escape(name.encode()) for name in stated)
    for match in re.finditer(rb"(?m)^(" + either + rb")[ \t]*[:=]([^\n]*)$", output):
        stated[match[1].decode()].append(match)
    return stated


def _only_value(name: str, found: list[re.Match[bytes]], output: bytes) -> float:
    if not found:
        raise RefusedMetricError(f"no line of the output states {name} (`{name}: NUMBER`, from the start of a line)")
    if len(found) > 1:
        first, second = (output.count(b"\n", 0, match.start()) + 1 for match in found[:2])
        raise RefusedMetricError(f"{len(found)} lines of the output state {name}, lines {first} and {second} first: it must be one")
    start, end = found[0].span(2)
    text = output[start : min(end, start + _LONGEST)].strip(b" \t\r")
    short = end - start <= _LONGEST
    if short and _NOT_FINITE.fullmatch(text):
        raise RefusedMetricError(f"{name} is {text.decode()}, which is not finite")
    if not short or not _NUMBER.fullmatch(text):
        raise RefusedMetricError(f"{name} is {_quoted(text)}, which is not one plain number")
    value = float(text)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise RefusedMetricError(f"{name} is {text.decode()}, beyond {LARGEST:g}")
    return value


def _broken(guards: Iterable[Guard], values: Mapping[str, float]) -> str | None:
    words = []
    for guard in guards:
        value = values[guard.name]
        if guard.low is not None and value < guard.low:
            words.append(f"{guard.name} is {value!r}, below {guard.low!r}")
        elif guard.high is not None and value > guard.high:
            words.append(f"{guard.name} is {value!r}, above {guard.high!r}")
    return f"outside its guard: {'; '.join(words)}" if words else None


def _quoted(text: bytes) -> str:
    """What a command printed, as it may stand in a message."""
    shown = text[:_SHOWN].decode("ascii", errors="replace")
    shown = "".join(letter if " " <= letter <= "~" else "?" for letter in shown)
    return f"'{shown}{'...' if len(text) > _SHOWN else ''}'"
