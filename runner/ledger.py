"""The append-only journal of a run.  Everything else on disk is a view of it.

Each line announces something before it is done and is on the disk before it is done, so whatever dies at any
moment, the next start knows what was under way.
"""

from __future__ import annotations

import bisect
import dataclasses
import fcntl
import gc
import json
import mmap
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.durable import make_folder, sync_folder
from runner.errors import StateError
from runner.interrupts import held_back
from runner.trial import AuditFacts, Compute, Ending, Measured, Record, Seconds, Spent, Suggested, Verdict

FORMAT, FORMAT_WITH_RUNTIME = 2, 3
NUMBER = "n"
"""Each line's place in the journal, counted from 0, so that one that is missing, or there twice, is seen.  Old lines have none."""
JOURNAL = "journal.jsonl"
LOCK_ATTEMPTS, LOCK_PAUSE_SECONDS = 10, 0.02

Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OpenTrial:
    """A trial that was proposed and not judged yet."""

    trial: int
    proposed: Event
    commit: str | None = None
    examined: bool = False
    """Whether it passed what may try it before a trial is spent."""
    failures: tuple[str, ...] = ()
    """What the engine said each time that it failed under this trial."""
    measured: tuple[Event, ...] = ()
    """Its measurements so far, as JSON values; what was confirmed has taken the place of what was not."""
    confirmed: frozenset[int] = frozenset()
    """Indices into `measured`."""
    steps: tuple[Event, ...] = ()
    """Its containers whose result is on the disk: `trained`, `claimed` and `audited` events."""

    def with_measurement(self, event: Event) -> OpenTrial:
        """With what a `measured` or `confirmed` event says."""
        index = event["index"]
        measured = (*self.measured[:index], event["measurement"], *self.measured[index + 1 :])
        confirmed = self.confirmed | {index} if event["event"] == "confirmed" else self.confirmed
        return dataclasses.replace(self, measured=measured, confirmed=confirmed)


@dataclass(kw_only=True)
class State:
    """What the journal says, folded."""

    header: Event | None = None
    records: list[Record] = field(default_factory=list)
    """By number; a champion that was measured again while a candidate waited has the higher one."""
    opened: dict[int, OpenTrial] = field(default_factory=dict)
    """By number: trials that were proposed and not judged yet."""
    data: str | None = None
    """Digest of the prepared data that every trial of the run uses."""
    paid: dict[str, list[Spent]] = field(default_factory=dict)
    """By agent: calls of models since its last proposal; so what they cost belongs to its next one."""
    unfinished: int | None = None
    """Number of a judged trial whose effects (branch, note) may not all have happened."""
    events: int = 0
    """How many there are."""

    @property
    def open(self) -> OpenTrial | None:
        """The trial that is under way: a candidate, while the champion may be measured again for its sake."""
        return self.opened[min(self.opened)] if self.opened else None

    def settled(self) -> Event | None:
        """Everything but the records, as JSON values, of a run in which nothing is under way; else None."""
        value: Event = {"header": self.header, "data": self.data, "events": self.events}
        return value if self.header is not None and dataclasses.replace(self, records=[]) == State(**value) else None

    def next_trial(self) -> int:
        """The number of the next new trial."""
        return max([record.trial for record in self.records[-1:]] + [*self.opened, -1]) + 1

    def record(self, trial: int) -> Record:
        """The record of a judged trial."""
        return next(record for record in reversed(self.records) if record.trial == trial)

    def apply(self, event: Event) -> None:
        """Take in the next event.  Raises `ValueError` if it cannot come next."""
        if event.get(NUMBER, self.events) != self.events:
            message = f"event {event[NUMBER]} in the place of event {self.events}"
            raise ValueError(message)
        self.events += 1
        match event["event"]:
            case "run":
                self.header = event
            case "data":
                self.data = event["digest"]
            case "done":
                self.unfinished = None
            case "paid":
                self.paid.setdefault(event["agent"], []).append(spent_in(event))
            case "proposed":
                self.paid.pop(event.get("agent", ""), None)
                self.opened[event["trial"]] = OpenTrial(trial=event["trial"], proposed=event)
            case "judged":
                record = record_from_json(event["record"])
                bisect.insort(self.records, record, key=lambda known: known.trial)
                if self.opened.pop(record.trial, None) is None:  # refused
                    self.paid.pop(record.agent, None)
                self.unfinished = record.trial
            case "candidate" | "examined" | "failed" | "trained" | "claimed" | "audited" | "measured" | "confirmed" if event["trial"] in self.opened:
                self.opened[event["trial"]] = _further(self.opened[event["trial"]], event)


