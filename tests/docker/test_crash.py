"""`autoresearch` killed while real containers run: the next one takes up where it was, and nothing stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner.constants import set_constants
from tests.conftest import run_git
from tests.docker.conftest import STATE, charge_little, ours

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

COMMAND = Path(sys.executable).with_name("autoresearch")
ROOT = Path(__file__).parents[2]
TAG = "t"
TINY = ("--cpu", "--preset", "tiny", "--tag", TAG)
POINTS = [
    ("after", "proposed", "-"),
    ("before", "candidate", "-"),
    ("after", "created", "train"),
    ("before", "exited", "train"),
    ("after", "trained", "-"),
    ("after", "started", "claim"),
    ("before", "claimed", "-"),
    ("after", "created", "audit"),
    ("before", "audited", "-"),
    ("after", "measured", "-"),
    ("after", "judged", "-"),
    ("before", "done", "-"),
]
KNOWN = {"train": "trained", "claim": "claimed", "audit": "audited"}
"""The event after which a phase is not run again."""


class Task:
    """A task of its own with the images and the data that there are, and one baseline."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / ".autoresearch" / TAG
        self.environment = {**os.environ, "AUTORESEARCH_DATA": str(STATE / "data"), "PYTHONPATH": str(ROOT)}
        subprocess.run([COMMAND, "init", str(folder)], check=True, capture_output=True)
        (folder / ".autoresearch").mkdir(exist_ok=True)
        shutil.copy(STATE / "images.json", folder / ".autoresearch" / "images.json")
        path = folder / "autoresearch.yaml"
        path.write_text(path.read_text().replace("  baselines: 3 ", "  baselines: 1 "))
        run_git(folder, "commit", "-qam", "one baseline")
        charge_little(folder)

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def call(self, *arguments: str) -> str:
        done = self.spawn(str(COMMAND), *arguments)
        out, err = done.communicate(timeout=400)
        assert done.returncode == 0, f"exit {done.returncode}\n{out}\n{err}"
        return out

    def die(self, point: tuple[str, str, str], *arguments: str) -> None:
        """The command, killed at that point."""
        child = self.spawn(sys.executable, "-m", "tests.docker.dying", *point, *arguments)
        out, err = child.communicate(timeout=400)
        assert child.returncode == -signal.SIGKILL, f"exit {child.returncode}\n{out}\n{err}"

    @property
    def label(self) -> str:
        """Of everything that the run has in the engine."""
        return f"autoresearch.run={self.events()[0]['id']}"

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "journal.jsonl").read_text().splitlines()]


def check(task: Task, engine: DockerClient, records: list[dict[str, Any]]) -> None:
    """Branch, references, notes, table and engine are as the records say."""
    base = task.events()[0]["base"]
    champion = [base, *(one["commit"] for one in records if one["verdict"] == "keep")][-1]
    assert run_git(task.folder, "rev-parse", f"autoresearch/{TAG}") == champion
    for one in records:
        assert run_git(task.folder, "rev-parse", f"refs/autoresearch/{TAG}/{one['trial']}") == one["commit"]
        notes = run_git(task.folder, "notes", "--ref=autoresearch", "show", one["commit"])
        assert one["trial"] in [json.loads(line)["trial"] for line in notes.splitlines()]
    assert len((task.run / "results.tsv").read_text().splitlines()) == 1 + len(records)
    assert ours(engine, task.label) == []
    counts = Counter((event["event"], event.get("trial")) for event in task.events())
    for one in records:
        assert (counts["proposed", one["trial"]], counts["judged", one["trial"]], counts["done", one["trial"]]) == (1, 1, 1)
    assert not [path for path in task.run.rglob("*") if path.name.endswith(".partial")]


def test_killed_while_a_container_runs_the_next_one_removes_it_and_goes_on(tmp_path: Path, engine: DockerClient) -> None:
    task = Task(tmp_path / "task")
    child = task.spawn(str(COMMAND), "run", *TINY, "--trials", "0")
    journal, deadline = task.run / "journal.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and '"started","trial":0,"index":0,"do":"measure","phase":"claim"' in journal.read_text()):
        time.sleep(0.05)
        assert child.poll() is None, child.communicate()
    child.kill()
    child.communicate()
    left = ours(engine, task.label)
    assert len(left) >= 4  # the trial, its holder, their volumes

    task.call("run", *TINY, "--trials", "0")

    (record,) = [json.loads(line) for line in task.call("log", "--tag", TAG, "--json").splitlines()]
    assert (record["verdict"], record["ending"]) == ("baseline", "finished")
    check(task, engine, [record])
    phases = Counter(event["phase"] for event in task.events() if event["event"] == "created")
    assert phases == {"train": 1, "claim": 2, "audit": 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_step_a_trial_is_there_once_and_whole(tmp_path: Path, engine: DockerClient) -> None:
    task = Task(tmp_path / "task")
    task.call("run", *TINY, "--trials", "0")
    base = task.call("champion")
    for at, point in enumerate(POINTS, 1):
        # Near the line a champion is measured again, which is a trial too.
        number = 1 + max(event["trial"] for event in task.events() if event["event"] == "proposed")
        candidate = tmp_path / "candidate.py"
        candidate.write_text(set_constants(base, {"WARMDOWN": 0.4 + at / 100}))
        arguments = ("trial", "--candidate", str(candidate), "--message", " ".join(point), "--tag", TAG)
        task.die(point, *arguments)
        known = {event["event"] for event in task.events() if event.get("trial") == number}

        task.call(*arguments)

        records = [json.loads(line) for line in task.call("log", "--tag", TAG, "--json").splitlines()]
        one = next(record for record in records if record["idea"] == " ".join(point))
        assert (one["trial"], one["ending"]) == (number, "finished"), point
        check(task, engine, records)
        first = [event for event in task.events() if event.get("trial") == number and (event.get("do"), event.get("index")) == ("measure", 0)]
        ran = Counter(event["phase"] for event in first if event["event"] == "created")
        assert all(ran[phase] == 1 for phase, event in KNOWN.items() if event in known), point
        assert all(ran[phase] <= 2 for phase in KNOWN), point
    before = (task.run / "journal.jsonl").read_bytes()
    task.call("run", *TINY, "--trials", "0")
    assert (task.run / "journal.jsonl").read_bytes() == before
