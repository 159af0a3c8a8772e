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

from runner.errors import EngineError, GpuError, StateError

if TYPE_CHECKING:
    from docker import DockerClient

REMOVE_ATTEMPTS = 50
REMOVE_PAUSE_SECONDS = 0.1

ENGINE_TROUBLE = (
    docker.errors.DockerException,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
)
"""What a call that is only a courtesy may fail with."""

_CONFLICT = 409


@contextmanager
def engine_errors(image: str = "") -> Iterator[None]:
    """Turn what docker-py raises inside the block into `EngineError`, `GpuError` or `StateError`."""
    try:
        yield
    except docker.errors.ImageNotFound as error:
        message = (
            f"the engine has no image {image[:19] or 'of that id'}: build it with `autoresearch images build`"
        )
        raise EngineError(message) from error
    except docker.errors.APIError as error:
        raise _translated(error, image) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        message = f"the container engine stopped answering ({type(error).__name__}): is it still running? Try `autoresearch doctor`"
        raise EngineError(message) from error


def _translated(error: docker.errors.APIError, image: str) -> EngineError | GpuError | StateError:
    said = str(error.explanation or error).strip()
    if "unresolvable CDI devices" in said or "CDI device injection failed" in said:
        return GpuError(
            f"the engine cannot give a container the GPU by CDI: {said}. What it knows of the GPUs is out of date (it does not follow when a card is "
            "divided): as root `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, then run the same command again"
        )
    if "could not select device driver" in said:
        return GpuError(f"the engine cannot give a container a GPU: {said}. Install the NVIDIA container toolkit")
    if "nvidia-container-cli" in said:
        return GpuError(f"NVIDIA's container toolkit cannot give a container the GPU: {said}. `nvidia-smi -L` lists what the driver knows")
    if "No such image" in said:
        return EngineError(f"the engine has no image {image[:19]}: build it with `autoresearch images build`")
    if "volume options size and inodes not supported" in said:
        return EngineError(
            f"the engine cannot cap what a trial writes, so none is started: {said}. It is Podman, by these words; Docker without root does that "
            "(docs/security.md)"
        )
    if "no space left on device" in said:
        return StateError(f"the container engine's disk is full: {said}. Free space and run the same command again")
    return EngineError(f"the container engine refused: {said}")


def host_disk_full(error: OSError) -> StateError | None:
    """The message for a full disk on our side, or None if `error` is something else."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return StateError(
        f"no space left for {error.filename or 'the state folder'}: free space and run the same command again; "
        "nothing that was recorded is lost"
    )


def remove_container(client: DockerClient, identifier: str) -> None:
    """Kill and remove; fine if it is gone already, or being removed by somebody else."""
    for _ in range(REMOVE_ATTEMPTS):
        try:
            client.api.remove_container(identifier, force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != _CONFLICT:
                raise
        time.sleep(0 if _gone(client, identifier) else REMOVE_PAUSE_SECONDS)
    message = f"container {identifier[:12]} could not be removed: `docker rm -f {identifier[:12]}` by hand, then run again"
    raise EngineError(message)


def _gone(client: DockerClient, identifier: str) -> bool:
    try:
        client.api.inspect_container(identifier)
    except docker.errors.NotFound:
        return True
    return False


def remove_volume(client: DockerClient, name: str) -> None:
    """Remove; fine if it is gone already.  Waits a little for a container that is just ending."""
    for attempt in range(REMOVE_ATTEMPTS):
        try:
            client.api.remove_volume(name)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as error:
            if error.status_code != _CONFLICT or attempt == REMOVE_ATTEMPTS - 1:
                raise
            time.sleep(REMOVE_PAUSE_SECONDS)
        else:
            return
