"""How a preparation is shown: a bar on a terminal, else a plain line every five seconds."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from runner.prepare import PrepareProgress

LINE_SECONDS = 5.0


class PrepareView:
    """A context manager whose `say` and `progress` are what `runner.prepare.prepare` wants."""

    def __init__(self, stream: TextIO, *, line_seconds: float = LINE_SECONDS) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._shown = (
            _Bar(self._console) if self._console.is_terminal else _Lines(self._console, line_seconds)
        )

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.stop()

    def say(self, text: str) -> None:
        """Show a sentence, above the bar."""
        self._console.print(text, markup=False)

    def progress(self, progress: PrepareProgress) -> None:
        """Take note of how far it is."""
        self._shown.show(progress)


class _Bar:
    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._stage, self._task = "", TaskID(0)

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def show(self, progress: PrepareProgress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._task = self._progress.add_task(progress.stage, total=None, count="")
        self._progress.update(
            self._task, completed=progress.done, total=progress.total or None, count=amount(progress)
        )


class _Lines:
    def __init__(self, console: Console, seconds: float) -> None:
        self._console, self._seconds = console, seconds
        self._last: PrepareProgress | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._began = time.monotonic()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def show(self, progress: PrepareProgress) -> None:
        self._last = progress

    def _tick(self) -> None:
        while not self._ended.wait(self._seconds):
            what = f"{self._last.stage}: {amount(self._last)}" if self._last else "starting the container"
            self._console.print(f"prepare {time.monotonic() - self._began:.0f} s  {what}", markup=False)


def amount(progress: PrepareProgress) -> str:
    """`done of total unit, note`, in words."""
    scale, unit = (1e6, "MB") if progress.unit == "bytes" else (1.0, progress.unit)
    done = f"{progress.done / scale:,.0f}"
    total = f" of {progress.total / scale:,.0f}" if progress.total else ""
    return " ".join(part for part in (f"{done}{total} {unit}".strip(), progress.note) if part)
