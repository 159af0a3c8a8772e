"""Running a script of a test in a container that is confined as a trial's is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from runner.sandbox import container
from runner.sandbox.create import create_container
from runner.sandbox.translate import remove_container

if TYPE_CHECKING:
    from docker import DockerClient


@contextmanager
def started(
    client: DockerClient,
    image: str,
    script: str,
    *,
    host: Mapping[str, Any] | None = None,
    memory: int = 2 << 30,
) -> Iterator[str]:
    """A running container; `host` changes single settings of the confinement.  Gone at the end."""
    identifier = create_container(
        client,
        {
            "Image": image,
            "Entrypoint": [],
            "Cmd": ["timeout", "-s", "KILL", "100", "python3", "-c", textwrap.dedent(script)],
            "User": container.TRIAL_USER,
            "WorkingDir": "/tmp",
            "Env": ["HOME=/tmp", "PATH=/usr/local/bin:/usr/bin:/bin", "OMP_WAIT_POLICY=PASSIVE"],
            "Labels": {"autoresearch": "1", "autoresearch.role": "test"},
            "NetworkDisabled": True,
            "HostConfig": {
                **container._confinement(memory=memory, pids=256, cpus=2.0),
                "Tmpfs": {"/tmp": "rw,noexec,size=64m,mode=1777", "/scratch": "rw,exec,size=64m,mode=1777"},
                **(host or {}),
            },
        },
    )
    try:
        client.api.start(identifier)
        yield identifier
    finally:
        remove_container(client, identifier)


def inside(
    client: DockerClient,
    image: str,
    script: str,
    *,
    host: Mapping[str, Any] | None = None,
    memory: int = 2 << 30,
) -> str:
    """What the script printed; it must end well."""
    with started(client, image, script, host=host, memory=memory) as identifier:
        code = client.api.wait(identifier)["StatusCode"]
        output = client.api.logs(identifier).decode(errors="replace")
    assert code == 0, output
    return output
