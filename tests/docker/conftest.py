"""A real engine and the real images.  Where they are missing these tests fail: they are never skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner import images
from runner.sandbox.connect import connect
from tests.conftest import run_git

if TYPE_CHECKING:
    from docker import DockerClient

STATE = Path(__file__).parents[2] / ".autoresearch"


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    client = connect()
    yield client
    client.close()


@pytest.fixture(scope="session")
def cpu_image() -> str:
    """Engine id of the cpu image; `make images` builds it.  Named where an engine is tried that nothing was built on."""
    return os.environ.get("AUTORESEARCH_TEST_IMAGE") or images.image_id("cpu", STATE)


def real_socket() -> str:
    """Path of the engine's socket, for a test that puts something before it."""
    return os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


def charge_little(task: Path) -> None:
    """Make computation worth a tenth of what it is at `tiny`, in the task's own preset, and commit it.

    On a busy machine the same training costs more processor seconds at one time than at another, and is charged for it
    (docs/score.md).  Tests of anything but the charge must not depend on that.
    """
    path = task / "trainer" / "presets" / "tiny.yaml"
    text = path.read_text()
    assert text.count("bpb_per_doubling: 0.22\n") == 1
    path.write_text(text.replace("bpb_per_doubling: 0.22\n", "bpb_per_doubling: 0.022\n"))
    run_git(task, "commit", "-qam", "Charge a tenth")


def without_dry_run(task: Path) -> None:
    """Switch the dry run off in the task's own file, and commit it: tests of trials are about what happens in trials."""
    path = task / "autoresearch.yaml"
    text = path.read_text()
    assert text.count("  dry_run: true ") == 1
    path.write_text(text.replace("  dry_run: true ", "  dry_run: false "))
    run_git(task, "commit", "-qam", "Without dry runs")


def ours(client: DockerClient, label: str) -> list[str]:
    """Names of every container and volume that carries `label`."""
    containers = client.api.containers(all=True, filters={"label": [label]})
    volumes = client.api.volumes({"label": [label]})["Volumes"] or []
    return [found["Names"][0] for found in containers] + [found["Name"] for found in volumes]