def _further(opened: OpenTrial, event: Event) -> OpenTrial:
    match event["event"]:
        case "candidate":
            return dataclasses.replace(opened, commit=event["commit"])
        case "examined":
            return dataclasses.replace(opened, examined=True)
        case "failed":
            return dataclasses.replace(opened, failures=(*opened.failures, event["reason"]))
        case "trained" | "claimed" | "audited":
            return dataclasses.replace(opened, steps=(*opened.steps, event))
        case _:
            return opened.with_measurement(event)


class Ledger:
    """A run's journal, open for writing by this process alone."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; a line torn by a crash at the very end is cut off.  Raises `StateError`."""
        self.folder = folder
        self._path = folder / JOURNAL
        self.state = State()
        whole, size = _read(self._path, self.state)
        self._fd: int | None = None
        if size != whole:
            with _disk_errors(self._path):
                os.ftruncate(self._open(), whole)
                os.fsync(self._open())

    def _open(self) -> int:
        if self._fd is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._path, flags, 0o600)
            sync_folder(self.folder)
        return self._fd

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; it is on the disk when this returns."""
        entry = {NUMBER: self.state.events, "event": event, **fields}
        line = (json.dumps(entry, allow_nan=False, separators=(",", ":")) + "\n").encode()
        with held_back():
            self._append(line)
            self.state.apply(entry)

    def _append(self, line: bytes) -> None:
        with _disk_errors(self._path):
            file = self._open()
            self._refuse_gone(file)
            before = os.fstat(file).st_size
            try:
                _write_all(file, line)
                os.fsync(file)
            except OSError:
                os.ftruncate(file, before)
                raise

    def _refuse_gone(self, file: int) -> None:
        try:
            same = os.path.samestat(self._path.lstat(), os.fstat(file))
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            message = (
                f"{self._path} was removed or replaced while this run wrote to it: put the folder back, or start another run with --new. "
                f"What was tried is in git (refs/autoresearch/{self.folder.name}/)"
            )
            raise StateError(message)

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)


def read(folder: Path) -> State:
    """The state of a run, for looking only.  Raises `StateError` if the journal is damaged."""
    state = State()
    read_on(folder, state, 0)
    return state


def judged(folder: Path, trial: int) -> Record | None:
    """The record of one trial, found in the journal without reading the rest; None if it is not judged.  Raises `StateError`."""
    path = folder / JOURNAL
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # As `write` writes it; within a text the quotes would be escaped.
            at = data.rfind(b'"event":"judged","trial":%d,' % trial)
            start, end = data.rfind(b"\n", 0, max(at, 0)) + 1, data.find(b"\n", max(at, 0))
            line = data[start:end] if at >= 0 and end >= 0 else None
        return None if line is None else record_from_json(json.loads(line)["record"])
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise StateError(message) from error
    except (ValueError, KeyError, TypeError):  # an empty file, or a damaged line: which one is said by who reads them all
        return next((record for record in read(folder).records if record.trial == trial), None)


def read_on(folder: Path, state: State, start: int) -> int:
    """Fold what follows byte `start` into `state`; return up to which byte the journal has whole lines.  Raises `StateError`."""
    return _read(folder / JOURNAL, state, start)[0]


@contextmanager
def writing(folder: Path) -> Iterator[Ledger]:
    """The run's ledger for the only process that may write it.  Raises `StateError` if another has it."""
    make_private(folder)
    with _disk_errors(folder / "lock"):
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            _lock(lock)
        except BlockingIOError as error:
            owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            message = f"run {folder.name!r} is held by another runner (process {owner}): wait, `autoresearch stop`, or use another --tag"
            raise StateError(message) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        ledger = Ledger(folder)
        gc.freeze()  # what was read stays to the end: of 10,000 trials each look for what could go takes 0.1 s
        try:
            yield ledger
        finally:
            ledger.close()
    finally:
        os.close(lock)


