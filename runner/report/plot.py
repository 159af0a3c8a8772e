"""The progress plot of a run, as a PNG: every trial a mark, the kept ones named, the champion's score as a line.

Drawn with matplotlib's object interface on Agg: no display, no global state.
"""

from __future__ import annotations

import gc
import io
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from runner.report.files import replace_file
from runner.report.labels import Label, place_labels
from runner.report.reference import Reference, Steps, champion_steps
from runner.report.summary import Summary, scored, summarise
from runner.report.text import plain
from runner.trial import Record, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

INCHES, DPI = (12.0, 6.5), 110
GREY, GREEN, RED, ORANGE = "#9aa0a6", "#00875a", "#c5221f", "#e37400"
BLUE, LIGHT, INK, PURPLE = "#1a56b0", "#7aa5e8", "#202124", "#8430ce"
LABEL_WIDTH = 34
LEGEND_WIDTH = 135
"""Letters, and what stands before each name, that fit below the picture in one row."""
ROOM = 3.0
"""Discarded trials are drawn to scale up to this many times the whole gain on the worse side of the baseline."""


@dataclass(frozen=True, kw_only=True)
class _Style:
    name: str
    verdict: Verdict
    marker: str
    size: float
    color: str
    above: float


_STYLES = (
    _Style(name="baseline", verdict=Verdict.BASELINE, marker="D", size=44, color=BLUE, above=4),
    _Style(name="champion again", verdict=Verdict.REPEAT, marker="d", size=20, color=LIGHT, above=3.5),
    _Style(name="discarded", verdict=Verdict.DISCARD, marker="o", size=30, color=GREY, above=3),
    _Style(name="kept", verdict=Verdict.KEEP, marker="o", size=64, color=GREEN, above=5),
)


@dataclass(frozen=True, kw_only=True)
class _Scale:
    low: float
    edge: float
    """The worst score that is drawn to scale."""
    high: float
    """Leaves a strip beyond `edge` for what has no place on the scale; upside down if higher is better."""
    worse: int
    """1 if worse scores are higher, else -1."""

    def beyond(self, score: float) -> bool:
        """True if `score` is too bad to be drawn to scale."""
        return self.worse * (score - self.edge) > 0

    def within(self, score: float) -> float:
        """`score`, or the edge if it is beyond that."""
        return self.edge if self.beyond(score) else score


def draw_progress(records: Sequence[Record], path: Path, *, tag: str, reference: Reference | None = None) -> None:
    """Draw all `records` to the PNG file `path`, replacing it at once; `reference` is another run's line.  Raises `StateError`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # An idea may hold letters that the font does not have; a box in their place will do.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        _draw(figure, canvas, records, plain(tag, 40), reference)
        buffer = io.BytesIO()
        canvas.print_figure(buffer, format="png")
    del figure, canvas
    gc.collect()  # a figure is a ring of references: left to the collector's own pace, 50 MB of old ones stay
    replace_file(path, buffer.getvalue())


def _draw(
    figure: Figure, canvas: FigureCanvasAgg, records: Sequence[Record], tag: str, reference: Reference | None
) -> None:
    summary = summarise(records)
    axes = figure.add_subplot()
    # Only as far as this run went: the line is there to be compared with.
    other = champion_steps(reference.records, last=float(records[-1].trial)) if reference is not None and records else []
    scale = _scale(records, summary, [score for _, score in other])
    _frame(axes, records, summary, scale)
    _band(axes, summary)
    _marks(axes, records, scale)
    _line(axes, champion_steps(records), "champion", GREEN)
    if reference is not None:
        _line(axes, other, f"champion of {plain(reference.tag, 24)}", PURPLE, dashed=True)
    axes.set_title(_title(summary, tag), loc="left", fontsize=13, color=INK, pad=12, parse_math=False)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        rows = 1 + (sum(len(str(name)) + 5 for name in names) > LEGEND_WIDTH)
        figure.legend(
            handles, names, loc="outside lower center", ncols=-(-len(handles) // rows), frameon=False, fontsize=10
        )
    figure.draw_without_rendering()  # the layout must be known before labels can be measured
    figure.set_layout_engine("none")
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    place_labels(axes, renderer, _labels(records), _obstacles(records, scale, other))


def _scale(records: Sequence[Record], summary: Summary, other: Sequence[float] = ()) -> _Scale:
    """What the vertical axis spans: the whole way from baseline to best, that of the `other` run too, and most of what was worse.

    Better is down, as in upstream's plot; a metric that should grow is drawn with its axis upside down.
    """
    worse = -1 if summary.maximise else 1
    scores = [worse * score for record in records if (score := scored(record)) is not None]
    if not scores:
        return _Scale(low=0.0, edge=0.9, high=1.0, worse=1)
    start = max(scores) if summary.baseline is None else worse * summary.baseline
    low, base = min([*scores, *(worse * score for score in other)]), max(start, min(scores))
    noise = 2 * (summary.sigma or 0.0)
    gain = max(base - low, 2 * noise, 1e-3)
    most = min(base + ROOM * gain, _quantile(scores))
    edge = max([base + noise, *(worse * score for score in other), *(score for score in scores if score <= max(most, base))])
    low = min(low, base - noise)
    span = max(edge - low, 1e-3)
    return _Scale(
        low=worse * (low - 0.09 * span), edge=worse * (edge + 0.02 * span), high=worse * (edge + 0.14 * span), worse=worse
    )


def _quantile(scores: Sequence[float]) -> float:
    """The score below which 17 of 20 lie; all of them while there are few."""
    return max(scores) if len(scores) < 10 else statistics.quantiles(scores, n=20)[16]


def _unit(summary: Summary) -> str:
    better = "higher is better" if summary.maximise else "lower is better"
    return f"reported score, unverified ({better})" if summary.unverified else f"val_bpb (bits per byte, {better})"


def _frame(axes: Axes, records: Sequence[Record], summary: Summary, scale: _Scale) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = (records[0].trial, records[-1].trial) if records else (0, 1)
    pad = max(0.6, 0.025 * (last - first))
    axes.set_xlim(first - pad, last + pad)
    axes.set_ylim(scale.low, scale.high)
    if not any(scored(record) is not None for record in records):
        axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial", fontsize=11, labelpad=6)
    axes.set_ylabel(_unit(summary), fontsize=11, labelpad=8)
    axes.grid(axis="y", color="#e8eaed", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=10, colors=INK)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")


def _band(axes: Axes, summary: Summary) -> None:
    if summary.baseline is None or not summary.sigma:
        return
    low, high = summary.baseline - 2 * summary.sigma, summary.baseline + 2 * summary.sigma
    axes.axhspan(low, high, color=BLUE, alpha=0.09, linewidth=0, label="baseline ± 2 sigma")


def _marks(axes: Axes, records: Sequence[Record], scale: _Scale) -> None:
    beyond: list[int] = []
    for style in _STYLES:
        points = [
            (record.trial, score)
            for record in records
            if record.verdict is style.verdict and (score := scored(record)) is not None
        ]
        beyond += [trial for trial, score in points if scale.beyond(score)]
        inside = [point for point in points if not scale.beyond(point[1])]
        if inside:
            axes.scatter(
                [trial for trial, _ in inside],
                [score for _, score in inside],
                marker=style.marker,
                s=style.size,
                color=style.color,
                edgecolor="white",
                linewidth=0.6,
                zorder=style.above,
                label=style.name,
            )
    _at_the_top(axes, beyond, height=0.935, marker="^", color=GREY, name="off the scale")
    for name, verdict, color in (("crashed", Verdict.CRASH, RED), ("refused", Verdict.INVALID, ORANGE), ("abandoned", Verdict.ABANDONED, GREY)):
        trials = [record.trial for record in records if record.verdict is verdict]
        _at_the_top(axes, trials, height=0.985, marker="x", color=color, name=name)


def _at_the_top(
    axes: Axes, trials: Sequence[int], *, height: float, marker: str, color: str, name: str
) -> None:
    """Marks without a place on the scale; `height` is a part of the axes' own."""
    if trials:
        axes.scatter(
            trials,
            [height] * len(trials),
            transform=axes.get_xaxis_transform(),
            marker=marker,
            s=32,
            color=color,
            zorder=4,
            label=name,
        )


