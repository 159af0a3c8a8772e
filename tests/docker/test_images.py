"""The images as they are in the engine, and what building leaves there."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runner import images
from runner.errors import EngineError
from runner.sandbox.build import BUILD_LABEL, Builder
from tests.docker.conftest import STATE

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.docker

Shell = Callable[..., str]
SECRET_WORDS = (
    "proxy",
    "token",
    "secret",
    "password",
    "api_key",
    "index-url",
    "index_url",
    "http://",
    "https://",
)


@pytest.fixture
def shell(engine: DockerClient) -> Iterator[Shell]:
    """Run a shell command in a container as the image's own user; give what it printed."""
    made: list[Any] = []

    def run(image: str, command: str, **options: Any) -> str:
        container = engine.containers.create(
            image, ["sh", "-c", command], network_mode="none", labels={"autoresearch.role": "test"}, **options
        )
        made.append(container)
        container.start()
        code = container.wait()["StatusCode"]
        output: str = container.logs().decode()
        assert code == 0, output
        return output

    yield run
    for container in made:
        container.remove(force=True, v=True)


def test_runs_as_a_user_who_is_nobody(cpu_image: str, shell: Shell) -> None:
    assert shell(cpu_image, "id -u; id -g; id -un").split() == ["10001", "10001", "trial"]


def test_nothing_is_setuid_and_nothing_is_writable_by_the_user(cpu_image: str, shell: Shell) -> None:
    assert shell(cpu_image, "find / -xdev -type f -perm /6000", user="0").split() == []
    writable = shell(
        cpu_image, "find / -xdev -writable -not -type l -not -path '/proc/*' 2>/dev/null || true"
    ).split()
    assert {path for path in writable if not path.startswith(("/dev", "/sys"))} <= {
        "/tmp", "/var/tmp", "/var/lock", "/run/lock",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["cpu", "prepare"])
def test_no_index_no_secret_in_settings_history_or_files(
    engine: DockerClient, shell: Shell, kind: str
) -> None:
    image = images.image_id(kind, STATE)
    facts = engine.images.get(image).attrs
    said = json.dumps([facts["Config"], facts["ContainerConfig"], engine.images.get(image).history()]).lower()
    assert [word for word in SECRET_WORDS if word in said] == []
    assert [entry.split("=")[0] for entry in facts["Config"]["Env"]] == ["PATH"]
    found = shell(
        image,
        "find / -xdev \\( -name 'pip.conf' -o -name '.netrc' -o -name 'auth.conf*' -o -name 'uv.toml' "
        "-o -path '/etc/apt/*' -o -name '*.whl' -o -name 'sources.list*' \\) -not -path '/usr/share/*' 2>/dev/null || true",
        user="0",
    )
    assert found.split() == []
    assert shell(image, "ls /root /home /etc/pip* 2>/dev/null | grep -v ':$' || true", user="0").split() == []


def test_no_layer_holds_an_index_or_a_wheel(engine: DockerClient) -> None:
    """Also not one that a later layer hides.  The smallest image, made in the same way as the others."""
    image_id = images.image_id("prepare", STATE)
    wrong: list[str] = []
    stream = io.BufferedReader(_Stream(engine.images.get(image_id).save(chunk_size=1 << 20)), 1 << 20)
    with tarfile.open(fileobj=stream, mode="r|") as image:
        for layer in image:
            if not layer.name.endswith("layer.tar") or not layer.isfile():
                continue
            inner = image.extractfile(layer)
            assert inner is not None
            with tarfile.open(fileobj=inner, mode="r|") as files:
                for file in files:
                    bad = file.name.endswith((".whl", "pip.conf", "sources.list")) and file.size > 0
                    if bad or (file.name.startswith("etc/apt/") and file.isfile()):
                        wrong.append(file.name)
    assert wrong == []


