"""`python3 -m runner.setup.venv`: the environment `.venv` in the project's root, from the hash-locked list.

Nothing happens if it is there and up to date.  Standard library only; says so on a Python that is too old.
"""

from __future__ import annotations

import sys

MINIMUM = (3, 11)
if sys.version_info < MINIMUM:  # before anything that an old Python cannot import
    sys.exit(
        "setup: Python %d.%d or newer is needed, this is %d.%d. "
        "Name another one: make setup PYTHON=/path/to/python3.11" % (MINIMUM + tuple(sys.version_info[:2]))
    )

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from runner.setup.steps import CommandError, Heartbeat, Stopwatch, apt_install, run, say

ROOT = Path(__file__).resolve().parents[2]
STAMP = "autoresearch-setup.json"
EXTRAS = {"llm": "requirements-llm.lock"}
"""What not everybody pays for.  All locks agree on versions (images/lock.py), so these are installed on top."""


def stamp_of(root: Path, lock: Path, extras: Iterable[str] = ()) -> dict[str, str]:
    """What an environment depends on; it is made anew when one of these changes."""
    return {
        "python": sysconfig.get_python_version() + " " + sys.version.split()[0],
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest(),
        **{extra: hashlib.sha256((root / EXTRAS[extra]).read_bytes()).hexdigest() for extra in sorted(extras)},
        "project": hashlib.sha256((root / "pyproject.toml").read_bytes()).hexdigest(),
        "root": str(root),
    }


def read_stamp(venv: Path) -> dict[str, str]:
    """The stamp of an environment that is complete; empty if there is none."""
    if not (venv / "bin" / "python").exists():
        return {}
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def missing_parts() -> list[str]:
    """Which modules this Python lacks for making environments (Debian packages them apart)."""
    importlib.invalidate_caches()
    return [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]


def install_package(package: str) -> None:
    """As root on Debian or Ubuntu.  Raises `CommandError`."""
    watch = Stopwatch()
    apt_install([package], what=f"installing {package}", say=say)
    say(f"setup: installed {package} ({watch})")


def debian_package() -> str:
    """The Debian package that has them."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}-venv"


@dataclass(frozen=True)
class Means:
    """What this machine offers for it; a test hands in another."""

    missing: Callable[[], list[str]] = missing_parts
    root: bool = os.geteuid() == 0
    apt: bool = shutil.which("apt-get") is not None
    install: Callable[[str], None] = install_package


def provide_venv(means: Means) -> str | None:
    """See to it that this Python can make environments; else say what the user must do."""
    missing = means.missing()
    if not missing:
        return None
    package = debian_package()
    lacks = f"this Python ({sys.executable}) lacks {' and '.join(missing)}"
    if not means.apt:
        return f"{lacks}; install your system's package for Python virtual environments, then run again"
    if not means.root:
        return f"{lacks}; run this, then try again:\n\n    sudo apt-get install {package}\n"
    means.install(package)
    return f"{lacks}, also after installing {package}" if means.missing() else None


def make(venv: Path, lock: Path, root: Path, extras: Iterable[str] = ()) -> None:
    """Make or mend the environment.  Raises `CommandError`."""
    wanted = stamp_of(root, lock, extras)
    found = read_stamp(venv)
    python = str(venv / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check"]
    # Until the end there is no stamp: an interrupted setup starts again.
    (venv / STAMP).unlink(missing_ok=True)
    if found.get("python") != wanted["python"]:
        watch = Stopwatch()
        if venv.exists():
            with Heartbeat("removing the old .venv", say):
                shutil.rmtree(venv)
        run([sys.executable, "-m", "venv", str(venv)], what="making .venv")
        say(f"setup: made {venv} with Python {sys.version.split()[0]} ({watch})")
    for part, listed in {"lock": lock, **{extra: root / EXTRAS[extra] for extra in extras}}.items():
        if found.get(part) == wanted[part] and found.get("python") == wanted["python"]:
            continue
        watch = Stopwatch()
        run(
            [*pip, "--require-hashes", "--only-binary=:all:", "--progress-bar=off", f"--requirement={listed}"],
            what="installing packages",
        )
        say(f"setup: installed what {listed.name} lists ({watch})")
    watch = Stopwatch()
    run(
        [*pip, "--no-build-isolation", "--no-index", "--editable", str(root)],
        what="installing autoresearch itself",
    )
    say(f"setup: installed autoresearch from {root} ({watch})")
    unfinished = venv / (STAMP + ".part")
    unfinished.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(venv / STAMP)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python3 -m runner.setup.venv", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the project (default: where this file is)")
    parser.add_argument("--venv", type=Path, help="the environment (default: ROOT/.venv)")
    parser.add_argument("--lock", type=Path, help="what to install (default: ROOT/requirements-dev.lock)")
    parser.add_argument("--extra", choices=EXTRAS, action="append", default=[], help="install this as well")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    venv = options.venv or root / ".venv"
    lock = options.lock or root / "requirements-dev.lock"
    watch = Stopwatch()
    found = read_stamp(venv)
    # What was asked for once stays, and follows its lock.
    extras = [extra for extra in EXTRAS if extra in options.extra or extra in found]
    if found == stamp_of(root, lock, extras):
        say(f"setup: .venv is up to date ({watch})")
        return 0
    try:
        problem = provide_venv(Means())
        if problem:
            say(f"setup: {problem}")
            return 1
        make(venv, lock, root, extras)
    except CommandError as error:
        say(f"{error.tail}\nsetup: {error}")
        return 1
    say(f"setup: .venv is ready ({watch})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
