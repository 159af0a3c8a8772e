"""What the machine's own engine does not have: CDI, and a runtime with a kernel of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest

from runner import images
from runner.errors import GpuError
from runner.sandbox import cdi
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.probe import probe
from tests.docker import engines
from tests.docker.conftest import STATE, ours
from tests.docker.test_gpu_request import UUIDS, seen
from tests.engines.packages import DOCKER_PATH, RUNSC

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("autoresearch")
LABELS = {"autoresearch": "1", "autoresearch.test": "engines"}


@pytest.fixture(scope="module")
def image() -> str:
    return images.image_id("prepare", STATE)


@pytest.fixture(scope="module")
def specifications(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CDI specifications: two GPUs, which are /dev/null by other names."""
    folder = tmp_path_factory.mktemp("cdi")
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{index}", "hostPath": "/dev/null"}]}}
        for index, uuid in enumerate(UUIDS[:2])
        for name in (uuid, str(index))
    ]
    (folder / "nvidia.json").write_text(json.dumps({"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}))
    return folder


@pytest.fixture(scope="module")
def with_cdi(specifications: Path, image: str) -> Iterator[DockerClient]:
    settings = specifications / "daemon.conf"
    settings.write_text(json.dumps({"features": {"cdi": True}, "cdi-spec-dirs": [str(specifications)], "experimental": True}))
    source = docker.from_env(timeout=300)
    with engines.rootful(f"--config-file={settings}", path=DOCKER_PATH) as address:
        engines.carry(source, image, address)
        source.close()
        client = docker.DockerClient(base_url=address, version="auto")
        print(f"\nwith CDI: engine {client.version()['Version']}")
        yield client
        left = ours(client, "autoresearch")
        client.close()
    assert left == []


def test_a_container_has_the_one_gpu_that_it_was_given_by_cdi(with_cdi: DockerClient, image: str, tmp_path: Path) -> None:
    offered = cdi.offered(with_cdi)
    assert offered == {f"nvidia.com/gpu={name}" for name in (*UUIDS[:2], "0", "1")}

    assert seen(with_cdi, image, UUIDS[1], tmp_path, offered=offered) == (["nvidia1"], "void")
    assert seen(with_cdi, image, None, tmp_path, offered=offered) == ([], "void")
    assert probe(DockerSandbox(with_cdi, cdi=offered), image, gpu=UUIDS[0], labels=LABELS) == ()


def test_a_gpu_that_is_no_longer_described_is_named(with_cdi: DockerClient, image: str, tmp_path: Path) -> None:
    with pytest.raises(GpuError, match="nvidia-ctk cdi generate"):
        seen(with_cdi, image, UUIDS[2], tmp_path, offered=frozenset({f"nvidia.com/gpu={UUIDS[2]}"}))


@pytest.fixture(scope="module")
def with_runsc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = tmp_path_factory.mktemp("gvisor") / "daemon.json"
    # Without a network of the machine's: ours have none, and new kernels refuse gVisor theirs.
    settings.write_text(json.dumps({"runtimes": {"runsc": {"path": str(RUNSC), "runtimeArgs": ["--network=none"]}}}))
    source = docker.from_env(timeout=300)
    with engines.rootful(f"--config-file={settings}") as address:
        engines.carry(source, images.image_id("cpu", STATE), address)
        source.close()
        yield address


OTHERWISE = {
    "test_isolation_seen_from_inside": "its /proc/self/status knows neither NoNewPrivs nor our filter; the probe has rules for it",
    "test_processes_are_capped": "its own threads count, and reaching the limit ends it: the trial crashes",
    "test_endings[gate(); os.mkfifo('/out/result')-invalid_output-result: not a regular file]": "a pipe stays in it: nothing is there outside",
    "test_a_pipe_in_the_place_of_a_file_holds_nobody_up": "likewise, so there is no name to link",
    "test_a_lease_on_a_file_does_not_stretch_the_deadline": "it gives leases, which nobody outside sees; the test ends there",
}
"""Of the contract tests, what gVisor does otherwise, and how."""


def test_the_contract_in_gvisor(with_runsc: str) -> None:
    file = "tests/docker/test_sandbox.py"
    environment = {
        **os.environ, "DOCKER_HOST": with_runsc, "AUTORESEARCH_TEST_IMAGE": images.image_id("cpu", STATE), "AUTORESEARCH_TEST_RUNTIME": "runsc",
    }  # fmt: skip
    left_out = [word for name in OTHERWISE for word in ("--deselect", f"{file}::{name}")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file, *left_out]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=500)
    print(f"\ngvisor: {done.stdout.splitlines()[-1]}")
    assert done.returncode == 0, done.stdout[-5000:]


def test_a_search_in_gvisor(with_runsc: str, tmp_path: Path) -> None:
    """Baselines and a trial, train, claim and audit, by a kernel that is not the machine's."""
    task = tmp_path / "task"
    subprocess.run([COMMAND, "init", str(task)], check=True, capture_output=True)
    known = json.loads((STATE / "images.json").read_text())
    known["cpu"] |= {"claim_id": known["cpu"]["id"], "audit_id": known["cpu"]["id"]}  # what the three have apart is tried elsewhere
    (task / ".autoresearch").mkdir(mode=0o700, exist_ok=True)
    (task / ".autoresearch" / "images.json").write_text(json.dumps({"cpu": known["cpu"]}))
    environment = {**os.environ, "DOCKER_HOST": with_runsc, "AUTORESEARCH_DATA": str(STATE / "data"), "PYTHONPATH": str(ROOT)}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(COMMAND), *arguments]
        return subprocess.run(command, cwd=task, env=environment, capture_output=True, text=True, check=False, timeout=500)

    done = call("run", "--cpu", "--preset", "tiny", "--runtime", "runsc", "--trials", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"\ngvisor: {[(one['verdict'], one['val_bpb'], one['seconds']['total']) for one in told]}")
    assert [one["verdict"] for one in told[:3]] == ["baseline"] * 3
    assert all(one["val_bpb"] > 0 for one in told[:3])
    assert len(told) == 4

    other = call("run", "--cpu", "--runtime", "runc", "--trials", "0")
    assert other.returncode == 2
    assert "was started otherwise than --runtime runc (it has runsc)" in other.stderr
