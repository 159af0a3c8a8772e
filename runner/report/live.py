"""A run as it happens: one live line per trial on a terminal, plain lines elsewhere, JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
from rich.console import Console
from rich.live import Live
from rich.text import Text

from runner.report.jsonrow import record_json
from runner.report.reference import Reference
from runner.report.runfiles import RunFiles
from runner.report.summary import summarise, tally, unverified
from runner.report.table import STYLES, print_log
from runner.report.text import plain
from runner.trial import Progress, Record, Verdict

log = structlog.get_logger()

LINE_SECONDS = 5.0
NO_SCORE = (Verdict.CRASH, Verdict.INVALID, Verdict.ABANDONED)
IDEA_WIDTH = 48


class LiveView:
    """Implements `runner.protocols.View` for a person."""

    def __init__(self, folder: Path, records: Sequence[Record] = (), console: Console | None = None) -> None:
        """`records` are those that the run has already; `console`: None is the standard output's."""
        self._files = RunFiles(folder, records)
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._ideas: dict[int, str] = {}
        """Of the trials under way: the champion may be measured again while a candidate waits for that."""
        self._tally = tally(records)
        self._told = 0.0

    def started(self, trial: int, idea: str) -> None:
        """See `View`."""
        self._ideas[trial], self._told = plain(idea, IDEA_WIDTH), time.monotonic()
        self._show(trial, "starting")

    def progress(self, trial: int, progress: Progress) -> None:
        """See `View`."""
        step = "" if progress.step is None else f"  step {progress.step}"
        loss = "" if progress.loss is None else f"  loss {progress.loss:.3f}"
        score = self._tally.summary().best_score
        best = "" if score is None else f"  best {score:.4f}"
        self._show(trial, f"{progress.phase} {progress.seconds:.0f} s{step}{loss}{best}")

    def finished(self, record: Record, records: Sequence[Record]) -> None:
        """See `View`."""
        self._end_line()
        self._ideas.pop(record.trial, None)
        self._tally.add(record)
        self._console.print(Text(trial_line(record, self._tally.summary().best_score), style=STYLES[record.verdict]))
        self._files.update(records)

    def close(self) -> None:
        """Stop the live line, if there is one, and draw what is not drawn yet."""
        self._end_line()
        self._files.draw()

    def _end_line(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, trial: int, what: str) -> None:
        line = f"{trial:>4}  {self._ideas.get(trial, ''):<{IDEA_WIDTH}}  {what}"
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            self._console.print(Text(line))


class JsonView:
    """Implements `runner.protocols.View` for a machine: one object a judged trial."""

    def __init__(self, folder: Path, records: Sequence[Record] = (), *, only_token: str | None = None) -> None:
        """`records` are those that the run has already; `only_token`: print but the record with this token, for the command that
        reports one trial.
        """
        self._files, self._only_token = RunFiles(folder, records), only_token

    def started(self, trial: int, idea: str) -> None:
        """See `View`."""

    def progress(self, trial: int, progress: Progress) -> None:
        """See `View`."""

    def finished(self, record: Record, records: Sequence[Record]) -> None:
        """See `View`."""
        self._files.update(records)
        if self._only_token is None or record.token == self._only_token:
            sys.stdout.write(json.dumps(record_json(record)) + "\n")
            sys.stdout.flush()

    def close(self) -> None:
        """Draw what is not drawn yet."""
        self._files.draw()


def trial_line(record: Record, best: float | None) -> str:
    """A judged trial in one line."""
    score = "     -" if record.val_bpb is None else f"{record.val_bpb:.4f}"
    score += " unverified" if unverified(record) else ""
    total = "" if record.seconds.total is None else f"{record.seconds.total:5.1f} s"
    mark = "" if best is None else f"best {best:.4f}"
    steps = "" if record.steps is None else f"{record.steps} steps"
    idea = plain(record.idea, IDEA_WIDTH)
    why = f"  ({plain(record.reason, 100)})" if record.verdict in NO_SCORE else ""
    count = len(record.measurements)
    why = f"  (mean of {count})" if not why and count > 1 else why
    return f"{record.trial:>4}  {idea:<{IDEA_WIDTH}}  {score}  {record.verdict:<9}  {steps:>9}  {total:>7}  {mark}{why}"


class Unharmed:
    """A view whose failing harms no run: a terminal that has gone, a full disk.  Whoever read our output may still end it by going."""

    def __init__(self, view: LiveView | JsonView) -> None:
        self._view = view

    def started(self, trial: int, idea: str) -> None:
        """See `View`."""
        self._tried(partial(self._view.started, trial, idea))

    def progress(self, trial: int, progress: Progress) -> None:
        """See `View`."""
        self._tried(partial(self._view.progress, trial, progress))

    def finished(self, record: Record, records: Sequence[Record]) -> None:
        """See `View`."""
        self._tried(partial(self._view.finished, record, records))

    def close(self) -> None:
        """See `View`."""
        self._tried(self._view.close)

    def _tried(self, show: Callable[[], None]) -> None:
        try:
            show()
        except BrokenPipeError:
            raise
        except OSError as error:
            log.warning("view.failed", reason=str(error))


def publish(folder: Path, records: Sequence[Record], reference: Reference | None = None) -> None:
    """Make the run's files again, the plot too, with the line of another run if there is one to show."""
    files = RunFiles(folder)
    files.update(records, plot=False)
    files.draw(reference)


def print_summary(folder: Path, editable: str, records: Sequence[Record], reason: str) -> None:
    """What a run ends with: the table, the best score, and where everything is."""
    print_log(records)
    summary = summarise(records)
    best, score = summary.best, summary.best_score
    lines = [f"ended: {reason}"]
    if best is not None and score is not None:
        start = f" (baseline {summary.baseline:.4f})" if summary.counts[Verdict.KEEP] else ""
        label = ", unverified" if summary.unverified else ""
        lines += [
            f"{'best ' + plain(summary.name, 64):<13} {score:.4f}{start}{label}, trial {best.trial}, commit {(best.commit or '')[:10]}",
            f"see it        git show autoresearch/{folder.name}:{editable}   (or: autoresearch show {best.trial})",
        ]
        if not summary.unverified:
            lines.append(f"the model     autoresearch export-model {best.trial}")
    lines += [f"plot          {folder / 'progress.png'}", f"results       {folder / 'results.tsv'}"]
    print("\n".join(lines))  # noqa: T201 - a view
