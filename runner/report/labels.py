"""Place labels in a plot so that none covers a mark, a line or another label; what finds no place is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

FONT = 9
CLEARANCE = 5.0
"""Pixels between a label and anything else."""
MOST = 16
_OFFSETS = [
    (side * dx, dy)
    for dy in (-14, 14, -30, 30, -48, 48, -70, 70, -95, 95)
    for dx in (8, 26, 60)
    for side in (-1, 1)
]
"""Where to try, in points from the mark: below first, because nothing lies below a new best score."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """Text that belongs to a point, in data coordinates."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def holds(self, other: _Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )

    def covers(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.bottom <= y <= self.top


def place_labels(axes: Axes, labels: Sequence[Label], obstacles: Sequence[tuple[float, float]]) -> None:
    """Draw as many of `labels` as fit, the first ones first, clear of `obstacles` (data coordinates)."""
    window = axes.get_window_extent()
    area = _Box(left=window.x0, bottom=window.y0, right=window.x1, top=window.y1 - 0.09 * window.height)
    points = [(float(x), float(y)) for x, y in axes.transData.transform(list(obstacles))] if obstacles else []
    taken: list[_Box] = []
    for label in labels:
        box = _place(axes, label, area, points, taken)
        if box is not None:
            taken.append(box)
        if len(taken) == MOST:
            return


def _place(
    axes: Axes, label: Label, area: _Box, points: Sequence[tuple[float, float]], taken: Sequence[_Box]
) -> _Box | None:
    for offset in _OFFSETS:
        drawn = _draw(axes, label, offset)
        box = _extent(drawn)
        free = area.holds(box) and not any(box.meets(other) for other in taken)
        if free and not any(box.covers(x, y) for x, y in points):
            return box
        drawn.remove()
    return None


def _draw(axes: Axes, label: Label, offset: tuple[float, float]) -> Annotation:
    return axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=offset,
        textcoords="offset points",
        ha="right" if offset[0] < 0 else "left",
        va="top" if offset[1] < 0 else "bottom",
        fontsize=FONT,
        color="#202124",
        parse_math=False,
        zorder=6,
        arrowprops={"arrowstyle": "-", "color": "#9aa0a6", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
    )


def _extent(drawn: Annotation) -> _Box:
    from matplotlib.text import Text

    box = Text.get_window_extent(drawn)
    return _Box(
        left=box.x0 - CLEARANCE,
        bottom=box.y0 - CLEARANCE,
        right=box.x1 + CLEARANCE,
        top=box.y1 + CLEARANCE,
    )
