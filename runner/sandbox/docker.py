"""`Sandbox` on a Docker engine: one fresh container per call, everything through the engine's API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors
import structlog

from runner.disturbance import Reading
from runner.errors import EngineFailedError
from runner.interrupts import held_back
from runner.sandbox import container
from runner.sandbox.cputime import CpuClock
from runner.sandbox.create import create_container
from runner.sandbox.ending import Exit, Stop, classify, undisturbed
from runner.sandbox.holder import Holder, holder
from runner.sandbox.sampler import CpuMeter, Sampler
from runner.sandbox.transfer import RefusedOutputError
from runner.sandbox.translate import (
    ENGINE_TROUBLE,
    engine_errors,
    host_disk_full,
    remove_container,
    remove_volume,
)
from runner.sandbox.witness import Witness
from runner.trial import Ending, Progress, Result, TrialSpec

if TYPE_CHECKING:
    from docker import DockerClient

    Engine = DockerClient
    """What `runner.sandbox.connect` gives; others pass it on and look no further."""

log = structlog.get_logger()

POLL_SECONDS = 0.1
READY_POLL_SECONDS = 0.05
SLOW_SECONDS = 0.5
"""An engine that takes longer for an answer that a trial is timed by does not show when things happened."""


class DockerSandbox:
    """Implements `runner.protocols.Sandbox`."""

    def __init__(
        self,
        client: DockerClient,
        *,
        gpu: Callable[[str], Reading | None] | None = None,
        cdi: frozenset[str] = frozenset(),
        runtime: str | None = None,
    ) -> None:
        """`cdi` are the names under which the engine gives out GPUs by CDI (`sandbox.cdi`); trials run by the engine's `runtime`
        of that name, or its default.
        """
        self._client, self._cdi, self._runtime = client, cdi, runtime
        self._gpu = gpu
        """What the driver says of the GPU of a UUID; called about once a second while a trial has it."""

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        """See `Sandbox.run`."""
        began = time.monotonic()
        destination.mkdir(parents=True, exist_ok=True)
        try:
            with holder(self._client, spec) as held, engine_errors(spec.image):
                body = container.trial_body(
                    spec, in_volume=held.in_volume, out_volume=held.out_volume, cdi=self._cdi, runtime=self._runtime
                )
                with self._container(body, f"{held.in_volume[:-3]}-{spec.phase}") as identifier:
                    created(identifier)
                    sampler = Sampler(self._client, spec, held, identifier, self._gpu)
                    watch = _Watch(self._client, spec, held, identifier, destination, progress)
                    result = watch.run(sampler)
        except OSError as error:
            full = host_disk_full(error)
            if full is None:
                raise
            raise full from error
        return replace(result, total_seconds=time.monotonic() - began)

    def reap(self, labels: dict[str, str]) -> int:
        """See `Sandbox.reap`."""
        wanted = {"label": ["autoresearch", *(f"{name}={value}" for name, value in labels.items())]}
        with engine_errors():
            containers = self._client.api.containers(all=True, filters=wanted)
            for found in containers:
                remove_container(self._client, found["Id"])
            volumes = self._client.api.volumes({**wanted, "label": [*wanted["label"], "autoresearch.role=trial"]})
            removed = sum(_removed(self._client, found["Name"]) for found in volumes["Volumes"] or [])
        return len(containers) + removed

    def runs(self, labels: dict[str, str]) -> set[str]:
        """Ids of the runs that have a container or a trial's volume with all `labels`.  Raises what `reap` raises."""
        wanted = {"label": ["autoresearch.run", *(f"{name}={value}" for name, value in labels.items())]}
        with engine_errors():
            containers = self._client.api.containers(all=True, filters=wanted)
            volumes = self._client.api.volumes({"label": [*wanted["label"], "autoresearch.role=trial"]})["Volumes"] or []
        return {found["Labels"]["autoresearch.run"] for found in (*containers, *volumes)}

    @contextmanager
    def _container(self, body: container.Body, name: str) -> Iterator[str]:
        # By name, which is known before the engine answers: a signal may come in between.
        try:
            yield create_container(self._client, body, name)
        finally:
            with held_back():
                remove_container(self._client, name)


