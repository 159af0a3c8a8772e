"""Making the kernel forget what a running container left in its caches.

The kernel charges names that were looked up in vain, and file pages that were read first, to the memory of the container
that did so, and gives them all up before it ends a process for lack of memory.  So: stop what runs in the container, leave
almost nothing free under its memory limit, and take the rest from a process of ours until the kernel ends that one.
It needs no privilege, only the engine.  A container of the same image that runs later then finds no trace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import docker.errors

from runner.sandbox.container import TRIAL_USER

if TYPE_CHECKING:
    from docker import DockerClient

MARGIN_BYTES = 32 << 20
"""Above what is in use: room for the process that fills it, and more than the engine's smallest limit, 6 MiB."""
PASSES = 2
"""The first time round the kernel may spare names that were used twice."""
KILLED = 137
STOP = """
import os, signal
os.kill(-1, signal.SIGSTOP)  # all but this process and PID 1
children = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    if pid != "1" and int(pid) != os.getpid():
        children.append((int(fields[19]), int(pid)))
# The oldest is what PID 1 waits for: it stays, stopped, because the container would end with it.
for _, pid in sorted(children)[1:]:
    os.kill(pid, signal.SIGKILL)
"""
FILL = """
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")  # the one to end when memory runs out
taken = []
while True:
    taken.append(bytearray(1 << 20))
"""


def wring(client: DockerClient, identifier: str) -> bool:
    """Wring out a running container, which is of no use afterwards; False if that did not succeed.

    It does not if the container has ended, and may not if its processes fight it.  Takes about a second and a half.
    """
    try:
        stopped = _run(client, identifier, STOP)
        used = client.api.stats(identifier, stream=False, one_shot=True)["memory_stats"]["usage"]
        limit = used + MARGIN_BYTES
        client.api.update_container(identifier, mem_limit=limit, memswap_limit=limit)
        filled = [_run(client, identifier, FILL) for _ in range(PASSES)]
    except (docker.errors.APIError, KeyError):
        return False
    return stopped == 0 and filled == [KILLED] * PASSES


def _run(client: DockerClient, identifier: str, program: str) -> int:
    command = ["python3", "-I", "-S", "-c", program]
    created = client.api.exec_create(identifier, command, user=TRIAL_USER)
    client.api.exec_start(created["Id"])
    return int(client.api.exec_inspect(created["Id"])["ExitCode"])
