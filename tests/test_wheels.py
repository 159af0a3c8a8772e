"""Real pip against a small package index on this machine."""

from __future__ import annotations

import functools
import os
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runner.errors import EngineError
from runner.wheels import Wheels, refuse_cuda, sha256_of, split_lock

CUDA = "nvidia-cublas==13.1; platform_system == 'Linux'"


def make_wheel(
    folder: Path, name: str, version: str, *, tag: str = "py3-none-any", demands: str = ""
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}.whl"
    demand = f"Requires-Dist: {demands}\n" if demands else ""
    with zipfile.ZipFile(path, "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{demand}"
        )
        wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


class Index:
    """A package index; remembers what was fetched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: list[str] = []
        fetched = self.fetched

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
                """Quiet."""

            def do_GET(self) -> None:
                fetched.append(self.path)
                super().do_GET()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """What the host's pip is configured with: torch with CUDA, and a small package."""
    made = Index(tmp_path / "index")
    tag = "cp311-cp311-manylinux_2_28_x86_64"
    make_wheel(made.root / "torch", "torch", "2.13.0", tag=tag, demands=CUDA)
    make_wheel(made.root / "small", "small", "1.0")
    make_wheel(made.root / "small", "small", "1.0", tag="cp312-cp312-manylinux_2_28_x86_64")
    yield made
    made.close()


@pytest.fixture
def torch_index(tmp_path: Path) -> Iterator[Index]:
    """PyTorch's own."""
    made = Index(tmp_path / "torch-index")
    make_wheel(made.root / "torch", "torch", "2.13.0+cpu", tag="cp311-cp311-manylinux_2_28_x86_64")
    yield made
    made.close()


def wheels(tmp_path: Path, index: Index, torch_index: Index, lock: str, said: list[str]) -> Wheels:
    (tmp_path / "lock").write_text(lock)
    environment = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.url,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "AUTORESEARCH_TORCH_INDEX": torch_index.url,
        "no_proxy": "127.0.0.1",
    }
    return Wheels(
        tmp_path / "wheels",
        lock=tmp_path / "lock",
        machine="x86_64",
        say=said.append,
        environment=environment,
    )


def test_takes_pytorchs_cpu_build_and_never_the_cuda_one(
    tmp_path: Path, index: Index, torch_index: Index
) -> None:
    small = sha256_of(index.root / "small" / "small-1.0-py3-none-any.whl")
    lock = f"# why\ntorch===2.13.0+cpu\nsmall===1.0 \\\n    --hash=sha256:{small}\n"
    said: list[str] = []
    work = wheels(tmp_path, index, torch_index, lock, said)
    torch_hash = work.fetch()

    names = sorted(path.name for _, path in work.files())
    assert names == ["small-1.0-py3-none-any.whl", "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"]
    assert not [path for path in index.fetched if path.endswith(".whl") and "torch" in path]
    assert torch_hash == sha256_of(tmp_path / "wheels" / names[1])
    assert "asking 127.0.0.1" in said[0]

    index.fetched.clear()
    assert work.fetch() == torch_hash
    assert index.fetched == [], "complete: nothing is asked again"


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path, index: Index, torch_index: Index) -> None:
    lock = f"small===1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    work = wheels(tmp_path, index, torch_index, lock, [])
    with pytest.raises(EngineError, match=r"(?i)hash"):
        work.fetch()
    assert not (tmp_path / "wheels" / "complete.json").exists()


def test_a_cpu_build_that_cannot_be_had_says_what_to_set(
    tmp_path: Path, index: Index, torch_index: Index
) -> None:
    work = wheels(tmp_path, index, torch_index, "torch===2.99.0+cpu\n", [])
    with pytest.raises(EngineError, match="AUTORESEARCH_TORCH_INDEX"):
        work.fetch()


def test_a_cpu_build_in_name_only_is_refused_and_removed(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "torch", "2.13.0+cpu", demands=CUDA)
    with pytest.raises(EngineError, match="not a build for the CPU"):
        refuse_cuda(wheel)
    assert not wheel.exists()
    refuse_cuda(make_wheel(tmp_path, "torch", "2.13.0+cpu", demands="sympy>=1.13"))


def test_pip_itself_lies_apart(tmp_path: Path, index: Index, torch_index: Index) -> None:
    work = wheels(tmp_path, index, torch_index, "", [])
    make_wheel(tmp_path / "wheels", "pip", "26.3")
    make_wheel(tmp_path / "wheels", "small", "1.0")
    assert [name for name, _ in work.files()] == [
        "pip/pip-26.3-py3-none-any.whl",
        "wheels/small-1.0-py3-none-any.whl",
    ]


def test_split_lock() -> None:
    hashed, unhashed = split_lock(
        "# a word\ntorch===1+cpu\n\nx===2 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
    )
    assert unhashed == ["torch===1+cpu"]
    assert hashed == "x===2 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
