"""`kill -9` of the runner at random moments of one run, and two runners at once, with real containers."""

from __future__ import annotations

import json
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

from runner.cli.parts import owner_labels
from tests.conftest import run_git
from tests.docker.conftest import STATE, charge_little, ours
from tests.docker.quick import COMMAND, SLEEPS, SOLVE, TAG, YAML, Quick, ended, run_violations

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
    values = [0.52, 0.4, 0.6, 0.55, 0.7, 0.71, 0.65, 0.8]
    quick = Quick(tmp_path / "task", STATE)
    command = quick.propose(*(SOLVE.replace("0.5", str(value)) for value in values))
    kills = killed_at_random(lambda: quick.spawn(*command), 9, kills=KILLS)
    quick.call(*command)

    assert kills == KILLS
    records = quick.json("log")
    assert [record["val_bpb"] for record in records] == [0.5, *values]
    assert [record["verdict"] for record in records[1:]] == ["keep", "discard", "keep", "discard", "keep", "keep", "discard", "keep"]
    assert quick.violations(engine) == []


def test_an_audited_run_that_is_killed_at_random_moments_comes_to_its_end(tmp_path: Path, engine: DockerClient) -> None:
    folder = tmp_path / "task"
    environment = {**os.environ, "AUTORESEARCH_DATA": str(tmp_path / "data"), "PYTHONPATH": str(Path(__file__).parents[2])}

    def spawn(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)

    ended(spawn("init", str(folder)), 0)
    charge_little(folder)
    (folder / ".autoresearch").mkdir(mode=0o700)
    shutil.copy(STATE / "images.json", folder / ".autoresearch" / "images.json")
    ended(spawn("prepare", "--task", str(folder), "--preset", "tiny"), 0)
    on = ("--task", str(folder))
    command = ("run", "--cpu", "--preset", "tiny", *on, "--tag", TAG, "--trials", "2")
    killed_at_random(lambda: spawn(*command), 30, kills=KILLS)
    ended(spawn(*command), 0)

    assert run_violations(folder, folder / ".autoresearch" / TAG) == []
    label = f"autoresearch.state={owner_labels(folder / '.autoresearch')['autoresearch.state']}"
    assert [name for name in ours(engine, label) if not name.startswith("autoresearch-prepare-")] == []
    said = ended(spawn("log", "--json", *on), 0)
    assert said.count('"verdict": "baseline"') == 3
    # An undisturbed run with the same seed measures the same.
    ended(spawn("run", "--cpu", "--preset", "tiny", *on, "--tag", "other", "--trials", "0"), 0)
    other = ended(spawn("log", "--json", *on, "--tag", "other"), 0)
    assert scores(said)[:3] == scores(other)[:3]


def scores(log: str) -> list[float]:
    return [round(json.loads(line)["val_bpb"], 4) for line in log.splitlines() if json.loads(line)["val_bpb"] is not None]


def test_two_runners_of_one_run_and_of_two_runs(tmp_path: Path, engine: DockerClient) -> None:
    """The second of the same run is refused, one of another run goes on beside it, and reaping touches neither."""
    quick = Quick(tmp_path / "task", STATE)
    first = quick.propose(SLEEPS, BETTER)
    child = quick.spawn(*first)
    quick.wait_until(lambda: [one["event"] for one in quick.events()].count("created") == 2, child)
    living = quick.left(engine)
    before = (quick.run / "journal.jsonl").read_bytes()
    said = quick.call(*first, code=7)
    assert f"run 'q' is held by another runner (process {child.pid}): wait, `autoresearch stop`, or use another --tag" in said
    assert quick.json("reap") == [{"removed": 0}]
    other = [*first[:3], "other", *first[4:]]
    assert first[3] == TAG
    beside = quick.spawn(*other, "--trials", "0")
    ended(beside, 0)
    assert set(living) <= set(quick.left(engine))
    assert (quick.run / "journal.jsonl").read_bytes() == before
    ended(child, 0)

    assert [record["verdict"] for record in quick.json("log", "--tag", TAG)] == ["baseline", "discard", "keep"]
    assert quick.violations(engine) == []
    assert run_violations(quick.folder, quick.run.with_name("other")) == []


def test_three_runs_side_by_side_keep_their_own(tmp_path: Path, engine: DockerClient) -> None:
    """Their trials end, and their notes and branches are written, at the same moments."""
    quick = Quick(tmp_path / "task", STATE, yaml=YAML.replace("cpus: 1", "cpus: 0.5"))
    values = [0.6, 0.55, 0.7]
    command = quick.propose(*(SOLVE.replace("0.5", str(value)) for value in values))
    children = [quick.spawn(*command[:3], f"run-{number}", *command[4:]) for number in range(3)]
    for child in children:
        ended(child, 0)

    for number in range(3):
        run = quick.run.with_name(f"run-{number}")
        assert [record["verdict"] for record in quick.json("log", "--tag", run.name)] == ["baseline", "keep", "discard", "keep"]
        assert run_violations(quick.folder, run) == []
    assert quick.left(engine) == []
    assert len(run_git(quick.folder, "for-each-ref", "refs/autoresearch").splitlines()) == 12


def test_what_a_killed_run_left_is_reaped_although_its_folder_is_gone(tmp_path: Path, engine: DockerClient) -> None:
    quick = Quick(tmp_path / "task", STATE)
    child = quick.spawn(*quick.propose(SLEEPS))
    quick.wait_until(lambda: [one["event"] for one in quick.events()].count("created") == 2, child)
    child.kill()
    child.communicate()
    left = quick.left(engine)
    shutil.rmtree(quick.folder / ".autoresearch")

    assert len(left) == 4
    assert quick.json("reap") == [{"removed": 4}]
    assert quick.left(engine) == []
    time.sleep(0.1)
    assert quick.json("reap") == [{"removed": 0}]
