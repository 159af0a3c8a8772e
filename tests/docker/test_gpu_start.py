"""How a run on a GPU starts, as far as that goes without one: a driver that is a fake, an engine that is real."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner import leases
from tests.docker.conftest import STATE, ours, real_socket
from tests.docker.doctored import doctored

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

COMMAND = Path(sys.executable).with_name("autoresearch")
ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("nvml")
UUID = "GPU-00000000-0000-0000-0000-000000000000"
CARD, PART = "GPU-00000000-0000-0000-0000-000000000002", "MIG-00000000-0000-0000-0000-000000000001"


class Task:
    """A task with the CPU image in the CUDA image's place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.leases = folder, folder.parent / "leases"
        self.leases.mkdir(mode=0o700)
        subprocess.run([COMMAND, "init", str(folder)], check=True, capture_output=True)
        (folder / ".autoresearch").mkdir(exist_ok=True)
        known = json.loads((STATE / "images.json").read_text())
        text = json.dumps(known).replace('"cpu"', '"cuda"')
        (folder / ".autoresearch" / "images.json").write_text(text)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.call("run", "--preset", "tiny", "--trials", "0", *arguments, **environment)

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        found = {
            **os.environ,
            "AUTORESEARCH_DATA": str(STATE / "data"),
            "AUTORESEARCH_LEASES": str(self.leases),
            "PYTHONPATH": f"{FAKE}{os.pathsep}{ROOT}",
            **environment,
        }
        return subprocess.run([str(COMMAND), *arguments], cwd=self.folder, env=found, capture_output=True, text=True, check=False, timeout=100)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path / "task")


@contextmanager
def device(name: str = "/dev/nvidia0") -> Iterator[None]:
    """Something called /dev/nvidia0, where there is no GPU; it is /dev/null by another name."""
    path = Path(name)
    if path.exists():
        yield
        return
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def tenant(engine: DockerClient, image: str, name: str, **host: object) -> Iterator[None]:
    body = {
        "Image": image, "Cmd": ["sleep", "60"], "Labels": {"autoresearch.test": "tenant"}, "HostConfig": {"NetworkMode": "none", **host},
        "Env": [f"NVIDIA_VISIBLE_DEVICES={UUID}"],
    }  # fmt: skip
    identifier = engine.api.create_container_from_config(body, name)["Id"]  # type: ignore[no-untyped-call]
    try:
        engine.api.start(identifier)
        yield
    finally:
        engine.api.remove_container(identifier, force=True)


def test_a_gpu_that_is_not_there_is_an_error_and_never_a_slower_run(task: Task) -> None:
    done = task.run("--gpus", "2")

    assert done.returncode == 4
    assert "there is no GPU 2; this machine has: 0 (Imaginary 80 GB), 1 (Imaginary 24 GB)" in done.stderr


def test_a_part_of_a_divided_gpu_is_leased_and_given_by_its_own_uuid(task: Task) -> None:
    with leases.held(task.leases, CARD, run="nightly", engine="E", gone=lambda *_: False):
        done = task.run("--gpus", "2:1", FAKE_NVML_DIVIDED="2")
    assert "cannot give a container a GPU" in done.stderr, done.stderr
    assert (task.leases / f"{PART}.lease").read_bytes() == b""

    with leases.held(task.leases, PART, run="nightly", engine="E", gone=lambda *_: False):
        done = task.run("--gpus", "2:1", FAKE_NVML_DIVIDED="2")
        assert done.returncode == 4
        assert f"GPU {PART} is leased by " in done.stderr
        # The run is the same one, which has that part.
        done = task.run("--gpus", "2:2", FAKE_NVML_DIVIDED="2")
        assert done.returncode == 2
        assert f"--gpus 2:2 (it runs on GPU {PART})" in done.stderr
        assert f"GPU {PART} is leased by " in task.run("--gpus", PART, FAKE_NVML_DIVIDED="2").stderr
    assert f"GPU {PART} is no longer in this machine" in task.run(FAKE_NVML_DIVIDED="0").stderr


def test_a_divided_gpu_is_refused_with_its_parts(task: Task) -> None:
    done = task.run("--gpus", "2", FAKE_NVML_DIVIDED="2")

    assert done.returncode == 4
    assert "GPU 2 (Imaginary 40 GB) is divided" in done.stderr
    assert "name one of its parts: 2:1 (" in done.stderr


