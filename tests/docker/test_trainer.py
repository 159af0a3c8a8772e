"""The trainer's own tests need torch, which the host does not have: they run inside the cpu image."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def readable(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    info.mode = 0o755
    return None if "__pycache__" in info.name else info


def bundle(*folders: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for folder in folders:
            archive.add(ROOT / folder, arcname=f"tmp/it/{folder}", filter=readable)
    return target.getvalue()


def test_the_trainers_tests_pass_in_the_image(engine: DockerClient, cpu_image: str) -> None:
    container = engine.containers.create(
        cpu_image,
        # No plug-ins, no configuration of the host side's tests.
        ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "/tmp/it", "/tmp/it/tests/trainer"],
        environment={"PYTHONPATH": "/tmp/it/trainer", "HOME": "/tmp", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"},
        network_mode="none",
        user="10001:10001",
        cap_drop=["ALL"],
        mem_limit="4g",
        labels={"autoresearch": "1", "autoresearch.role": "test"},
    )
    try:
        engine.api.put_archive(str(container.id), "/", bundle("trainer", "tests/trainer", "tests/candidates"))
        container.start()
        code = container.wait(timeout=550)["StatusCode"]
        log = container.logs().decode(errors="replace")
    finally:
        container.remove(force=True)

    assert code == 0, log
    assert " passed" in log
    assert "skipped" not in log, log

