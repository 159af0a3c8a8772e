"""A whole small project of its own, with wheels made here: no index is asked."""

from __future__ import annotations

import ast
import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from runner.setup import venv

ROOT = Path(__file__).resolve().parents[1]
ALL_LOCKS = [*ROOT.glob("requirements*.lock"), *ROOT.glob("images/*.lock"), *ROOT.glob("tests/agents/*.lock")]

BACKEND = """
import base64, hashlib, zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "project-1-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("project_here.py", "")
        wheel.writestr("project-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: project\\nVersion: 1\\n")
        wheel.writestr("project-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("project-1.dist-info/RECORD", "")
    return name
"""


def make_wheel(folder: Path, name: str, source: str) -> str:
    """A wheel with one module; gives the lock's line for it."""
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", source)
        wheel.writestr(f"{name}-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(
            f"{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{name}-1.dist-info/RECORD", "")
    return f"{name} @ {path.as_uri()} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\n[project]\nname = "project"\nversion = "1"\n'
    )
    (root / "requirements-dev.lock").write_text(make_wheel(tmp_path, "backend", BACKEND))
    return root


def setup(project: Path) -> int:
    return venv.main(["--root", str(project)])


def imports(project: Path, module: str) -> bool:
    python = project / ".venv" / "bin" / "python"
    return (
        subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.timeout(180)
def test_makes_it_once_then_follows_the_lock(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert setup(project) == 0
    assert imports(project, "project_here")
    made = capsys.readouterr().out
    assert all(line.endswith(" s)") for line in made.splitlines() if not line.startswith("  ..."))

    assert setup(project) == 0
    assert capsys.readouterr().out.startswith("setup: .venv is up to date")

    # A wrong hash: refused, and the environment does not count as complete until it is right again.
    lock = project / "requirements-dev.lock"
    right = lock.read_text() + make_wheel(tmp_path, "other", "")
    wrong = right.replace("--hash=sha256:", "--hash=sha256:0000", 2)
    lock.write_text(wrong[: wrong.rindex("\n") - 3] + "\n")
    assert setup(project) == 1
    assert "hash" in capsys.readouterr().out.lower()
    assert not imports(project, "other")

    lock.write_text(right)
    assert setup(project) == 0
    assert imports(project, "other")
    assert "up to date" not in capsys.readouterr().out


@pytest.mark.timeout(180)
def test_an_extra_is_installed_when_asked_for_and_stays(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = project / "requirements-llm.lock"
    lock.write_text(make_wheel(tmp_path, "extra", ""))
    assert setup(project) == 0
    assert not imports(project, "extra")

    assert venv.main(["--root", str(project), "--extra", "llm"]) == 0
    assert imports(project, "extra")
    assert "requirements-dev.lock" not in capsys.readouterr().out.split("setup: .venv is ready", 1)[1]

    # Without the flag it is kept, and follows its lock.
    assert setup(project) == 0
    assert capsys.readouterr().out.startswith("setup: .venv is up to date")
    lock.write_text(lock.read_text() + make_wheel(tmp_path, "further", ""))
    assert setup(project) == 0
    assert imports(project, "further")


def test_all_locks_of_the_host_agree() -> None:
    """An extra is installed on top of the others without looking at them."""
    pins: dict[str, set[str]] = {}
    for lock in ROOT.glob("requirements*.lock"):
        for line in lock.read_text().splitlines():
            if "==" in line and not line.startswith(" "):
                # Versions alone: a marker says for whom a lock needs it.
                requirement = line.removesuffix("\\").partition(";")[0].strip()
                pins.setdefault(requirement.split("==")[0], set()).add(f"{lock.name}: {requirement}")
    for found in pins.values():
        by_lock: dict[str, set[str]] = {}
        for entry in found:
            name, requirement = entry.split(": ", 1)
            by_lock.setdefault(name, set()).add(requirement)
        assert len({frozenset(requirements) for requirements in by_lock.values()}) == 1, by_lock


def test_a_damaged_stamp_means_not_complete(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    for damage in ("", "[]", "{", '{"python": '):
        (tmp_path / venv.STAMP).write_text(damage)
        assert venv.read_stamp(tmp_path) == {}


def test_without_venv_a_normal_user_gets_the_one_command() -> None:
    means = venv.Means(missing=lambda: ["ensurepip"], root=False, apt=True)
    problem = venv.provide_venv(means)
    assert problem is not None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"\n    sudo apt-get install python{version}-venv\n" in problem


def test_without_venv_and_apt_it_says_what_to_look_for() -> None:
    problem = venv.provide_venv(venv.Means(missing=lambda: ["venv"], root=True, apt=False))
    assert problem is not None
    assert "package for Python virtual environments" in problem


def test_without_venv_root_installs_it() -> None:
    missing, installed = ["ensurepip"], list[str]()

    def install(package: str) -> None:
        installed.append(package)
        missing.clear()

    assert venv.provide_venv(venv.Means(lambda: missing, root=True, apt=True, install=install)) is None
    assert installed == [venv.debian_package()]


def test_installing_that_does_not_help_is_said() -> None:
    means = venv.Means(lambda: ["venv"], root=True, apt=True, install=lambda _: None)
    assert "also after installing" in str(venv.provide_venv(means))


def test_needs_the_standard_library_only() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runner.setup.venv, runner.setup.engine, runner.errors;"
        "import pathlib; outside = [m for m in sys.modules.values() if 'site-packages' in str(getattr(m, '__file__', ''))];"
        "sys.exit(repr(outside) if outside else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", [(3, 6, 9), (3, 9, 2), (3, 10, 12)])
def test_an_old_python_is_refused_in_plain_words(version: tuple[int, ...]) -> None:
    program = (
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); sys.version_info = {version!r};"
        "runpy.run_module('runner.setup.venv', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("setup: Python 3.11 or newer is needed")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["runner/__init__.py", "runner/setup/__init__.py", "runner/setup/venv.py"])
def test_an_old_python_can_read_what_refuses_it(name: str) -> None:
    ast.parse((ROOT / name).read_text(), feature_version=(3, 7))


def test_no_lock_names_an_index_or_torch_on_the_host() -> None:
    for lock in [*ALL_LOCKS, ROOT / "tests" / "agents" / "package-lock.json"]:
        text = lock.read_text()
        assert "://" not in text, lock
        assert "--index" not in text, lock
        assert "--find-links" not in text, lock
    for lock in ROOT.glob("requirements*.lock"):
        assert not [
            line
            for line in lock.read_text().splitlines()
            if line.startswith(("torch=", "triton=", "nvidia-cu"))
        ]


def test_every_requirement_of_a_lock_has_a_hash() -> None:
    for lock in ALL_LOCKS:
        lines = lock.read_text().splitlines()
        bare = [line for line in lines if "==" in line and not line.endswith("\\")]
        assert bare == (["torch===2.13.0+cpu"] if lock.name == "cpu.lock" else [])
        digests = [line.split("sha256:")[1].rstrip(" \\") for line in lines if "--hash=" in line]
        assert all(len(base64.b16decode(digest.upper())) == 32 for digest in digests)
