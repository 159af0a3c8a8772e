"""Prepared volumes: filled once, named by what is in them, checked by hash each time a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import docker.errors

from runner.durable import file_sha256
from runner.errors import EngineError
from runner.interrupts import held_back
from runner.sandbox import container, transfer
from runner.sandbox.create import create_container
from runner.sandbox.translate import engine_errors, remove_container, remove_volume
from runner.trial import InputFile

if TYPE_CHECKING:
    from docker import DockerClient

KEEPER_SECONDS = 3600


@dataclass(frozen=True, kw_only=True)
class PreparedVolume:
    """What a volume must hold."""

    name: str
    files: tuple[InputFile, ...]
    gated: bool
    """True: the files lie in a folder `gated` that is closed until the holder opens it."""
    labels: tuple[tuple[str, str], ...]


def provide(client: DockerClient, image: str, wanted: PreparedVolume) -> bool:
    """Make sure the volume exists and holds exactly the wanted bytes; True if it had to be filled.

    One caller at a time: what another one would have under way is taken for a killed runner's and removed.
    Raises `EngineError` if even a freshly filled volume does not match.
    """
    with engine_errors(image):
        if _exists(client, wanted.name) and _matches(client, image, wanted):
            return False
        remove_container(client, f"{wanted.name}-keeper")
        remove_volume(client, wanted.name)
        client.volumes.create(name=wanted.name, labels=dict(wanted.labels) | {"autoresearch.role": "prepared"})
        _fill(client, image, wanted)
        if not _matches(client, image, wanted):
            message = f"volume {wanted.name} does not hold what was copied into it: is the engine's disk sound?"
            raise EngineError(message)
    return True


def _exists(client: DockerClient, name: str) -> bool:
    try:
        client.api.inspect_volume(name)
    except docker.errors.NotFound:
        return False
    return True


def _matches(client: DockerClient, image: str, wanted: PreparedVolume) -> bool:
    folder = "/hold/gated" if wanted.gated else "/hold"
    paths = [f"{folder}/{file.name}" for file in wanted.files]
    with _keeper(client, image, wanted) as identifier:
        created = client.api.exec_create(identifier, ["sha256sum", "--", *paths])
        said = client.api.exec_start(created["Id"]).decode(errors="replace")
    found = [line.split(maxsplit=1)[0] for line in said.splitlines() if "  /hold" in line]
    return found == [file_sha256(file.path) for file in wanted.files]


def _fill(client: DockerClient, image: str, wanted: PreparedVolume) -> None:
    plain, gated = ((), wanted.files) if wanted.gated else (wanted.files, ())
    with _keeper(client, image, wanted) as identifier:
        stream = transfer.pack(plain, gated, uid=container.HOLDER_UID, with_gate=wanted.gated)
        client.api.put_archive(identifier, "/hold", stream)


@contextmanager
def _keeper(client: DockerClient, image: str, wanted: PreparedVolume) -> Iterator[str]:
    mounts = [container.volume_mount(wanted.name, "/hold", read_only=False)]
    body = container.keeper_body(image, mounts=mounts, seconds=KEEPER_SECONDS, labels=dict(wanted.labels))
    name = f"{wanted.name}-keeper"
    remove_container(client, name)  # of a runner that was killed
    try:
        identifier = create_container(client, body, name)
        client.api.start(identifier)
        yield identifier
    finally:
        with held_back():
            remove_container(client, name)