def _removed(client: DockerClient, name: str) -> bool:
    """Remove a volume without a container, if the engine can: after a restart one of Docker 20.10 counts uses that are over."""
    try:
        remove_volume(client, name)
    except docker.errors.APIError as error:
        if structlog.is_configured():  # else nobody has a run's folder for it, and it would go to the screen
            log.warning("volume.left", name=name, reason=str(error.explanation or error))
        return False
    return True


class _Watch:
    """One started container: its gate, its deadlines, its end."""

    def __init__(
        self,
        client: DockerClient,
        spec: TrialSpec,
        held: Holder,
        identifier: str,
        destination: Path,
        progress: Callable[[Progress], None],
    ) -> None:
        self._client, self._spec, self._held, self._id = client, spec, held, identifier
        self._destination, self._progress = destination, progress
        self._witness = Witness(client, identifier)
        self._stopped: Stop | None = None
        self._started = self._gate = 0.0
        self._gate_took = 0.0
        """Seconds between the start of the clock and the moment at which the gate was open for certain."""
        self._cpu_at_gate: float | None = None
        self._told = 0

    def run(self, sampler: Sampler) -> Result:
        """Start the container and see it to its end."""
        try:
            with self._witness:
                self._client.api.start(self._id)
                self._started = time.monotonic()
                clock = CpuClock(self._client, self._id, int(self._state()["Pid"]))
                with sampler, CpuMeter(clock, self._spec.limits.cpus) as meter:
                    self._until_ready(sampler, meter)
                    ended = self._until_exit(sampler, meter) if self._gate else time.monotonic()
                state = self._state()
                self._witness.refuse(int(state["ExitCode"]))
            self._held.close_gate()
            return replace(
                undisturbed(self._result(state, ended, sampler.peak_memory), self._spec.phase, sampler.disturbed),
                cpu_seconds=meter.used(ended),
                startup_cpu_seconds=self._cpu_at_gate,
            )
        finally:
            self._keep_log()

    def _until_ready(self, sampler: Sampler, meter: CpuMeter) -> None:
        cap = self._spec.limits.startup_seconds
        while self._state()["Running"]:
            asked = time.monotonic()
            if self._held.heard():
                # The clock starts before the gate is open, never after.
                self._cpu_at_gate = meter.read()
                self._gate = time.monotonic()
                self._held.open_gate()
                self._gate_took = time.monotonic() - self._gate
                return
            if self._computed_too_much(meter):
                return
            self._tell(sampler)
            # What a slow engine's answer took is not the container's doing.
            if asked - self._started > cap:
                self._kill(Stop.STARTUP)
                return
            time.sleep(READY_POLL_SECONDS)

    def _until_exit(self, sampler: Sampler, meter: CpuMeter) -> float:
        """The moment of the exit, at most one poll late."""
        deadline = self._gate + self._spec.limits.seconds
        # A gate that a slow engine opened late has cost the container that much of its time, or nothing.
        latest = deadline + (self._gate_took if self._gate_took > SLOW_SECONDS else 0.0)
        while True:
            asked = time.monotonic()
            if not self._state()["Running"]:
                self._refuse_slow(asked, deadline)
                return time.monotonic()
            if asked >= latest:
                self._kill(Stop.BUDGET)
                return time.monotonic()
            if self._computed_too_much(meter):
                return time.monotonic()
            self._tell(sampler)
            time.sleep(max(0.0, min(POLL_SECONDS, latest - time.monotonic())))

    def _refuse_slow(self, asked: float, deadline: float) -> None:
        """Raise `EngineFailedError` if an exit was seen after the deadline and may have been in time."""
        over = time.monotonic() - deadline
        if over > SLOW_SECONDS:
            message = (
                f"the container's exit was seen {over:.1f} s after its deadline, by an answer that took the engine {time.monotonic() - asked:.1f} s, and "
                f"opening the gate took {self._gate_took:.1f} s: whether it was in time is not known"
            )
            raise EngineFailedError(message)

    def _computed_too_much(self, meter: CpuMeter) -> bool:
        """Kills what has used more processor seconds than it may."""
        cap = self._spec.limits.cpu_seconds
        if cap is None or (meter.used() or 0.0) <= cap:
            return False
        self._kill(Stop.COMPUTE)
        return True

    def _tell(self, sampler: Sampler) -> None:
        if sampler.samples == self._told:
            return
        self._told = sampler.samples
        phase = self._spec.phase if self._gate else f"{self._spec.phase} start-up"
        seconds = time.monotonic() - (self._gate or self._started)
        self._progress(Progress(phase=phase, step=sampler.said.step, loss=sampler.said.loss, seconds=seconds))

    def _kill(self, why: Stop) -> None:
        self._stopped = why
        self._witness.ours()
        give_up = time.monotonic() + self._spec.limits.kill_seconds
        with suppress(*ENGINE_TROUBLE):  # it may have ended by itself, and whether it did is asked now
            self._client.api.kill(self._id, "SIGKILL")
        while self._state()["Running"]:
            if time.monotonic() > give_up:
                # Whether it lives on, its removal finds out: this may be the engine's doing alone.
                message = f"the engine did not kill container {self._id[:12]} within {self._spec.limits.kill_seconds:.0f} s"
                raise EngineFailedError(message)
            time.sleep(READY_POLL_SECONDS)

    def _state(self) -> dict[str, Any]:
        return dict(self._client.api.inspect_container(self._id)["State"])

    def _result(self, state: dict[str, Any], ended: float, peak_memory: int | None) -> Result:
        limits = self._spec.limits
        if state["Status"] not in ("exited", "dead") or state.get("Error"):
            message = f"container {self._id[:12]} ended as {state['Status']}: {state.get('Error') or 'no reason given'}"
            raise EngineFailedError(message)
        facts = Exit(
            exit_code=state["ExitCode"],
            out_of_memory=state["OOMKilled"],
            stopped=self._stopped,
            gate_opened=bool(self._gate),
            startup_cap=limits.startup_seconds,
            work_cap=limits.seconds,
            compute_cap=limits.cpu_seconds,
            memory_bytes=limits.memory_bytes,
        )
        ending, reason = classify(facts)
        outputs: tuple[tuple[str, Path], ...] = ()
        if ending is Ending.FINISHED:
            outputs, wrong = self._collect()
            if wrong:
                ending, reason = Ending.INVALID_OUTPUT, wrong
        return Result(
            ending=ending,
            reason=reason,
            exit_code=state["ExitCode"],
            startup_seconds=(self._gate or ended) - self._started,
            seconds=ended - self._gate if self._gate else 0.0,
            outputs=outputs,
            log_path=self._destination / f"{self._spec.phase}.log",
            peak_memory_bytes=peak_memory,
        )

    def _collect(self) -> tuple[tuple[tuple[str, Path], ...], str]:
        got: list[tuple[str, Path]] = []
        answers = [("kept", one.answer) for one in self._spec.rounds]
        for place, output in (*(("out", output) for output in self._spec.outputs), *answers):
            path = self._destination / output.name
            try:
                there = self._held.fetch(output.name, path, max_bytes=output.max_bytes, place=place)
            except RefusedOutputError as error:
                return (), f"{output.name}: {error}"
            if there:
                got.append((output.name, path))
            elif output.required:
                return (), f"{output.name} was not written"
        return tuple(got), ""

    def _keep_log(self) -> None:
        """The whole log, which the engine has capped, into the trial's folder."""
        path = self._destination / f"{self._spec.phase}.log"
        with suppress(*ENGINE_TROUBLE):
            data = self._client.api.logs(self._id, stdout=True, stderr=True, stream=False)
            path.write_bytes(data[: self._spec.limits.log_bytes])