def is_held(folder: Path) -> bool:
    """True if a runner works on the run in `folder` now."""
    try:
        lock = (folder / "lock").open("rb")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait for whoever else is inside with the same lock file."""
    with _disk_errors(path):
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _lock(lock: int) -> None:
    # Whoever only looks (`is_held`) has the lock for a moment.
    for _ in range(LOCK_ATTEMPTS - 1):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_SECONDS)
    return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def make_private(folder: Path) -> None:
    """Create a run's folder inside the state folder, 0700.  Raises `StateError`."""
    make_state(folder.parent)
    _private_folder(folder)


def make_state(state: Path) -> None:
    """Create the state folder, 0700 and ignored by git.  Raises `StateError` if it is not a real folder of ours."""
    _private_folder(state)
    ignore = state / ".gitignore"
    with _disk_errors(ignore):
        if not ignore.exists():
            ignore.write_text("*\n")


def _private_folder(path: Path) -> None:
    if path.is_symlink():
        message = f"{path} is a link: the state folder must be a real folder of yours"
        raise StateError(message)
    with _disk_errors(path), suppress(FileExistsError):
        make_folder(path, mode=0o700)
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        message = f"{path} is no folder: the state folder must be a real folder of yours; move that away"
        raise StateError(message)
    if found.st_uid != os.getuid():
        message = f"{path} belongs to another user: remove it, or work in a clone of your own"
        raise StateError(message)
    if found.st_mode & 0o077:  # made by hand, or by a copy that kept no modes
        path.chmod(0o700)


def trial_folder(run: Path, trial: int) -> Path:
    """Where one trial's files lie on the host."""
    return run / "trials" / f"{trial:04d}"


def record_to_json(record: Record) -> Event:
    """A record as JSON values."""
    return dataclasses.asdict(record)


def record_from_json(value: Event) -> Record:
    """The inverse of `record_to_json`."""
    value = dict(value)
    value["seconds"] = Seconds(**value["seconds"])
    value["verdict"] = Verdict(value["verdict"])
    value["ending"] = Ending(value["ending"]) if value["ending"] else None
    value["suggestion"] = Suggested(value["suggestion"]) if value.get("suggestion") else None
    value["summary"] = tuple((name, word) for name, word in value["summary"])
    value["losses"] = tuple((step, loss) for step, loss in value["losses"])
    value["audit"] = AuditFacts(**value["audit"]) if value.get("audit") else None
    value["compute_seconds"] = Compute(**value["compute_seconds"]) if value.get("compute_seconds") else None
    value["measurements"] = tuple(Measured(**one) for one in value.get("measurements", ()))
    value["sigma_interval"] = tuple(value["sigma_interval"]) if value.get("sigma_interval") else None
    return Record(**value)


def spent_in(event: Event) -> Spent:
    """What an event says that something cost."""
    return Spent(cost_usd=event.get("cost_usd"), prompt_tokens=event.get("prompt_tokens"), completion_tokens=event.get("completion_tokens"))


def _read(path: Path, state: State, start: int = 0) -> tuple[int, int]:
    """Fold the file from byte `start` on into `state`; return how many bytes of it are whole lines, and its size."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return 0, 0
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}"
        raise StateError(message) from error
    whole = data.rfind(b"\n") + 1
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            event = json.loads(line)
            if event["event"] == "run" and event.get("format") not in (FORMAT, FORMAT_WITH_RUNTIME):
                # Before anything else of it is read, which may be of a kind that is not known here.
                message = f"{path} has format {event.get('format')}, this version reads {FORMAT} and {FORMAT_WITH_RUNTIME}: use the version that wrote it, or start another run with --new"
                raise StateError(message)
            state.apply(event)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{path} line {number} is damaged: restore the file, or start another --tag"
            raise StateError(message) from error
    return start + whole, start + len(data)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}. Nothing recorded is lost; mend it and run the same command again"
        raise StateError(message) from error
