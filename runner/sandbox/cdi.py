"""Which GPUs the engine knows by a CDI specification, so that a container can be given one without a hook of NVIDIA's.

A specification is a file that says which device files and libraries belong to a device, under the device's name.  An engine that
is new enough lists the names; of an older one only the folders are known, whose files are read here if they are on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.errors import UsageError
from runner.sandbox.connect import is_local
from runner.sandbox.container import CDI_KIND
from runner.sandbox.translate import engine_errors
from runner.yamlfile import read_mapping

if TYPE_CHECKING:
    from docker import DockerClient

MAX_BYTES = 1 << 20
"""A larger file is no specification of ours; NVIDIA's for eight cards has a twentieth of it."""


def offered(client: DockerClient) -> frozenset[str]:
    """The full names (`nvidia.com/gpu=...`) under which the engine can give a container a GPU by CDI.

    Raises `EngineError` if the engine does not answer.
    """
    with engine_errors():
        return names(client.info(), local=is_local(client))


def names(info: Mapping[str, Any], *, local: bool) -> frozenset[str]:
    """What the engine's description of itself amounts to; files are read only if the engine is on this machine (`local`)."""
    discovered = info.get("DiscoveredDevices")  # since API 1.50, and not there if there are none
    if discovered is not None:
        found = (str(one.get("ID")) for one in discovered if isinstance(one, dict) and one.get("Source") == "cdi")
        return frozenset(name for name in found if name.startswith(f"{CDI_KIND}="))
    folders = info.get("CDISpecDirs") or ()  # none: the engine does not do it, or it is switched off
    if not local:
        return frozenset()
    return frozenset(name for folder in folders for path in _files(Path(folder)) for name in described(_read(path)))


def described(specification: Mapping[str, Any]) -> Iterator[str]:
    """Pure: the full names of the GPUs that a CDI specification describes; nothing if it makes no sense."""
    devices = specification.get("devices")
    if specification.get("kind") == CDI_KIND and isinstance(devices, list):
        for one in devices:
            if isinstance(one, dict) and isinstance(one.get("name"), str):
                yield f"{CDI_KIND}={one['name']}"


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in (".json", ".yaml") and path.is_file())
    except OSError:
        return []


def _read(path: Path) -> Mapping[str, Any]:
    """What the file says.  A broken one is the engine's to complain of; here it says nothing."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return {}
        if path.suffix == ".yaml":
            return read_mapping(path, str(path))
        value = json.loads(path.read_bytes())
    except (OSError, UsageError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
