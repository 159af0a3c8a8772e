"""Which running containers of an engine were given a GPU, or a card of which it is a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import docker.errors

from runner.gpus import Gpu
from runner.sandbox.container import CDI_KIND
from runner.sandbox.translate import engine_errors

if TYPE_CHECKING:
    from docker import DockerClient

KINDS = (f"{CDI_KIND}=", f"runtime.{CDI_KIND}=")
"""What stands before a GPU's name in the language of CDI; the second is understood by NVIDIA's runtime alone."""


def tenants(client: DockerClient, gpu: Gpu) -> list[str]:
    """Names of the running containers that were given this GPU, by its UUID or index, or because they have all.

    Of a part also those that were given its card; who was given another part has nothing of it.
    """
    found = []
    with engine_errors():
        for one in client.api.containers():
            try:
                made = client.api.inspect_container(one["Id"])
            except docker.errors.NotFound:
                continue  # it has just ended
            if uses(made, gpu):
                found.append(str(made["Name"]).removeprefix("/"))
    return found


def uses(made: Mapping[str, Any], gpu: Gpu) -> bool:
    """Pure: whether the container that the engine describes as `made` was given the GPU.

    A privileged one could use it; whether it does, the driver knows.
    """
    host = made["HostConfig"]
    names = _names(gpu)
    for request in host.get("DeviceRequests") or ():
        if request.get("Count") or 0:  # -1: all; so many: the first ones, which the engine counts from 0
            if request["Count"] == -1 or gpu.index < request["Count"]:
                return True
        elif {_plain(str(name)) for name in request.get("DeviceIDs") or ()} & names:
            return True
    # The file is the card's, and nobody can say here which of its parts is meant.
    if any(device.get("PathOnHost") == f"/dev/{gpu.device_file}" for device in host.get("Devices") or ()):
        return True
    # How the NVIDIA runtime is asked, where it is the default or is named.
    environment = dict(line.split("=", 1) for line in made["Config"].get("Env") or () if "=" in line)
    asked = {_plain(name.strip()) for name in environment.get("NVIDIA_VISIBLE_DEVICES", "void").split(",")}
    return host.get("Runtime") == "nvidia" and bool(asked & names)


def _names(gpu: Gpu) -> set[str]:
    """Everything that gives a container this GPU; CDI specifications call it by index and UUID, or by kind and index."""
    names = {gpu.uuid, str(gpu.index), f"gpu{gpu.index}", "all"}
    if gpu.part is not None:
        names |= {gpu.part.card, gpu.label, f"mig{gpu.label}"}
    return names


def _plain(name: str) -> str:
    return next((name.removeprefix(kind) for kind in KINDS if name.startswith(kind)), name)


def is_gone(client: DockerClient, engine: str, identifier: str) -> bool:
    """Whether no such container of the engine with the id `engine` runs; False if this is another, or does not answer."""
    try:
        if client.info()["ID"] != engine:
            return False
        return not client.api.inspect_container(identifier)["State"]["Running"]
    except docker.errors.NotFound:
        return True
    except (docker.errors.DockerException, OSError):
        return False
