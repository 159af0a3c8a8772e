"""Tables and status for a person, in a terminal.

Cells are `rich.text.Text`, never strings: markup in an idea stays what it is, a few brackets.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from runner.report.summary import Summary, ranks, scored, summarise, unverified
from runner.report.text import plain
from runner.trial import Record, Verdict

if TYPE_CHECKING:
    from rich.table import Table

STYLES = {
    Verdict.BASELINE: "cyan",
    Verdict.KEEP: "bold green",
    Verdict.DISCARD: "",
    Verdict.CRASH: "red",
    Verdict.INVALID: "red",
    Verdict.REPEAT: "cyan",
    Verdict.ABANDONED: "yellow",
}
BEST = 5
"""How many rows the table of the best has, once there are clearly more trials than that."""
PIPE_WIDTH = 120


def print_log(records: Sequence[Record], file: IO[str] | None = None) -> None:
    """All trials in their order, each with its place; then the best ones by score."""
    from rich.console import Console

    out = file or sys.stdout
    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console = Console(file=out, highlight=False, width=PIPE_WIDTH)
    places = ranks(records)
    summary = summarise(records)
    label = f": {plain(summary.name, 64)}, unverified" if summary.unverified else ""
    console.print(_table(f"Trials, in order{label}", records, places))
    if len(places) > 2 * BEST:
        best = sorted(
            (record for record in records if record.trial in places), key=lambda record: places[record.trial]
        )
        console.print(_table(f"The best {BEST}{label}", best[:BEST], places))


def status_values(folder: Path, summary: Summary, *, running: bool, open_trial: int | None) -> dict[str, Any]:
    """What `status --json` prints.  Unknown is null."""
    return {
        "tag": folder.name,
        "running": running,
        "open_trial": open_trial,
        "trials": summary.trials,
        "counts": {str(verdict): count for verdict, count in summary.counts.items()},
        "baseline": summary.baseline,
        "sigma": summary.sigma,
        "sigma_interval": summary.sigma_interval,
        "score_level": summary.score_level,
        "metric": summary.metric,
        "maximise": summary.maximise,
        "best": _best(summary),
        "last_trial": summary.last.trial if summary.last else None,
        "results": str(folder / "results.tsv"),
        "plot": str(folder / "progress.png"),
    }


def champion_values(summary: Summary, commit: str) -> dict[str, Any]:
    """What `champion --json` says of the file at `commit`; null as long as it was not measured."""
    known = summary.best is not None and summary.best.commit == commit
    return {
        "trial": summary.best.trial if known and summary.best else None,
        "val_bpb": summary.best_score if known else None,
        "score_level": summary.score_level,
        "metric": summary.metric,
        "maximise": summary.maximise,
    }


def status_lines(folder: Path, summary: Summary, *, running: bool, open_trial: int | None) -> list[str]:
    """What `status` prints."""
    doing = f"trial {open_trial} is under way" if open_trial is not None else "between trials"
    state = (
        f"running, {doing}"
        if running
        else "not running" + ("" if open_trial is None else f" (trial {open_trial} will be done again)")
    )
    lines = [f"run       {plain(folder.name)}: {state}", f"trials    {_counts(summary)}"]
    if summary.baseline is not None:
        unit = f" {plain(summary.name, 64)} (unverified)" if summary.unverified else " bits per byte"
        lines.append(f"baseline  {summary.baseline:.4f}{unit}{_noise(summary)}")
    if summary.best is not None and summary.best_score is not None and summary.best.verdict is Verdict.KEEP:
        lines.append(
            f"best      {summary.best_score:.4f}{' (unverified)' if summary.unverified else ''}, "
            f"trial {summary.best.trial}: {plain(summary.best.idea, 72)}"
        )
    if summary.last is not None:
        lines.append(f"last      {_last(summary.last)}")
    return [*lines, f"plot      {folder / 'progress.png'}", f"results   {folder / 'results.tsv'}"]


def _table(title: str, records: Sequence[Record], places: dict[int, int]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False
    )
    for name in ("trial", "place"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    score = "unverified" if any(unverified(record) for record in records) else "val_bpb"
    for name in (score, "gain", "steps", "seconds", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("idea", ratio=1, overflow="fold")
    for record in records:
        style = STYLES[record.verdict]
        table.add_row(*(Text(cell, style=style) for cell in _cells(record, places)))
    return table


def _cells(record: Record, places: dict[int, int]) -> list[str]:
    score = scored(record)
    count = len(record.measurements)
    why = f" ({plain(record.reason, 80)})" if score is None and record.reason else ""
    why = f" (mean of {count})" if score is not None and count > 1 else why
    return [
        str(record.trial),
        str(places.get(record.trial, "")),
        str(record.verdict),
        _number(score, ".4f"),
        _number(record.gain, "+.4f"),
        _number(record.steps, "d"),
        _number(record.seconds.total, ".1f"),
        _number(record.memory_gb, ".1f"),
        plain(record.idea, 100) + why,
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _noise(summary: Summary) -> str:
    if summary.sigma is None:
        return ""
    digits = 4 if summary.sigma >= 1e-3 else 5
    if summary.sigma_interval is None:
        return f", one measurement ± {summary.sigma:.{digits}f}"
    low, high = summary.sigma_interval
    return f", one measurement ± {summary.sigma:.{digits}f} (90 %: {low:.{digits}f} to {high:.{digits}f})"


def _counts(summary: Summary) -> str:
    count = summary.counts
    parts = [
        f"{count[Verdict.KEEP]} kept",
        f"{count[Verdict.DISCARD]} discarded",
        f"{count[Verdict.CRASH]} crashed",
    ]
    if count[Verdict.INVALID]:
        parts.append(f"{count[Verdict.INVALID]} refused")
    again = f", champions measured again {count[Verdict.REPEAT]} times" if count[Verdict.REPEAT] else ""
    lost = f", {count[Verdict.ABANDONED]} abandoned without a verdict" if count[Verdict.ABANDONED] else ""
    return f"{summary.trials} judged: {', '.join(parts)}; {count[Verdict.BASELINE]} of the baseline before{again}{lost}"


def _last(record: Record) -> str:
    score = scored(record)
    label = " (unverified)" if unverified(record) else ""
    result = plain(record.reason, 72) if score is None else f"{score:.4f}{label}"
    return f"trial {record.trial}, {record.verdict}, {result}: {plain(record.idea, 72)}"


def _best(summary: Summary) -> dict[str, Any] | None:
    best = summary.best
    if best is None:
        return None
    return {
        "trial": best.trial,
        "commit": best.commit,
        "val_bpb": summary.best_score,
        "verdict": str(best.verdict),
        "idea": best.idea,
    }
