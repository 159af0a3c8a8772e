"""The volumes of one container call and the small container of ours that keeps them alive and works the gate."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import docker.errors

from runner.errors import EngineFailedError, StuckContainerError
from runner.interrupts import held_back
from runner.sandbox import container, transfer
from runner.sandbox.create import create_container
from runner.sandbox.remap import first_uid
from runner.sandbox.transfer import RefusedOutputError
from runner.sandbox.translate import engine_errors, remove_container, remove_volume
from runner.trial import TrialSpec

if TYPE_CHECKING:
    from docker import DockerClient

_NOT_REGULAR = 0x8F280000
"""Go's file mode bits of everything that is not a regular file: directory, link, device, pipe, socket, irregular."""


class Holder:
    """Inputs in, gate open and closed, outputs out."""

    def __init__(self, client: DockerClient, spec: TrialSpec, name: str) -> None:
        self._client = client
        self._spec = spec
        self.in_volume = f"{name}-in"
        self.out_volume = f"{name}-out"
        self.kept_volume = f"{name}-kept" if spec.rounds else None
        gated = [mount for mount in spec.volumes if mount.gated]
        self._lasting = [f"{container.HOLD}/{index}/gated" for index in range(len(gated))]
        """Gated folders of prepared volumes, which outlive the trial."""
        self._has_gate = bool(spec.gated_files or spec.rounds)
        self._own = [f"{container.HOLD}/in/gated"] if self._has_gate else []
        self._name = f"{name}-holder"

    def start(self) -> None:
        """Make the volumes and the holder, and copy the inputs in; the gate is closed.

        A prepared volume may still be open if the runner before this one was killed.
        """
        spec, labels = self._spec, dict(self._spec.labels)
        for mount in spec.volumes:
            # The engine would make an empty one in the place of one that is gone, and the trial would seem to crash.
            self._client.api.inspect_volume(mount.volume)
        base = first_uid(self._client.info())
        volumes = [
            (self.in_volume, container.in_volume_options(spec, base)),
            (self.out_volume, container.out_volume_options(spec, base)),
        ]
        if self.kept_volume:
            volumes.append((self.kept_volume, container.kept_volume_options(spec, base)))
        for name, options in volumes:
            self._client.volumes.create(
                name=name, driver="local", driver_opts=options, labels={**labels, "autoresearch.role": "trial"}
            )
        body = container.holder_body(
            spec, in_volume=self.in_volume, out_volume=self.out_volume, kept_volume=self.kept_volume
        )
        create_container(self._client, body, self._name)
        self._client.api.start(self._name)
        questions = [one.question for one in spec.rounds]
        stream = transfer.pack(
            spec.files,
            (*spec.gated_files, *questions[:1]),
            uid=container.HOLDER_UID,
            with_gate=self._has_gate,
            closed=questions[1:],
        )
        self._client.api.put_archive(self._name, f"{container.HOLD}/in", stream)
        self.close_gate()

    def open_gate(self) -> None:
        """Make what the phase works on readable."""
        self._chmod("0755", [*self._own, *self._lasting])

    def close_gate(self) -> None:
        """Make it unreadable (again): prepared volumes outlive the trial."""
        self._chmod("0700", self._lasting)

    def heard(self) -> str:
        """The last line of the program inside: empty, `ready`, or `said` with what the trial says of itself.

        The only way to look at /out while the trial lives: the engine itself must not touch what it can change.
        """
        lines = self._client.api.logs(self._name, stdout=True, stderr=False, tail=1)
        return str(lines.decode(errors="replace").strip())

    def fetch(self, name: str, destination: Path, *, max_bytes: int, place: str = "out") -> bool:
        """Copy the regular file /out/`name` to `destination`; False if there is none.

        `place` "kept" means an answer that the holder has taken.

        Only after the trial's container has ended: the engine would wait for ever on a pipe that is put in a file's
        place.  Raises `RefusedOutputError` if it is anything else, or larger than `max_bytes`.
        """
        path = f"{container.HOLD}/{place}/{name}"
        try:
            stream, stat = self._client.api.get_archive(self._name, path, chunk_size=transfer.CHUNK)
        except docker.errors.NotFound:
            self._refuse_ended()
            return False
        except docker.errors.APIError as error:
            self._refuse_ended()
            message = "cannot be read"  # a link to itself, for example
            raise RefusedOutputError(message) from error
        if stat["mode"] & _NOT_REGULAR:
            message = "not a regular file"
            raise RefusedOutputError(message)
        if stat["size"] > max_bytes:
            message = f"{stat['size']} bytes, more than the {max_bytes} allowed"
            raise RefusedOutputError(message)
        transfer.receive(stream, destination, max_bytes=max_bytes)
        return True

    def remove(self, *, volumes: bool = True) -> None:
        """Remove holder and volumes; idempotent, also halfway through `start`."""
        remove_container(self._client, self._name)
        if not volumes:
            return
        remove_volume(self._client, self.in_volume)
        remove_volume(self._client, self.out_volume)
        if self.kept_volume:
            remove_volume(self._client, self.kept_volume)

    def _refuse_ended(self) -> None:
        """Raise `EngineFailedError`, or what docker-py raises, if the holder is gone and with it all that was written."""
        if not self._client.api.inspect_container(self._name)["State"]["Running"]:
            message = f"container {self._name} was ended from outside, and with it went what the trial had written"
            raise EngineFailedError(message)

    def _chmod(self, mode: str, folders: list[str]) -> None:
        if not folders:
            return
        created = self._client.api.exec_create(self._name, ["chmod", mode, *folders])
        output = self._client.api.exec_start(created["Id"])
        if self._client.api.exec_inspect(created["Id"])["ExitCode"] != 0:
            said = output.decode(errors="replace").strip()
            message = f"the gate could not be set to {mode} in the holder container: {said}"
            raise EngineFailedError(message)


@contextmanager
def holder(client: DockerClient, spec: TrialSpec) -> Iterator[Holder]:
    """A started `Holder`, gone at the end whatever happens."""
    held = Holder(client, spec, f"autoresearch-{uuid.uuid4().hex[:12]}")
    in_use = False
    try:
        with engine_errors(spec.image):
            held.start()
        yield held
    except StuckContainerError:
        in_use = True  # as long as that container lives, its volumes cannot be removed
        raise
    finally:
        with held_back(), engine_errors(spec.image):
            held.remove(volumes=not in_use)
