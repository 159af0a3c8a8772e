"""What every test may use: a real repository with a small task in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

# Shared machines are noisy: no example may fail for being slow.
settings.register_profile("autoresearch", deadline=None)
settings.load_profile("autoresearch")

# A user's own configuration plays no part in any test.
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def run_git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit: trainer/train.py, trainer/prepare.py, program.md."""
    root = tmp_path / "task"
    (root / "trainer").mkdir(parents=True)
    (root / "trainer" / "train.py").write_text("RATE = 0.1  # the learning rate\n")
    (root / "trainer" / "prepare.py").write_text("fixed = True\n")
    (root / "program.md").write_text("find something better\n")
    run_git(root, "init", "-q")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-qm", "task")
    return root
