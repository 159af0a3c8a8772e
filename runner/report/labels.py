"""Place labels in a plot so that none covers a mark, a line or another label; what finds no place is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
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


_Point = tuple[float, float]


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

    def covers(self, point: _Point) -> bool:
        return self.left <= point[0] <= self.right and self.bottom <= point[1] <= self.top


def place_labels(
    axes: Axes, renderer: RendererBase, labels: Sequence[Label], obstacles: Sequence[tuple[float, float]]
) -> None:
    """Draw as many of `labels` as fit, the first ones first, clear of `obstacles` (data coordinates)."""
    window = axes.get_window_extent()
    area = _Box(left=window.x0, bottom=window.y0, right=window.x1, top=window.y1 - 0.1 * window.height)
    points = _pixels(axes, obstacles)
    taken: list[_Box] = []
    for label in labels[:MOST]:
        mark = _pixels(axes, [(label.x, label.y)])[0]
        for offset in _OFFSETS:
            drawn = _draw(axes, label, offset)
            box = _extent(drawn, renderer)
            leader = _between(mark, box)
            covered = any(box.covers(point) for point in points) or any(box.meets(other) for other in taken)
            crossed = any(other.covers(point) for point in leader for other in taken) or _touches(
                mark, leader, points
            )
            if area.holds(box) and not covered and not crossed:
                taken.append(box)
                points += leader
                break
            drawn.remove()


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> list[_Point]:
    return [(float(x), float(y)) for x, y in axes.transData.transform(list(points))] if points else []


def _touches(mark: _Point, leader: Sequence[_Point], points: Sequence[_Point]) -> bool:
    """Whether the leader runs through something, but for what lies close to its own mark."""
    far = [point for point in leader if math.dist(point, mark) > 3 * CLEARANCE]
    return any(math.dist(point, other) < CLEARANCE for point in far for other in points)


def _between(mark: _Point, box: _Box) -> list[_Point]:
    """Points on the line that leads from the mark to the label, outside both."""
    (x, y), (to, up) = mark, ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
    line = [(x + (to - x) * part / 60, y + (up - y) * part / 60) for part in range(3, 60)]
    return [point for point in line if not box.covers(point)]


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


def _extent(drawn: Annotation, renderer: RendererBase) -> _Box:
    from matplotlib.text import Text

    drawn.update_positions(renderer)
    box = Text.get_window_extent(drawn, renderer)  # the text alone, without its line
    return _Box(
        left=box.x0 - CLEARANCE,
        bottom=box.y0 - CLEARANCE,
        right=box.x1 + CLEARANCE,
        top=box.y1 + CLEARANCE,
    )
