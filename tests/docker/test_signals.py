"""Ctrl-C, SIGTERM, a terminal that closes and `autoresearch stop`, in every phase of a run with real containers."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker.conftest import STATE
from tests.docker.quick import SLEEPS, SOLVE, TAG, Driven, ended, quick, send

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(300)]

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
BETTER = SOLVE.replace("0.5", "0.7")


@pytest.fixture
def task(tmp_path: Path) -> Driven:
    return quick(tmp_path / "task", STATE)


@pytest.mark.parametrize("number", CODES)
def test_the_first_signal_ends_the_trial_and_the_same_command_goes_on(task: Driven, engine: DockerClient, number: signal.Signals) -> None:
    command = task.propose(SLEEPS.replace("15", "4"), BETTER)
    child = task.spawn(*command)
    task.wait_for(child, event="created", trial=1)
    sent = send(child, number)
    said = ended(child, CODES[number])

    assert time.monotonic() - sent < 10
    assert "what was measured is kept, the same command goes on" in said
    assert {"event": "interrupted", "trial": 1, "signal": number.name}.items() <= task.events()[-1].items()
    assert task.violations(engine, between=True) == []
    (status,) = task.json("status")
    assert status["open_trial"] == 1

    task.call(*command)
    assert [record["verdict"] for record in task.json("log")] == ["baseline", "discard", "keep"]
    assert [one["event"] for one in task.events()].count("proposed") == 3
    assert task.violations(engine) == []


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_the_process_at_once(task: Driven, engine: DockerClient, first: int, second: signal.Signals) -> None:
    command = task.propose(SLEEPS.replace("15", "2"))
    child = task.spawn(*command)
    task.wait_for(child, event="created", trial=1)
    send(child, first)
    time.sleep(0.03)
    sent = send(child, second)
    out, err = child.communicate(timeout=10)

    assert time.monotonic() - sent < 1
    assert child.returncode == CODES[second], (out, err)
    assert "Traceback" not in err
    task.call(*command)
    assert [record["verdict"] for record in task.json("log")] == ["baseline", "discard"]
    assert task.violations(engine) == []


def test_whenever_the_signal_comes_nothing_is_left(task: Driven, engine: DockerClient) -> None:
    """From the first moment of the process to the verdict of the first trial, and never counted twice."""
    command = task.propose(BETTER)
    numbers = list(CODES)
    for step in range(24):
        child = task.spawn(*command)
        time.sleep(0.15 + 0.2 * step)
        send(child, numbers[step % 3])
        out, err = child.communicate(timeout=60)
        # Python itself, before it runs a line of ours, dies by the signal or prints where it was.
        early = {-numbers[step % 3], 1} if step < 4 else set()
        assert child.returncode in {CODES[numbers[step % 3]], 0} | early, (step, out, err)
        assert step < 4 or "Traceback" not in err, err
        assert task.left(engine) == [], step
    task.call(*command)

    assert [record["verdict"] for record in task.json("log")] == ["baseline", "keep"]
    assert task.violations(engine) == []


def test_stop_ends_after_the_current_trial(task: Driven, engine: DockerClient) -> None:
    assert "there is no run yet" in task.call("stop", code=2)
    command = task.propose(SLEEPS.replace("15", "2"), BETTER)
    child = task.spawn(*command)
    task.wait_for(child, event="created", trial=1)
    assert task.call("stop") == f"run {TAG!r} ends after its current trial\n"

    assert "ended: asked to stop" in ended(child, 0)
    assert [record["verdict"] for record in task.json("log")] == ["baseline", "discard"]
    assert task.call("stop") == f"no runner works on {TAG!r}: there is nothing to stop\n"
    task.call(*command)
    assert [record["verdict"] for record in task.json("log")] == ["baseline", "discard", "keep"]
    assert task.violations(engine) == []


def test_stop_also_ends_the_baselines_and_is_heard_while_a_run_starts(task: Driven, engine: DockerClient) -> None:
    command = task.propose(BETTER)
    child = task.spawn(*command)
    task.wait_until(lambda: task.run.exists() and "ends after" in task.call("stop"), child)

    assert "ended: asked to stop" in ended(child, 0)
    assert len(task.json("log")) <= 1
    task.call(*command)
    assert [record["verdict"] for record in task.json("log")] == ["baseline", "keep"]
    assert task.violations(engine) == []
