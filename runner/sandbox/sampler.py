"""Memory, processor seconds and progress of a running container, asked for beside the clock.

The engine may take a second to answer, so nothing here is asked by whoever watches the deadline.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runner.disturbance import Reading, Watch
from runner.sandbox.cputime import CpuClock, belongs
from runner.sandbox.holder import Holder
from runner.sandbox.translate import ENGINE_TROUBLE
from runner.trial import TrialSpec

if TYPE_CHECKING:
    from docker import DockerClient

SAMPLE_SECONDS = 1.0
LAST_SAMPLE_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the container says about itself; its own word."""

    step: int | None = None
    loss: float | None = None


class CpuMeter:
    """A context manager that reads the processor seconds of a container until it is gone.

    Between the last reading and the exit the container is taken to have used all the processors it may: nothing is to be
    had from computing just then.  With the kernel's own file that is a hundredth of a second.
    """

    def __init__(self, clock: CpuClock, cpus: float) -> None:
        self._clock, self._cpus = clock, cpus
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cpu meter", daemon=True)
        self._last: tuple[float, float] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def used(self, ended: float | None = None) -> float | None:
        """Processor seconds so far, up to `ended` (monotonic) if the container is gone; None if nothing could be read."""
        if self._last is None:
            return None
        at, used = self._last
        gap = 0.0 if ended is None or self._clock.direct else max(ended - at, 0.0) * self._cpus
        return used + gap

    def read(self) -> float | None:
        """Processor seconds now."""
        used = self._clock.read()
        if used is not None:
            self._last = time.monotonic(), used
        return used

    def _loop(self) -> None:
        while not self._over.wait(self._clock.poll_seconds):
            self.read()


class Sampler:
    """A context manager: samples from its entry to its exit, and never fails."""

    def __init__(
        self,
        client: DockerClient,
        spec: TrialSpec,
        held: Holder,
        identifier: str,
        gpu: Callable[[str], Reading | None] | None,
    ) -> None:
        self._client, self._spec, self._held, self._id = client, spec, held, identifier
        self._gpu = gpu
        self._watch = Watch(lambda process: belongs(process, identifier))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)
        self.peak_memory: int | None = None
        """Highest bytes seen."""
        self.said = Said()
        self.samples = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        # The engine may take a second for its last answer; nobody needs it any more.
        self._thread.join(timeout=LAST_SAMPLE_SECONDS)

    @property
    def disturbed(self) -> str | None:
        """What else went on on the trial's GPU, in words; None: nothing that was seen."""
        return self._watch.disturbed

    def _loop(self) -> None:
        # Gone or silent in between: whoever watches the container finds out for itself.
        while not self._over.wait(SAMPLE_SECONDS if self.samples else SAMPLE_SECONDS / 4):
            with suppress(*ENGINE_TROUBLE):
                self._note_memory()
            with suppress(*ENGINE_TROUBLE):
                self.said = self._ask()
            self.samples += 1

    def _note_memory(self) -> None:
        if self._spec.gpu is not None:
            reading = self._gpu(self._spec.gpu) if self._gpu else None
            if reading is not None:
                self._watch.note(reading)
            used = None if reading is None else reading.memory_bytes
        else:
            stats = self._client.api.stats(self._id, stream=False, one_shot=True).get("memory_stats", {})
            # cgroup v1 keeps the peak; v2 gives the moment only.
            used = stats.get("max_usage", stats.get("usage"))
        if used is not None:
            self.peak_memory = max(self.peak_memory or 0, int(used))

    def _ask(self) -> Said:
        word, _, value = self._held.heard().partition(" ")
        return Said(**json.loads(value)) if word == "said" else self.said