def _line(axes: Axes, steps: Steps, name: str, color: str, *, dashed: bool = False) -> None:
    if steps:
        axes.plot(
            *zip(*steps, strict=True),
            drawstyle="steps-post",
            color=color,
            linewidth=1.6,
            linestyle=(0, (5, 2)) if dashed else "solid",
            zorder=2,
            label=name,
        )


def _title(summary: Summary, tag: str) -> str:
    count = summary.counts
    best = "" if summary.baseline is None else f"baseline {summary.baseline:.4f}"
    if summary.best_score is not None and count[Verdict.KEEP]:
        best = f"best {summary.best_score:.4f}, {best}"
    tally = [
        f"{summary.trials} trial{'' if summary.trials == 1 else 's'}",
        f"{count[Verdict.KEEP]} kept",
        f"{count[Verdict.DISCARD]} discarded",
    ]
    tally += [
        f"{count[verdict]} {name}"
        for verdict, name in ((Verdict.CRASH, "crashed"), (Verdict.INVALID, "refused"), (Verdict.ABANDONED, "abandoned"))
        if count[verdict]
    ]
    label = "scores unverified" if summary.unverified else ""
    return "    ".join(part for part in (tag, best, ", ".join(tally), label) if part)


def _labels(records: Sequence[Record]) -> list[Label]:
    """The kept trials' ideas, the largest gains first: those are named if not all can be."""
    kept = [
        (record, score)
        for record in records
        if record.verdict is Verdict.KEEP and (score := scored(record)) is not None
    ]
    kept.sort(key=lambda pair: -(pair[0].gain or 0.0))
    return [
        Label(x=float(record.trial), y=score, text=plain(record.idea, LABEL_WIDTH)) for record, score in kept
    ]


def _obstacles(records: Sequence[Record], scale: _Scale, other: Steps) -> list[tuple[float, float]]:
    """Points that no label may cover: the marks, the line between them, and the `other` run's line."""
    marks = [
        (float(record.trial), scale.within(score))
        for record in records
        if (score := scored(record)) is not None
    ]
    line: list[tuple[float, float]] = []
    for (x, y), (to, below) in (*pairwise(champion_steps(records)), *pairwise(other)):
        line += [(x + (to - x) * part / 40, y) for part in range(41)]
        line += [(to, below + (y - below) * part / 10) for part in range(11)]
    return marks + line
