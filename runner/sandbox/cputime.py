"""Processor seconds of a running container, as the kernel's control group counts them.

What a program says of its own computation is no measure of it, and a child that nobody waits for appears in no process's
times.  The control group counts every thread and child.  On a local engine its file is read directly, which takes
microseconds; elsewhere (a virtual machine, a remote engine, another PID namespace) the engine is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runner.sandbox.translate import ENGINE_TROUBLE

if TYPE_CHECKING:
    from docker import DockerClient

FILE_POLL_SECONDS = 0.01
ENGINE_POLL_SECONDS = 0.25
_MOUNT = re.compile(r"^\S+ \S+ \S+ (?P<root>\S+) (?P<point>\S+) .* - (?P<type>cgroup2?) \S+ (?P<options>\S+)$")

Read = Callable[[], float | None]
"""Processor seconds so far; None if they cannot be had now."""


class CpuClock:
    """How to ask for one container's processor seconds."""

    def __init__(self, client: DockerClient, identifier: str, pid: int, *, proc: Path = Path("/proc")) -> None:
        """`pid` is the engine's word for the container's first process; `identifier` the container's full id."""
        file = usage_file(proc, identifier, pid)
        self.direct = file is not None
        """True: read from the kernel; False: the engine is asked."""
        self.poll_seconds = FILE_POLL_SECONDS if self.direct else ENGINE_POLL_SECONDS
        self._read: Read = (lambda: read_usage(file)) if file else (lambda: _ask_engine(client, identifier))

    def read(self) -> float | None:
        """Processor seconds since the container began, or None once it is gone."""
        return self._read()


def usage_file(proc: Path, identifier: str, pid: int) -> Path | None:
    """The kernel's file with the container's usage; None where it cannot be seen from here.

    The group must carry the container's id: the process number may mean somebody else's process when the engine is
    on another machine.
    """
    try:
        groups = (proc / str(pid) / "cgroup").read_text().splitlines()
        mounts = (proc / "self" / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if identifier in path:
            paths[controllers] = path
    for line in mounts:
        found = _MOUNT.match(line)
        if found is None:
            continue
        for controllers, path in paths.items():
            if found["type"] == "cgroup2" and controllers == "":
                name = "cpu.stat"
            elif "cpuacct" in controllers.split(",") and "cpuacct" in found["options"].split(","):
                name = "cpuacct.usage"
            else:
                continue
            inside = path.removeprefix(found["root"].rstrip("/"))
            file = Path(found["point"]) / inside.lstrip("/") / name
            if read_usage(file) is not None:
                return file
    return None


def belongs(process: int, identifier: str, proc: Path = Path("/proc")) -> bool | None:
    """Whether a process of this machine is in the container `identifier`; None: it is gone, or hidden from us."""
    try:
        groups = (proc / str(process) / "cgroup").read_text()
    except OSError:
        return None
    return identifier in groups


def read_usage(file: Path) -> float | None:
    """Seconds in a `cpuacct.usage` (nanoseconds) or a `cpu.stat` (its line `usage_usec`); None if it is gone."""
    try:
        text = file.read_text()
    except OSError:
        return None
    with suppress(ValueError, KeyError):
        if file.name == "cpuacct.usage":
            return int(text) / 1e9
        return int(dict(line.split() for line in text.splitlines())["usage_usec"]) / 1e6
    return None


def _ask_engine(client: DockerClient, identifier: str) -> float | None:
    with suppress(*ENGINE_TROUBLE, KeyError, TypeError):
        stats = client.api.stats(identifier, stream=False, one_shot=True)
        used = int(stats["cpu_stats"]["cpu_usage"]["total_usage"])
        return used / 1e9 if used else None
    return None
