from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import ledger
from runner.report.runfiles import PLOT, PLOT_SHARE, RESULTS, RunFiles
from runner.report.standing import STANDING
from runner.report.tsv import tsv_text
from tests.records import baseline, record

RUN = [baseline(0), record(1), record(2)]


class Clock:
    """Counts each look as a second: drawing takes one."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


def drawn(folder: Path, act: Callable[[], None]) -> bool:
    """Whether the plot was drawn by what `act` does."""
    before = (folder / PLOT).stat().st_mtime_ns if (folder / PLOT).exists() else None
    act()
    return (folder / PLOT).exists() and (folder / PLOT).stat().st_mtime_ns != before


def test_the_table_is_whole_after_each_trial_and_the_plot_when_it_is_due(tmp_path: Path) -> None:
    clock = Clock()
    files = RunFiles(tmp_path, clock=clock)
    assert drawn(tmp_path, lambda: files.update(RUN[:1]))
    assert not drawn(tmp_path, lambda: files.update(RUN[:2]))
    assert (tmp_path / RESULTS).read_text() == tsv_text(RUN[:2])
    clock.seconds += PLOT_SHARE
    assert drawn(tmp_path, lambda: files.update(RUN))
    assert not drawn(tmp_path, files.draw)


def test_what_is_owed_is_drawn_at_the_end(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, clock=Clock())
    files.update(RUN[:1])
    files.update(RUN)

    assert drawn(tmp_path, files.draw)


def test_what_a_runner_left_behind_is_made_again(tmp_path: Path) -> None:
    RunFiles(tmp_path).update(RUN[:2])

    assert drawn(tmp_path, lambda: RunFiles(tmp_path, RUN).draw())  # the table lacks a trial
    assert (tmp_path / RESULTS).read_text() == tsv_text(RUN)
    assert not drawn(tmp_path, lambda: RunFiles(tmp_path, RUN).draw())
    os.utime(tmp_path / PLOT, ns=(0, 0))  # older than the table: it was put off, and the runner died
    assert drawn(tmp_path, lambda: RunFiles(tmp_path, RUN).draw())
    (tmp_path / PLOT).unlink()
    assert drawn(tmp_path, lambda: RunFiles(tmp_path, RUN).draw())


def test_what_cannot_be_written_is_said_and_harms_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (RESULTS, PLOT):
        (tmp_path / name / "inside").mkdir(parents=True)

    files = RunFiles(tmp_path, RUN)
    files.update(RUN)
    files.draw()

    assert f"{tmp_path / RESULTS}" in capsys.readouterr().err


def test_how_the_run_stands_is_saved_with_them(tmp_path: Path) -> None:
    folder = tmp_path / "s" / "t"
    with ledger.writing(folder) as run:
        run.write("run", format=ledger.FORMAT, tag="t")
        RunFiles(folder).update(RUN)

    assert (folder / STANDING).exists()


def test_each_row_is_made_once(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, clock=Clock())
    files.update(RUN[:2])
    changed = record(1, idea="what no judged trial does: change")
    files.update([RUN[0], changed, RUN[2]])

    assert (tmp_path / RESULTS).read_text() == tsv_text(RUN)
