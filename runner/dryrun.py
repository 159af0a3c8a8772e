"""The dry run: three steps of a candidate's own training in a fresh, locked-down container, before a trial is spent on it.

A refusal here must be right, and a trial that fails costs little more than a dry run.  So what is tried is the trial itself, on its
own device, at its own size and within its own limits, and only the number of steps is another; and nobody is refused for what the
champion cannot do either.  Where three steps would take long, or on a GPU, where nothing is compiled and so more memory is
needed, the batch is cut.  Then some failures may be the cut's doing, and those say nothing.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from runner.constants import find_constants, set_constants
from runner.durable import write_durably
from runner.errors import UsageError
from runner.literals import Value
from runner.phases import DRY_STEPS, SAID, Cap, Phases
from runner.protocols import Sandbox
from runner.task import Task
from runner.trial import Ending, Result
from runner.tried import Barred, Candidate

PROGRAM = "dry.py"
"""In the task's folder of what is fixed."""
OWN_SIZE_SECONDS = 2.0
"""If the baselines' three steps take no longer, on a CPU, the batch is not cut."""
CUT = 4
"""What is not compiled took 1.4 times the memory that it takes compiled (62.7 GB, the published example's 45)."""
TOTAL, DEVICE = "TOTAL_BATCH_SIZE", "DEVICE_BATCH_SIZE"
SECONDS, TIMES = 20.0, 10.0
"""A dry run is ended so long after its gate, and so many times what the baselines take for three steps."""
STARTUP_SECONDS = 60.0
"""On a GPU: three times what a large model takes that is not compiled."""
MEMORY = frozenset({"MemoryError", "OutOfMemoryError"})
OWN_CHECKS = frozenset({"AssertionError", "ValueError", "SystemExit", "FloatingPointError"})
"""With these a file says itself that it does not like something, which may be the batch that we cut."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a dry run says of itself; a candidate can forge it and gains a trial that fails."""

    error: str
    """Name of the exception."""
    line: int | None
    """Of train.py."""
    loading: bool
    """True if it failed after training, when the saved weights were loaded."""


class DryRun:
    """The last gate of one run's proposals."""

    def __init__(self, sandbox: Sandbox, phases: Phases, task: Task, *, on_gpu: bool) -> None:
        """`task` is one whose score is audited."""
        assert task.data is not None
        self._sandbox, self._phases, self._on_gpu = sandbox, phases, on_gpu
        self._sequence_length, self._startup_seconds = task.data.sequence_length, task.budget.startup_seconds
        self._counted = task.budget.steps is not None
        self._champions: dict[str, bool] = {}
        """Whether a champion's own dry run comes to its end."""

    def examine(self, candidate: Candidate) -> Barred | None:
        """Why no trial is spent on the candidate, or None.  Its log stays if it failed; raises what `Sandbox.run` raises."""
        own_size = not self._on_gpu and candidate.step_seconds is not None and DRY_STEPS * candidate.step_seconds <= OWN_SIZE_SECONDS
        folder = candidate.folder / "dry"
        result, failure = self._run(candidate, candidate.source, folder, own_size=own_size)
        found = barred(result, failure, own_size=own_size, counted=self._counted)
        if found is None:
            if failure is not None or result.ending is not Ending.FINISHED:
                log.info("gate.dry_run_says_nothing", trial=candidate.trial, ending=result.ending, reason=result.reason)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        if not self._champion_works(candidate, own_size=own_size):
            log.warning("gate.dry_run_off", trial=candidate.trial, reason=f"the champion's dry run does not come to its end either; not believed: {found.reason}")
            return None
        return found

    def _champion_works(self, candidate: Candidate, *, own_size: bool) -> bool:
        """Looked at when a candidate fails for the first time under this champion."""
        if candidate.champion not in self._champions:
            folder = candidate.folder / "dry-champion"
            result, failure = self._run(candidate, candidate.champion, folder, own_size=own_size)
            shutil.rmtree(folder, ignore_errors=True)
            self._champions = {candidate.champion: result.ending is Ending.FINISHED and failure is None}
        return self._champions[candidate.champion]

    def _run(self, candidate: Candidate, source: str, folder: Path, *, own_size: bool) -> tuple[Result, Failure | None]:
        shutil.rmtree(folder, ignore_errors=True)
        write_durably(folder / "train.py", (source if own_size else cut(source, self._sequence_length)).encode())
        cap = candidate.caps.of("train")
        seconds = min(cap.seconds, SECONDS + TIMES * DRY_STEPS * (candidate.step_seconds or 0.0))
        spec = self._phases.dry(
            candidate.trial,
            folder,
            seed=candidate.seed,
            cap=Cap(seconds=seconds, cpu_seconds=cap.cpu_seconds),
            startup_seconds=self._startup_seconds if own_size else min(STARTUP_SECONDS, self._startup_seconds),
        )
        result = self._sandbox.run(spec, folder, created=partial(candidate.created, "dry"), progress=candidate.progress)
        failure = said(result.output(SAID))
        for path in folder.iterdir():
            if path != result.log_path:
                path.unlink()
        return result, failure


def cut(source: str, sequence_length: int) -> str:
    """`source` with a step of one pass of a quarter of the rows, as far as it has the constants that say so."""
    try:
        found = find_constants(source)
    except UsageError:
        return source
    rows = found[DEVICE].value if DEVICE in found else None
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        return source
    fewer = max(1, rows // CUT)
    wanted: dict[str, Value] = {DEVICE: fewer, TOTAL: fewer * sequence_length}
    return set_constants(source, {name: value for name, value in wanted.items() if name in found and isinstance(found[name].value, int)})


def said(path: Path | None) -> Failure | None:
    """What a dry run says of itself; None: that nothing failed, or nothing that can be read."""
    try:
        value = json.loads(path.read_bytes()) if path is not None else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("error"), str):
        return None
    line, error = value.get("line"), value["error"]
    return Failure(
        error=error if NAME.fullmatch(error) else "an exception",
        line=line if isinstance(line, int) and not isinstance(line, bool) and 0 < line < 1_000_000 else None,
        loading=value.get("part") == "load",
    )


def barred(result: Result, failure: Failure | None, *, own_size: bool, counted: bool) -> Barred | None:
    """What a dry run's end says about the trial that would follow; None: nothing against it.

    At its `own_size` a candidate does what it would do in the trial.  If the budget is not `counted` in steps, one that is
    slow at first may be fast later.
    """
    ending, reason = result.ending, f"dry run: {result.reason}"
    if ending is Ending.FINISHED:
        if failure is None:
            return None
        if not own_size and failure.error in MEMORY | OWN_CHECKS:
            return None
        ending = Ending.OUT_OF_MEMORY if failure.error in MEMORY else Ending.CRASHED
        where = f" at line {failure.line} of the file" if failure.line is not None else ""
        when = "when the saved weights were loaded into a new model" if failure.loading else f"within {DRY_STEPS} steps"
        reason = f"dry run: {failure.error}{where}, {when}"
    elif not own_size or ending is Ending.INVALID_ENVIRONMENT or (ending is Ending.TIMED_OUT and not counted):
        return None
    return Barred(reason=reason, ending=ending, seconds=result.total_seconds, log_path=result.log_path)
