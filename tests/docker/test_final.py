"""`report --final` with real containers: preset tiny, one kept trial, killed once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner.constants import set_constants
from tests.conftest import run_git
from tests.docker.conftest import STATE, charge_little, ours, without_dry_run

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

COMMAND = Path(sys.executable).with_name("autoresearch")
TAG = "final-test"
BETTER = {"WARMDOWN": 0.1, "UNEMBEDDING_LR": 0.01, "X0_INIT": 0.2}


class Task:
    """A task of its own with the images and the data that there are; its search takes few measurements."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([COMMAND, "init", str(folder)], check=True, capture_output=True)
        (folder / ".autoresearch").mkdir(exist_ok=True)
        shutil.copy(STATE / "images.json", folder / ".autoresearch" / "images.json")
        path = folder / "autoresearch.yaml"
        path.write_text(path.read_text().replace("  baselines: 3 ", "  baselines: 1 "))
        path = folder / "trainer" / "presets" / "tiny.yaml"
        path.write_text(path.read_text().replace("sigma_prior: 0.0075 ", "sigma_prior: 0.002 "))
        run_git(folder, "commit", "-qam", "one baseline, and keeps at once")
        charge_little(folder)
        without_dry_run(folder)

    def spawn(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "AUTORESEARCH_DATA": str(STATE / "data")}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [str(COMMAND), *arguments], cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def call(self, *arguments: str, code: int = 0) -> str:
        done = self.spawn(*arguments)
        out, err = done.communicate(timeout=400)
        assert done.returncode == code, f"exit {done.returncode}\n{out}\n{err}"
        assert "Traceback" not in out + err
        return out if code == 0 else err

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.call(*arguments, "--json").splitlines()]


def planned(journal: Path) -> bool:
    """Whether the report has begun; before that there is a container already, which tries the isolation."""
    return '"final-planned"' in journal.read_text()


def test_how_much_of_a_gain_is_real(tmp_path: Path, engine: DockerClient) -> None:
    task = Task(tmp_path / "task")
    task.call("run", "--cpu", "--preset", "tiny", "--tag", TAG, "--trials", "0")
    assert "nothing was kept" in task.call("report", "--final", code=2)
    candidate = tmp_path / "candidate.py"
    candidate.write_text(set_constants(task.call("champion"), BETTER))
    (trial,) = task.json("trial", "--candidate", str(candidate), "--message", "a higher rate")
    assert trial["verdict"] == "keep", trial["reason"]
    before, tip = task.json("log"), run_git(task.folder, "rev-parse", f"autoresearch/{TAG}")

    # Killed in its first measurement, and refused to everybody else as long as it works.
    child = task.spawn("report", "--final", "--repeats", "1")
    deadline = time.monotonic() + 120
    journal = task.folder / ".autoresearch" / TAG / "journal.jsonl"
    while not (planned(journal) and ours(engine, f"autoresearch.tag={TAG}")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert planned(journal)
    assert "held by another runner" in task.call("report", "--final", code=7)
    child.kill()
    out, _ = child.communicate()
    assert "the baseline and 1 kept commit on fresh seeds, 2 trainings; about " in out
    assert "locked test split, which is spent by this" in out

    base, champion = task.json("report", "--final")

    assert ours(engine, f"autoresearch.tag={TAG}") == []
    assert (base["role"], champion["role"], champion["commit"]) == ("baseline", "champion", trial["commit"])
    assert (champion["split"], champion["repeats"], champion["scored"]) == ("test", 1, 1)
    assert [one["ending"] for one in (*base["measurements"], *champion["measurements"])] == ["finished", "finished"]
    assert not {base["measurements"][0]["seed"], champion["measurements"][0]["seed"]} & {row["seed"] for row in before}
    # Other text and other seeds, but the same model: near the validation score, and not the same number.
    assert base["final_bpb"] != base["val_bpb"]
    assert base["final_bpb"] == pytest.approx(base["val_bpb"], abs=0.15)
    assert champion["final_gain"] == pytest.approx(base["final_bpb"] - champion["final_bpb"])
    assert 0 < champion["final_gain_se_rows"] < champion["final_gain"]
    assert champion["real_share_interval"][0] < champion["real_share"] < champion["real_share_interval"][1]
    assert champion["real_share"] > 0.2
    assert champion["sentence"].startswith("The champion (trial 1, ")

    # The search is as it was, and what is finished is only printed.
    assert task.json("log") == before
    assert run_git(task.folder, "rev-parse", f"autoresearch/{TAG}") == tip
    assert run_git(task.folder, "status", "--porcelain") == ""
    events = [json.loads(line)["event"] for line in journal.read_text().splitlines()]
    assert (events.count("final-planned"), events.count("final-measured")) == (1, 2)
    began = time.monotonic()
    assert task.call("report", "--final").rstrip().endswith(champion["sentence"])
    assert time.monotonic() - began < 30
    assert [json.loads(line)["event"] for line in journal.read_text().splitlines()] == events
