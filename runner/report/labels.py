"""Place labels in a plot so that none covers a mark, a line or another label; what finds no place is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.text import Annotation

FONT = 9
CLEARANCE = 5.0
"""Pixels between a label and anything else."""
MOST = 16
POINTS_PER_INCH = 72.0
_OFFSETS = [
    (side * dx, dy)
    for dy in (-14, 14, -30, 30, -48, 48, -70, 70, -95, 95)
    for dx in (8, 26, 60)
    for side in (-1, 1)
]
"""Where to try, in points from the mark: below first, because nothing lies below a new best score."""


_Points = npt.NDArray[np.float64]
"""[N, 2], or [2] for a single one; pixels."""


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

    def covers(self, points: _Points) -> npt.NDArray[np.bool_]:
        """Of each of `points`, whether it lies within."""
        x, y = points[:, 0], points[:, 1]
        return np.asarray((self.left <= x) & (x <= self.right) & (self.bottom <= y) & (y <= self.top))

    def cover(self, points: _Points) -> bool:
        """Whether any of `points` lies within."""
        return bool(self.covers(points).any())


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
        around = _extents(axes, renderer, label, mark)
        for offset in _OFFSETS:
            box = around(offset)
            if not area.holds(box) or any(box.meets(other) for other in taken) or box.cover(points):
                continue
            leader = _between(mark, box)
            if any(other.cover(leader) for other in taken) or _touches(mark, leader, points):
                continue
            _draw(axes, label, offset)
            taken.append(box)
            points = np.concatenate([points, leader])
            break


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> _Points:
    return np.asarray(axes.transData.transform(np.array(points, dtype=float).reshape(-1, 2)))


def _touches(mark: _Points, leader: _Points, points: _Points) -> bool:
    """Whether the leader runs through something, but for what lies close to its own mark."""
    far = leader[_distances(leader, mark) > 3 * CLEARANCE]
    if not len(far):
        return False
    low, high = far.min(axis=0) - CLEARANCE, far.max(axis=0) + CLEARANCE
    near = points[((points > low) & (points < high)).all(axis=1)]
    return any(bool((_distances(near, point) < CLEARANCE).any()) for point in far)


def _distances(points: _Points, to: _Points) -> _Points:
    return np.asarray(np.hypot(points[:, 0] - to[0], points[:, 1] - to[1]))


def _between(mark: _Points, box: _Box) -> _Points:
    """Points on the line that leads from the mark to the label, outside both."""
    middle = np.array([(box.left + box.right) / 2, (box.bottom + box.top) / 2])
    line = mark + (middle - mark) * (np.arange(3, 60) / 60)[:, None]
    return np.asarray(line[~box.covers(line)])


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


def _extents(axes: Axes, renderer: RendererBase, label: Label, mark: _Points) -> Callable[[tuple[float, float]], _Box]:
    """What the label takes at an offset from its mark, room around it included; its text is laid out only once."""
    from matplotlib.text import Text

    drawn = _draw(axes, label, _OFFSETS[0])
    drawn.update_positions(renderer)
    text = Text.get_window_extent(drawn, renderer)  # without its line
    drawn.remove()
    pixels = axes.figure.dpi / POINTS_PER_INCH

    def at(offset: tuple[float, float]) -> _Box:
        x, y = mark[0] + pixels * offset[0], mark[1] + pixels * offset[1]
        left = x - text.width if offset[0] < 0 else x
        bottom = y - text.height if offset[1] < 0 else y
        return _Box(
            left=left - CLEARANCE,
            bottom=bottom - CLEARANCE,
            right=left + text.width + CLEARANCE,
            top=bottom + text.height + CLEARANCE,
        )

    return at
