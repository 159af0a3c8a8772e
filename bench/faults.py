"""What is done to a run of `bench.soak` while it works, from outside: signals, the engine, the disk, the repository."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from tests.conftest import run_git
from tests.docker.disks import Disk
from tests.docker.faulty import Fault, faulty
from tests.docker.quick import TAG, Driven

BRANCH = f"refs/heads/autoresearch/{TAG}"
KILLED = -int(signal.SIGKILL)
ANSWERS = (
    r"POST .*/containers/create", r"POST .*/start$", r"DELETE .*/containers/", r"POST .*/volumes/create", r"DELETE .*/volumes/",
    r"GET .*/containers/.*/json", r"GET .*/archive", r"PUT .*/archive", r"GET .*/logs", r"POST .*/exec",
)  # fmt: skip
"""Requests to the engine whose answers are lost."""
ENDING_SECONDS = 1500.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one invocation under a fault ended."""

    code: int
    said: str
    """What it printed on standard error."""
    clean: bool
    """True if it had the chance to remove what it had in the engine."""


Injected = Callable[[Driven, tuple[str, ...], random.Random], Outcome]
"""Starts the command, does its mischief, undoes what a person would, and waits for the end."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of fault."""

    inject: Injected
    codes: tuple[int, ...]
    """Exit codes that are right; 0: it came too late."""
    weight: float = 1.0


def kinds(disk: Disk | None) -> Mapping[str, Kind]:
    """Every kind of fault by its name."""
    found = {
        "none": Kind(inject=_nothing, codes=(0,)),
        "kill -9": Kind(inject=partial(_signalled, [signal.SIGKILL]), codes=(KILLED, 0), weight=3),
        "Ctrl-C": Kind(inject=partial(_signalled, [signal.SIGINT]), codes=(130, 0)),
        "SIGTERM": Kind(inject=partial(_signalled, [signal.SIGTERM]), codes=(143, 0)),
        "terminal closed": Kind(inject=partial(_signalled, [signal.SIGHUP]), codes=(129, 0)),
        "Ctrl-C twice": Kind(inject=partial(_signalled, [signal.SIGINT, signal.SIGINT]), codes=(130, 0)),
        "stop": Kind(inject=_stopped, codes=(0,)),
        "container removed": Kind(inject=_removed, codes=(0, 3)),
        "answer of the engine lost": Kind(inject=_lost, codes=(0, 3), weight=2),
        "branch moved and put back": Kind(inject=_moved, codes=(0, 7)),
        "references packed, garbage collected": Kind(inject=_collected, codes=(0,)),
        "second runner": Kind(inject=_second, codes=(0,)),
        "commits and edits by the user": Kind(inject=_edited, codes=(0,)),
    }
    if disk is not None:
        found["state disk full"] = Kind(inject=partial(_full, disk), codes=(0, 7), weight=2)
    return found


@contextmanager
def _begun(task: Driven, command: tuple[str, ...], chance: random.Random) -> Iterator[subprocess.Popen[str]]:
    """The command at a random moment of its work."""
    child = task.spawn(*command)
    try:
        with suppress(subprocess.TimeoutExpired):
            child.wait(chance.uniform(0.8, 12))
        yield child
    finally:
        if child.returncode is None and child.poll() is None:
            child.kill()
            child.communicate()


def _ended(child: subprocess.Popen[str], *, clean: bool = True) -> Outcome:
    _, said = child.communicate(timeout=ENDING_SECONDS)
    return Outcome(code=child.returncode, said=said, clean=clean and child.returncode in (0, 130, 143, 129, 7))


def _nothing(task: Driven, command: tuple[str, ...], _: random.Random) -> Outcome:
    return _ended(task.spawn(*command))


def _signalled(numbers: list[signal.Signals], task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        for number in numbers:
            child.send_signal(number)
            time.sleep(0.02)
        return _ended(child, clean=len(numbers) == 1)


def _stopped(task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        task.call("stop", "--tag", TAG)
        return _ended(child)


def _removed(task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        while child.poll() is None:
            there = [one["container"] for one in task.events() if one["event"] == "created"]
            if there and subprocess.run(["docker", "rm", "-f", there[-1]], check=False, capture_output=True).stdout:
                break  # the engine names what it removed
            time.sleep(0.1)
        return _ended(child)


def _lost(task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    real = task.environment.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    socket = task.folder.parent / "engine.sock"
    socket.unlink(missing_ok=True)
    fault = Fault(asks=chance.choice(ANSWERS), cut=chance.choice([0, 0, 60]), skip=chance.randrange(6), times=chance.choice([1, 1, 3]))
    with faulty(socket, real, fault):
        before = dict(task.environment)
        task.environment["DOCKER_HOST"] = f"unix://{socket}"
        try:
            return _ended(task.spawn(*command))
        finally:
            task.environment = before


def _moved(task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        found = run_git(task.folder, "for-each-ref", "--format=%(objectname)", BRANCH)
        away = run_git(task.folder, "rev-parse", "HEAD")
        if found and found != away:
            with suppress(subprocess.CalledProcessError):  # it moved by itself in between
                run_git(task.folder, "update-ref", BRANCH, away, found)
        outcome = _ended(child)
        if found and run_git(task.folder, "rev-parse", BRANCH) == away:
            run_git(task.folder, "update-ref", BRANCH, found, away)
        return outcome


def _collected(task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        run_git(task.folder, "pack-refs", "--all", "--prune")
        run_git(task.folder, "reflog", "expire", "--expire=now", "--all")
        # What was made in the last seconds has no reference yet.
        run_git(task.folder, "gc", "-q", "--prune=30.seconds.ago")
        return _ended(child)


def _second(task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        other = task.spawn(*command)
        _, said = other.communicate(timeout=ENDING_SECONDS)
        first = _ended(child)
        refused = other.returncode == 7 and "is held by another runner" in said
        # If the first had just ended, the second was the only one.
        return first if refused or other.returncode == 0 else Outcome(code=other.returncode, said=said, clean=False)


def _edited(task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        (task.folder / "mine.txt").write_text(f"{chance.random()}\n")
        run_git(task.folder, "add", "mine.txt")
        run_git(task.folder, "commit", "-qm", "mine")
        (task.folder / "mine.txt").write_text("not committed\n")
        outcome = _ended(child)
        run_git(task.folder, "checkout", "-q", "mine.txt")
        return outcome


def _full(disk: Disk, task: Driven, command: tuple[str, ...], chance: random.Random) -> Outcome:
    with _begun(task, command, chance) as child:
        disk.fill(leave=chance.choice([0, 4096, 65536]))
        outcome = _ended(child)
        disk.free()
        return outcome