def test_a_part_is_taken_where_its_card_was_given_away(task: Task, engine: DockerClient, cpu_image: str) -> None:
    busy = task.run("--gpus", "2:1", FAKE_NVML_DIVIDED="2", FAKE_NVML_BUSY="2")
    assert busy.returncode == 4
    assert f"GPU 2:1 ({PART}) was given to process 4242 with 300 MiB" in busy.stderr
    other = task.run(FAKE_NVML_DIVIDED="2", FAKE_NVML_BUSY="2:2")
    assert "was given to" not in other.stderr

    with device("/dev/nvidia2"), tenant(engine, cpu_image, "autoresearch-test-tenant", Devices=[
        {"PathOnHost": "/dev/nvidia2", "PathInContainer": "/dev/nvidia2", "CgroupPermissions": "rw"}
    ]):  # fmt: skip
        done = task.run(FAKE_NVML_DIVIDED="2")
        assert done.returncode == 4
        assert f"GPU 2:1 ({PART}) was given to container autoresearch-test-tenant" in done.stderr


def test_a_gpu_that_another_runner_has_is_refused_by_name(task: Task) -> None:
    with leases.held(task.leases, UUID, run="nightly", engine="E", gone=lambda *_: False):
        done = task.run("--gpus", "0")

    assert done.returncode == 4, done.stderr
    assert f"GPU {UUID} is leased by " in done.stderr
    assert "(run nightly, process " in done.stderr


def test_a_stale_lease_holds_until_its_deadline_and_not_longer(task: Task, engine: DockerClient) -> None:
    path = task.leases / f"{UUID}.lease"
    note = {
        "boot": leases.BOOT_ID.read_text().strip(), "uid": 12001, "pid": 1, "run": "x", "engine": engine.info()["ID"], "container": "gone?",
        "deadline": leases.now() + 90,
    }  # fmt: skip
    path.write_text(json.dumps(note))
    done = task.run("--gpus", "0")
    assert done.returncode == 4
    assert "user 12001 (run x, process 1) died and left a container that may run for" in done.stderr

    path.write_text(json.dumps({**note, "uid": os.getuid(), "engine": "another"}))
    assert "died and left a container" in task.run("--gpus", "0").stderr

    # Of our own user's container the engine knows that it is gone: the lease is ours, and the next step is the engine's.
    path.write_text(json.dumps({**note, "uid": os.getuid()}))
    done = task.run("--gpus", "0")
    assert "died and left" not in done.stderr
    assert "cannot give a container a GPU" in done.stderr, done.stderr


def test_a_gpu_on_which_somebody_computes_is_refused(task: Task) -> None:
    done = task.run("--gpus", "0", FAKE_NVML_BUSY="0")

    assert done.returncode == 4
    assert f"GPU 0 ({UUID}) was given to process 4242 with 300 MiB" in done.stderr


def test_a_gpu_that_a_foreign_container_may_use_is_refused_and_the_container_untouched(
    task: Task, engine: DockerClient, cpu_image: str
) -> None:
    with tenant(engine, cpu_image, "autoresearch-test-tenant", Devices=[
        {"PathOnHost": "/dev/null", "PathInContainer": "/dev/nvidia7", "CgroupPermissions": "rw"}
    ]):  # fmt: skip
        free = task.run("--gpus", "0")
        assert "was given to" not in free.stderr
    with device(), tenant(engine, cpu_image, "autoresearch-test-tenant", Devices=[
        {"PathOnHost": "/dev/nvidia0", "PathInContainer": "/dev/nvidia0", "CgroupPermissions": "rw"}
    ]):  # fmt: skip
        done = task.run("--gpus", "0")
        assert done.returncode == 4
        assert f"GPU 0 ({UUID}) was given to container autoresearch-test-tenant" in done.stderr
        assert ours(engine, "autoresearch.test=tenant") == ["/autoresearch-test-tenant"]


def test_a_card_that_cannot_tell_who_computes_is_no_error(task: Task) -> None:
    done = task.run("--gpus", "0", FAKE_NVML_BUSY="unsupported")

    assert "cannot give a container a GPU" in done.stderr, done.stderr


