"""Pure: which of the host's users an engine takes a container's users for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from runner.errors import EngineError

_MAPPED = re.compile(r"/(\d+)\.(\d+)$")


def first_uid(info: Mapping[str, Any]) -> int:
    """The host's uid of a container's root on the engine that describes itself as `info`; 0 if it maps none.

    An engine with `userns-remap` makes a volume outside the containers' user namespace, so the owner of a tmpfs has to be named
    by the host's number.  (One without root lives inside that namespace: there the numbers are the containers'.)  Raises
    `EngineError` if an engine maps users and does not tell where to: it names its root folder after that.
    """
    if not any("name=userns" in one for one in info.get("SecurityOptions") or ()):
        return 0
    found = _MAPPED.search(str(info.get("DockerRootDir", "")))
    if found is None or found[1] != found[2]:
        message = (
            f"the engine maps users (userns-remap) and its root folder {info.get('DockerRootDir')!r} does not say where to: "
            "give it one range for users and groups"
        )
        raise EngineError(message)
    return int(found[1])
