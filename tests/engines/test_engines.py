"""What trials are promised, on engines of other kinds: each holds all of it, or is refused with what it does not hold.

`make test-engines` installs what these engines need and runs this; as root, since it makes users.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
import pytest

from runner import images
from runner.errors import EngineError
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.probe import probe, refuse, unlimited
from tests.docker import engines
from tests.docker.conftest import STATE, ours

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LABELS = {"autoresearch": "1", "autoresearch.test": "engines"}
CONTRACT = ("test_sandbox.py", "test_probe.py", "test_seccomp.py", "test_rounds.py")
"""Of tests/docker: what every engine that is not refused has to hold."""
UNLIMITED = ("memory", "pids", "cpus")
"""What an engine without root cannot hold where it was given no control groups."""


@contextmanager
def rootless(name: str = "ar-rootless") -> Iterator[str]:
    with engines.user(name) as owner, engines.rootless(owner) as address:
        yield address


@contextmanager
def podman(name: str = "ar-podman") -> Iterator[str]:
    with engines.user(name) as owner, engines.podman(owner) as address:
        yield address


@contextmanager
def remapped() -> Iterator[str]:
    known = {one.pw_name for one in pwd.getpwall()}
    try:
        with engines.rootful("--userns-remap=default") as address:
            yield address
    finally:
        if "dockremap" not in known:
            engines.forget("dockremap")


Start = Callable[[], AbstractContextManager[str]]
KINDS: dict[str, Start] = {
    "rootful": engines.rootful,
    "userns-remap": remapped,
    "rootless": rootless,
    "podman": podman,
}


@dataclass(frozen=True)
class Tried:
    """One engine with the image of trials."""

    kind: str
    address: str
    client: DockerClient
    image: str


@pytest.fixture(scope="module")
def image() -> str:
    return images.image_id("cpu", STATE)


@pytest.fixture(scope="module", params=KINDS)
def tried(request: pytest.FixtureRequest, image: str) -> Iterator[Tried]:
    source = docker.from_env(timeout=300)
    with KINDS[request.param]() as address:
        engines.carry(source, image, address)
        source.close()
        client = docker.DockerClient(base_url=address, version="auto")
        yield Tried(request.param, address, client, image)
        left = ours(client, "autoresearch")
        client.close()
    assert left == []


def test_an_engine_isolates_or_is_refused(tried: Tried, tmp_path: Path) -> None:
    """Never anything in between: no trial starts on an engine that the probe has not found whole."""
    said = refusal(tried)
    checked = doctor(tried, tmp_path / "task")
    if said is None:
        print(f"\n{tried.kind}: isolates")
        assert checked["isolation"]["ok"], checked
        done = pytest_there(tried)
        print(f"{tried.kind}: {done.stdout.splitlines()[-1]}")
        assert done.returncode == 0, done.stdout[-5000:]
        return
    print(f"\n{tried.kind}: refused: {said}")
    assert tried.kind in ("rootless", "podman"), said
    if tried.kind == "podman":
        assert said.startswith("the engine cannot cap what a trial writes"), said
    else:
        # Where it has control groups of its own, the same engine passes everything above.
        assert unlimited(tried.client.info())
        assert all(f"{name}: the engine says that it cannot limit them" in said for name in UNLIMITED), said
    assert not checked["isolation"]["ok"]
    assert checked["isolation"]["detail"] == said


def refusal(tried: Tried) -> str | None:
    """Why a run would not start, or None."""
    try:
        refuse(unlimited(tried.client.info()))
        refuse(probe(DockerSandbox(tried.client), tried.image, gpu=None, labels=LABELS))
    except EngineError as error:
        return str(error)
    return None


def doctor(tried: Tried, task: Path) -> dict[str, dict[str, Any]]:
    """What `autoresearch doctor` says there, by check."""
    command = Path(sys.executable).with_name("autoresearch")
    subprocess.run([command, "init", str(task)], check=True, capture_output=True)
    (task / ".autoresearch").mkdir(mode=0o700, exist_ok=True)
    shutil.copy(STATE / "images.json", task / ".autoresearch" / "images.json")
    environment = {**os.environ, "DOCKER_HOST": tried.address, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([command, "doctor", "--json"], cwd=task, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert "Traceback" not in done.stderr, done.stderr
    return {one["check"]: one for one in map(json.loads, done.stdout.splitlines())}


def pytest_there(tried: Tried) -> subprocess.CompletedProcess[str]:
    files = [str(ROOT / "tests" / "docker" / name) for name in CONTRACT]
    environment = {**os.environ, "DOCKER_HOST": tried.address, "AUTORESEARCH_TEST_IMAGE": tried.image}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800)
