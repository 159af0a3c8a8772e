"""What every test may use: a real repository with a small task in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

from runner import ledger
from runner.resources import resource
from runner.trial import Ending, Record, Seconds, Verdict
from runner.workspace import Workspace

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


@pytest.fixture
def task(repository: Path) -> Path:
    """The shipped task in a repository of its own."""
    shutil.rmtree(repository / "trainer")
    shutil.copytree(resource("trainer"), repository / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("autoresearch.yaml", "program.md"):
        shutil.copy(resource(name), repository / name)
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "-qm", "the shipped task")
    return repository


@pytest.fixture
def run_of(task: Path) -> Path:
    """A run with a baseline, a kept trial, a crash and a trial under way, as another process left it."""
    workspace = Workspace(task)
    head = workspace.head()
    records = [
        record(0, head, Verdict.BASELINE, 1.7),
        record(1, head, Verdict.KEEP, 1.6),
        record(2, head, Verdict.CRASH, None),
    ]
    with ledger.writing(workspace.state / "old") as run:
        run.write("run", format=ledger.FORMAT, id="x", tag="old", head=head, base=head, preset="tiny", overrides={}, seed=1, gpu=None, image="i")
        for found in records:
            run.write("judged", trial=found.trial, record=ledger.record_to_json(found))
            run.write("done", trial=found.trial)
    workspace.export(head, "autoresearch.yaml", workspace.state / "old" / "task")
    for path in ("trainer", "program.md"):
        workspace.export(head, path, workspace.state / "old" / "task")
    workspace.start_branch("old", head)
    return task


def record(trial: int, commit: str, verdict: Verdict, val_bpb: float | None) -> Record:
    return Record(
        trial=trial,
        tag="old",
        commit=commit,
        parent=None if verdict is Verdict.BASELINE else commit,
        agent="tuner",
        idea=f"idea [bold]{trial}[/bold] \x1b[31m",
        ending=Ending.CRASHED if val_bpb is None else Ending.FINISHED,
        verdict=verdict,
        val_bpb=val_bpb,
        sigma=0.01,
        seconds=Seconds(total=3.0),
    )
