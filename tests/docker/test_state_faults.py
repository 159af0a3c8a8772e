"""The state folder fails under a run with real containers: a disk that is full or read-only, a folder that is gone or not ours.

Each time one message and exit 7; afterwards the same command comes to the result of a run that nothing happened to.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docker.conftest import STATE
from tests.docker.disks import Disk
from tests.docker.quick import SLEEPS, SOLVE, TAG, Driven, audited, ended, quick

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(1500)]

BETTER, WORSE = SOLVE.replace("0.5", "0.7"), SOLVE.replace("0.5", "0.3")
VERDICTS = ["baseline", "keep", "discard"]


@pytest.fixture
def task(tmp_path: Path) -> Driven:
    return quick(tmp_path / "task", STATE)


@pytest.fixture
def disk(task: Driven) -> Iterator[Disk]:
    assert os.geteuid() == 0, "this test mounts a file system: it has to run as root"
    made = Disk(task.folder / ".autoresearch", "48m")
    task.lend_images()
    yield made
    made.unmount()


def test_no_trial_is_spent_on_a_disk_without_room(task: Driven, disk: Disk, engine: DockerClient) -> None:
    command = task.propose(BETTER, WORSE)
    disk.fill(leave=10 << 20)
    said = task.call(*command, code=7)

    assert re.search(r"has (9|10) MB free, and the next trial may need 18 MB: free some and run the same command again", said)
    assert [one["event"] for one in task.events()] == ["run", "proposed", "candidate"]
    disk.free()
    task.call(*command)
    assert [record["verdict"] for record in task.json("log")] == VERDICTS
    assert task.violations(engine) == []


def test_a_disk_that_fills_at_any_moment_costs_no_measurement(task: Driven, disk: Disk, engine: DockerClient) -> None:
    command = task.propose(BETTER, WORSE)
    stopped = 0
    for step in range(40):
        child = task.spawn(*command)
        seen = len(task.events())
        time.sleep(0.6 + 0.35 * step)
        disk.fill(leave=4096 * (step % 3))
        out, err = child.communicate(timeout=100)
        assert child.returncode in (0, 7), (step, out, err)
        if child.returncode == 7:
            stopped += 1
            (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
            assert "No space left" in line or "no space left" in line or "MB free" in line, line
        assert "Traceback" not in out + err
        assert task.left(engine) == [], step
        disk.free()
        assert len(task.events()) >= seen
        if child.returncode == 0:
            break
    task.call(*command)

    assert stopped > 3
    assert [record["verdict"] for record in task.json("log")] == VERDICTS
    assert task.violations(engine) == []


def test_views_that_cannot_be_written_stop_nothing(task: Driven, engine: DockerClient) -> None:
    """results.tsv and progress.png are folders, so that nothing can be put in their places."""
    command = task.propose(BETTER, WORSE)
    task.call(*command, "--trials", "0")
    for name in ("results.tsv", "progress.png"):
        (task.run / name).unlink()
        (task.run / name).mkdir()
    child = task.spawn(*command)
    out, err = child.communicate(timeout=100)

    assert child.returncode == 0, (out, err)
    notes = {f"note: cannot write {task.run}/{name}: Is a directory; the next trial writes it again" for name in ("results.tsv", "progress.png")}
    assert set(err.splitlines()) == notes
    assert [record["verdict"] for record in task.json("log")] == VERDICTS
    for name in ("results.tsv", "progress.png"):
        (task.run / name).rmdir()
    task.call(*command)
    assert task.violations(engine) == []


def test_a_read_only_state_folder_is_said(task: Driven, disk: Disk, engine: DockerClient) -> None:
    command = task.propose(BETTER, WORSE)
    disk.protect("ro")
    assert "Read-only file system" in task.call(*command, code=7)
    disk.protect("rw")
    task.call(*command, "--trials", "1")
    disk.protect("ro")
    assert "Read-only file system" in task.call(*command, code=7)
    assert [record["verdict"] for record in task.json("log")] == VERDICTS[:2]
    disk.protect("rw")
    task.call(*command)

    assert [record["verdict"] for record in task.json("log")] == VERDICTS
    assert task.violations(engine) == []


@pytest.mark.parametrize("how", ["removed", "moved away", "another file system over it", "the whole repository moved away"])
def test_a_state_folder_that_goes_away_under_a_run(task: Driven, engine: DockerClient, how: str, tmp_path: Path) -> None:
    command = task.propose(SLEEPS.replace("15", "3"), BETTER)
    state = task.folder / ".autoresearch"
    child = task.spawn(*command)
    task.wait_for(child, event="created", trial=1)
    over: Disk | None = None
    match how:
        case "removed":
            shutil.rmtree(state)
        case "moved away":
            state.rename(tmp_path / "away")
        case "another file system over it":
            over = Disk(state, "1m")
        case _:
            task.folder.rename(tmp_path / "away")
    said = ended(child, 7)

    assert "removed or replaced" in said or "No such file or directory" in said, said
    if over is not None:
        over.unmount()
    elif how == "removed":
        task.lend_images()
        said = task.call(*command, code=7)
        assert f"there are branches or references of a run {TAG!r}, but its records are not in" in said
        return
    elif how == "moved away":
        shutil.rmtree(state, ignore_errors=True)
        (tmp_path / "away").rename(state)
    else:
        shutil.rmtree(task.folder, ignore_errors=True)
        (tmp_path / "away").rename(task.folder)
    assert task.left(engine) == []
    task.call(*command)
    assert [record["verdict"] for record in task.json("log")] == ["baseline", "discard", "keep"]
    assert task.violations(engine) == []


def foreign(state: Path) -> None:
    state.mkdir()
    os.chown(state, 12345, 12345)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (foreign, "belongs to another user: remove it, or work in a clone of your own"),
        (lambda state: state.write_text(""), "is no folder: the state folder must be a real folder of yours"),
        (lambda state: state.symlink_to("/tmp"), "is a link: the state folder must be a real folder of yours"),
    ],
)
def test_a_state_folder_that_is_none_of_ours_is_refused(task: Driven, make: Any, said: str) -> None:
    shutil.rmtree(task.folder / ".autoresearch")
    make(task.folder / ".autoresearch")
    command = task.propose(BETTER)

    assert said in task.call(*command, code=7)


def test_an_audited_run_on_a_disk_that_fills(tmp_path: Path, engine: DockerClient) -> None:
    """Rows, checkpoints, claims, questions and answers pass over the disk too."""
    task = audited(tmp_path / "task", STATE)
    disk = Disk(task.folder / ".autoresearch", "80m")
    try:
        task.lend_images()
        command = (*task.go(), "--trials", "0")
        for phase, later in [("train", 0.0), ("train", 1.0), ("claim", 0.0), ("claim", 1.0), ("audit", 0.0), ("audit", 1.0)]:
            child, seen = task.spawn(*command), len(task.events())
            task.wait_for(child, after=seen, event="created", phase=phase)
            time.sleep(later)
            disk.fill()
            said = ended(child, 7)
            assert "o space left" in said, said
            disk.free()
        task.call(*command)
        assert [record["verdict"] for record in task.json("log")] == ["baseline"] * 3
        assert task.violations(engine) == []
    finally:
        disk.unmount()
