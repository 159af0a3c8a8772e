"""The shipped attacks in real containers: the quick third here, the others as slow tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner.cli import parts
from runner.selftest import catalogue
from tests.docker.conftest import ours

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.docker

COMMAND = Path(sys.executable).with_name("autoresearch")
ATTACKS = catalogue.load()
QUICK = [one.name for one in ATTACKS if one.quick]
OTHERS = [one.name for one in ATTACKS if not one.quick]
Outcomes = dict[str, dict[str, Any]]


class Task:
    """A task in which `autoresearch selftest` is called, as a person would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".autoresearch"
        self.environment = {**os.environ, "AUTORESEARCH_DATA": str(folder.parent / "data")}
        self.call("init", str(folder), here=folder.parent)
        for kind in ("cpu", "prepare"):
            self.call("images", "build", kind)

    def spawn(self, *arguments: str, here: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(COMMAND), *arguments],
            cwd=here or self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, *arguments: str, here: Path | None = None) -> str:
        child = self.spawn(*arguments, here=here)
        out, err = child.communicate()
        assert child.returncode == 0, f"exit {child.returncode}\n{out}\n{err}"
        return out

    def selftest(self, *arguments: str) -> Outcomes:
        """What became of each attack; the exit code says whether one succeeded."""
        child = self.spawn("selftest", "--json", *arguments)
        out, err = child.communicate()
        found = {one["attack"]: one for one in map(json.loads, out.splitlines())}
        assert child.returncode == any(one["succeeded"] for one in found.values()), err
        assert "Traceback" not in out + err
        return found

    def labels(self) -> str:
        """What everything carries that the selftest makes in the engine."""
        return f"autoresearch.state={parts.owner_labels(self.state / '.selftest' / '.autoresearch')['autoresearch.state']}"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task(tmp_path_factory.mktemp("selftest") / "task")


@pytest.fixture(scope="module")
def quick(task: Task) -> Outcomes:
    return task.selftest("--quick")


@pytest.fixture(scope="module")
def others(task: Task) -> Outcomes:
    return task.selftest(*(argument for name in OTHERS for argument in ("--attack", name)))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", QUICK)
def test_a_quick_attack_fails_as_it_should(quick: Outcomes, name: str) -> None:
    assert not quick[name]["succeeded"], quick[name]
    assert quick[name]["expected"], quick[name]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", OTHERS)
def test_another_attack_fails_as_it_should(others: Outcomes, name: str) -> None:
    assert not others[name]["succeeded"], others[name]
    assert others[name]["expected"], others[name]


@pytest.mark.timeout(900)
def test_nothing_is_left_of_it(quick: Outcomes, task: Task, engine: DockerClient) -> None:
    assert quick
    assert ours(engine, task.labels()) == []
    assert not (task.state / ".selftest").exists()


@pytest.mark.timeout(300)
def test_nothing_is_left_of_it_after_ctrl_c(task: Task, engine: DockerClient) -> None:
    child = task.spawn("selftest", "--attack", QUICK[0])
    deadline = time.monotonic() + 120
    while not any("holder" in name for name in ours(engine, task.labels())) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)

    assert child.returncode == 130
    assert "Traceback" not in err
    assert ours(engine, task.labels()) == []
    assert not (task.state / ".selftest").exists()