class _Stream(io.RawIOBase):
    """Chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = next(self._chunks, b"")
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count


def test_the_text_of_the_data_set_is_in_the_prepare_image_only(cpu_image: str, shell: Shell) -> None:
    look = "command -v bible; dpkg-query -W -f '${Package}\\n' | grep -i bible; find / -xdev -iname '*bible*' 2>/dev/null; true"
    assert shell(cpu_image, look) == ""
    assert "bible-kjv-text" in shell(images.image_id("prepare", STATE), look)


def test_the_user_can_train_and_test_in_it(cpu_image: str, shell: Shell) -> None:
    program = "import torch, numpy, safetensors, tiktoken, pytest; print(torch.__version__, torch.ones(2).sum().item())"
    said = shell(cpu_image, f"python3 -W error -c '{program}'", read_only=True)
    assert said.split() == ["2.13.0+cpu", "2.0"]
    assert shell(cpu_image, "python3 -m pip --version 2>&1 || true").strip().endswith("No module named pip")


def test_compiled_files_are_used_on_a_read_only_root(cpu_image: str, shell: Shell) -> None:
    """Importing torch takes much longer without them."""
    said = shell(cpu_image, "python3 -v -c 'import torch.nn.functional' 2>&1", read_only=True)
    loaded = [line for line in said.splitlines() if "code object from '" in line and "/torch/" in line]
    assert len(loaded) > 100
    assert [line for line in loaded if not line.endswith(".pyc'")] == []


def half_way(engine: DockerClient) -> tuple[set[str], set[str]]:
    """Containers of builds (those of finished images inherit another value), and images that nothing names."""
    finished = {
        image.labels.get(BUILD_LABEL)
        for image in engine.images.list(filters={"label": BUILD_LABEL, "dangling": False})
    }
    containers = engine.api.containers(all=True, filters={"label": BUILD_LABEL})
    dangling = engine.api.images(filters={"dangling": True, "label": BUILD_LABEL})
    return (
        {found["Id"] for found in containers if found["Labels"][BUILD_LABEL] not in finished},
        {found["Id"] for found in dangling},
    )


@pytest.mark.parametrize("last", ["RUN false", "RUN true"], ids=["fails", "succeeds"])
def test_a_build_leaves_nothing_half_way(
    engine: DockerClient, cpu_image: str, tmp_path: Path, last: str
) -> None:
    dockerfile = tmp_path / "Dockerfile"
    lines = [
        f"FROM {cpu_image} AS first", "ARG BUILD", "LABEL autoresearch.build=${BUILD}", "USER 0", "RUN echo 1 > /one",
        f"FROM {cpu_image}", "ARG BUILD", "LABEL autoresearch.build=${BUILD}", "COPY --from=first /one /one", "USER 0",
        last,
    ]  # fmt: skip
    dockerfile.write_text("\n".join(lines))
    before = half_way(engine)
    name = f"autoresearch/test:{tmp_path.name.lower()}"

    def build() -> str:
        files = [("Dockerfile", dockerfile)]
        labels = {"autoresearch.role": "test"}
        with Builder.connect() as builder:
            return builder.build(files, arguments={}, labels=labels, name=name, network=False, say=print).id

    if last == "RUN false":
        with pytest.raises(EngineError, match="returned a non-zero code: 1"):
            build()
        with Builder.connect() as builder:
            assert builder.get(name) is None
    else:
        made = build()
        try:
            assert engine.images.get(name).id == made
        finally:
            engine.images.remove(name)
    assert half_way(engine) == before


def test_building_again_does_nothing_and_another_state_adopts(tmp_path: Path, cpu_image: str) -> None:
    said: list[str] = []
    assert images.build("cpu", STATE, said.append).id == cpu_image
    assert len(said) == 1
    assert "is up to date" in said[0]
    other = images.build("cpu", tmp_path / "other", said.append)
    assert (other.id, other.built_here, other.copied_here) == (cpu_image, False, False)
    assert images.image_ids("cpu", tmp_path / "other") == images.image_ids("cpu", STATE)
    assert "was in the engine already" in said[-1]
    assert json.loads((tmp_path / "other" / "images.json").read_text())["cpu"]["torch"] == "2.13.0+cpu"


# ------------------------------------------------------------------------------------ an image for each phase

FILES = """\
import os
for path in ("/bin/sh", "/usr/lib/python3.11/os.py", "/usr/local/lib/python3.11/dist-packages/torch/__init__.py"):
    print(os.stat(path).st_ino, os.stat(path).st_dev)
