from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runner.errors import StateError
from runner.places import check_tag
from runner.workspace import CommitText, Workspace
from tests.conftest import run_git

TEXT = CommitText(
    subject="try a larger rate", body="because", trailers=(("Autoresearch-Trial", "7"),), date="2026-11-21T10:00:00+00:00"
)
PATH = "trainer/train.py"


def candidate(workspace: Workspace, source: bytes = b"RATE = 0.2\n") -> str:
    return workspace.candidate(workspace.head(), PATH, source, TEXT)


def test_a_candidate_is_the_parents_tree_with_one_file_replaced(repository: Path) -> None:
    workspace = Workspace(repository)
    made = candidate(workspace)

    assert workspace.read(made, PATH) == b"RATE = 0.2\n"
    assert run_git(repository, "diff", "--name-only", "HEAD", made) == PATH
    assert run_git(repository, "show", "-s", "--format=%P", made) == workspace.head()
    message = run_git(repository, "show", "-s", "--format=%B", made)
    assert message == "try a larger rate\n\nbecause\n\nAutoresearch-Trial: 7"


def test_made_again_it_has_the_same_id(repository: Path) -> None:
    assert candidate(Workspace(repository)) == candidate(Workspace(repository))


def test_a_dirty_checkout_and_its_index_stay_as_they_are(repository: Path) -> None:
    (repository / PATH).write_text("mine, not committed\n")
    (repository / "staged.txt").write_text("staged\n")
    run_git(repository, "add", "staged.txt")
    before = run_git(repository, "status", "--porcelain")
    workspace = Workspace(repository)

    made = candidate(workspace)
    workspace.start_branch("t", workspace.head())
    workspace.keep("t", made, workspace.head())
    workspace.remember("t", 7, made)
    workspace.note(made, "a note\n")

    assert run_git(repository, "status", "--porcelain") == before
    assert (repository / PATH).read_text() == "mine, not committed\n"
    assert run_git(repository, "rev-parse", "autoresearch/t") == made
    assert run_git(repository, "rev-parse", "refs/autoresearch/t/7") == made
    assert run_git(repository, "notes", "--ref=autoresearch", "show", made) == "a note"
    assert run_git(repository, "symbolic-ref", "HEAD") == "refs/heads/main"


def test_the_bytes_of_a_source_are_kept_exactly(repository: Path) -> None:
    source = b"a\r\nb\n\n\n"
    (repository / ".gitattributes").write_text("*.py text eol=lf\n")
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "-qm", "attributes")
    workspace = Workspace(repository)

    assert workspace.read(candidate(workspace, source), PATH) == source


def test_keep_is_a_compare_and_swap(repository: Path) -> None:
    workspace = Workspace(repository)
    base, made = workspace.head(), candidate(workspace)
    other = candidate(workspace, b"by hand\n")
    workspace.start_branch("t", base)
    run_git(repository, "branch", "-f", "autoresearch/t", other)

    with pytest.raises(StateError, match="somebody moved it"):
        workspace.keep("t", made, base)

    assert workspace.tip("t") == other


def test_keeping_twice_is_keeping_once(repository: Path) -> None:
    workspace = Workspace(repository)
    made = candidate(workspace)
    workspace.start_branch("t", workspace.head())
    workspace.keep("t", made, workspace.head())
    workspace.keep("t", made, workspace.head())

    assert workspace.tip("t") == made


def test_a_run_branch_that_is_checked_out_is_refused(repository: Path) -> None:
    workspace = Workspace(repository)
    workspace.start_branch("t", workspace.head())
    run_git(repository, "worktree", "add", "-q", "../other", "autoresearch/t")

    with pytest.raises(StateError, match=r"checked out in .*/other"):
        workspace.refuse_checked_out("t")


def test_linked_worktrees_share_one_state_folder(repository: Path) -> None:
    run_git(repository, "worktree", "add", "-q", "-b", "mine", "../other")

    assert Workspace(repository.parent / "other").state == Workspace(repository).state == repository / ".autoresearch"


def test_a_task_may_live_in_a_folder_of_a_larger_repository(repository: Path) -> None:
    inner = repository / "sub" / "task"
    (inner / "trainer").mkdir(parents=True)
    (inner / PATH).write_text("inner\n")
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "-qm", "inner")
    workspace = Workspace(inner)

    made = candidate(workspace)

    assert run_git(repository, "diff", "--name-only", "HEAD", made) == f"sub/task/{PATH}"
    assert workspace.state == repository / ".autoresearch"


