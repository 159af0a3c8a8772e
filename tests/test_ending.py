from __future__ import annotations

import pytest

from runner.sandbox.ending import Exit, Stop, classify
from runner.trial import Ending


def facts(**changed: object) -> Exit:
    values: dict[str, object] = {
        "exit_code": 0,
        "out_of_memory": False,
        "stopped": None,
        "gate_opened": True,
        "startup_cap": 60.0,
        "work_cap": 303.0,
        "memory_bytes": 2 << 30,
    }
    return Exit(**{**values, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "ending", "reason"),
    [
        ({}, Ending.FINISHED, "exit code 0"),
        ({"exit_code": 1}, Ending.CRASHED, "exit code 1"),
        ({"exit_code": 139}, Ending.CRASHED, "ended by signal 11 (exit code 139)"),
        ({"exit_code": 137}, Ending.CRASHED, "ended by signal 9 (exit code 137)"),
        (
            {"exit_code": 137, "out_of_memory": True},
            Ending.OUT_OF_MEMORY,
            "the kernel ended a process at the memory limit of 2.0 GiB",
        ),
        # Only a child was ended for memory and the parent went on to a good exit.
        ({"out_of_memory": True}, Ending.OUT_OF_MEMORY, "the kernel ended a process at the memory limit of 2.0 GiB"),
        (
            {"exit_code": 137, "stopped": Stop.STARTUP, "gate_opened": False},
            Ending.TIMED_OUT,
            "not ready 60 s after the start; killed",
        ),
        (
            {"exit_code": 137, "stopped": Stop.BUDGET},
            Ending.TIMED_OUT,
            "still running 303.0 s after the gate opened; killed",
        ),
        # It ended by itself with 0 in the moment that we killed it: too late all the same.
        ({"stopped": Stop.BUDGET}, Ending.TIMED_OUT, "still running 303.0 s after the gate opened; killed"),
        ({"gate_opened": False}, Ending.INVALID_OUTPUT, "exit code 0 without ever asking for the data"),
        ({"gate_opened": False, "exit_code": 1}, Ending.CRASHED, "exit code 1"),
    ],
)
def test_the_ending_follows_from_engine_facts(changed: dict[str, object], ending: Ending, reason: str) -> None:
    assert classify(facts(**changed)) == (ending, reason)
