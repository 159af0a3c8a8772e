"""What asking for a GPU comes to, on an engine that has the hook of NVIDIA's toolkit: the hook is a stub, the engine is real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest

from runner import images
from runner.errors import GpuError
from runner.sandbox.container import trial_body
from runner.sandbox.create import create_container
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.probe import LIMITS, probe
from runner.trial import Ending, OutputFile, TrialSpec
from tests.docker.conftest import STATE, ours
from tests.docker.engines import carry, rootful

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

HOOK = Path(__file__).with_name("nvidia")
UUIDS = [f"GPU-00000000-0000-0000-0000-00000000000{index}" for index in range(3)]
LABELS = {"autoresearch": "1", "autoresearch.test": "gpu-request"}


@pytest.fixture(scope="module")
def image() -> str:
    """Any with Python; the smallest that there is."""
    return images.image_id("prepare", STATE)


@pytest.fixture(scope="module")
def nvidia(engine: DockerClient, image: str) -> Iterator[DockerClient]:
    with rootful(path=str(HOOK)) as address:
        carry(engine, image, address)
        client = docker.DockerClient(base_url=address, version="auto")
        yield client
        left = ours(client, "autoresearch.test=gpu-request")
        client.close()
    assert left == []


def seen(
    client: DockerClient, image: str, gpu: str | None, folder: Path, *, offered: frozenset[str] = frozenset()
) -> tuple[list[str], str]:
    """The device files that a container finds, and what the hook was asked for; `offered` are names of CDI."""
    program = (
        "import os, time; open('/out/ready', 'w'); time.sleep(1); names = sorted(n for n in os.listdir('/dev') if n.startswith('nvidia'));"
        "open('/out/result', 'w').write(' '.join(names) + '|' + os.environ.get('NVIDIA_VISIBLE_DEVICES', ''))"
    )
    spec = TrialSpec(
        phase="train",
        image=image,
        command=("python3", "-c", program),
        outputs=(OutputFile(name="result", max_bytes=1000),),
        limits=LIMITS,
        gpu=gpu,
        labels=tuple(LABELS.items()),
    )
    result = DockerSandbox(client, cdi=offered).run(spec, folder, created=lambda _: None, progress=lambda _: None)
    assert result.ending is Ending.FINISHED, result.reason
    path = result.output("result")
    assert path is not None
    names, _, asked = path.read_text().partition("|")
    return names.split(), asked


@pytest.mark.parametrize("index", [0, 2])
def test_a_container_has_the_one_gpu_that_it_was_given(nvidia: DockerClient, image: str, index: int, tmp_path: Path) -> None:
    assert seen(nvidia, image, UUIDS[index], tmp_path) == ([f"nvidia{index}"], UUIDS[index])


def test_a_container_without_a_gpu_has_none(nvidia: DockerClient, image: str, tmp_path: Path) -> None:
    assert seen(nvidia, image, None, tmp_path) == ([], "void")


def test_a_gpu_that_the_toolkit_does_not_know_is_named(nvidia: DockerClient, image: str, tmp_path: Path) -> None:
    with pytest.raises(GpuError, match=r"GPU-5: unknown device"):
        seen(nvidia, image, "GPU-5", tmp_path)


def test_the_probe_counts_gpus(nvidia: DockerClient, image: str) -> None:
    assert probe(DockerSandbox(nvidia), image, gpu=UUIDS[1], labels=LABELS, device_file="nvidia1") == ()
    (other,) = probe(DockerSandbox(nvidia), image, gpu=UUIDS[1], labels=LABELS, device_file="nvidia0")
    assert other.what == "GPU nvidia0"
    assert probe(DockerSandbox(nvidia), image, gpu=None, labels=LABELS) == ()

    (found,) = probe(DockerSandbox(nvidia), image, gpu=",".join(UUIDS[:2]), labels=LABELS)
    assert (found.what, found.found) == ("1 GPUs", "2 are there (nvidia0, nvidia1)")


def test_the_engine_keeps_the_request_as_it_was_made(nvidia: DockerClient, image: str) -> None:
    spec = TrialSpec(phase="train", image=image, command=("true",), limits=LIMITS, gpu=UUIDS[0], labels=tuple(LABELS.items()))
    body = trial_body(spec, in_volume="unused-in", out_volume="unused-out")
    body["HostConfig"]["Mounts"] = []
    identifier = create_container(nvidia, body)
    try:
        made = nvidia.api.inspect_container(identifier)["HostConfig"]["DeviceRequests"]
    finally:
        nvidia.api.remove_container(identifier)

    assert [(one["DeviceIDs"], one["Count"], one["Capabilities"]) for one in made] == [([UUIDS[0]], 0, [["gpu", "compute", "utility"]])]
