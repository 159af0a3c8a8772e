from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runner.errors import StateError
from runner.places import find_state
from runner.workspace import Workspace, create


def git(folder: Path, *words: str) -> None:
    command = ["git", "-c", "protocol.file.allow=always", "-c", "user.name=a", "-c", "user.email=a@localhost", "-C", str(folder)]
    subprocess.run([*command, *words], check=True, capture_output=True)


def made(folder: Path) -> Path:
    (folder / "task").mkdir(parents=True)
    (folder / "task" / "train.py").write_text("x\n")
    create(folder)
    return folder


def test_state_is_found_where_git_has_it(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one"), made(tmp_path / "other")
    git(one, "worktree", "add", "-q", str(tmp_path / "linked"))
    git(other, "submodule", "add", "-q", str(one), "sub")
    git(tmp_path, "clone", "-q", "--separate-git-dir", str(tmp_path / "apart"), str(one), str(tmp_path / "apart-checkout"))

    folders = ["one", "one/task", "linked", "linked/task", "other/sub", "other/sub/task", "apart-checkout/task"]
    assert [find_state(tmp_path / name) for name in folders] == [Workspace(tmp_path / name).state for name in folders]
    assert find_state(one / "task") == find_state(tmp_path / "linked") == one / ".autoresearch"


@pytest.mark.parametrize("name", ["no-repository", "broken"])
def test_what_is_not_plain_is_left_to_git(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    if name == "broken":
        (folder / ".git").write_bytes(b"gitdir: \xff\n")

    assert find_state(folder) is None


def test_a_link_to_a_task_is_refused_as_git_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(made(tmp_path / "one") / "task")

    assert find_state(tmp_path / "link") is None
    with pytest.raises(StateError, match="is not in a git repository"):
        Workspace(tmp_path / "link")
