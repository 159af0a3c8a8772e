"""The seams: the only things `loop` knows about the outside.  A test hands in whole fakes of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from runner.trial import Progress, Proposal, Record, Refusal, Result, TrialSpec


class Sandbox(Protocol):
    """Runs one container and leaves nothing behind."""

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        """Run `spec` in a fresh container; put its outputs and log into the folder `destination`.

        `created` is called with the container's id after it exists and before it starts, so that the
        caller can write it down first.  `progress` is called about once a second.

        A bad ending is a `Result`.  Raises `EngineError` if the engine or the image failed, `GpuError`
        if the GPU is not there, `StateError` if the host's disk is full; in each case, and on
        KeyboardInterrupt, the container is gone when the exception leaves.
        """
        ...

    def reap(self, labels: dict[str, str]) -> int:
        """Remove every container and per-trial volume that carries all `labels`; say how many."""
        ...


class Agent(Protocol):
    """Proposes changes to the editable file.

    It is told everything anew each time, whoever proposed it, and remembers nothing that the records do not say: so a run that was
    interrupted goes on as if nothing had happened.
    """

    name: str

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
        """The next idea, given the champion's source and all records of the run so far (oldest first).

        A `Refusal` is recorded as `invalid` and the search goes on.  None: it has nothing more to propose.  Raises `AgentError` if it cannot work at all.
        """
        ...


class View(Protocol):
    """Shows a run while it happens; plays no part in what happens."""

    def started(self, trial: int, idea: str) -> None:
        """A trial begins."""
        ...

    def progress(self, trial: int, progress: Progress) -> None:
        """About once a second while a container of the trial runs."""
        ...

    def finished(self, record: Record, records: Sequence[Record]) -> None:
        """A trial was judged and recorded; `records` are all of the run's, this one included."""
        ...