"""


def test_the_phases_images_share_no_layer_and_no_inode(engine: DockerClient, shell: Shell) -> None:
    ids = images.image_ids("cpu", STATE)
    kept = [engine.images.get(image).attrs for image in (ids.train, ids.claim, ids.audit)]
    layers = [layer for facts in kept for layer in facts["RootFS"]["Layers"]]
    assert len(set(layers)) == len(layers)
    for facts in kept:
        for name in ("User", "WorkingDir", "Cmd", "Env"):
            assert facts["Config"][name] == kept[0]["Config"][name]
    seen = [shell(image, f"python3 -c '{FILES}'") for image in (ids.train, ids.claim, ids.audit)]
    # overlay shows the lower file's inode number, and all these layers lie on one file system.
    assert len({line.split()[0] for text in seen for line in text.splitlines()}) == 9
    assert shell(ids.train, f"python3 -c '{FILES}'").split()[::2] == seen[0].split()[::2], (
        "the same image has the same"
    )


def test_the_phases_images_have_the_same_files(shell: Shell) -> None:
    ids = images.image_ids("cpu", STATE)
    # What the engine makes in every container is not the image's.
    listing = (
        "cd /; find . -xdev \\( -path ./etc/hosts -o -path ./etc/hostname -o -path ./etc/resolv.conf -o -path ./etc/mtab "
        "-o -path ./.dockerenv -o -path './dev*' -o -path ./proc -o -path ./sys -o -name 'autoresearch-*' -o -path ./sbin/docker-init "
        "-o -path ./usr/sbin/docker-init \\) -prune -o -printf '%y %m %U %G %P %l' -type f -printf ' %s %T@' -o -printf '\\n' | sort | sha256sum"
    )
    said = [shell(image, listing, user="0") for image in (ids.train, ids.claim, ids.audit)]
    assert said[0] == said[1] == said[2]
    assert shell(ids.claim, "ls / | grep autoresearch").split() == ["autoresearch-claim"]


@pytest.fixture
def small(engine: DockerClient, tmp_path: Path) -> Iterator[str]:
    """A tagged image of one file with settings of its own."""
    name = f"autoresearch/test:{tmp_path.name.lower().replace('_', '-')}"
    (tmp_path / "Dockerfile").write_text(
        'FROM scratch\nCOPY big /big\nENV A="b c"\nUSER 1:2\nWORKDIR /d\nCMD ["x", "y"]\n'
    )
    (tmp_path / "big").write_bytes(b"01234567" * (5 << 17))
    files = [("Dockerfile", tmp_path / "Dockerfile"), ("big", tmp_path / "big")]
    with Builder.connect() as builder:
        yield builder.build(
            files, arguments={}, labels={"test": "small"}, name=name, network=False, say=print
        ).id
        builder.remove(name)
        builder.remove(f"{name}-copy")


def copy(builder: Builder, image: str, tmp_path: Path) -> str:
    made = builder.copy(
        image,
        "marker",
        labels={"test": "copy"},
        name=f"autoresearch/test:{tmp_path.name.lower().replace('_', '-')}-copy",
        container_labels={"autoresearch.role": "test"},
        say=print,
    )
    return made.id


def all_of(engine: DockerClient) -> tuple[set[str], set[str]]:
    """Of the tests: containers, and images with or without a name."""
    containers = engine.api.containers(all=True, filters={"label": "autoresearch.role=test"})
    return {found["Id"] for found in containers}, {found["Id"] for found in engine.api.images(all=False)}


def test_a_copy_has_one_layer_the_settings_and_nothing_else_stays(
    engine: DockerClient, small: str, tmp_path: Path
) -> None:
    containers, before = all_of(engine)
    with Builder.connect() as builder:
        made = copy(builder, small, tmp_path)
    facts = engine.images.get(made).attrs
    assert len(facts["RootFS"]["Layers"]) == 1
    assert [facts["Config"][name] for name in ("User", "WorkingDir", "Cmd", "Env")] == [
        "1:2", "/d", ["x", "y"], ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=b c"],
    ]  # fmt: skip
    assert facts["Config"]["Labels"] == {"test": "copy"}
    assert all_of(engine) == (containers, {*before, made})


class BreaksOff:
    """A client, or its `api`, whose exports stop after a part."""

    def __init__(self, real: Any, how: type[BaseException] | None) -> None:
        self._real, self._how = real, how

    def __getattr__(self, name: str) -> Any:
        return BreaksOff(self._real.api, self._how) if name == "api" else getattr(self._real, name)

    def export(self, container: str, chunk_size: int) -> Iterator[bytes]:
        yield next(self._real.export(container, chunk_size))
        if self._how is not None:
            raise self._how


@pytest.mark.parametrize(
    ("how", "seen"), [(OSError, EngineError), (KeyboardInterrupt, KeyboardInterrupt), (None, EngineError)]
)
def test_a_copy_that_breaks_off_leaves_nothing(
    engine: DockerClient,
    small: str,
    tmp_path: Path,
    how: type[BaseException] | None,
    seen: type[BaseException],
) -> None:
    before = all_of(engine)
    with pytest.raises(seen):
        copy(Builder(BreaksOff(engine, how)), small, tmp_path)  # type: ignore[arg-type]
    assert all_of(engine) == before


EXTENSION = r"""
cat > /scratch/ext.c <<'C'
#include <Python.h>
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "ext", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_ext(void) { return PyModule_Create(&def); }
C
gcc -shared -fPIC $(python3-config --includes) -o /scratch/ext.so /scratch/ext.c
cd /scratch && python3 -c 'import ext, torch; print(ext.__name__, torch.version.cuda is not None)'
"""


@pytest.mark.slow
def test_the_cuda_image_compiles_c_in_scratch_as_triton_does(shell: Shell) -> None:
    said = shell(
        images.image_id("cuda", STATE),
        EXTENSION,
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/scratch": "size=64m,uid=10001,exec", "/tmp": "size=64m,noexec"},
    )
    assert said.split() == ["ext", "True"]
