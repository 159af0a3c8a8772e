"""What is shown and logged may fail, and a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.log import events_to
from runner.report.live import JsonView, LiveView, Unharmed
from runner.report.runfiles import RunFiles
from runner.report.tsv import tsv_text
from runner.trial import Progress, Verdict
from tests.conftest import record

RECORDS = [record(0, "a" * 40, Verdict.BASELINE, 1.7), record(1, "b" * 40, Verdict.KEEP, 1.6)]


class Failing(LiveView):
    """A terminal that has gone, or whoever read our output."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def started(self, trial: int, idea: str) -> None:
        raise self.error

    def progress(self, trial: int, progress: Progress) -> None:
        raise self.error

    def finished(self, record: Any, records: Any) -> None:
        raise self.error

    def close(self) -> None:
        raise self.error


def show_all(view: Unharmed) -> None:
    view.started(1, "x")
    view.progress(1, Progress(phase="train", step=None, loss=None, seconds=1.0))
    view.finished(RECORDS[0], RECORDS)
    view.close()


def test_a_terminal_that_has_gone_is_logged(tmp_path: Path) -> None:
    with events_to(tmp_path / "events.jsonl"):
        show_all(Unharmed(Failing(OSError(5, "Input/output error"))))

    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["event"], line["reason"]) for line in lines] == [("view.failed", "[Errno 5] Input/output error")] * 4


def test_who_reads_our_output_may_end_us_by_going() -> None:
    with pytest.raises(BrokenPipeError):
        show_all(Unharmed(Failing(BrokenPipeError(32, "Broken pipe"))))


def test_a_table_that_cannot_be_written_is_said_and_the_record_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.tsv").mkdir()
    Unharmed(JsonView(tmp_path)).finished(RECORDS[1], RECORDS)
    said = capsys.readouterr()

    assert json.loads(said.out)["trial"] == 1
    assert said.err == f"note: cannot write {tmp_path / 'results.tsv'}: Is a directory; the next trial writes it again\n"


@pytest.mark.parametrize("before", [None, "", "commit\tval_bpb\n"])
def test_a_table_that_lacks_records_is_written_by_the_next_start(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "results.tsv"
    if before is not None:
        path.write_text(before)
    RunFiles(tmp_path, RECORDS)

    assert path.read_text() == tsv_text(RECORDS)
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_is_gone_is_drawn_when_the_run_ends(tmp_path: Path) -> None:
    RunFiles(tmp_path, RECORDS)
    (tmp_path / "progress.png").unlink()
    files = RunFiles(tmp_path, RECORDS)
    assert not (tmp_path / "progress.png").exists()  # a start does not wait for it
    files.draw()

    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
