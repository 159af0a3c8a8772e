"""Another run as a line: its numbers, and which runs are refused as one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from runner.cli import app
from runner.report.plot import DPI, INCHES, PURPLE, draw_progress
from runner.report.reference import best_after, champion_steps, reference_of, reference_text, reference_values
from runner.trial import Record, Verdict
from tests.records import baseline, record


def search(*scores: float, agent: str = "tuner", start: float = 1.6) -> list[Record]:
    """Two baselines, then a trial for each of `scores`; what is best so far was kept."""
    records, best = [baseline(0, start - 0.01), baseline(1, start + 0.01)], start
    for score in scores:
        verdict = Verdict.KEEP if score < best else Verdict.DISCARD
        best = min(best, score)
        records.append(record(len(records), verdict, score, agent=agent))
    return records


def test_the_best_after_so_many_trials() -> None:
    records = search(1.7, 1.5, 1.55, 1.4)
    assert [best_after(records, number) for number in range(6)] == [pytest.approx(one) for one in (1.6, 1.6, 1.5, 1.5, 1.4, 1.4)]
    assert best_after(records) == 1.4
    assert best_after([]) is None
    # A champion that was measured again is what all its measurements say, and no trial.
    again = [*records, record(6, Verdict.REPEAT, 1.42, agent="runner", commit=records[-1].commit)]
    assert best_after(again, 4) == best_after(again) == pytest.approx(1.41)


def test_the_line_goes_as_far_as_the_run_that_it_is_drawn_for() -> None:
    steps = champion_steps(search(1.7, 1.5, 1.55, 1.4), last=4)
    assert steps == [(0.0, pytest.approx(1.6)), (3.0, 1.5), (4.0, 1.5)]
    assert champion_steps(search(1.5), last=40)[-1] == (2.0, 1.5)
    assert champion_steps([]) == []


def test_what_is_told_of_it() -> None:
    other, own = reference_of("keyless", search(1.7, 1.5, 1.4)), search(1.45, 1.44, agent="llm")
    assert reference_text(other, own) == (
        "keyless (tuner): 1.4000 after 3 trials, from 1.6000; 1.5000 after 2; this run 1.4400 after 2 trials, from 1.6000"
    )
    values = reference_values(other, own)
    assert values == {
        "tag": "keyless", "agents": ["tuner"], "trials": 3, "baseline": pytest.approx(1.6), "best": 1.4, "best_after_as_many": 1.5,
    }  # fmt: skip
    longer = reference_values(other, search(*[1.5] * 9, agent="llm"))
    assert longer["best_after_as_many"] is None


def purple(path: Path) -> int:
    image = np.round(matplotlib.image.imread(path) * 255).astype(int)
    assert image.shape[:2] == (round(INCHES[1] * DPI), round(INCHES[0] * DPI))
    wanted = [int(PURPLE[at : at + 2], 16) for at in (1, 3, 5)]
    return int((image[..., :3] == wanted).all(axis=-1).sum())


def test_the_plot_has_the_line(tmp_path: Path) -> None:
    records = search(1.55, 1.58, 1.52, 1.6, 1.5, 1.61)
    draw_progress(records, tmp_path / "a.png", tag="t")
    assert purple(tmp_path / "a.png") == 0
    # Far better, and longer than this run: still within the picture.
    draw_progress(records, tmp_path / "b.png", tag="t", reference=reference_of("keyless", search(1.3, 1.2, *[1.3] * 50)))
    assert purple(tmp_path / "b.png") > 300
    draw_progress([], tmp_path / "c.png", tag="t", reference=reference_of("keyless", records))
    draw_progress(records, tmp_path / "d.png", tag="t", reference=reference_of("x" * 200, records[:1]))


# -------------------------------------------------------------------------------------------- the command line


def call(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"DOCKER_HOST": "unix:///nowhere/docker.sock"})
    assert result.exit_code == code, result.output
    return result.output if code == 0 else result.stderr


@pytest.fixture
def another(run_of: Path) -> Callable[..., Path]:
    """Makes a copy of the run `old` under the tag `keyless`, with another header."""

    def make(event: dict[str, Any] | None = None, **header: Any) -> Path:
        old, new = (run_of / ".autoresearch" / tag for tag in ("old", "keyless"))
        shutil.copytree(old, new)
        lines = (new / "journal.jsonl").read_text().splitlines()
        first = {**json.loads(lines[0]), "tag": "keyless", **header}
        text = "\n".join([json.dumps(first), *lines[1:]]) + "\n"
        (new / "journal.jsonl").write_text(text)
        if event is not None:
            from runner import ledger

            with ledger.writing(new) as run:
                run.write(**event)
        return run_of

    return make


def test_report_and_status_show_it(another: Callable[..., Path]) -> None:
    where = ("--task", str(another()), "--tag", "old", "--reference", "keyless")
    values = json.loads(call("report", *where, "--json"))
    assert values["reference"]["best"] == values["reference"]["best_after_as_many"]
    assert values["reference"]["trials"] == 2
    assert purple(Path(values["plot"])) > 100
    assert "reference keyless (tuner): " in call("report", *where)
    assert "reference keyless (tuner): " in call("status", *where)
    assert json.loads(call("status", *where, "--json"))["reference"] == values["reference"]
    assert json.loads(call("status", *where[:4], "--json"))["reference"] is None


@pytest.mark.parametrize(
    ("header", "event", "said"),
    [
        ({"preset": "smoke"}, None, "its preset is smoke, and this run's tiny"),
        ({"overrides": {"budget": {"steps": 7}}}, None, "its budget is 7 steps, and this run's "),
        ({}, {"event": "data", "digest": "f" * 64, "path": "/x"}, "its data is ffffffffffff, and this run's none"),
    ],
)
def test_runs_whose_scores_cannot_be_compared_are_refused(
    another: Callable[..., Path], header: dict[str, Any], event: dict[str, Any] | None, said: str
) -> None:
    task = another(event, **header)
    for command in ("report", "status"):
        message = call(command, "--task", str(task), "--tag", "old", "--reference", "keyless", code=2)
        assert message.startswith(f"autoresearch: --reference keyless: {said}")
        assert "the scores cannot be compared; name a run that was started alike" in message


def test_a_run_of_another_level_is_refused(another: Callable[..., Path]) -> None:
    task = another()
    frozen = task / ".autoresearch" / "keyless" / "task" / "autoresearch.yaml"
    text = "editable: trainer/train.py\nbudget: {seconds: 5}\njudge: {tau: 0.1}\npresets: trainer/presets\nscore: {level: reported, command: x, metric: m, direction: minimise}\n"
    frozen.write_text(text)
    (frozen.parent / "trainer" / "presets" / "tiny.yaml").write_text("description: x\n")
    said = call("report", "--task", str(task), "--tag", "old", "--reference", "keyless", code=2)
    assert "its score level is reported, and this run's audited" in said


def test_what_is_no_reference(another: Callable[..., Path]) -> None:
    task = another()
    where = ("--task", str(task), "--tag", "old")
    assert "that is the run itself" in call("report", *where, "--reference", "old", code=2)
    assert "there is no run 'x'" in call("report", *where, "--reference", "x", code=2)
    assert "--reference goes without --final" in call("report", *where, "--reference", "keyless", "--final", code=2)
    journal = task / ".autoresearch" / "keyless" / "journal.jsonl"
    journal.write_text(journal.read_text().splitlines()[0] + "\n")
    assert "it has no baseline yet" in call("report", *where, "--reference", "keyless", code=2)
