"""Ctrl-C, SIGTERM, a terminal that closes and `autoresearch stop`, in every phase of a run with real containers."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docker.conftest import STATE
from tests.docker.quick import SLEEPS, SOLVE, TAG, Quick, ended, send

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(300)]

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
BETTER = SOLVE.replace("0.5", "0.7")


@pytest.fixture
def quick(tmp_path: Path) -> Quick:
    return Quick(tmp_path / "task", STATE)


@pytest.mark.parametrize("number", CODES)
def test_the_first_signal_ends_the_trial_and_the_same_command_goes_on(quick: Quick, engine: DockerClient, number: signal.Signals) -> None:
    command = quick.propose(SLEEPS.replace("15", "4"), BETTER)
    child = quick.spawn(*command)
    quick.wait_until(lambda: [one["event"] for one in quick.events()].count("created") == 2, child)
    sent = send(child, number)
    said = ended(child, CODES[number])

    assert time.monotonic() - sent < 10
    assert "what was measured is kept, the same command goes on" in said
    assert quick.events()[-1] == {"event": "interrupted", "trial": 1, "signal": number.name}
    assert quick.violations(engine, between=True) == []
    (status,) = quick.json("status")
    assert status["open_trial"] == 1

    quick.call(*command)
    assert [record["verdict"] for record in quick.json("log")] == ["baseline", "discard", "keep"]
    assert [one["event"] for one in quick.events()].count("proposed") == 3
    assert quick.violations(engine) == []


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_ends_the_process_at_once(quick: Quick, engine: DockerClient, first: int, second: signal.Signals) -> None:
    command = quick.propose(SLEEPS.replace("15", "2"))
    child = quick.spawn(*command)
    quick.wait_until(lambda: [one["event"] for one in quick.events()].count("created") == 2, child)
    send(child, first)
    time.sleep(0.03)
    sent = send(child, second)
    out, err = child.communicate(timeout=10)

    assert time.monotonic() - sent < 1
    assert child.returncode == CODES[second], (out, err)
    assert "Traceback" not in err
    quick.call(*command)
    assert [record["verdict"] for record in quick.json("log")] == ["baseline", "discard"]
    assert quick.violations(engine) == []


def test_whenever_the_signal_comes_nothing_is_left(quick: Quick, engine: DockerClient) -> None:
    """From the first moment of the process to the verdict of the first trial, and never counted twice."""
    command = quick.propose(BETTER)
    numbers = list(CODES)
    for step in range(24):
        child = quick.spawn(*command)
        time.sleep(0.15 + 0.2 * step)
        send(child, numbers[step % 3])
        out, err = child.communicate(timeout=60)
        # Python itself, before it runs a line of ours, dies by the signal or prints where it was.
        early = {-numbers[step % 3], 1} if step < 4 else set()
        assert child.returncode in {CODES[numbers[step % 3]], 0} | early, (step, out, err)
        assert step < 4 or "Traceback" not in err, err
        assert quick.left(engine) == [], step
    quick.call(*command)

    assert [record["verdict"] for record in quick.json("log")] == ["baseline", "keep"]
    assert quick.violations(engine) == []


def test_stop_ends_after_the_current_trial(quick: Quick, engine: DockerClient) -> None:
    assert "there is no run yet" in quick.call("stop", code=2)
    command = quick.propose(SLEEPS.replace("15", "2"), BETTER)
    child = quick.spawn(*command)
    quick.wait_until(lambda: [one["event"] for one in quick.events()].count("created") == 2, child)
    assert quick.call("stop") == f"run {TAG!r} ends after its current trial\n"

    assert "ended: asked to stop" in ended(child, 0)
    assert [record["verdict"] for record in quick.json("log")] == ["baseline", "discard"]
    assert quick.call("stop") == f"no runner works on {TAG!r}: there is nothing to stop\n"
    quick.call(*command)
    assert [record["verdict"] for record in quick.json("log")] == ["baseline", "discard", "keep"]
    assert quick.violations(engine) == []


def test_stop_also_ends_the_baselines_and_is_heard_while_a_run_starts(quick: Quick, engine: DockerClient) -> None:
    command = quick.propose(BETTER)
    child = quick.spawn(*command)
    quick.wait_until(lambda: quick.run.exists() and "ends after" in quick.call("stop"), child)

    assert "ended: asked to stop" in ended(child, 0)
    assert len(quick.json("log")) <= 1
    quick.call(*command)
    assert [record["verdict"] for record in quick.json("log")] == ["baseline", "keep"]
    assert quick.violations(engine) == []
