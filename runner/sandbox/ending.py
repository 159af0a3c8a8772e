"""Pure: from engine facts to what happened.  Text that a trial wrote plays no part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from runner.trial import Ending, Result


class Stop(StrEnum):
    """Why we killed the container."""

    STARTUP = "startup"
    BUDGET = "budget"
    COMPUTE = "compute"


@dataclass(frozen=True, kw_only=True)
class Exit:
    """The engine's word on a container that has ended, and ours on whether we ended it."""

    exit_code: int
    out_of_memory: bool
    """The kernel killed a process of the container for memory, maybe only a child."""
    stopped: Stop | None
    gate_opened: bool
    startup_cap: float
    work_cap: float
    memory_bytes: int
    compute_cap: float | None = None


def classify(facts: Exit) -> tuple[Ending, str]:
    """The ending and its reason, before the outputs are looked at."""
    gib = facts.memory_bytes / (1 << 30)
    if facts.out_of_memory:
        return Ending.OUT_OF_MEMORY, f"the kernel ended a process at the memory limit of {gib:.1f} GiB"
    if facts.stopped is Stop.STARTUP:
        return Ending.TIMED_OUT, f"not ready {facts.startup_cap:.0f} s after the start; killed"
    if facts.stopped is Stop.BUDGET:
        return Ending.TIMED_OUT, f"still running {facts.work_cap:.1f} s after the gate opened; killed"
    if facts.stopped is Stop.COMPUTE:
        return Ending.TIMED_OUT, f"used more than the {facts.compute_cap:.1f} processor seconds it may; killed"
    if facts.exit_code > 128:
        return Ending.CRASHED, f"ended by signal {facts.exit_code - 128} (exit code {facts.exit_code})"
    if facts.exit_code != 0:
        return Ending.CRASHED, f"exit code {facts.exit_code}"
    if not facts.gate_opened:
        return Ending.INVALID_OUTPUT, "exit code 0 without ever asking for the data"
    return Ending.FINISHED, "exit code 0"


def undisturbed(result: Result, phase: str, disturbed: str | None) -> Result:
    """The result, or `invalid_environment` if training was `disturbed`: whatever came of it may be another's doing.

    Claim and audit are not timed, so nothing that goes on beside them changes a score.
    """
    if disturbed is None or phase != "train":
        return result
    return replace(result, ending=Ending.INVALID_ENVIRONMENT, reason=disturbed)
