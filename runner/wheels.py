"""The wheels that go into an image: downloaded with this host's own pip and its configuration, and checked."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from runner.errors import EngineError
from runner.setup.steps import CommandError, Say, Stopwatch, run

PYTHON = "3.11"
"""Of the base; the image locks hold for it."""
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch publishes its builds for the CPU, for hosts whose pip finds none; see TORCH_INDEX_VARIABLE."""
TORCH_INDEX_VARIABLE = "AUTORESEARCH_TORCH_INDEX"
OLDEST_GLIBC, NEWEST_GLIBC = 5, 36
"""manylinux_2_5 to manylinux_2_36: Debian 12 has glibc 2.36."""
CPU_TORCH_MAX_BYTES = 700 << 20
PIP_OPTIONS = ("--no-deps", "--only-binary=:all:", "--progress-bar=off", "--disable-pip-version-check")
CUDA_REQUIREMENTS = ("nvidia", "cuda", "triton")


class Wheels:
    """The wheels of one lock, for the image's Python on one type of machine, in a folder of their own."""

    def __init__(
        self, folder: Path, *, lock: Path, machine: str, say: Say, environment: Mapping[str, str]
    ) -> None:
        self._folder = folder
        self._lock = lock
        self._machine = machine
        self._say = say
        self._environment = environment

    def fetch(self) -> str | None:
        """Download what is missing; the hash of the torch wheel, if there is one."""
        watch = Stopwatch()
        stamp = self._folder / "complete.json"
        lock_hash = sha256_of(self._lock)
        try:
            complete = json.loads(stamp.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            complete = {}
        if complete.get("lock") == lock_hash:
            return complete["torch"]  # type: ignore[no-any-return]
        self.remove()
        self._folder.mkdir(parents=True)
        hashed, unhashed = split_lock(self._lock.read_text(encoding="utf-8"))
        for requirement in unhashed:
            self._fetch_torch(requirement)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as part:
            part.write(hashed)
            part.flush()
            try:
                self._download(["--require-hashes", "--requirement", part.name])
            except CommandError as error:
                message = f"the wheels of {self._lock.name} cannot be downloaded: {error}\n{error.tail}"
                raise EngineError(message) from error
        torch = next(self._folder.glob("torch-*.whl"), None)
        torch_hash = sha256_of(torch) if torch else None
        stamp.write_text(json.dumps({"lock": lock_hash, "torch": torch_hash}), encoding="utf-8")
        megabytes = sum(wheel.stat().st_size for wheel in self._folder.glob("*.whl")) >> 20
        self._say(f"images: downloaded {megabytes} MB of wheels ({watch})")
        return torch_hash

    def files(self) -> list[tuple[str, Path]]:
        """For the build context; pip itself lies apart, as it does the installing and is not installed."""
        wheels = sorted(self._folder.glob("*.whl"))
        return [(f"{'pip' if w.name.startswith('pip-') else 'wheels'}/{w.name}", w) for w in wheels]

    def remove(self) -> None:
        """Remove them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fetch_torch(self, requirement: str) -> None:
        """The build for the CPU: from where pip looks anyway, else from PyTorch's own index."""
        index = self._environment.get(TORCH_INDEX_VARIABLE, TORCH_CPU_INDEX)
        shown = urlsplit(index).hostname or index  # the rest may hold a password
        try:
            self._download([requirement])
        except CommandError:
            self._say(f"images: pip finds no {requirement}; asking {shown}")
            try:
                self._download(["--index-url", index, requirement])
            except CommandError as error:
                message = (
                    f"{requirement} cannot be downloaded, neither from pip's index nor from {shown} "
                    f"(set {TORCH_INDEX_VARIABLE} to another): {error}\n{error.tail}"
                )
                raise EngineError(message) from error
        for wheel in self._folder.glob("torch-*.whl"):
            refuse_cuda(wheel)

    def _download(self, what: Sequence[str]) -> None:
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                *PIP_OPTIONS,
                *self._target(),
                f"--dest={self._folder}",
                *what,
            ],
            what="downloading wheels",
            say=self._say,
            env=self._environment,
        )

    def _target(self) -> list[str]:
        """Options that name the image's Python, whatever runs here."""
        abi = "cp" + PYTHON.replace(".", "")
        names = [f"manylinux_2_{minor}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
        platforms = [*names, "manylinux2014", "manylinux2010", "manylinux1", "linux"]
        return [
            "--implementation=cp",
            f"--python-version={PYTHON}",
            *(f"--abi={name}" for name in (abi, "abi3", "none")),
            *(f"--platform={name}_{self._machine}" for name in platforms),
        ]


def split_lock(text: str) -> tuple[str, list[str]]:
    """A lock's requirements with hashes, and those without (torch's CPU build)."""
    hashed: list[str] = []
    unhashed: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line.startswith(" ") or line.endswith("\\"):
            hashed.append(line)
        else:
            unhashed.append(line.strip())
    return "\n".join(hashed) + "\n", unhashed


def refuse_cuda(wheel: Path) -> None:
    """Raise `EngineError` unless this torch wheel is a build for the CPU."""
    size = wheel.stat().st_size
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(member).decode()
    headers = metadata.split("\n\n", 1)[0].splitlines()
    demands = [line.split(":", 1)[1].strip() for line in headers if line.startswith("Requires-Dist:")]
    cuda = [demand for demand in demands if demand.startswith(CUDA_REQUIREMENTS)]
    if cuda or size > CPU_TORCH_MAX_BYTES:
        wheel.unlink()
        message = (
            f"{wheel.name} ({size >> 20} MB) is not a build for the CPU: it asks for {cuda or 'nothing'}"
        )
        raise EngineError(message)


def sha256_of(path: Path) -> str:
    """The file's hash, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
