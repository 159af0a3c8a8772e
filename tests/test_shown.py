"""What of a run's files a model is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.agents.plateau import COMBINE
from runner.agents.prompt import DETAILED
from runner.agents.shown import HINT_LIMIT, HINTS, MAX_BYTES, Place, add_hint, hints, waiting
from runner.errors import UsageError
from runner.trial import Ending, Record, Verdict
from tests.records import baseline, record


def place(folder: Path) -> Place:
    (folder / "program.md").write_text("The brief.\n")
    return Place(
        run=folder / "run", brief=folder / "program.md", ideas=folder / "ideas.md", editable="train.py", hardware="CPU", budget="20 steps", metric="lower"
    )


def file_of(folder: Path, trial: int, text: str) -> None:
    path = folder / "run" / "trials" / f"{trial:04d}" / "train.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_try_is_shown_with_its_change_against_the_file_that_it_was_made_from(tmp_path: Path) -> None:
    file_of(tmp_path, 0, "A = 1\nB = 1\n")
    file_of(tmp_path, 1, "A = 2\nB = 1\n")
    file_of(tmp_path, 2, "A = 2\nB = 2\n")
    history = [baseline(0), record(1, Verdict.KEEP, parent="b" * 40), record(2, parent=f"{1:040x}"), record(3, Verdict.INVALID, commit=None)]

    tries = place(tmp_path).facts("A = 2\n", history).tries

    assert tries[0].diff == ""
    assert "-A = 1\n+A = 2\n" in tries[1].diff
    assert "-B = 1\n+B = 2\n" in tries[2].diff
    assert tries[3].diff == ""


def test_near_misses_are_shown_against_the_champion_and_together_until_that_was_tried(tmp_path: Path) -> None:
    champion = "A = 1\nB = 1\nC = 1\n"
    history: list[Record] = [baseline(0)]
    file_of(tmp_path, 0, champion)
    for trial in range(1, COMBINE):
        history.append(record(trial, parent="b" * 40, gain=-1.0, threshold=0.1))
        file_of(tmp_path, trial, f"A = {9 + trial}\nB = 1\nC = 1\n")
    history[3] = record(3, parent="b" * 40, gain=0.05, threshold=0.1)
    file_of(tmp_path, COMBINE, "A = 1\nB = 2\nC = 1\n")
    assert place(tmp_path).facts(champion, history).near == ()

    history.append(record(COMBINE, parent="b" * 40, gain=0.01, threshold=0.1))
    found = place(tmp_path).facts(champion, history)
    assert [one.record.trial for one in found.near] == [3, COMBINE]
    assert "-A = 1\n+A = 12\n" in found.near[0].diff
    assert "-B = 1\n+B = 2\n" in found.near[1].diff
    assert found.together == f"Tries 3 and {COMBINE} together, which nobody tried yet:\n\nSET A = 12\nSET B = 2"

    file_of(tmp_path, COMBINE + 1, "A = 12\nB = 2\nC = 1\n")
    history.append(record(COMBINE + 1, parent="b" * 40, gain=-0.5, threshold=0.1))
    assert place(tmp_path).facts(champion, history).together == ""


def test_files_of_old_tries_are_not_read(tmp_path: Path) -> None:
    file_of(tmp_path, 0, "A = 0\n")
    history: list[Record] = [baseline(0)]
    for trial in range(1, 40):
        history.append(record(trial, parent="b" * 40))
        if trial >= 40 - DETAILED:
            file_of(tmp_path, trial, f"A = {trial}\n")

    tries = place(tmp_path).facts("A = 0\n", history).tries  # would fail on a file that is not there

    assert sum(bool(one.diff) for one in tries) == DETAILED


def test_the_end_of_the_last_failures_log_is_there_and_no_other(tmp_path: Path) -> None:
    logs = []
    for name in ("first", "second"):
        path = tmp_path / f"{name}.log"
        path.write_text("x" * 100_000 + f"\n{name} failed\n")
        logs.append(str(path))
    history = [
        baseline(0),
        record(1, Verdict.CRASH, None, commit=None, ending=Ending.CRASHED, log_path=logs[0]),
        record(2, Verdict.CRASH, None, commit=None, ending=Ending.CRASHED, log_path=logs[1]),
    ]

    tries = place(tmp_path).facts("", history).tries

    assert [one.log_tail[-15:] for one in tries] == ["", "", "\nsecond failed\n"]
    assert len(tries[2].log_tail) <= 8 << 10
    Path(logs[1]).unlink()
    assert place(tmp_path).facts("", history).tries[2].log_tail == ""


def test_hints_are_kept_in_order_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    for text in ("first", "  second\nline  "):
        add_hint(tmp_path, text, "2026-01-01")
    with (tmp_path / HINTS).open("a") as file:
        file.write('{"at": "2026-01-01", "te')

    assert hints(tmp_path) == ["first", "second\nline"]
    add_hint(tmp_path, "third", "2026-01-01")
    assert hints(tmp_path) == ["first", "second\nline", "third"]


@pytest.mark.parametrize("text", ["", "  \n", "x" * (HINT_LIMIT + 1)])
def test_a_hint_of_nothing_and_one_that_is_a_brief_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="hint"):
        add_hint(tmp_path, text, "2026-01-01")
    assert hints(tmp_path) == []


def test_ideas_wait_until_a_try_has_them(tmp_path: Path) -> None:
    text = "# Ideas\n\n- Tied  embeddings\n* cosine schedule\nnot an item\n-\n- wider\n"
    assert waiting(text, []) == ["Tied embeddings", "cosine schedule", "wider"]
    assert waiting(text, [record(1, idea="tied embeddings"), record(2, idea="Wider")]) == ["cosine schedule"]
    (tmp_path / "ideas.md").write_text(text)
    assert place(tmp_path).facts("", []).ideas == ["Tied embeddings", "cosine schedule", "wider"]


def test_a_missing_brief_and_one_that_fits_nowhere_are_said(tmp_path: Path) -> None:
    shown = place(tmp_path)
    (tmp_path / "program.md").write_text("x" * (MAX_BYTES + 1))
    with pytest.raises(UsageError, match="more than 256 KiB"):
        shown.facts("", [])
    (tmp_path / "program.md").unlink()
    with pytest.raises(UsageError, match="there is no brief"):
        shown.facts("", [])
