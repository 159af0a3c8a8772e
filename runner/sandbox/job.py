"""Runs the prepare program in a container of its own: trusted code on untrusted downloads.

Everything that it needs is streamed in and everything that it made is streamed out; nothing of the host
is mounted.  It has a network only for data sets that must be downloaded.  What is secret (the salt, the
hub token, a proxy's password) lies in a memory-backed volume that is gone with the container, and so is
in no environment, image or inspect output.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors

from runner.errors import DataError, EngineError, UsageError
from runner.interrupts import held_back
from runner.prepare import FILES, MANIFEST, PrepareSpec, at_rest, text_files
from runner.sandbox import seccomp, transfer
from runner.sandbox.container import Body, volume_mount
from runner.sandbox.create import create_container
from runner.sandbox.masks import masked_paths
from runner.sandbox.remap import first_uid
from runner.sandbox.transfer import RefusedOutputError
from runner.sandbox.translate import engine_errors, remove_container, remove_volume

if TYPE_CHECKING:
    from docker import DockerClient

UID = 10001
IN_BYTES = 32 << 20
MANIFEST_BYTES = 64 << 20
POLL_SECONDS = 0.25
SILENCE_SECONDS = 900.0
"""The program says something every few seconds; after so long without a word it hangs."""
STALL_SECONDS = 120.0
"""A copy out of the container that does not grow for so long has stalled."""
HOURS = 24
ROLE = "autoresearch.role"
DATA_ROOT = "autoresearch.data"

_START = (
    "i=0; until [ -e /in/go ]; do i=$((i+1)); [ $i -lt 36000 ] || exit 70; sleep 0.1; done; "
    f"exec timeout -s KILL {HOURS}h python3 -m corpus /in/spec.json"
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the user reaches the network; only a prepare container that downloads gets to know."""

    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`; may hold passwords."""
    authorities: Path | None = None
    """PEM file of the certificate authorities to trust."""
    token: str | None = field(default=None, repr=False)
    """For the data hub."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Access:
        """What the usual variables say.  Raises `UsageError` if one names a file that is not there."""
        names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        found = {name: environment.get(name) or environment.get(name.upper()) for name in names}
        return cls(
            proxies={name: value for name, value in found.items() if value},
            authorities=_authorities(environment),
            token=environment.get("HF_TOKEN") or None,
        )


def _authorities(environment: Mapping[str, str]) -> Path | None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        if value := environment.get(name):
            path = Path(value)
            if not path.is_file():
                message = f"{name} names {value}, which is not a file"
                raise UsageError(message)
            return path
    return None


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """The hard limits of the prepare container."""

    memory_bytes: int = 8 << 30
    """Memory and swap together."""
    cpus: float = float(os.cpu_count() or 1)
    pids: int = 512
    log_bytes: int = 16 << 20


class PrepareJob:
    """A `runner.prepare.RunContainer` on a container engine."""

    def __init__(
        self,
        client: DockerClient,
        image: str,
        program: Path,
        *,
        access: Access | None = None,
        limits: JobLimits | None = None,
    ) -> None:
        """`image` is an engine id of the kind `prepare`; `program` is the folder `trainer/corpus`."""
        self._client, self._image, self._program = client, image, program
        self._access, self._limits = access or Access(), limits or JobLimits()

    def __call__(self, spec: PrepareSpec, destination: Path, on_line: Callable[[str], None]) -> int:
        """See `runner.prepare.RunContainer`.

        Raises `EngineError` if the engine or image failed or the container had to be killed, `StateError`
        if the engine's disk is full, `DataError` if the user's files cannot be read; the container and its
        volumes are gone in any case, the download cache stays.
        """
        with engine_errors(self._image):
            labels = job_labels(destination.parent)
            _remove(self._client, labels)
            with self._volumes(spec, labels) as volumes, self._started(spec, volumes, labels) as identifier:
                self._hand_in(identifier, spec)
                code = self._follow(identifier, on_line)
                if code == 0:
                    self._hand_out(identifier, destination)
                return code

    @contextmanager
    def _volumes(self, spec: PrepareSpec, labels: dict[str, str]) -> Iterator[dict[str, str]]:
        """Volume by mount point."""
        stem = f"autoresearch-prepare-{uuid.uuid4().hex[:12]}"
        volumes = {"/in": f"{stem}-in", "/out": f"{stem}-out"}
        base = first_uid(self._client.info())
        if spec.files is not None:
            volumes["/files"] = f"{stem}-files"
        try:
            for target, name in volumes.items():
                options = _in_volume(base) if target == "/in" else {}
                self._client.api.create_volume(name, driver="local", driver_opts=options, labels=labels)
            if spec.network:
                volumes["/cache"] = cache_volume()
                self._client.api.create_volume(
                    cache_volume(), driver="local", labels={"autoresearch": "1", ROLE: "cache"}
                )
            yield dict(volumes)
        finally:
            volumes.pop("/cache", None)
            with held_back():
                for name in volumes.values():
                    remove_volume(self._client, name)

    @contextmanager
    def _started(self, spec: PrepareSpec, volumes: dict[str, str], labels: dict[str, str]) -> Iterator[str]:
        body = prepare_body(
            self._image, volumes=volumes, labels=labels, limits=self._limits, network=spec.network
        )
        name = volumes["/in"]
        # By name, which is known before the engine answers: a signal may come in between, and its answer be lost.
        try:
            identifier = create_container(self._client, body, name)
            self._client.api.start(identifier)
            yield identifier
        finally:
            with held_back():
                remove_container(self._client, name)

    def _hand_in(self, identifier: str, spec: PrepareSpec) -> None:
        self._put(identifier, "/out", [("data", None)])
        value = {**spec.value, "out": "/out/data"}
        members: list[_Member] = [
            ("corpus", None),
            *((f"corpus/{path.name}", path) for path in sorted(self._program.glob("*.py"))),
        ]
        if spec.network:
            self._put(identifier, "/cache", [("data", None)])
            secrets = {"token": self._access.token, "proxies": dict(self._access.proxies)}
            members.append(("secrets.json", json.dumps(secrets).encode()))
            value |= {"cache": "/cache/data", "secrets": "/in/secrets.json"}
            if self._access.authorities is not None:
                members.append(("authorities.pem", self._access.authorities))
                value["authorities"] = "/in/authorities.pem"
        if spec.files is not None:
            self._put(identifier, "/files", _folder(spec.files))
            value["files"] = "/files"
        members += [("spec.json", json.dumps(value).encode()), ("go", b"")]
        self._put(identifier, "/in", members)

    def _put(self, identifier: str, target: str, members: Iterable[_Member]) -> None:
        unread: list[OSError] = []

        def archive() -> Iterator[bytes]:
            # What fails in here leaves the client as a failure of the connection.
            try:
                yield from _archive(members)
            except OSError as error:
                unread.append(error)
                raise

        try:
            self._client.api.put_archive(identifier, target, archive())
        except OSError as error:
            if not unread:
                raise
            message = f"{unread[0].filename} cannot be read: {unread[0].strerror}"
            raise DataError(message) from error

    def _follow(self, identifier: str, on_line: Callable[[str], None]) -> int:
        """Hand over what the container says until it ends; its exit code.

        Polls, since a stream of logs has no timeout in this client and may hang for ever.
        """
        log = _Log(self._client, identifier)
        heard = time.monotonic()
        while True:
            state = dict(self._client.api.inspect_container(identifier)["State"])
            for line in log.new_lines():
                heard = time.monotonic()
                on_line(line)
            if not state["Running"]:
                return self._ended(identifier, state)
            if time.monotonic() - heard > SILENCE_SECONDS:
                message = f"the prepare container said nothing for {SILENCE_SECONDS:.0f} s and was removed: try again"
                raise EngineError(message)
            time.sleep(POLL_SECONDS)

    def _ended(self, identifier: str, state: dict[str, Any]) -> int:
        if state["OOMKilled"]:
            memory = self._limits.memory_bytes / (1 << 30)
            message = f"the prepare container needed more than its {memory:.1f} GiB of memory"
            raise EngineError(message)
        if state.get("Error") or state["ExitCode"] == 137:
            message = f"container {identifier[:12]} was ended from outside: {state.get('Error') or 'killed'}"
            raise EngineError(message)
        return int(state["ExitCode"])

    def _hand_out(self, identifier: str, destination: Path) -> None:
        try:
            self._get(identifier, MANIFEST, destination, MANIFEST_BYTES)
            manifest = json.loads((destination / MANIFEST).read_bytes())
            for name in FILES:
                self._get(identifier, name, destination, int(manifest["files"][name]["bytes"]))
        except (RefusedOutputError, docker.errors.NotFound, ValueError, KeyError, TypeError) as error:
            message = f"the prepare container did not give the files it should: {error}"
            raise DataError(message) from error

    def _get(self, identifier: str, name: str, destination: Path, max_bytes: int) -> None:
        path = destination / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)

        def copy() -> None:
            stream, _ = self._client.api.get_archive(identifier, f"/out/data/{name}", transfer.CHUNK)
            transfer.receive(stream, path, max_bytes=max_bytes)

        _while_it_grows(copy, path)


def reap(client: DockerClient, data_root: Path) -> int:
    """Remove what killed preparations of this data folder left in the engine; how many things it were.

    Does nothing while a preparation is running.  Raises `EngineError`.
    """
    with at_rest(data_root) as resting, engine_errors():
        return _remove(client, job_labels(data_root)) if resting else 0


def job_labels(data_root: Path) -> dict[str, str]:
    """What everything carries that a preparation makes, the download cache excepted."""
    place = f"{socket.gethostname()} {data_root.resolve()}"
    digest = hashlib.sha256(place.encode()).hexdigest()[:16]
    return {"autoresearch": "1", ROLE: "prepare", "autoresearch.owner": str(os.getuid()), DATA_ROOT: digest}


def _remove(client: DockerClient, labels: dict[str, str]) -> int:
    """Only for who holds the lock of the data folder, so that nothing in use is removed."""
    wanted = {"label": [f"{name}={value}" for name, value in labels.items()]}
    containers = client.api.containers(all=True, filters=wanted)
    for found in containers:
        remove_container(client, found["Id"])
    volumes = client.api.volumes(wanted)["Volumes"] or []
    for found in volumes:
        remove_volume(client, found["Name"])
    return len(containers) + len(volumes)


def prepare_body(
    image: str, *, volumes: Mapping[str, str], labels: Mapping[str, str], limits: JobLimits, network: bool
) -> Body:
    """The create call of the prepare container; `volumes` by mount point."""
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": ["sh", "-c", _START],
        "User": f"{UID}:{UID}",
        "WorkingDir": "/tmp",
        "Env": ["PYTHONPATH=/in", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1", "HOME=/tmp"],
        "Labels": dict(labels),
        "NetworkDisabled": not network,
        "HostConfig": {
            "NetworkMode": "bridge" if network else "none",
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", seccomp.security_option(network=network)],
            "MaskedPaths": masked_paths(gpu=False),
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,
            "PidsLimit": limits.pids,
            "NanoCpus": int(limits.cpus * 1e9),
            "IpcMode": "private",
            "Init": True,
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
            "RestartPolicy": {"Name": "no"},
            "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=268435456,mode=1777"},
            "Mounts": [volume_mount(name, target, read_only=False) for target, name in volumes.items()],
            "LogConfig": {
                "Type": "local",
                "Config": {"max-size": str(limits.log_bytes), "max-file": "1", "compress": "false"},
            },
        },
    }


def cache_volume() -> str:
    """The name of the volume that keeps downloads; one for each user of the engine."""
    return f"autoresearch-cache-{os.getuid()}"


def _in_volume(base: int) -> dict[str, str]:
    flags = f"size={IN_BYTES},nr_inodes=256,uid={base + UID},gid={base + UID},mode=0700,nosuid,nodev,noexec"
    return {"type": "tmpfs", "device": "tmpfs", "o": flags}


_Member = tuple[str, Path | bytes | None]
"""Name in the archive, and a file, its content, or None for a folder."""


def _folder(folder: Path) -> Iterator[_Member]:
    files = text_files(folder)
    parents = {parent.as_posix() for name, _ in files for parent in Path(name).parents}
    yield from ((name, None) for name in sorted(parents - {"."}))
    yield from files


def _archive(members: Iterable[_Member]) -> Iterator[bytes]:
    """A tar stream; everything in it belongs to the container's user alone."""
    for name, source in members:
        info = tarfile.TarInfo(name)
        info.uid = info.gid = UID
        if source is None:
            info.type, info.mode = tarfile.DIRTYPE, 0o700
            yield info.tobuf()
        elif isinstance(source, bytes):
            info.size, info.mode = len(source), 0o400
            yield info.tobuf() + source + bytes(-info.size % tarfile.BLOCKSIZE)
        else:
            yield from _file(info, source)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _file(info: tarfile.TarInfo, path: Path) -> Iterator[bytes]:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        info.size, info.mode = os.fstat(file.fileno()).st_size, 0o400
        yield info.tobuf()
        left = info.size
        while left:
            block = file.read(min(transfer.CHUNK, left))
            if not block:
                raise OSError(0, "it became shorter while it was read", str(path))
            left -= len(block)
            yield block
    yield bytes(-info.size % tarfile.BLOCKSIZE)


class _Log:
    """What a container has printed since the last look."""

    def __init__(self, client: DockerClient, identifier: str) -> None:
        self._client, self._id = client, identifier
        self._last = ""
        self._since = 0

    def new_lines(self) -> list[str]:
        raw = self._client.api.logs(
            self._id, stdout=True, stderr=True, timestamps=True, since=self._since or None
        )
        lines: list[str] = []
        for line in raw.decode(errors="replace").splitlines():
            stamp, _, text = line.partition(" ")
            if stamp > self._last:
                self._last = stamp
                lines.append(text)
        self._since = int(_seconds(self._last))
        return lines


def _seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(f"{stamp[:19]}+00:00").timestamp() if stamp else 0.0


def _while_it_grows(copy: Callable[[], None], path: Path) -> None:
    """Run `copy`, which fills `path`, in a thread that is given up when the file stops growing."""
    failed: list[Exception] = []

    def work() -> None:
        try:
            copy()
        except Exception as error:  # noqa: BLE001 - handed to the caller's thread
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    size, grown = -1, time.monotonic()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        now = path.stat().st_size
        if now != size:
            size, grown = now, time.monotonic()
        elif time.monotonic() - grown > STALL_SECONDS:
            message = "the container engine stopped sending what was prepared: is it still running?"
            raise EngineError(message)
    if failed:
        raise failed[0]
