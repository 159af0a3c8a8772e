"""`make clean` takes what is ours and leaves the rest."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors
import pytest

from runner import images
from runner.clean import clean, main
from runner.cli.parts import owner_labels
from runner.sandbox.build import Builder
from tests.docker.conftest import STATE

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.docker


@pytest.fixture
def small_image(engine: DockerClient, cpu_image: str, tmp_path: Path) -> Iterator[str]:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {cpu_image}\nARG BUILD\nLABEL autoresearch.build=${{BUILD}}\n")
    name = f"autoresearch/test:{uuid.uuid4().hex}"
    with Builder.connect() as builder:
        files = [("Dockerfile", dockerfile)]
        built = builder.build(files, arguments={}, labels={"test": name}, name=name, network=False, say=print)
    yield built.id
    try:
        engine.images.remove(name)
    except docker.errors.ImageNotFound:
        return


@pytest.mark.parametrize("built_here", [True, False])
def test_clean(
    engine: DockerClient, cpu_image: str, small_image: str, tmp_path: Path, *, built_here: bool
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    record = next(known for known in images.list_images(STATE) if known.kind == "cpu")
    recorded = {
        "cpu": {**asdict(record), "id": small_image, "built_here": built_here, "copied_here": built_here}
    }
    (ours / "images.json").write_text(json.dumps(recorded))
    with Builder.connect() as builder:
        copy = builder.copy(
            small_image,
            "marker",
            labels={images.COPY_LABEL: small_image},
            name=f"autoresearch/test:{uuid.uuid4().hex}",
            container_labels={},
            say=print,
        ).id
    reading = engine.containers.create(
        small_image, ["true"], labels=images.copying_labels(ours), network_mode="none"
    )
    made: list[Any] = []
    for state in (ours, theirs):
        labels = owner_labels(state)
        made.append(engine.containers.create(cpu_image, ["sleep", "60"], labels=labels, network_mode="none"))
        made.append(engine.volumes.create(labels=labels))
    made[0].start()
    try:
        assert clean(ours, shared=False) == f"2 containers, 1 volumes, {2 * built_here} images"
        for thing in (*made[:2], reading):
            with pytest.raises(docker.errors.NotFound):
                thing.reload()
        for thing in made[2:]:
            thing.reload()
        assert bool(engine.images.list(filters={"label": f"autoresearch.kind={record.kind}"}))
        with Builder.connect() as builder:
            assert (builder.get(small_image) is None) == built_here
            assert (builder.get(copy) is None) == built_here
    finally:
        with Builder.connect() as builder:
            builder.remove(copy)
        for thing in made[2:]:
            thing.remove()


def test_without_a_state_folder_there_is_nothing_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--state", str(tmp_path / "none")]) == 0
    assert "nothing was made here" in capsys.readouterr().out
