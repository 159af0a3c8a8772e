"""`kill -9` of the runner at random moments of one run, and two runners at once, with real containers."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import run_git
from tests.docker.conftest import STATE
from tests.docker.quick import SLEEPS, SOLVE, TAG, YAML, audited, ended, quick, run_violations

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1500)]

SEED = int(os.environ.get("AUTORESEARCH_KILLS_SEED", "1"))
KILLS = 20
BETTER = SOLVE.replace("0.5", "0.7")


def killed_at_random(start: Callable[[], subprocess.Popen[str]], longest: float, *, kills: int) -> int:
    """Start and kill so often, or until one ends by itself; how often it was killed."""
    chance, done = random.Random(SEED), 0
    while done < kills:
        child, moment = start(), chance.uniform(0.3, longest)
        try:
            out, err = child.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL) if chance.random() < 0.5 else child.kill()
            child.communicate()
            done += 1
            print(f"kill {done} after {moment:.2f} s")
        else:
            assert child.returncode == 0, (out, err)
            print(f"ended by itself before {moment:.2f} s")
            break
    return done


def test_a_run_that_is_killed_at_random_moments_comes_to_its_end(tmp_path: Path, engine: DockerClient) -> None:
    """Trials of two seconds; what they say is fixed, so the end is known."""
    values = [0.52, 0.4, 0.6, 0.55, 0.7, 0.76, 0.65, 0.82]
    task = quick(tmp_path / "task", STATE)
    command = task.propose(*(SOLVE.replace("0.5", str(value)) for value in values))
    kills = killed_at_random(lambda: task.spawn(*command), 4, kills=KILLS)
    task.call(*command)

    assert kills == KILLS
    records = task.json("log")
    assert [record["val_bpb"] for record in records] == [0.5, *values]
    assert [record["verdict"] for record in records[1:]] == ["keep", "discard", "keep", "discard", "keep", "keep", "discard", "keep"]
    assert task.violations(engine) == []


def test_an_audited_run_that_is_killed_at_random_moments_comes_to_its_end(tmp_path: Path, engine: DockerClient) -> None:
    task = audited(tmp_path / "task", STATE)
    command = (*task.go(), "--trials", "2")
    killed_at_random(lambda: task.spawn(*command), 30, kills=KILLS)
    task.call(*command)
    records = task.json("log")
    assert task.violations(engine) == []
    # An undisturbed run with the same seed measures the same.
    task.call(*task.go("other"), "--trials", "0")
    others = task.json("log", "--tag", "other")
    assert [record["verdict"] for record in records[:3]] == [record["verdict"] for record in others] == ["baseline"] * 3
    assert [round(record["val_bpb"], 4) for record in records[:3]] == [round(record["val_bpb"], 4) for record in others]


def test_two_runners_of_one_run_and_of_two_runs(tmp_path: Path, engine: DockerClient) -> None:
    """The second of the same run is refused, one of another run goes on beside it, and reaping touches neither."""
    task = quick(tmp_path / "task", STATE, yaml=YAML.replace("seconds: 20", "seconds: 200"))
    first = task.propose(SLEEPS.replace("15", "150"), BETTER)
    child = task.spawn(*first)
    task.wait_for(child, event="created", trial=1)
    living = task.left(engine)
    before = (task.run / "journal.jsonl").read_bytes()
    said = task.call(*first, code=7)
    assert f"run 'q' is held by another runner (process {child.pid}): wait, `autoresearch stop`, or use another --tag" in said
    assert task.json("reap") == [{"removed": 0}]
    beside = task.spawn(*task.propose(BETTER, tag="other"), "--trials", "0")
    ended(beside, 0)
    assert set(living) <= set(task.left(engine))
    assert (task.run / "journal.jsonl").read_bytes() == before
    child.send_signal(signal.SIGINT)
    ended(child, 130)

    assert [record["verdict"] for record in task.json("log", "--tag", TAG)] == ["baseline"]
    assert task.violations(engine, between=True) == []
    assert run_violations(task.folder, task.run.with_name("other")) == []


def test_three_runs_side_by_side_keep_their_own(tmp_path: Path, engine: DockerClient) -> None:
    """Their trials end, and their notes and branches are written, at the same moments."""
    task = quick(tmp_path / "task", STATE, yaml=YAML.replace("cpus: 1", "cpus: 0.5"))
    values = [0.6, 0.55, 0.7]
    sources = [SOLVE.replace("0.5", str(value)) for value in values]
    children = [task.spawn(*task.propose(*sources, tag=f"run-{number}")) for number in range(3)]
    for child in children:
        ended(child, 0)

    for number in range(3):
        run = task.run.with_name(f"run-{number}")
        assert [record["verdict"] for record in task.json("log", "--tag", run.name)] == ["baseline", "keep", "discard", "keep"]
        assert run_violations(task.folder, run) == []
    assert task.left(engine) == []
    assert len(run_git(task.folder, "for-each-ref", "refs/autoresearch").splitlines()) == 12


def test_what_a_killed_run_left_is_reaped_although_its_folder_is_gone(tmp_path: Path, engine: DockerClient) -> None:
    task = quick(tmp_path / "task", STATE)
    child = task.spawn(*task.propose(SLEEPS))
    task.wait_for(child, event="created", trial=1)
    child.kill()
    child.communicate()
    left = task.left(engine)
    shutil.rmtree(task.folder / ".autoresearch")

    assert len(left) == 4
    assert task.json("reap") == [{"removed": 4}]
    assert task.left(engine) == []
    time.sleep(0.1)
    assert task.json("reap") == [{"removed": 0}]