def test_hostile_configuration_runs_nothing(repository: Path, tmp_path: Path) -> None:
    """Hooks, filters, monitors, signing and aliases of the repository's own configuration."""
    marker, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $0 >> {marker}\ncat\n")
    program.chmod(0o755)
    hooks = repository / ".git" / "hooks"
    for name in ("reference-transaction", "post-commit", "pre-commit", "post-index-change", "post-checkout"):
        (hooks / name).write_text(program.read_text())
        (hooks / name).chmod(0o755)
    (repository / ".gitattributes").write_text("*.py filter=evil diff=evil\n* filter=evil\n")
    for key in (
        "core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.textconv",
        "diff.external", "gpg.program", "core.pager", "core.editor", "core.sshCommand", "core.alternateRefsCommand",
    ):  # fmt: skip
        run_git(repository, "config", key, str(program))
    run_git(repository, "config", "commit.gpgSign", "true")
    run_git(repository, "config", "alias.update-ref", f"!{program}")
    workspace = Workspace(repository)

    base, made = workspace.head(), candidate(workspace)
    workspace.start_branch("t", base)
    workspace.keep("t", made, base)
    workspace.remember("t", 1, made)
    workspace.note(made, "x\n")
    workspace.refuse_checked_out("t")
    assert workspace.uncommitted(base, [PATH]) == []

    assert not marker.exists(), marker.read_text()


def test_a_repository_that_lacks_objects_fetches_nothing(repository: Path, tmp_path: Path) -> None:
    """A partial clone names the program by which it gets what is missing, and may say that this is allowed."""
    marker, program = tmp_path / "ran", tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $0 >> {marker}\n")
    program.chmod(0o755)
    head, blob = run_git(repository, "rev-parse", "HEAD"), run_git(repository, "rev-parse", f"HEAD:{PATH}")
    settings = {
        "core.repositoryFormatVersion": "1", "extensions.partialClone": "far", "remote.far.promisor": "true", "protocol.allow": "always",
        "protocol.ext.allow": "always", "protocol.file.allow": "always", "remote.far.url": f"ext::{program}", "remote.far.uploadpack": str(program),
    }  # fmt: skip
    for key, value in settings.items():
        run_git(repository, "config", key, value)
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    subprocess.run(["git", "cat-file", "-p", blob], cwd=repository, check=False, capture_output=True)
    assert marker.exists()  # git by itself runs it
    marker.unlink()

    for url in (f"ext::{program}", str(tmp_path), "ssh://nowhere/x"):
        run_git(repository, "config", "remote.far.url", url)
        run_git(repository, "config", "core.sshCommand", str(program))
        with pytest.raises(StateError, match="git cat-file failed"):
            Workspace(repository).read(head, PATH)

    assert not marker.exists(), marker.read_text()


def test_replacements_grafts_and_encodings_of_the_repository_change_no_candidate(repository: Path) -> None:
    plain = candidate(Workspace(repository))
    head = run_git(repository, "rev-parse", "HEAD")
    other = run_git(repository, "commit-tree", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "-m", "empty")
    run_git(repository, "replace", head, other)
    (repository / ".git" / "info").mkdir(exist_ok=True)
    (repository / ".git" / "info" / "grafts").write_text(f"{head} {other}\n")
    for key, value in {"i18n.commitEncoding": "ISO-8859-1", "core.splitIndex": "true", "core.autocrlf": "true", "core.sparseCheckout": "true"}.items():
        run_git(repository, "config", key, value)
    before = {path.name for path in (repository / ".git").iterdir()}
    workspace = Workspace(repository)

    assert candidate(workspace) == plain
    assert workspace.head() == head
    assert workspace.read(head, "trainer/prepare.py") == b"fixed = True\n"
    assert {path.name for path in (repository / ".git").iterdir()} == before


def test_borrowed_objects_are_read_and_not_written(repository: Path) -> None:
    borrower = repository.with_name("borrower")
    run_git(repository.parent, "clone", "-q", "--shared", str(repository), str(borrower))
    lent = sorted(path for path in (repository / ".git" / "objects").rglob("*") if path.is_file())
    workspace = Workspace(borrower)
    workspace.start_branch("t", candidate(workspace))

    assert run_git(borrower, "show", f"autoresearch/t:{PATH}") == "RATE = 0.2"
    assert sorted(path for path in (repository / ".git" / "objects").rglob("*") if path.is_file()) == lent


def test_uncommitted_edits_are_named(repository: Path) -> None:
    workspace = Workspace(repository)
    (repository / "program.md").write_text("edited\n")
    (repository / PATH).unlink()

    assert workspace.uncommitted(workspace.head(), ["program.md", PATH, "trainer/prepare.py"]) == ["program.md", PATH]


def test_a_link_in_place_of_a_file_is_refused(repository: Path) -> None:
    (repository / PATH).unlink()
    (repository / PATH).symlink_to("/etc/passwd")
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "-qm", "link")
    workspace = Workspace(repository)

    with pytest.raises(StateError, match="not a regular file"):
        workspace.read(workspace.head(), PATH)


def test_what_is_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not in a git repository"):
        Workspace(tmp_path)


def test_a_repository_without_commits_is_said(tmp_path: Path) -> None:
    run_git(tmp_path, "init", "-q")

    with pytest.raises(StateError, match="no commit yet"):
        Workspace(tmp_path).head()


