"""Building images through the engine, leaving nothing half-way behind."""

from __future__ import annotations

import json
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import docker
import docker.errors

from runner.errors import EngineError
from runner.interrupts import held_back
from runner.sandbox.connect import connect
from runner.sandbox.translate import engine_errors, remove_container, remove_volume
from runner.setup.steps import Heartbeat, Say

BUILD_LABEL = "autoresearch.build"
"""Its value names one build; what still carries it without a tag when the build is over is removed."""
OLD = "2h"
SILENT_SECONDS = 1800
"""Installing several GB says nothing for minutes."""
CHUNK = 1 << 20
END_OF_ARCHIVE = bytes(2 * tarfile.BLOCKSIZE)
TAIL_LINES = 20
PROBE_MEMORY = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Built:
    """An image as the engine has it."""

    id: str
    labels: Mapping[str, str]
    size_bytes: int
    layers: tuple[str, ...]
    """Content hashes; images with a layer in common share its files, and what the kernel keeps of them."""


class Builder:
    """One connection for building."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    @staticmethod
    def connect(environment: Mapping[str, str] | None = None) -> Builder:
        """Raises `EngineError` if no usable engine answers."""
        return Builder(connect(environment, timeout=SILENT_SECONDS))

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------- looking

    def architecture(self) -> str:
        """`amd64`, `arm64`, ..."""
        with engine_errors():
            return str(self._client.version()["Arch"])

    def get(self, image: str) -> Built | None:
        """The image with this id or name, or None."""
        with engine_errors():
            try:
                return _built(self._client.images.get(image))
            except docker.errors.ImageNotFound:
                return None

    def find(self, labels: Mapping[str, str]) -> Built | None:
        """The newest tagged image that carries all `labels`."""
        return next(iter(self.find_all(labels)), None)

    def find_all(self, labels: Mapping[str, str]) -> list[Built]:
        """The tagged images that carry all `labels`, the newest first."""
        with engine_errors():
            images = self._client.images.list(filters={**_filter(labels), "dangling": False})
            images.sort(key=lambda image: str(image.attrs.get("Created", "")), reverse=True)
        return [_built(image) for image in images]

    def registry_digest(self, reference: str) -> str | None:
        """The digest a registry gives for `reference` now, or None where no registry can be reached."""
        with suppress(EngineError), engine_errors():
            return str(self._client.images.get_registry_data(reference).id)
        return None

    # ------------------------------------------------------------------------------------------- making

    def import_base(self, archive: Path, *, name: str, labels: Mapping[str, str], say: Say) -> Built:
        """Make an image with one layer from a root file system."""
        repository, tag = name.rsplit(":", 1)
        changes = [f'LABEL {label}="{value}"' for label, value in labels.items()]
        with Heartbeat("importing the base", say), engine_errors():
            self._client.api.import_image_from_file(
                str(archive), repository=repository, tag=tag, changes=changes
            )
        return self._known(name)

    def build(
        self,
        files: Sequence[tuple[str, Path]],
        *,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        name: str,
        network: bool,
        say: Say,
    ) -> Built:
        """Build the `Dockerfile` among `files` (name in the context, path here) and tag it.

        With the classic builder, which every engine has.  Whatever way it ends, no container and no stage
        stays behind.
        """
        build = uuid.uuid4().hex
        with self._leaving_nothing(build), engine_errors(), Heartbeat(f"building {name}", say) as beat:
            stream = self._client.api.build(  # returns when the context is sent
                fileobj=_context(files),  # type: ignore[arg-type] # any iterable of bytes will do
                custom_context=True,
                buildargs={**arguments, "BUILD": build},
                # Containers inherit the labels of their image: those of the finished one are no part of the build.
                labels={**labels, BUILD_LABEL: ""},
                tag=name,
                network_mode="default" if network else "none",
                nocache=True,
                rm=True,
                forcerm=True,
                decode=True,
            )
            _follow(stream, name, beat)
            return self._known(name)

    def copy(
        self,
        image: str,
        marker: str,
        *,
        labels: Mapping[str, str],
        name: str,
        container_labels: Mapping[str, str],
        say: Say,
    ) -> Built:
        """Make an image of one layer with the files and settings of `image`, and tag it `name`.

        The layer also has the file /`marker`: engines keep layers of equal content once.  The files stream through
        here and are kept nowhere on the way.  `container_labels` are for the container, never started, that they are
        read from.  Whatever way it ends, neither it nor half an image stays behind.
        """
        build = uuid.uuid4().hex
        repository, tag = name.rsplit(":", 1)
        with self._leaving_nothing(build), engine_errors(image), Heartbeat(f"copying to {name}", say) as beat:
            settings = self._client.images.get(image).attrs["Config"]
            container = self._client.containers.create(
                image, ["true"], network_mode="none", labels={**container_labels, BUILD_LABEL: build}
            )
            files = self._client.api.export(str(container.id), CHUNK)
            answer = self._client.api.import_image_from_stream(
                _marked(marker, files), repository=repository, tag=tag, changes=_changes(settings, labels)
            )
            _follow(map(json.loads, answer.splitlines()), name, beat)
            return self._known(name)

    def _known(self, name: str) -> Built:
        built = self.get(name)
        if built is None:
            message = f"the engine lost {name} right after making it"
            raise EngineError(message)
        return built

    @contextmanager
    def _leaving_nothing(self, build: str) -> Iterator[None]:
        label = f"{BUILD_LABEL}={build}"
        try:
            yield
        finally:
            with held_back(), engine_errors():
                for container in self._client.api.containers(all=True, filters={"label": label}):
                    remove_container(self._client, container["Id"])
                self._client.images.prune(filters={"dangling": True, "label": label})

    def remove_old_halves(self) -> None:
        """Remove what builds left that were killed some time ago."""
        with engine_errors():
            filters = {"dangling": True, "label": BUILD_LABEL, "until": OLD}
            self._client.images.prune(filters=filters)

    def run(self, image: str, command: Sequence[str], *, say: Say) -> str:
        """Run a trusted command in a fresh container without network; give back what it printed."""
        with Heartbeat("trying the image", say), engine_errors():
            container = self._client.containers.create(
                image,
                list(command),
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges:true"],
                mem_limit=PROBE_MEMORY,
                pids_limit=256,
                labels={"autoresearch.role": "probe"},
            )
            try:
                container.start()
                code = int(container.wait()["StatusCode"])
                output = container.logs().decode(errors="replace")
            finally:
                container.remove(force=True, v=True)
        if code:
            message = f"the image does not work (exit code {code}):\n{output[-2000:]}"
            raise EngineError(message)
        return output

    # ----------------------------------------------------------------------------------------- removing

    def remove(self, image: str) -> bool:
        """Remove an image unless something uses it; True if it was removed."""
        with engine_errors():
            try:
                self._client.images.remove(image)
            except (docker.errors.ImageNotFound, docker.errors.APIError) as error:
                if error.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                    return False
                raise
        return True

    def tagged(self, repository: str) -> list[str]:
        """The ids of the images tagged `repository:...`."""
        with engine_errors():
            return [str(image.id) for image in self._client.images.list(name=repository)]

    def remove_containers(self, labels: Mapping[str, str]) -> int:
        """Kill and remove the containers that carry all `labels`; how many."""
        with engine_errors():
            found = self._client.api.containers(all=True, filters=_filter(labels))
            for container in found:
                remove_container(self._client, container["Id"])
        return len(found)

    def remove_volumes(self, labels: Mapping[str, str]) -> int:
        """Remove the volumes that carry all `labels`; how many."""
        with engine_errors():
            found = self._client.api.volumes(_filter(labels))["Volumes"] or []
            for volume in found:
                remove_volume(self._client, volume["Name"])
        return len(found)

    def remove_volume(self, name: str) -> bool:
        """Remove the volume of this name unless something uses it; True if it was removed."""
        with engine_errors():
            try:
                self._client.api.remove_volume(name)
            except docker.errors.APIError as error:
                if error.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                    return False
                raise
        return True


def _filter(labels: Mapping[str, str]) -> dict[str, list[str]]:
    return {"label": [f"{name}={value}" for name, value in labels.items()]}


def _built(image: Any) -> Built:
    return Built(
        id=str(image.id),
        labels=dict(image.labels),
        size_bytes=int(image.attrs["Size"]),
        layers=tuple(image.attrs["RootFS"].get("Layers") or ()),
    )


def _changes(settings: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """The settings of an image as instructions: an import takes over none by itself."""
    variables = [entry.partition("=") for entry in settings["Env"] or ()]
    return [
        *(f"ENV {name}={json.dumps(value)}" for name, _, value in variables),
        *(f"LABEL {name}={json.dumps(value)}" for name, value in labels.items()),
        f"USER {settings['User']}",
        f"WORKDIR {settings['WorkingDir']}",
        f"CMD {json.dumps(settings['Cmd'])}",
    ]


def _marked(marker: str, archive: Iterable[bytes]) -> Iterator[bytes]:
    """The tar `archive` with an empty file `marker` before its members; raises `EngineError` if it ends too early.

    The error breaks off the import, so that nothing is made of half an archive.
    """
    yield tarfile.TarInfo(marker).tobuf()
    end = b""
    for chunk in archive:
        yield chunk
        end = (end + chunk)[-len(END_OF_ARCHIVE) :]
    if end != END_OF_ARCHIVE:
        message = "the engine broke off in the middle of an image"
        raise EngineError(message)


def _context(files: Sequence[tuple[str, Path]]) -> Iterator[bytes]:
    """A tar of `files`, made while it is sent: a context of several GB needs no room on disk."""
    for name, path in files:
        info = tarfile.TarInfo(name)
        info.size, info.mode = path.stat().st_size, 0o644
        yield info.tobuf()
        with path.open("rb") as source:
            while chunk := source.read(CHUNK):
                yield chunk
        yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield END_OF_ARCHIVE


def _follow(stream: Iterator[dict[str, Any]], name: str, beat: Heartbeat) -> None:
    """Pass the steps on; raise on the error that ends a failed build."""
    said: list[str] = []
    for event in stream:
        text = str(event.get("stream") or event.get("status") or "").rstrip()
        for line in text.splitlines():
            said.append(line)
            if line.startswith("Step "):
                beat.note(line)
        if "error" in event:
            tail = "\n".join(said[-TAIL_LINES:])
            message = f"{name} could not be built: {event['error']}\n{tail}"
            raise EngineError(message)
