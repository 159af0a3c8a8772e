"""The probe against the real engine, and against one that ignores what it is asked for, silently or with a lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest

from runner.errors import EngineError
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.probe import Finding, probe, refuse
from tests.docker.conftest import ours, real_socket
from tests.docker.doctored import doctored

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

LABELS = {"autoresearch": "1", "autoresearch.probe": "test"}


@pytest.fixture(autouse=True)
def nothing_is_left(engine: DockerClient) -> Iterator[None]:
    yield
    assert ours(engine, "autoresearch.probe=test") == []


def test_this_engine_isolates(engine: DockerClient, cpu_image: str) -> None:
    found = probe(DockerSandbox(engine), cpu_image, gpu=None, labels=LABELS)

    assert found == ()
    refuse(found)


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        for key in keys:
            body["HostConfig"].pop(key, None)

    return change


def unconfined(body: dict[str, Any]) -> None:
    body["HostConfig"]["SecurityOpt"] = ["no-new-privileges", "seccomp=unconfined"]


def with_capabilities(body: dict[str, Any]) -> None:
    body["HostConfig"] |= {"CapDrop": [], "CapAdd": ["SYS_PTRACE"]}


def in_roots_group(body: dict[str, Any]) -> None:
    if body["User"] == "10001:10001":
        body["User"] = "10001:0"


def unmasked(body: dict[str, Any]) -> None:
    body["HostConfig"]["MaskedPaths"] = ["/proc/kcore"]


def exec_everywhere(body: dict[str, Any]) -> None:
    for point, flags in body["HostConfig"].get("Tmpfs", {}).items():
        body["HostConfig"]["Tmpfs"][point] = flags.replace("noexec", "exec").replace(",size=268435456", "")


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str, str]] = {
    "memory": (without("Memory", "MemorySwap"), "Memory: asked ", "memory: twice the 96 MiB"),
    "pids": (without("PidsLimit"), "PidsLimit: asked ", "pids: any number of processes could be made, not 40"),
    "cpus": (without("NanoCpus"), "NanoCpus: asked ", "cpus: two processes got "),
    "root": (without("ReadonlyRootfs"), "ReadonlyRootfs: asked ", "a read-only root: it can be written"),
    "seccomp": (unconfined, "SecurityOpt: asked ", "seccomp: no filter is in force"),
    "default-seccomp": (without("SecurityOpt"), "SecurityOpt: asked ", "seccomp profile: the kernel answered "),
    "capabilities": (with_capabilities, "CapDrop: asked ", "no capabilities: it has some (CapBnd)"),
    "user": (in_roots_group, "User: asked ", "user: ran as [10001, 0, "),
    "masks": (unmasked, "MaskedPaths: asked ", "masked paths: "),
    "tmpfs": (exec_everywhere, "Tmpfs: asked ", "programs run from /scratch alone: they run from ['/tmp', '/scratch']"),
    "shm": (without("ShmSize"), "ShmSize: asked ", "the size of /dev/shm: 64 MiB instead of 4"),
    "core": (without("Ulimits"), "Ulimits: asked ", "no core dumps: "),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_engine_ignores_is_seen_before_anything_runs(tmp_path: Path, cpu_image: str, name: str) -> None:
    change, said, _ = CHANGES[name]
    with doctored(tmp_path / "s", real_socket(), ignores=change) as address:
        client = docker.DockerClient(base_url=address, version="auto")
        with pytest.raises(EngineError) as caught:
            probe(DockerSandbox(client), cpu_image, gpu=None, labels=LABELS)
        client.close()

    assert said in str(caught.value)
    assert "Nothing was started" in str(caught.value)


@pytest.mark.parametrize("name", CHANGES)
def test_what_an_engine_ignores_and_denies_is_found_by_trying(tmp_path: Path, cpu_image: str, name: str) -> None:
    change, _, found = CHANGES[name]
    asked: dict[str, dict[str, Any]] = {}

    def ignores(body: dict[str, Any]) -> None:
        asked[body["Labels"]["autoresearch.role"]] = {"HostConfig": dict(body["HostConfig"]), "User": body["User"]}
        asked[body["Labels"]["autoresearch.role"]]["HostConfig"]["Tmpfs"] = dict(body["HostConfig"].get("Tmpfs", {}))
        change(body)

    def claims(value: dict[str, Any]) -> None:
        wanted = asked.get(value["Config"]["Labels"].get("autoresearch.role", ""))
        if wanted is not None:
            unset = {"CapAdd": None}
            value["HostConfig"] |= {**unset, **{key: one for key, one in wanted["HostConfig"].items() if key != "Mounts"}}
            value["Config"]["User"] = wanted["User"]

    with doctored(tmp_path / "s", real_socket(), ignores=ignores, claims=claims) as address:
        client = docker.DockerClient(base_url=address, version="auto")
        findings: tuple[Finding, ...] = ()
        tries = 0
        while not findings and tries < 5:  # beside busy neighbours nobody gets more than half a processor, limit or not
            findings = probe(DockerSandbox(client), cpu_image, gpu=None, labels=LABELS)
            tries += 1
        client.close()

    with pytest.raises(EngineError, match="does not isolate a trial, so none is started") as caught:
        refuse(findings)
    assert found in str(caught.value)