def test_an_engine_that_knows_the_gpu_by_cdi_is_asked_by_cdi(task: Task, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def knows(name: str) -> Callable[[dict[str, Any]], None]:
        return lambda info: info.update(DiscoveredDevices=[{"Source": "cdi", "ID": f"nvidia.com/gpu={name}"}])

    with doctored(tmp_path / "one", real_socket(), ignores=asked.append, info=knows(UUID)) as address:
        done = task.run("--gpus", "0", DOCKER_HOST=address)
    assert done.returncode == 4, done.stderr
    # The real one does not know it; that it was asked is what is tried here.
    assert 'could not select device driver "cdi"' in done.stderr
    (trial,) = [one for one in asked if one["Labels"]["autoresearch.role"] == "trial"]
    assert trial["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={UUID}"]}]
    assert "NVIDIA_VISIBLE_DEVICES=void" in trial["Env"]

    # It knows another one: then as always.
    with doctored(tmp_path / "other", real_socket(), ignores=asked.append, info=knows("GPU-1")) as address:
        done = task.run("--gpus", "0", DOCKER_HOST=address)
    assert 'could not select device driver ""' in done.stderr
    assert asked[-1]["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == [UUID]


@contextmanager
def toolkit(folder: Path, program: str) -> Iterator[str]:
    """A PATH on which `program`, a line of shell, answers as `nvidia-ctk`."""
    folder.mkdir()
    path = folder / "nvidia-ctk"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o755)
    yield f"{folder}{os.pathsep}{os.environ['PATH']}"


def check(task: Task, **environment: str) -> dict[str, Any]:
    """What `doctor` says of the toolkit."""
    done = task.call("doctor", "--json", **environment)
    assert "Traceback" not in done.stderr
    (found,) = [one for one in map(json.loads, done.stdout.splitlines()) if one["check"] == "toolkit"]
    assert (sorted(found), found["needed"]) == (["check", "detail", "needed", "ok"], False)
    return dict(found)


def test_a_toolkit_that_lets_containers_out_is_refused_before_anything_starts(task: Task, tmp_path: Path) -> None:
    with toolkit(tmp_path / "old", "echo NVIDIA Container Toolkit CLI version 1.16.1; echo commit: 0") as path:
        done = task.run("--gpus", "0", PATH=path)
        said = check(task, PATH=path)

    assert done.returncode == 3, done.stderr
    flaws = "CVE-2024-0132, CVE-2024-0133, CVE-2025-23266, CVE-2025-23267"
    assert f"1.16.1, in which a container with a GPU can reach its host ({flaws}), so none is started: install 1.17.8 or later" in done.stderr
    assert not list(task.leases.iterdir())
    assert (said["ok"], flaws in said["detail"]) == (False, True)


def test_a_newer_toolkit_is_fine(task: Task, tmp_path: Path) -> None:
    with toolkit(tmp_path / "new", "echo NVIDIA Container Toolkit CLI version 1.18.1") as path:
        assert "cannot give a container a GPU" in task.run("--gpus", "0", PATH=path).stderr
        assert check(task, PATH=path) == {"check": "toolkit", "ok": True, "needed": False, "detail": "1.18.1, 1.17.8 or later is wanted"}


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("exit 3", "--version ended with 3 and said ''"),
        ("printf '\033[31mwhat?'", "said '[31mwhat?'"),
        ("exec sleep 60", "does not answer within 5 s"),
    ],
)
def test_a_toolkit_that_cannot_be_asked_is_unknown_and_said_to_be(task: Task, tmp_path: Path, program: str, why: str) -> None:
    with toolkit(tmp_path / "odd", program) as path:
        said = check(task, PATH=path)
        done = task.run("--gpus", "0", PATH=path)

    assert not said["ok"]
    assert said["detail"].startswith("unknown: ")
    assert why in said["detail"]
    assert "cannot give a container a GPU" in done.stderr


def test_a_gpu_without_a_toolkit_to_ask_is_said(task: Task) -> None:
    if shutil.which("nvidia-ctk"):
        pytest.fail("this test is for machines without NVIDIA's toolkit")
    said = check(task)

    assert not said["ok"]
    assert said["detail"].startswith("unknown: nvidia-ctk is not on the PATH")


def test_an_engine_without_the_nvidia_toolkit_is_refused_and_the_lease_given_back(task: Task) -> None:
    done = task.run("--gpus", "0")

    assert done.returncode == 4, done.stderr
    assert "cannot give a container a GPU" in done.stderr
    assert "Install the NVIDIA container toolkit" in done.stderr
    assert (task.leases / f"{UUID}.lease").read_bytes() == b""
