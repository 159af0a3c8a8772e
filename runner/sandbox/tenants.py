"""Which running containers of an engine were given a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import docker.errors

from runner.sandbox.translate import engine_errors

if TYPE_CHECKING:
    from docker import DockerClient

CDI_KIND = "nvidia.com/gpu="


def tenants(client: DockerClient, uuid: str, index: int) -> list[str]:
    """Names of the running containers that were given this GPU, by its UUID or index, or because they have all."""
    found = []
    with engine_errors():
        for one in client.api.containers():
            try:
                made = client.api.inspect_container(one["Id"])
            except docker.errors.NotFound:
                continue  # it has just ended
            if uses(made, uuid, index):
                found.append(str(made["Name"]).removeprefix("/"))
    return found


def uses(made: Mapping[str, Any], uuid: str, index: int) -> bool:
    """Pure: whether the container that the engine describes as `made` was given the GPU.

    A privileged one could use it; whether it does, the driver knows.
    """
    host = made["HostConfig"]
    names = {uuid, str(index), "all"}
    for request in host.get("DeviceRequests") or ():
        if request.get("Count") or 0:  # -1: all; so many: the first ones, which the engine counts from 0
            if request["Count"] == -1 or index < request["Count"]:
                return True
        elif {str(name).removeprefix(CDI_KIND) for name in request.get("DeviceIDs") or ()} & names:
            return True
    if any(device.get("PathOnHost") == f"/dev/nvidia{index}" for device in host.get("Devices") or ()):
        return True
    # How the NVIDIA runtime is asked, where it is the default or is named.
    environment = dict(line.split("=", 1) for line in made["Config"].get("Env") or () if "=" in line)
    asked = set(environment.get("NVIDIA_VISIBLE_DEVICES", "void").split(","))
    return host.get("Runtime") == "nvidia" and bool(asked & names)


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
