"""The files beside a run's journal that are made of it: results.tsv, progress.png, standing.json."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.errors import StateError
from runner.report import standing
from runner.report.reference import Reference
from runner.report.tsv import Rows, write_tsv
from runner.trial import Record

RESULTS, PLOT = "results.tsv", "progress.png"
PLOT_SHARE = 20.0
"""The plot is drawn again when so many times what it took has passed since: a twentieth of the time at most, however short trials are."""


class RunFiles:
    """Keeps the files of one run up to date.  If that fails it is said: the records are in the journal."""

    def __init__(self, folder: Path, records: Sequence[Record] = (), clock: Callable[[], float] = time.monotonic) -> None:
        """`records` are those that the run has already; a runner may have died before it wrote or drew them."""
        self._folder, self._clock = folder, clock
        self._rows = Rows()
        self._free = clock()
        """When the plot may be drawn again."""
        self._owed: Sequence[Record] | None = None
        """What the plot does not show yet."""
        if records and not self._whole(records):
            self.update(records)
        elif records and not self._drawn():
            self._owed = records

    def update(self, records: Sequence[Record], *, plot: bool = True) -> None:
        """After a trial was judged; without `plot` that is left to `draw`."""
        self._owed = records
        try:
            standing.save(self._folder)
            write_tsv(records, self._folder / RESULTS, self._rows)
        except StateError as error:
            _say(error)
        if plot and self._clock() >= self._free:
            self.draw()

    def draw(self, reference: Reference | None = None) -> None:
        """Draw the plot if it lacks something, with the line of another run if there is one to show."""
        from runner.report.plot import draw_progress

        if self._owed is None:
            return
        began = self._clock()
        try:
            draw_progress(self._owed, self._folder / PLOT, tag=self._folder.name, reference=reference)
        except StateError as error:
            _say(error)
        self._owed, ended = None, self._clock()
        self._free = ended + PLOT_SHARE * (ended - began)

    def _whole(self, records: Sequence[Record]) -> bool:
        path = self._folder / RESULTS
        return path.is_file() and path.read_bytes() == self._rows.text(records).encode()

    def _drawn(self) -> bool:
        """Whether the plot is not older than the table, which is written first."""
        plot, results = self._folder / PLOT, self._folder / RESULTS
        return plot.exists() and plot.stat().st_mtime_ns >= results.stat().st_mtime_ns


def _say(error: StateError) -> None:
    print(f"note: {error}; the next trial writes it again", file=sys.stderr)  # noqa: T201 - a view
