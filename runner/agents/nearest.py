"""Pure: what in a file is most like some lines.  It is shown to the model, and nothing is ever applied there."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher

from runner.agents.answer import quote

_MOST_LINES = 10
"""Lines that are compared, and shown."""
_LIKELY = 10
"""Places that are compared closely."""
_LIKE = 0.5
"""What is less like it is of no help."""


def nearest(search: list[str], lines: list[str]) -> str:
    """What to tell the model about lines that it searches for and that the file does not have."""
    size = min(len(search), len(lines))
    rough = [_likeness(wanted, lines, SequenceMatcher.quick_ratio) for wanted in search[: min(size, _MOST_LINES)]]
    starts = range(len(lines) - size + 1)
    likely = sorted(starts, key=lambda at: -sum(row[at + n] for n, row in enumerate(rough)))[:_LIKELY]
    scores = {at: _mean_likeness(search, lines[at : at + len(rough)]) for at in likely}
    best = max(likely, key=scores.__getitem__)
    if scores[best] < _LIKE:
        return "Nothing in the file is like it. Copy whole lines of the file as you were shown it."
    pairs = enumerate(zip(search, lines[best:], strict=False), best)
    differs, (wanted, line) = next(
        (pair for pair in pairs if pair[1][0] != pair[1][1].rstrip(" \t")), (best, (search[0], lines[best]))
    )
    first = max(best, differs - _MOST_LINES // 2)
    shown = [text if len(text) <= 200 else text[:200] + " [...]" for text in lines[first : best + size]]
    return (
        f"Line {differs + 1} of the file is {quote(line)}, where SEARCH has {quote(wanted)}. "
        "SEARCH takes whole lines, letter by letter, comments included. "
        f"The file has, from line {first + 1}:\n" + "\n".join(shown[:_MOST_LINES])
    )


def _mean_likeness(search: list[str], window: list[str]) -> float:
    pairs = zip(search, window, strict=False)
    ratios = [_likeness(wanted, [line], SequenceMatcher.ratio)[0] for wanted, line in pairs]
    return sum(ratios) / len(ratios)


def _likeness(wanted: str, lines: list[str], ratio: Callable[[SequenceMatcher[str]], float]) -> list[float]:
    """Of a line to each of these, 0 to 1; a line that is quoted in part is nearly the line."""
    matcher = SequenceMatcher(autojunk=False)
    wanted = wanted.strip()[:100]
    matcher.set_seq2(wanted)
    likeness = []
    for line in lines:
        text = line.strip()[:100]
        matcher.set_seq1(text)
        part = len(wanted) > 3 and wanted in text and wanted != text
        likeness.append(0.95 if part else ratio(matcher))
    return likeness
