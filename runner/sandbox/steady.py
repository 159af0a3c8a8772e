"""A sandbox that outlives failures of its engine: it waits, makes anew what was lost, and runs the container again.

One container is repeated and not its trial: what a phase gave lies on the host.  Nothing is judged meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from runner.errors import EngineError, EngineFailedError, StuckContainerError
from runner.protocols import Sandbox
from runner.trial import Progress, Result, TrialSpec

log = structlog.get_logger()

IN_A_ROW = 3
"""So often in a row the engine may fail under one container."""
WAIT_SECONDS = 300.0
FIRST_PAUSE, GROWTH, LONGEST_PAUSE = 2.0, 3.0, 20.0
LOOK_SECONDS = 0.5
"""So often a pause is shown, and a wish to stop seen."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long an engine is waited for; a test hands in its own."""

    seconds: float = WAIT_SECONDS
    """For one that does not answer."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class SteadySandbox:
    """Implements `runner.protocols.Sandbox` around another."""

    def __init__(
        self,
        inner: Sandbox,
        *,
        absent: Callable[[], str | None],
        stopping: Callable[[], bool],
        tell: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        """`absent` says why the engine cannot be used now, or None; `stopping` whether a person has asked to stop; `tell` tells
        a person of each failure.
        """
        self._inner, self._absent, self._stopping, self._tell = inner, absent, stopping, tell
        self._patience = patience or Patience()
        self._needs: list[Callable[[], object]] = []

    def needs(self, make: Callable[[], object]) -> None:
        """Do what trials need in the engine, and do it again whenever the engine has failed."""
        make()
        self._needs.append(make)

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        """See `Sandbox.run`.  Raises `EngineFailedError` if the engine failed several times in a row or did not come back."""
        failures: list[str] = []
        while True:
            try:
                for make in self._needs if failures else ():
                    make()
                return self._inner.run(spec, destination, created=created, progress=progress)
            except StuckContainerError:
                raise
            except EngineFailedError as error:
                failures.append(str(error))
                log.warning("engine.failed", phase=spec.phase, reason=str(error), times=len(failures))
                if len(failures) == IN_A_ROW:
                    raise EngineFailedError(_advice(spec.phase, failures)) from error
                self._tell(f"{error}. Waiting for the engine; then the container of phase {spec.phase} runs again")
            self._wait(failures, progress)

    def reap(self, labels: dict[str, str]) -> int:
        """See `Sandbox.reap`."""
        return self._inner.reap(labels)

    def _wait(self, failures: list[str], progress: Callable[[Progress], None]) -> None:
        """Until the engine answers; a little longer after each failure, and while it does not, after each look."""
        began, looks = self._patience.clock(), len(failures)
        self._pause(looks, began, failures[-1], progress)
        while (why := self._absent()) is not None:
            waited = self._patience.clock() - began
            if waited >= self._patience.seconds:
                message = (
                    f"the container engine failed ({failures[-1]}) and did not come back within {waited:.0f} s: {why}. "
                    "Nothing was judged; once it answers, the same command goes on"
                )
                raise EngineFailedError(message)
            looks += 1
            self._pause(looks, began, failures[-1], progress)

    def _pause(self, number: int, began: float, failure: str, progress: Callable[[Progress], None]) -> None:
        clock = self._patience.clock
        end = clock() + min(LONGEST_PAUSE, FIRST_PAUSE * GROWTH ** (number - 1), max(self._patience.seconds, LOOK_SECONDS))
        while (left := end - clock()) > 0:
            if self._stopping():
                message = f"asked to stop while the container engine was waited for ({failure}). Nothing was judged; the same command goes on"
                raise EngineError(message)
            progress(Progress(phase="engine failed, waiting", seconds=clock() - began))
            self._patience.sleep(min(LOOK_SECONDS, left))


def _advice(phase: str, failures: list[str]) -> str:
    same = len(set(failures)) == 1
    said = failures[-1] if same else "; then ".join(failures)
    return (
        f"the container engine failed {len(failures)} times in a row under the container of phase {phase}: {said}. Nothing was judged. "
        "`autoresearch doctor` tries the engine, its log says more (`journalctl -u docker`); once it is mended, the same command goes on"
    )
