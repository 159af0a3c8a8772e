"""Foreign errors of the engine's client into ours, and removals that may be repeated."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import docker.errors
import requests.exceptions
import urllib3.exceptions

from runner.errors import EngineError, EngineFailedError, GpuError, StateError, StuckContainerError

if TYPE_CHECKING:
    from docker import DockerClient

REMOVE_SECONDS = 30.0
"""So long a container is killed and removed again and again; then it is stuck."""
REMOVE_PAUSE_SECONDS = 0.1
VOLUME_ATTEMPTS = 50
LOST_ANSWERS = 3
"""So many removals may go without an answer; then the engine is gone."""

ENGINE_TROUBLE = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)
"""What a call that is only a courtesy may fail with."""

_NOT_FOUND, _CONFLICT, _FAILED = 404, 409, 500
_LOST = (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.ProtocolError)


@contextmanager
def engine_errors(image: str = "") -> Iterator[None]:
    """Turn what docker-py raises inside the block into `EngineError` or `GpuError`.

    It is an `EngineFailedError` where the same call may succeed another time.
    """
    try:
        yield
    except docker.errors.ImageNotFound as error:
        raise EngineError(_no_image(image)) from error
    except docker.errors.APIError as error:
        raise _translated(error, image) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        message = f"the container engine stopped answering ({type(error).__name__}): is it still running? Try `autoresearch doctor`"
        raise EngineFailedError(message) from error


def _no_image(image: str) -> str:
    return (
        f"the engine has no image {image[:19] or 'of that id'}: build it with `autoresearch images build`. A run goes on with the very image that "
        "it began with; if a new build has another id, start another run with --new"
    )


_KNOWN: tuple[tuple[tuple[str, ...], type[EngineError | GpuError], str], ...] = (
    (
        ("unresolvable CDI devices", "CDI device injection failed"),
        GpuError,
        ("the engine cannot give a container the GPU by CDI: {said}. What it knows of the GPUs is out of date (it does not follow when a card is "
         "divided): as root `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, then run the same command again"),
    ),
    (("could not select device driver",), GpuError, "the engine cannot give a container a GPU: {said}. Install the NVIDIA container toolkit"),
    (
        ("nvidia-container-cli",),
        GpuError,
        "NVIDIA's container toolkit cannot give a container the GPU: {said}. `nvidia-smi -L` lists what the driver knows",
    ),
    (
        ("volume options size and inodes not supported",),
        EngineError,
        ("the engine cannot cap what a trial writes, so none is started: {said}. It is Podman, by these words; Docker without root does that "
         "(docs/security.md)"),
    ),
    (
        ("no space left on device",),
        EngineError,
        ("the container engine's disk is full, not the task's: {said}. Free space where `docker info` says Docker Root Dir (`docker system df` "
         "says what takes it) and run the same command again"),
    ),
)
"""What engines say that does not pass by itself: words, what it is, and what to do."""


def _translated(error: docker.errors.APIError, image: str) -> EngineError | GpuError:
    said, status = str(error.explanation or error).strip(), error.status_code
    for words, kind, message in _KNOWN:
        if any(word in said for word in words):
            return kind(message.format(said=said))
    if "No such image" in said:
        return EngineError(_no_image(image))
    if status == _NOT_FOUND:
        return EngineFailedError(f"something of ours is gone from the container engine, and it was not us who removed it: {said}")
    if status is not None and (status == _CONFLICT or status >= _FAILED):
        return EngineFailedError(f"the container engine failed (status {status}): {said}")
    return EngineError(f"the container engine refused: {said}")


def host_disk_full(error: OSError) -> StateError | None:
    """The message for a full disk on our side, or None if `error` is something else."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return StateError(
        f"no space left for {error.filename or 'the state folder'}: free space and run the same command again; "
        "nothing that was recorded is lost"
    )


def remove_container(client: DockerClient, identifier: str, *, seconds: float = REMOVE_SECONDS) -> None:
    """Kill and remove; fine if it is gone already, or being removed by somebody else.

    Raises `StuckContainerError` if the engine still has it after `seconds`, and what docker-py raises if the engine
    is gone.
    """
    end, lost, said = time.monotonic() + seconds, 0, "it says that it did"
    while True:
        try:
            client.api.remove_container(identifier, force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if not _passes(error):
                raise
            said = str(error.explanation or error).strip()
        except _LOST:
            lost += 1
            if lost == LOST_ANSWERS:
                raise
        except requests.exceptions.Timeout:
            said = "it did not answer in time"
        if _gone(client, identifier):
            return
        if time.monotonic() > end:
            raise StuckContainerError(_stuck(identifier, seconds, said))
        time.sleep(REMOVE_PAUSE_SECONDS)


def _stuck(identifier: str, seconds: float, said: str) -> str:
    name = identifier[:12] if len(identifier) == 64 else identifier
    return (
        f"container {name} does not die: for {seconds:.0f} s it was killed and removed again and again, and the engine still has it ({said}). "
        f"It may still hold its memory and its GPU. Nothing was judged. End it by hand (`docker rm -f {name}`; if that does not help, restart the engine, "
        "then the machine), and run the same command again: it tries to remove it first"
    )


def _passes(error: docker.errors.APIError) -> bool:
    """Whether the same removal may succeed another time."""
    return error.status_code is not None and (error.status_code == _CONFLICT or error.status_code >= _FAILED)


def _gone(client: DockerClient, identifier: str) -> bool:
    """False also if the engine did not say."""
    try:
        client.api.inspect_container(identifier)
    except docker.errors.NotFound:
        return True
    except ENGINE_TROUBLE:
        return False
    return False


def remove_volume(client: DockerClient, name: str) -> None:
    """Remove; fine if it is gone already.  Waits a little for a container that is just ending."""
    lost = 0
    for attempt in range(VOLUME_ATTEMPTS):
        try:
            client.api.remove_volume(name)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if not _passes(error) or attempt == VOLUME_ATTEMPTS - 1:
                raise
        except _LOST:
            lost += 1
            if lost == LOST_ANSWERS:
                raise
        else:
            return
        time.sleep(REMOVE_PAUSE_SECONDS)
