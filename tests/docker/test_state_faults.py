"""The state folder fails under a run with real containers: a disk that is full or read-only, a folder that is gone or not ours.

Each time one message and exit 7; afterwards the same command comes to the result of a run that nothing happened to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docker.conftest import STATE, charge_little
from tests.docker.quick import COMMAND, SLEEPS, SOLVE, TAG, Quick, ended, run_violations

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(590)]

BETTER, WORSE = SOLVE.replace("0.5", "0.7"), SOLVE.replace("0.5", "0.3")
VERDICTS = ["baseline", "keep", "discard"]


class Disk:
    """A small file system of its own over the state folder."""

    def __init__(self, place: Path, size: str) -> None:
        self.place, self._filler = place, place / "filler"
        place.mkdir(mode=0o700, exist_ok=True)
        self._mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "small", str(place))

    def _mount(self, *arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    def fill(self, *, leave: int = 0) -> None:
        """Take everything but so many bytes."""
        free = os.statvfs(self.place)
        size = free.f_bavail * free.f_frsize - leave
        with self._filler.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + size)

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()

    def protect(self, how: str) -> None:
        """`ro` or `rw`; refused by the kernel while somebody writes there."""
        self._mount("-o", f"remount,{how}", str(self.place))

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.place)], check=False)


@pytest.fixture
def quick(tmp_path: Path) -> Quick:
    return Quick(tmp_path / "task", STATE)


@pytest.fixture
def disk(quick: Quick) -> Iterator[Disk]:
    assert os.geteuid() == 0, "this test mounts a file system: it has to run as root"
    made = Disk(quick.folder / ".autoresearch", "48m")
    quick.lend_images()
    yield made
    made.unmount()


def test_no_trial_is_spent_on_a_disk_without_room(quick: Quick, disk: Disk, engine: DockerClient) -> None:
    command = quick.propose(BETTER, WORSE)
    disk.fill(leave=10 << 20)
    said = quick.call(*command, code=7)

    assert "has 10 MB free, and the next trial may need 18 MB: free some and run the same command again" in said
    assert [one["event"] for one in quick.events()] == ["run", "proposed", "candidate"]
    disk.free()
    quick.call(*command)
    assert [record["verdict"] for record in quick.json("log")] == VERDICTS
    assert quick.violations(engine) == []


def test_a_disk_that_fills_at_any_moment_costs_no_measurement(quick: Quick, disk: Disk, engine: DockerClient) -> None:
    command = quick.propose(BETTER, WORSE)
    stopped = 0
    for step in range(40):
        child = quick.spawn(*command)
        seen = len(quick.events())
        time.sleep(0.6 + 0.35 * step)
        disk.fill(leave=4096 * (step % 3))
        out, err = child.communicate(timeout=100)
        assert child.returncode in (0, 7), (step, out, err)
        if child.returncode == 7:
            stopped += 1
            (line,) = [line for line in err.splitlines() if not line.startswith("note: ")]
            assert "No space left" in line or "no space left" in line or "MB free" in line, line
        assert "Traceback" not in out + err
        assert quick.left(engine) == [], step
        disk.free()
        assert len(quick.events()) >= seen
        if child.returncode == 0:
            break
    quick.call(*command)

    assert stopped > 3
    assert [record["verdict"] for record in quick.json("log")] == VERDICTS
    assert quick.violations(engine) == []


def test_views_that_cannot_be_written_stop_nothing(quick: Quick, engine: DockerClient) -> None:
    """results.tsv, progress.png and events.jsonl are folders, so that nothing can be put in their places."""
    command = quick.propose(BETTER, WORSE)
    quick.call(*command, "--trials", "0")
    for name in ("results.tsv", "progress.png"):
        (quick.run / name).unlink()
        (quick.run / name).mkdir()
    child = quick.spawn(*command)
    out, err = child.communicate(timeout=100)

    assert child.returncode == 7, (out, err)
    for name in ("results.tsv", "progress.png"):
        (quick.run / name).rmdir()
    quick.call(*command)
    assert [record["verdict"] for record in quick.json("log")] == VERDICTS
    assert quick.violations(engine) == []


def test_a_read_only_state_folder_is_said(quick: Quick, disk: Disk, engine: DockerClient) -> None:
    command = quick.propose(BETTER, WORSE)
    disk.protect("ro")
    assert "Read-only file system" in quick.call(*command, code=7)
    disk.protect("rw")
    quick.call(*command, "--trials", "1")
    disk.protect("ro")
    assert "Read-only file system" in quick.call(*command, code=7)
    assert [record["verdict"] for record in quick.json("log")] == VERDICTS[:2]
    disk.protect("rw")
    quick.call(*command)

    assert [record["verdict"] for record in quick.json("log")] == VERDICTS
    assert quick.violations(engine) == []


@pytest.mark.parametrize("how", ["removed", "moved away", "another file system over it", "the whole repository moved away"])
def test_a_state_folder_that_goes_away_under_a_run(quick: Quick, engine: DockerClient, how: str, tmp_path: Path) -> None:
    command = quick.propose(SLEEPS.replace("15", "3"), BETTER)
    state = quick.folder / ".autoresearch"
    child = quick.spawn(*command)
    quick.wait_until(lambda: [one["event"] for one in quick.events()].count("created") == 2, child)
    over: Disk | None = None
    match how:
        case "removed":
            shutil.rmtree(state)
        case "moved away":
            state.rename(tmp_path / "away")
        case "another file system over it":
            over = Disk(state, "1m")
        case _:
            quick.folder.rename(tmp_path / "away")
    said = ended(child, 7)

    assert "removed or replaced" in said or "No such file or directory" in said, said
    if over is not None:
        over.unmount()
    elif how == "removed":
        quick.lend_images()
        said = quick.call(*command, code=7)
        assert f"there are branches or references of a run {TAG!r}, but its records are not in" in said
        return
    elif how == "moved away":
        shutil.rmtree(state, ignore_errors=True)
        (tmp_path / "away").rename(state)
    else:
        shutil.rmtree(quick.folder, ignore_errors=True)
        (tmp_path / "away").rename(quick.folder)
    assert quick.left(engine) == []
    quick.call(*command)
    assert [record["verdict"] for record in quick.json("log")] == ["baseline", "discard", "keep"]
    assert quick.violations(engine) == []


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
def test_a_state_folder_that_is_none_of_ours_is_refused(quick: Quick, make: Any, said: str) -> None:
    shutil.rmtree(quick.folder / ".autoresearch")
    make(quick.folder / ".autoresearch")
    command = quick.propose(BETTER)

    assert said in quick.call(*command, code=7)


def test_an_audited_run_on_a_disk_that_fills(tmp_path: Path, engine: DockerClient) -> None:
    """Rows, checkpoints, claims, questions and answers pass over the disk too."""
    folder, data = tmp_path / "task", tmp_path / "data"
    environment = {**os.environ, "AUTORESEARCH_DATA": str(data)}

    def run(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    ended(run("init", str(folder)), 0)
    charge_little(folder)
    disk = Disk(folder / ".autoresearch", "80m")
    try:
        shutil.copy(STATE / "images.json", folder / ".autoresearch" / "images.json")
        ended(run("prepare", "--task", str(folder), "--preset", "tiny"), 0)
        moments = [("train", 0.0), ("train", 1.0), ("claim", 0.0), ("claim", 1.0), ("audit", 0.0), ("audit", 1.0)]
        command = ("run", "--cpu", "--preset", "tiny", "--task", str(folder), "--tag", TAG, "--trials", "0")
        journal = folder / ".autoresearch" / TAG / "journal.jsonl"
        for phase, later in moments:
            child, seen = run(*command), len(journal.read_bytes()) if journal.exists() else 0
            while child.poll() is None and not (journal.exists() and f'"phase":"{phase}"'.encode() in journal.read_bytes()[seen:]):
                time.sleep(0.02)
            time.sleep(later)
            disk.fill()
            said = ended(child, 7)
            assert "o space left" in said, said
            disk.free()
        ended(run(*command), 0)
        assert run_violations(folder, folder / ".autoresearch" / TAG) == []
        said = ended(run("log", "--json", "--task", str(folder)), 0)
        assert said.count('"verdict": "baseline"') == said.count('"verdict"') == 3
        labelled = engine.api.containers(all=True, filters={"label": [f"autoresearch.tag={TAG}"]})
        assert [one for one in labelled if one["Labels"].get("autoresearch.state") in said] == []
    finally:
        disk.unmount()
