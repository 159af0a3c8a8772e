"""The same training without a container: an environment of the image's own wheels, and one process in it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import EngineError, StateError
from runner.images import ImageRecord
from runner.trial import TrialSpec
from runner.wheels import PYTHON

READY_POLL_SECONDS = 0.002
LIMIT_SECONDS = 1800.0
"""A bare process is killed after this: nothing else would end one that hangs."""
ROOTS = ("prepare", "data", "in", "out", "scratch", "tmp")
"""What a container sees at the top; the bare process gets folders of these names."""
LOG_TAIL = 2000

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A Python with the packages of the image."""

    python: Path
    version: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall seconds of one bare process."""

    startup: float
    """Spawned to gate."""
    work: float
    """Gate to exit."""

    @property
    def whole(self) -> float:
        """Spawned to exit."""
        return self.startup + self.work


# ------------------------------------------------------------------------------------------- environment


def provide(record: ImageRecord, wheels: Path, folder: Path, say: Say) -> Environment:
    """An environment below `folder` made of the wheels in `wheels`, from which the image was built; kept.

    Raises `StateError` if these are not there or belong to another image, or if there is no such Python.
    """
    files = _wheels_of(record, wheels)
    interpreter, version = _interpreter(record.python)
    names = "\n".join([record.content, str(record.torch_sha256), str(interpreter), version, *sorted(files)])
    place = folder / f"venv-{hashlib.sha256(names.encode()).hexdigest()[:12]}"
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        say(f"making an environment of Python {version} and {len(files)} wheels of the {record.kind} image")
        shutil.rmtree(place, ignore_errors=True)
        _make(place, python, interpreter, [wheels / name for name in files])
        (place / "complete").touch()
    return Environment(python=python, version=version)


def _wheels_of(record: ImageRecord, wheels: Path) -> list[str]:
    again = f"`autoresearch images build {record.kind}` downloads them when it builds the image"
    try:
        complete = json.loads((wheels / "complete.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"missing: the wheels of the {record.kind} image in {wheels}; {again}"
        raise StateError(message) from error
    if (complete.get("lock"), complete.get("torch")) != (record.lock_hash, record.torch_sha256):
        message = f"the wheels in {wheels} are not those that the {record.kind} image was built from; {again}"
        raise StateError(message)
    return sorted(path.name for path in wheels.glob("*.whl"))


def _interpreter(wanted: str) -> tuple[Path, str]:
    """The Python of the image's version, down to the last number if there is one, else of the same series."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/bin", "/usr/local/bin"]
    places = [Path(folder) / f"python{PYTHON}" for folder in folders if folder]
    found = [(place, version) for place in dict.fromkeys(places) if (version := _version(place))]
    same = [pair for pair in found if pair[1] == wanted]
    if not found:
        message = f"missing: a Python {PYTHON} like the image's ({wanted}), for the bare side: install python{PYTHON}"
        raise StateError(message)
    return (same or found)[0]


def _version(python: Path) -> str:
    if not os.access(python, os.X_OK):
        return ""
    code = "import platform, venv; print(platform.python_version())"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    version = done.stdout.strip()
    return version if done.returncode == 0 and version.startswith(f"{PYTHON}.") else ""


def _make(place: Path, python: Path, interpreter: Path, wheels: Sequence[Path]) -> None:
    pip = [wheel for wheel in wheels if wheel.name.startswith("pip-")]
    packages = [str(wheel) for wheel in wheels if wheel not in pip]
    install = ["-m", "pip", "install", "--isolated", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    quiet = ["--disable-pip-version-check", "--root-user-action=ignore", "--quiet"]
    links = [f"--find-links={wheels[0].parent}"]
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(pip[0]) if pip else ""}
    _call([str(interpreter), "-m", "venv", "--without-pip", str(place)], environment)
    _call([str(python), *install, *quiet, *links, *packages], environment)
    # Compiled as in the image, so that imports cost the same.  One file of torch is not for this Python.
    compiling = ["-m", "compileall", "-qq", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    _call([str(python), *compiling, str(place / "lib")], environment, codes=(0, 1))


def _call(command: Sequence[str], environment: Mapping[str, str], *, codes: tuple[int, ...] = (0,)) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        message = f"`{command[0]} {' '.join(command[1:4])}` failed: {done.stderr.strip()[-LOG_TAIL:]}"
        raise StateError(message)


# --------------------------------------------------------------------------------------------- processes


class Bare:
    """Runs what a container runs, in folders instead: same file, same trial, same variables, same bytes."""

    def __init__(self, environment: Environment, folder: Path, fixed: Mapping[str, Path]) -> None:
        """`fixed` is what lies in /prepare, by name; `folder` is emptied."""
        self._python, self._folder = environment.python, folder
        self._fixed = fixed

    def run(
        self, spec: TrialSpec, trial: Mapping[str, object], source: str, gated: Mapping[str, Path]
    ) -> tuple[Timing, Path]:
        """Run the command of `spec` with this trial.json and train.py; `gated` is moved in at the gate.

        Gives the times and the folder that stands for /out, which lasts until the next run.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ROOTS:
            (self._folder / name).mkdir(parents=True)
        for name, path in self._fixed.items():
            shutil.copyfile(path, self._folder / "prepare" / name)
        (self._folder / "in" / "train.py").write_text(source)
        told = {name: self._moved(value) for name, value in trial.items()}
        (self._folder / "in" / "trial.json").write_text(json.dumps(told))
        closed = self._folder / "closed"
        closed.mkdir()
        for name, path in gated.items():
            shutil.copyfile(path, closed / name)
        return self._watch(spec, closed, Path(str(told["gate"]))), self._folder / "out"

    def _watch(self, spec: TrialSpec, closed: Path, gate: Path) -> Timing:
        environment = {name: str(self._moved(value)) for name, value in spec.environment}
        command = [str(self._python), *(str(self._moved(word)) for word in spec.command[1:])]
        ready, opened = self._folder / "out" / "ready", math.nan
        log_path = self._folder / f"{spec.phase}.log"
        with log_path.open("wb") as log:
            began = time.monotonic()
            process = subprocess.Popen(
                command, cwd=self._folder / "tmp", env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            timer = threading.Timer(LIMIT_SECONDS, process.kill)
            timer.start()
            try:
                while process.poll() is None:
                    if ready.exists():
                        closed.rename(gate)
                        opened = time.monotonic()
                        break
                    time.sleep(READY_POLL_SECONDS)
                code = process.wait()
                ended = time.monotonic()
            finally:
                timer.cancel()
                process.kill()
                process.wait()
        if code != 0 or math.isnan(opened):
            said = log_path.read_text(errors="replace")[-LOG_TAIL:]
            message = f"the bare {spec.phase} ended with exit code {code}:\n{said}"
            raise EngineError(message)
        return Timing(startup=opened - began, work=ended - opened)

    def _moved(self, value: object) -> object:
        """A path of the container as the path of the folder that stands for it; anything else as it is."""
        if isinstance(value, str) and value.startswith("/") and value.split("/")[1] in ROOTS:
            return str(self._folder) + value
        return value