def test_a_repository_of_another_user_is_read(repository: Path) -> None:
    """As root on a user's clone git refuses unless told that the folder is trusted."""
    if os.getuid() != 0:
        pytest.fail("this test must run as root")
    for path in [repository, *repository.rglob("*")]:
        os.lchown(path, 65534, 65534)

    assert Workspace(repository).head()


@pytest.mark.parametrize(("tag", "good"), [("nov21", True), ("a.b-c_1", True), ("", False), ("-x", False), ("a/b", False),
                                           ("a..b", False), ("a.lock", False), ("x" * 65, False), ("a b", False), ("a.", False)])  # fmt: skip
def test_tags(tag: str, good: bool) -> None:  # noqa: FBT001
    assert check_tag(tag) is good


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_whole_task_is_copied_as_committed(repository: Path, tmp_path: Path) -> None:
    big = os.urandom(9 << 20)  # two of them take more than one call of git
    for name, data in {"a/big": big, "b/big": big[::-1], "b/empty": b"", "b/r\u00e9sum\u00e9 1": b"x\n\n", ".autoresearch/x": b"", "run.sh": b"#!/bin/sh\n"}.items():
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_bytes(data)
    (repository / "run.sh").chmod(0o755)
    (repository / "link").symlink_to("/etc/passwd")
    (repository / ".gitattributes").write_text("*.md filter=x\nprogram.md export-ignore\n")
    run_git(repository, "add", "-Af")
    run_git(repository, "commit", "-qm", "all kinds")
    run_git(repository, "config", "filter.x.smudge", "touch pwned; cat")
    (repository / "program.md").write_text("not committed")
    (repository / "untracked").write_text("x")
    workspace = Workspace(repository)
    workspace.export_all(workspace.head(), tmp_path / "copy", max_bytes=20 << 20, max_files=100)

    found = files_below(tmp_path / "copy")
    assert set(found) == {
        "a/big", "b/big", "b/empty", "b/r\u00e9sum\u00e9 1", "run.sh", ".gitattributes", "program.md", PATH, "trainer/prepare.py",
    }  # fmt: skip
    assert (found["a/big"], found["b/big"], found["b/r\u00e9sum\u00e9 1"]) == (big, big[::-1], b"x\n\n")
    assert found["program.md"] == b"find something better\n"
    assert (tmp_path / "copy" / "run.sh").stat().st_mode & 0o111 == 0o111
    assert (tmp_path / "copy" / "program.md").stat().st_mode & 0o111 == 0
    assert not (repository / "pwned").exists()


def test_a_task_in_a_folder_of_its_repository_is_that_folder(repository: Path, tmp_path: Path) -> None:
    workspace = Workspace(repository / "trainer")
    workspace.export_all(workspace.head(), tmp_path / "copy", max_bytes=1000, max_files=100)

    assert set(files_below(tmp_path / "copy")) == {"train.py", "prepare.py"}


@pytest.mark.parametrize(("max_bytes", "max_files"), [(20, 100), (1000, 2)])
def test_a_task_that_is_too_large_is_refused(repository: Path, tmp_path: Path, max_bytes: int, max_files: int) -> None:
    workspace = Workspace(repository)
    with pytest.raises(StateError, match=r"the task's folder has 3 files with 0 MB in commit .*: make a smaller folder the task"):
        workspace.export_all(workspace.head(), tmp_path / "copy", max_bytes=max_bytes, max_files=max_files)

    assert not (tmp_path / "copy").exists()


def test_a_tree_that_leads_out_of_the_folder_is_refused(repository: Path, tmp_path: Path) -> None:
    """Git itself makes no such tree; somebody who wants to be cloned can."""
    blob = run_git(repository, "rev-parse", f"HEAD:{PATH}")
    record = b"100644 evil\0" + bytes.fromhex(blob)
    inner = subprocess.run(["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"], cwd=repository, input=record, capture_output=True, check=True)
    record = b"40000 ..\0" + bytes.fromhex(inner.stdout.decode().strip())
    tree = subprocess.run(["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"], cwd=repository, input=record, capture_output=True, check=True)
    commit = run_git(repository, "commit-tree", tree.stdout.decode().strip(), "-m", "x")

    with pytest.raises(StateError, match="no path that git itself would commit"):
        Workspace(repository).export_all(commit, tmp_path / "copy", max_bytes=1000, max_files=100)

    assert not (tmp_path / "evil").exists()


def test_a_branch_that_is_ahead_of_a_run_without_trials_is_said_with_what_puts_it_back(repository: Path) -> None:
    workspace = Workspace(repository)
    base, other = workspace.head(), candidate(workspace)
    workspace.start_branch("t", other)

    with pytest.raises(StateError, match="but this run has no trial yet") as refused:
        workspace.start_branch("t", base)
    assert workspace.tip("t") == other
    advice = str(refused.value).split("`")[1]
    run_git(repository, *advice.removeprefix("git ").split())

    workspace.start_branch("t", base)
    assert workspace.tip("t") == base
