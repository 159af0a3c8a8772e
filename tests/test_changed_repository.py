"""The user's repository changes while a trial is measured: it is said and never overwritten, and the same command goes on afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runner.errors import StateError
from runner.trial import Progress, Record, Verdict
from runner.workspace import CommitText, Workspace
from tests.conftest import run_git
from tests.fakes import RecordingView, ScriptedAgent
from tests.test_loop import PATH, Bench

BRANCH = "refs/heads/autoresearch/t"
KEPT, BETTER, WORSE = "SCORE = 1.5\n", "SCORE = 1.2\n", "SCORE = 1.9\n"
TEXT = CommitText(subject="x", body="", trailers=(), date="2026-11-21T10:00:00+00:00")
Mischief = Callable[[Path], object]


@dataclass
class Meddling(RecordingView):
    """Somebody does something to the repository while trial 3 is measured."""

    mischief: Mischief = field(default=print)
    where: Path = field(default=Path())

    def progress(self, trial: int, progress: Progress) -> None:
        if trial == 3 and progress.phase == "measure":
            self.mischief(self.where)


@pytest.fixture
def bench(repository: Path) -> Bench:
    made = Bench(repository)
    made.run(ScriptedAgent([KEPT]))
    return made


def meddle(bench: Bench, mischief: Mischief, source: str) -> None:
    """One more trial, during which that happens."""
    bench.view = Meddling(mischief=mischief, where=bench.repository)
    bench.run(ScriptedAgent([KEPT, source]))


def go_on(bench: Bench, source: str) -> list[Record]:
    """The same run, with nobody who meddles."""
    bench.view = RecordingView()
    bench.run(ScriptedAgent([KEPT, source]))
    return bench.records


def commit_by_hand(folder: Path) -> None:
    tree = run_git(folder, "rev-parse", f"{BRANCH}^{{tree}}")
    made = run_git(folder, "commit-tree", tree, "-p", BRANCH, "-m", "mine")
    run_git(folder, "update-ref", BRANCH, made)


MOVED: dict[str, Mischief] = {
    "forward": commit_by_hand,
    "back": lambda folder: run_git(folder, "update-ref", BRANCH, f"{BRANCH}^"),
    "deleted": lambda folder: run_git(folder, "branch", "-D", "autoresearch/t"),
    "renamed": lambda folder: run_git(folder, "branch", "-m", "autoresearch/t", "mine"),
    "deleted and packed": lambda folder: (run_git(folder, "branch", "-D", "autoresearch/t"), run_git(folder, "pack-refs", "--all")),
}


@pytest.mark.parametrize("source", [BETTER, WORSE])
@pytest.mark.parametrize("how", MOVED)
def test_a_moved_branch_stays_where_it_is(bench: Bench, how: str, source: str) -> None:
    champion = bench.tip()
    with pytest.raises(StateError, match=rf"(?i)put it back \(`git update-ref {BRANCH} {champion[:12]}"):
        meddle(bench, MOVED[how], source)
    moved = run_git(bench.repository, "for-each-ref", "refs/heads")

    assert bench.workspace.tip("t") != champion
    with pytest.raises(StateError, match=r"(?i)put it back"):
        go_on(bench, source)
    assert run_git(bench.repository, "for-each-ref", "refs/heads") == moved

    run_git(bench.repository, "update-ref", BRANCH, champion)
    records = go_on(bench, source)
    assert [one.verdict for one in records[2:]] == [Verdict.KEEP, Verdict.KEEP if source == BETTER else Verdict.DISCARD]
    assert [what for what, trial, _ in bench.measurer.calls if trial == 3].count("measure") == 1
    assert bench.tip() == (records[3].commit if source == BETTER else champion)


def collect(folder: Path) -> None:
    run_git(folder, "reflog", "expire", "--expire=now", "--all")
    run_git(folder, "gc", "-q", "--prune=now")


def commit_elsewhere(folder: Path) -> None:
    (folder / "mine.txt").write_text("mine\n")
    run_git(folder, "add", "mine.txt")
    run_git(folder, "commit", "-qm", "mine")


UNMOVED: dict[str, Mischief] = {
    "packed references": lambda folder: run_git(folder, "pack-refs", "--all", "--prune"),
    "collected garbage": collect,
    "a commit on the user's own branch": commit_elsewhere,
    "another branch checked out": lambda folder: run_git(folder, "checkout", "-q", "-b", "other"),
    "uncommitted edits": lambda folder: (folder / PATH).write_text("edited\n"),
    "files removed": lambda folder: (folder / PATH).unlink(),
}


@pytest.mark.parametrize("how", UNMOVED)
def test_what_does_not_touch_the_branch_changes_nothing(bench: Bench, how: str) -> None:
    meddle(bench, UNMOVED[how], BETTER)

    assert bench.records[3].verdict is Verdict.KEEP
    assert bench.tip() == bench.records[3].commit
    for one in bench.records:
        assert run_git(bench.repository, "rev-parse", f"refs/autoresearch/t/{one.trial}") == one.commit
        assert run_git(bench.repository, "cat-file", "-t", str(one.commit)) == "commit"
        assert f'"trial": {one.trial}' in run_git(bench.repository, "notes", "--ref=autoresearch", "show", str(one.commit))
    assert run_git(bench.repository, "fsck", "--no-dangling") == ""


def test_a_branch_that_is_checked_out_meanwhile_is_not_moved(bench: Bench) -> None:
    champion = bench.tip()
    with pytest.raises(StateError, match=r"autoresearch/t is checked out in .*/there: check out another branch"):
        meddle(bench, lambda folder: run_git(folder, "worktree", "add", "-q", "../there", "autoresearch/t"), BETTER)
    assert bench.tip() == champion
    assert run_git(bench.repository.parent / "there", "status", "--porcelain") == ""

    run_git(bench.repository, "worktree", "remove", "../there")
    assert go_on(bench, BETTER)[3].verdict is Verdict.KEEP
    assert bench.tip() == bench.records[3].commit


@pytest.mark.parametrize("name", [f"{BRANCH}.lock", "refs/notes/autoresearch.lock"])
def test_a_lock_that_somebody_left_is_named(bench: Bench, name: str) -> None:
    champion, lock = bench.tip(), bench.repository / ".git" / name
    with pytest.raises(StateError, match=rf"{name} is there. If no git works in that repository, one died there: remove the file"):
        meddle(bench, lambda _: lock.write_text(""), BETTER)
    assert bench.tip() == (champion if name.startswith(BRANCH) else bench.records[3].commit)

    lock.unlink()
    assert go_on(bench, BETTER)[3].verdict is Verdict.KEEP
    assert bench.tip() == bench.records[3].commit
    assert '"verdict": "keep"' in run_git(bench.repository, "notes", "--ref=autoresearch", "show", bench.tip())


def test_a_lock_that_goes_away_is_waited_for(bench: Bench) -> None:
    lock = bench.repository / ".git" / f"{BRANCH}.lock"
    timer = threading.Timer(1, lock.unlink)

    def leave(_: Path) -> None:
        lock.write_text("")
        timer.start()

    meddle(bench, leave, BETTER)
    timer.join()

    assert bench.tip() == bench.records[3].commit


def test_a_repository_that_was_moved_away_is_said_and_no_other_one_is_taken(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git itself would look for one from the current folder on upwards."""
    other = repository.with_name("other")
    run_git(repository.parent, "clone", "-q", str(repository), str(other))
    monkeypatch.chdir(other)
    workspace = Workspace(repository)
    head = workspace.head()
    repository.rename(repository.with_name("away"))

    with pytest.raises(StateError, match="/task is gone: put the repository back"):
        workspace.remember("t", 1, head)
    assert run_git(other, "for-each-ref", "refs/autoresearch") == ""


