"""The run branch and candidate commits, built in git's object database; the only module that imports git.

The user's checkout, index and configuration take no part: commits are made from blobs and trees, references
move by compare-and-swap, and no hook, filter, file-system monitor or alias is ever run.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import git
import git.exc

from runner.errors import StateError
from runner.interrupts import held_back
from runner.places import STATE_FOLDER, state_beside

NOTES_REF = "refs/notes/autoresearch"
NOTE_ATTEMPTS, NOTE_PAUSE_SECONDS = 6, 0.05
BRANCH_PREFIX = "refs/heads/autoresearch/"
CANDIDATE_PREFIX = "refs/autoresearch/"
IDENTITY = ("autoresearch", "autoresearch@localhost")
_ABSENT = "0" * 40
_EXECUTABLE = "100755"
_REGULAR = ("100644", _EXECUTABLE)
BATCH_BYTES = 16 << 20
"""Read from git at once; a call for each file takes 5 ms."""
_LOCKED = re.compile(r"Unable to create '([^']+\.lock)': File exists")

_ELSEWHERE = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE", "GIT_CONFIG_PARAMETERS",
)  # fmt: skip
"""Git sets some of these for what it starts itself, hooks and aliases; they would send our calls to another repository."""

# Whatever a repository's own configuration or the user's says, git must not run a program for it.
_QUIET_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.logAllRefUpdates": "false",
    "core.attributesFile": os.devnull,
    "core.fsync": "committed,reference",  # the journal says that they are there
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    # Somebody else may just be packing references; what takes longer than this has died.
    "core.filesRefLockTimeout": "3000",
    "core.packedRefsTimeout": "3000",
    # Neither a candidate's id nor where its tree is put together is the repository's to say.
    "i18n.commitEncoding": "UTF-8",
    "core.splitIndex": "false",
    "safe.directory": "*",
}


@dataclass(frozen=True, kw_only=True)
class CommitText:
    """What a candidate commit says."""

    subject: str
    body: str
    trailers: tuple[tuple[str, str], ...]
    date: str
    """ISO 8601 in UTC, from the journal, so that making the commit again gives the same id."""

    def render(self) -> str:
        """The whole message."""
        trailers = "\n".join(f"{name}: {value}" for name, value in self.trailers)
        return "\n\n".join(part for part in (self.subject, self.body, trailers) if part) + "\n"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One line of a tree."""

    mode: str
    identifier: str
    path: str
    """From the repository's root."""
    size: int
    """Bytes; 0 for what is no file."""


