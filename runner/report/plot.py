"""The progress plot of a run, as a PNG: every trial a mark, the kept ones named, the champion's score as a line.

Drawn with matplotlib's object interface on Agg: no display, no global state.
"""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.report.files import replace_file
from runner.report.labels import Label, place_labels
from runner.report.summary import Summary, scored, summarise
from runner.report.text import plain
from runner.trial import Record, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES, DPI = (12.0, 6.5), 110
GREY, GREEN, RED, BLUE, INK = "#9aa0a6", "#00875a", "#c5221f", "#1a56b0", "#202124"
LABEL_WIDTH = 34
ROOM = 3.0
"""Discarded trials are drawn to scale up to this many times the whole gain above the baseline."""


@dataclass(frozen=True, kw_only=True)
class _Scale:
    low: float
    high: float


def draw_progress(records: Sequence[Record], path: Path, *, tag: str) -> None:
    """Draw all `records` to the PNG file `path`, replacing it at once.  Raises `StateError`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # An idea may hold letters that the font does not have; a box in their place will do.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        _draw(figure, records, plain(tag, 40))
        buffer = io.BytesIO()
        canvas.print_png(buffer)
    replace_file(path, buffer.getvalue())


def _draw(figure: Figure, records: Sequence[Record], tag: str) -> None:
    summary = summarise(records)
    axes = figure.add_subplot()
    scale = _scale(records, summary)
    _frame(axes, records, scale)
    _band(axes, summary)
    _marks(axes, records, scale)
    _line(axes, records, summary)
    axes.set_title(_title(summary, tag), loc="left", fontsize=13, color=INK, pad=12, parse_math=False)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, names, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10
        )
    figure.draw_without_rendering()  # the layout must be known before labels can be measured
    place_labels(axes, _labels(records), _obstacles(records, summary, scale))


def _scale(records: Sequence[Record], summary: Summary) -> _Scale:
    """What the vertical axis spans: the whole way from baseline to best, and most of what was worse."""
    scores = [score for record in records if (score := scored(record)) is not None]
    if not scores:
        return _Scale(low=0.0, high=1.0)
    low, base = min(scores), max([summary.baseline or max(scores), min(scores)])
    noise = 2 * (summary.sigma or 0.0)
    gain = max(base - low, 2 * noise, 1e-3)
    high = max(base + noise, min(max(scores), base + ROOM * gain, _quantile(scores)))
    margin = 0.06 * (high - min(low, base - noise)) or 1e-3
    return _Scale(low=min(low, base - noise) - 1.5 * margin, high=high + 2 * margin)


def _quantile(scores: Sequence[float]) -> float:
    """The score below which nine of ten lie; all of them while there are few."""
    return max(scores) if len(scores) < 10 else statistics.quantiles(scores, n=10)[-1]


def _frame(axes: Axes, records: Sequence[Record], scale: _Scale) -> None:
    from matplotlib.ticker import MaxNLocator

    first, last = (records[0].trial, records[-1].trial) if records else (0, 1)
    pad = max(0.6, 0.025 * (last - first))
    axes.set_xlim(first - pad, last + pad)
    axes.set_ylim(scale.low, scale.high)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial", fontsize=11)
    axes.set_ylabel("val_bpb (bits per byte, lower is better)", fontsize=11)
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
    top = axes.get_xaxis_transform()
    kinds = {
        Verdict.BASELINE: ("baseline", {"marker": "D", "s": 42, "color": BLUE, "zorder": 4}),
        Verdict.DISCARD: ("discarded", {"marker": "o", "s": 26, "color": GREY, "zorder": 3}),
        Verdict.KEEP: ("kept", {"marker": "o", "s": 62, "color": GREEN, "edgecolor": "white", "zorder": 5}),
    }
    for verdict, (name, style) in kinds.items():
        points = [
            (record.trial, score)
            for record in records
            if record.verdict is verdict and (score := scored(record)) is not None
        ]
        inside = [point for point in points if point[1] <= scale.high]
        if points:
            axes.scatter(*zip(*inside, strict=True) if inside else ([], []), label=name, **style)  # type: ignore[arg-type]
        beyond = [trial for trial, score in points if score > scale.high]
        if beyond:
            axes.scatter(
                beyond,
                [0.945] * len(beyond),
                transform=top,
                marker="^",
                s=30,
                color=style["color"],
                zorder=4,
                label="off the scale",
            )  # type: ignore[arg-type]
    lost = {"crashed": Verdict.CRASH, "refused": Verdict.INVALID}
    for name, verdict in lost.items():
        trials = [record.trial for record in records if record.verdict is verdict]
        if trials:
            color = RED if verdict is Verdict.CRASH else "#e37400"
            axes.scatter(
                trials,
                [0.985] * len(trials),
                transform=top,
                marker="x",
                s=34,
                color=color,
                zorder=4,
                label=name,
                clip_on=False,
            )


def _line(axes: Axes, records: Sequence[Record], summary: Summary) -> None:
    steps = _best_steps(records, summary)
    if steps:
        axes.plot(
            *zip(*steps, strict=True),
            drawstyle="steps-post",
            color=GREEN,
            linewidth=1.6,
            zorder=2,
            label="champion",
        )


def _best_steps(records: Sequence[Record], summary: Summary) -> list[tuple[float, float]]:
    """The champion's score over the trials: the baseline's mean, then each kept trial's own."""
    if summary.baseline is None:
        return []
    kept = [
        (float(record.trial), score)
        for record in records
        if record.verdict is Verdict.KEEP and (score := scored(record)) is not None
    ]
    steps = [(float(records[0].trial), summary.baseline), *kept]
    return [*steps, (float(records[-1].trial), steps[-1][1])]


def _title(summary: Summary, tag: str) -> str:
    count = summary.counts
    best = "" if summary.best_score is None else f"best {summary.best_score:.4f}"
    if summary.best_score is not None and summary.baseline is not None and count[Verdict.KEEP]:
        best += f", baseline {summary.baseline:.4f}"
    tally = [f"{summary.trials} trials", f"{count[Verdict.KEEP]} kept", f"{count[Verdict.DISCARD]} discarded"]
    tally += [
        f"{count[verdict]} {name}"
        for verdict, name in ((Verdict.CRASH, "crashed"), (Verdict.INVALID, "refused"))
        if count[verdict]
    ]
    return "    ".join(part for part in (tag, best, ", ".join(tally)) if part)


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


def _obstacles(records: Sequence[Record], summary: Summary, scale: _Scale) -> list[tuple[float, float]]:
    """Points that no label may cover: the marks, and the line between them."""
    marks = [
        (float(record.trial), min(score, scale.high))
        for record in records
        if (score := scored(record)) is not None
    ]
    steps = _best_steps(records, summary)
    line: list[tuple[float, float]] = []
    for (x, y), (to, below) in zip(steps, steps[1:], strict=False):
        line += [(x + (to - x) * part / 40, y) for part in range(41)]
        line += [(to, below + (y - below) * part / 10) for part in range(11)]
    return marks + line