def test_what_git_sets_for_its_hooks_leads_nowhere_else(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = repository.with_name("other")
    run_git(repository.parent, "init", "-q", str(other))
    for name in ("GIT_DIR", "GIT_COMMON_DIR"):
        monkeypatch.setenv(name, str(other / ".git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git" / "objects"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_NAMESPACE", "x")
    workspace = Workspace(repository)
    workspace.start_branch("t", workspace.candidate(workspace.head(), PATH, b"x\n", TEXT))

    assert run_git(repository, "show", f"{BRANCH}:{PATH}") == "x"
    assert run_git(other, "count-objects") == "0 objects, 0 kilobytes"


def test_a_missing_object_is_not_taken_for_a_moved_branch(repository: Path) -> None:
    """Collected between the making of a commit and its reference."""
    workspace = Workspace(repository)
    with pytest.raises(StateError, match="git update-ref failed"):
        workspace.start_branch("t", "1" * 40)


def test_two_runs_write_their_notes_at_the_same_moment(repository: Path) -> None:
    workspace = Workspace(repository)
    commits = [workspace.candidate(workspace.head(), PATH, f"{number}\n".encode(), TEXT) for number in range(12)]
    program = (
        "import sys; from pathlib import Path; from runner.workspace import Workspace\n"
        "for commit in sys.argv[2:]: Workspace(Path(sys.argv[1])).note(commit, commit)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(repository), *commits[part::3]]) for part in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    assert [run_git(repository, "notes", "--ref=autoresearch", "show", commit) for commit in commits] == commits