class Workspace:
    """One task folder inside one git repository."""

    def __init__(self, folder: Path) -> None:
        """Raises `StateError` if `folder` is in no usable repository."""
        for name in _ELSEWHERE:
            os.environ.pop(name, None)
        try:
            self._repo = git.Repo(folder, search_parent_directories=True)
        except (git.exc.InvalidGitRepositoryError, git.exc.NoSuchPathError) as error:
            message = f"{folder} is not in a git repository: `autoresearch init DIR` makes a new task"
            raise StateError(message) from error
        # Named, not looked for: if the folder goes away, git must not take the repository that we happen to be started in.
        found = str(Path(self._repo.git_dir).resolve())
        self._repo.git.update_environment(**_environment(), GIT_LITERAL_PATHSPECS="1", GIT_DIR=found)
        self.state = state_beside(Path(self._repo.common_dir).resolve())
        root = self._repo.working_tree_dir
        if root is None:
            message = f"{folder} is a bare repository: clone it and work in the clone"
            raise StateError(message)
        self.root = Path(root).resolve()
        self._prefix = PurePosixPath(folder.resolve().relative_to(self.root).as_posix())

    def head(self) -> str:
        """The commit that the user's checkout is at.  Raises `StateError` before the first commit."""
        found = self._resolve("HEAD")
        if found is None:
            message = f"{self.root} has no commit yet: commit the task first (`git add -A && git commit`)"
            raise StateError(message)
        return found

    def read(self, commit: str, path: str) -> bytes:
        """The bytes of the task's file `path` in `commit`.  Raises `StateError` if it is not a regular file there."""
        entry = self._entry(commit, path)
        if entry.mode not in _REGULAR:
            message = f"{entry.path} in commit {commit[:7]} is not a regular file"
            raise StateError(message)
        return self._blob(entry.identifier)

    def export(self, commit: str, path: str, destination: Path) -> None:
        """Copy the task's file or folder `path` as it is in `commit` to `destination`/`path`.

        Regular files only; links and submodules are left out.  Raises `StateError` if it is not there.
        """
        top = self._entry(commit, path)
        entries = [top] if top.mode in _REGULAR else self._list(commit, "-r", f"{top.path}/")
        self._write(entries, destination)

    def export_all(self, commit: str, destination: Path, *, max_bytes: int, max_files: int) -> None:
        """Copy the whole task folder as it is in `commit` to `destination`; what is in the state folder stays out.

        Regular files only; links and submodules are left out.  Raises `StateError` if it is too large.
        """
        below = [] if self._prefix == PurePosixPath() else [f"{self._prefix}/"]
        entries = [
            entry
            for entry in self._list(commit, "-r", *below)
            if self._inside(entry).parts[0] != STATE_FOLDER
        ]
        size = sum(entry.size for entry in entries)
        if size > max_bytes or len(entries) > max_files:
            message = (
                f"the task's folder has {len(entries):,} files with {size >> 20:,} MB in commit {commit[:7]}, more than the "
                f"{max_files:,} files or {max_bytes >> 20:,} MB that a container is given: make a smaller folder the task"
            )
            raise StateError(message)
        self._write(entries, destination)

    def uncommitted(self, commit: str, paths: list[str]) -> list[str]:
        """Those of the task's `paths` whose file in the checkout differs from `commit`.

        Compared by bytes: asking git would run the repository's own filters.
        """
        differing = []
        for path in paths:
            there = self.root / self._prefix / path
            now = there.read_bytes() if there.is_file() else None
            if now != self.read(commit, path):
                differing.append(path)
        return differing

    def candidate(self, parent: str, path: str, source: bytes, text: CommitText) -> str:
        """Write the commit that is `parent`'s tree with the task's file `path` replaced; no reference moves."""
        entry = self._entry(parent, path)
        blob = self._piped(source, "hash-object", "-w", "--stdin", "--no-filters")
        tree = self._tree_with(parent, PurePosixPath(entry.path), f"{entry.mode} blob {blob}")
        dates = {"GIT_AUTHOR_DATE": text.date, "GIT_COMMITTER_DATE": text.date}
        with self._repo.git.custom_environment(**dates):
            return self._piped(text.render().encode(), "commit-tree", tree, "-p", parent)

    def tip(self, tag: str) -> str | None:
        """The commit of the run branch, or None."""
        return self._resolve(branch_ref(tag))

    def tags(self) -> set[str]:
        """Tags that a branch or a candidate's reference of some run has, whether or not its records are here."""
        names = self._git("for-each-ref", "--format=%(refname)", BRANCH_PREFIX, CANDIDATE_PREFIX).splitlines()
        return {name.removeprefix(BRANCH_PREFIX).removeprefix(CANDIDATE_PREFIX).split("/")[0] for name in names}

    def start_branch(self, tag: str, commit: str) -> None:
        """Create the run branch.  Raises `StateError` if it exists elsewhere."""
        tip = self.tip(tag)
        if tip is None:
            self._swap(branch_ref(tag), commit, _ABSENT)
        elif tip != commit:
            message = (
                f"the branch autoresearch/{tag} is {tip[:7]}, but this run has no trial yet and starts at {commit[:7]}: put it back "
                f"(`git update-ref {branch_ref(tag)} {commit}`) or start another --tag"
            )
            raise StateError(message)

    def keep(self, tag: str, candidate: str, champion: str) -> None:
        """Move the run branch from `champion` to `candidate`; nothing if it is there already.

        Raises `StateError` if the branch is anywhere else: somebody moved it, and it is not overwritten.
        """
        if self.tip(tag) != candidate:
            self.refuse_checked_out(tag)
            self._swap(branch_ref(tag), candidate, champion)

    def remember(self, tag: str, trial: int, commit: str) -> None:
        """Give a candidate its own reference, kept or not, so that no idea is lost."""
        self._git("update-ref", f"{CANDIDATE_PREFIX}{tag}/{trial}", commit)

    def note(self, commit: str, text: str) -> None:
        """Attach the result to a candidate as a git note; replaces an earlier one."""
        # All runs of a repository share the reference, and git itself moves it whatever it is at by then.
        with self._alone():
            self._note(commit, text)

    def _note(self, commit: str, text: str) -> None:
        for attempt in range(NOTE_ATTEMPTS):
            try:
                self._piped(text.encode(), "notes", f"--ref={NOTES_REF}", "add", "-f", "-F", "-", commit)
            except StateError:
                # The person may just be writing a note too.
                if attempt == NOTE_ATTEMPTS - 1:
                    raise
                time.sleep(NOTE_PAUSE_SECONDS * 2**attempt)
            else:
                return

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other runner is in such a block of this repository."""
        try:
            handle = os.open(self._repo.common_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            message = f"{self._repo.common_dir}: {error.strerror}: put the repository back and run the same command again"
            raise StateError(message) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def refuse_checked_out(self, tag: str) -> None:
        """Raise `StateError` if the run branch is checked out: every keep would show there as a staged reversal."""
        worktree = ""
        for line in self._git("worktree", "list", "--porcelain").splitlines():
            if line.startswith("worktree "):
                worktree = line.removeprefix("worktree ")
            elif line == f"branch {branch_ref(tag)}":
                message = (
                    f"the branch autoresearch/{tag} is checked out in {worktree}: check out another branch there "
                    "(`git switch -` ), or look at results with `autoresearch show`"
                )
                raise StateError(message)

    def _inside(self, entry: _Entry) -> PurePosixPath:
        """The entry's path from the task's folder on."""
        return PurePosixPath(entry.path).relative_to(self._prefix)

    def _write(self, entries: list[_Entry], destination: Path) -> None:
        """The regular files among `entries`, below `destination`."""
        for batch in _batches([entry for entry in entries if entry.mode in _REGULAR]):
            for entry, data in zip(batch, self._blobs(batch), strict=True):
                target = destination / self._inside(entry)
                if ".." in target.parts:
                    message = f"{entry.path!r} is no path that git itself would commit"
                    raise StateError(message)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(0o755 if entry.mode == _EXECUTABLE else 0o644)

    def _entry(self, commit: str, path: str) -> _Entry:
        where = str(self._prefix / path)
        found = self._list(commit, where)
        if not found:
            message = f"{where} is not in commit {commit[:7]}: commit it first"
            raise StateError(message)
        return found[0]

    def _list(self, commit: str, *arguments: str) -> list[_Entry]:
        # Paths are literal and relative to the repository's root, wherever the task folder is.
        options = [argument for argument in arguments if argument.startswith("-")]
        paths = [argument for argument in arguments if argument not in options]
        out = self._git("ls-tree", "-l", "-z", "--full-tree", *options, commit, "--", *paths)
        entries = []
        for facts, path in (line.split("\t", 1) for line in out.split("\0") if line):
            mode, _, identifier, size = facts.split()
            entries.append(_Entry(mode=mode, identifier=identifier, path=path, size=int(size) if size.isdecimal() else 0))
        return entries

    def _tree_with(self, commit: str, path: PurePosixPath, entry: str) -> str:
        """The tree of `commit` with another `entry` (mode, kind and id) at `path`: the folders above it are made anew."""
        folder = path.parent
        top = folder == PurePosixPath()
        lines = self._bytes("ls-tree", "-z", "--full-tree", f"{commit}:{'' if top else folder}").split(b"\0")[:-1]
        name = os.fsencode(path.name)
        others = [line for line in lines if line.split(b"\t", 1)[1] != name]
        listing = b"".join(line + b"\0" for line in [*others, entry.encode() + b"\t" + name])
        tree = self._piped(listing, "mktree", "-z", "--missing")
        return tree if top else self._tree_with(commit, folder, f"040000 tree {tree}")

    def _blob(self, identifier: str) -> bytes:
        return self._bytes("cat-file", "blob", identifier)

    def _blobs(self, entries: list[_Entry]) -> Iterator[bytes]:
        """The contents of many files from one call of git."""
        with self._unnamed() as names:
            names.write("".join(f"{entry.identifier}\n" for entry in entries).encode())
            names.seek(0)
            out = self._bytes("cat-file", "--batch", stdin=names)
        at = 0
        for entry in entries:
            start = out.index(b"\n", at) + 1  # behind `<id> blob <size>`
            at = start + entry.size
            yield out[start:at]
            at += 1

    def _swap(self, ref: str, new: str, old: str) -> None:
        try:
            self._git("update-ref", ref, new, old)
        except StateError as error:
            where = self._resolve(ref)
            if (where or _ABSENT) == old:
                raise  # it is where it should be, and something else is wrong
            message = (
                f"{ref.removeprefix('refs/heads/')} is at {where[:7] if where else 'no commit'} and not where this run left it "
                f"({old[:7]}): somebody moved it. Put it back (`git update-ref {ref} {old[:12]}`) or start another --tag"
            )
            raise StateError(message) from error

    def _resolve(self, name: str) -> str | None:
        try:
            return self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        except StateError:
            return None

    def _git(self, *arguments: str) -> str:
        return self._bytes(*arguments).decode(errors="surrogateescape").rstrip("\n")

    def _piped(self, data: bytes, *arguments: str) -> str:
        with self._unnamed() as file:
            file.write(data)
            file.seek(0)
            return self._bytes(*arguments, stdin=file).decode().strip()

    def _unnamed(self) -> BinaryIO:
        # In a folder that is known: asked for any, Python tries where it can write and may leave the file that it tries with.
        return cast("BinaryIO", tempfile.TemporaryFile(dir=self._repo.common_dir))

    def _bytes(self, *arguments: str, stdin: BinaryIO | None = None) -> bytes:
        try:
            command = ["git", *arguments]
            # In a session of its own, and waited for: a Ctrl-C is for us, and git ends what it has begun.
            with held_back():
                out = self._repo.git.execute(
                    command, istream=stdin, stdout_as_string=False, strip_newline_in_stdout=False, start_new_session=True
                )
        except git.exc.GitCommandError as error:
            said = str(error.stderr).replace("stderr:", "").strip().strip("'") or f"status {error.status}"
            message = f"git {arguments[0]} failed in {self.root}: {said}"
            if not self.root.is_dir():
                message = f"{self.root} is gone: put the repository back and run the same command again"
            if locked := _LOCKED.search(said):
                message = (
                    f"git {arguments[0]} could not lock its files in {self.root}: {locked[1]} is there. If no git works in that repository, "
                    "one died there: remove the file, and run the same command again"
                )
            raise StateError(message) from error
        except git.exc.GitError as error:
            message = f"git could not be started in {self.root}: {error}"
            raise StateError(message) from error
        assert isinstance(out, bytes)
        return out


def _batches(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    """`entries` in parts of about `BATCH_BYTES`."""
    batch: list[_Entry] = []
    size = 0
    for entry in entries:
        if batch and size + entry.size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch


def branch_ref(tag: str) -> str:
    """The full name of a run's branch."""
    return BRANCH_PREFIX + tag


def _environment() -> dict[str, str]:
    environment = {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_GRAFT_FILE": os.devnull,
        # A repository that lacks objects may name a program that fetches them, and say that it is allowed.
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": "",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_PAGER": "cat",
        "GIT_CONFIG_COUNT": str(len(_QUIET_CONFIG)),
    }
    for number, (key, value) in enumerate(_QUIET_CONFIG.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": IDENTITY[0], f"GIT_{role}_EMAIL": IDENTITY[1]}
    return environment


def create(folder: Path) -> None:
    """Make `folder`, which holds a new task's files, a repository with one commit."""
    repo = git.Repo.init(folder, initial_branch="main")
    repo.git.update_environment(**_environment())
    repo.git.add("--all")
    repo.git.commit("--quiet", "-m", "A new task")
