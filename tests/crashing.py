"""Runners that are killed, at any point of what they do, and those that go on after them.

Points are not named by hand: a profiler stops before every call of a function of C that changes something outside the process.
Between two of them nothing changes, so killed before each is killed everywhere.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from runner import ledger
from tests.lasting import PROPOSALS, STAGES, Scene, new_scene, outcome, run_once

CHANGING = {
    "chmod", "fchmod", "fork_exec", "ftruncate", "link", "mkdir", "open", "pwrite", "remove", "rename", "replace", "rmdir", "symlink",
    "truncate", "unlink", "write", "writelines", "flush", "close", "__exit__", "tofile", "flock",
}  # fmt: skip
"""Functions of C that change what outlives the process, whatever module they are of."""
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def in_a_process(scene: Scene, work: Callable[[], None], before: Callable[[], None] | None = None) -> int:
    """The status of a process of its own that does `work`, once it and all that it started have ended."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)  # what a killed runner started is ours to wait for
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.environ["TMPDIR"] = str(scene.temporary)
            tempfile.tempdir = None
            said = scene.root.with_name(f"{scene.root.name}.said").open("w", buffering=1)
            sys.stdout = sys.stderr = said
            if before is not None:
                before()
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - its own end
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    found = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return found
        if pid == child:
            found = status


def watch(act: Callable[[int, str], None]) -> None:
    """Have `act` called before each call of a function that changes something, with the number of the call and the function's name.

    And when a process is waited for, with the number that was last.
    """
    number = 0

    def profile(_: object, event: str, function: Any) -> None:
        nonlocal number
        if event == "c_call" and function.__name__ in CHANGING:
            number += 1
            act(number, function.__name__)
        elif event == "c_call" and function.__name__ == "waitpid":
            act(number, "waitpid")

    sys.setprofile(profile)


def kill_at(point: int) -> Callable[[], None]:
    """Set up that this process is killed at that point."""

    def act(number: int, name: str) -> None:
        if number == point and name != "waitpid":
            os.kill(os.getpid(), signal.SIGKILL)

    return partial(watch, act)


PARTS = ("journal", "git", "engine", "leases", "files")
ANNOUNCED = frozenset(PARTS[:-1])
"""All but the files that a runner keeps for itself."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A moment at which a runner may be killed."""

    number: int
    before: frozenset[str]
    """Which of `PARTS` of the disk changed just before it."""
    after: frozenset[str] = frozenset()
    """And which change next."""

    @property
    def at_a_step(self) -> bool:
        """Whether it lies right before or after a write to the journal, or a call of git or the engine that changes something."""
        return bool((self.before | self.after) & ANNOUNCED)


def points(scene: Scene, work: Callable[[], None]) -> tuple[int, tuple[Point, ...]]:
    """How many points `work` has, and the first of each row of them at which the disk is the same: killed at any other of the
    row, a runner leaves the same.
    """
    log = scene.root.with_name(f"{scene.root.name}.points")

    def note() -> None:
        seen = dict.fromkeys(PARTS, b"")
        running, git = False, True
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def act(number: int, name: str) -> None:
            nonlocal seen, running, git
            if name == "waitpid":
                running, git = False, True
                return
            # Only git itself writes there: what it changed is looked for when its process has ended.
            now = seen | _disk(scene, git=git and not running)
            git = running
            running = running or name == "fork_exec"
            changed = [part for part in PARTS if now[part] != seen[part]]
            os.write(file, f"{number} {' '.join(changed)}\n".encode())
            seen = now

        watch(act)

    assert in_a_process(scene, work, note) == 0, scene.root.with_name(f"{scene.root.name}.said").read_text()
    lines = [line.split() for line in log.read_text().splitlines()]
    found = [Point(number=int(number), before=frozenset(parts)) for number, *parts in lines if parts]
    later = [point.before for point in found[1:]] + [frozenset[str]()]
    return len(lines), tuple(replace(point, after=after) for point, after in zip(found, later, strict=True))


def _disk(scene: Scene, *, git: bool) -> dict[str, bytes]:
    """A digest of each part: of its names, sizes and times, and of what was written in the last moments."""
    digests, recent = {part: hashlib.sha256() for part in PARTS if git or part != "git"}, time.time_ns() - 100_000_000
    for folder, folders, names in os.walk(scene.root):
        if not git and ".git" in folders:
            folders.remove(".git")
        inside = folder.removeprefix(str(scene.root))
        for name in names:
            path = f"{folder}/{name}"
            digest = digests[_part(inside, name)]
            found = os.lstat(path)
            digest.update(f"{inside}/{name} {found.st_size} {found.st_mtime_ns} {found.st_ino}".encode())
            if found.st_mtime_ns > recent and "/objects/" not in inside:
                digest.update(Path(path).read_bytes())
    return {part: digest.digest() for part, digest in digests.items()}


def _part(folder: str, name: str) -> str:
    if name == ledger.JOURNAL:
        return "journal"
    top = folder.split("/")[1] if folder else "files"
    if top in ("engine", "leases"):
        return top
    return "git" if folder == "/task/.git" or folder.startswith("/task/.git/") else "files"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kill and what came of it."""

    stage: int
    kills: tuple[int, ...]
    """The point of the first runner, then of the one that goes on after it, and so on."""
    differs: tuple[str, ...] = ()
    """What was not as in the undisturbed run; empty: nothing."""
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the story: from where it begins to where it ends undisturbed."""

    number: int
    before: Scene
    after: dict[str, Any]
    ran: int
    """Containers that ran until then."""
    count: int
    points: tuple[Point, ...]

    def work(self, scene: Scene) -> Callable[[], None]:
        return partial(run_once, scene, list(PROPOSALS.values())[: self.number])


def stages(folder: Path) -> Iterator[Stage]:
    """The undisturbed run, part by part, with the points at which it can die."""
    warm = new_scene(folder / "warm")  # what is imported late is imported here, once for all processes
    run_once(warm, list(PROPOSALS.values()))
    scene = new_scene(folder / "undisturbed")
    for number in range(len(STAGES)):
        before = scene.copy_to(folder / f"before-{number}")
        work = partial(run_once, scene, list(PROPOSALS.values())[:number])
        count, found = points(scene, work)
        ran = len(scene.ran.read_text().splitlines())
        yield Stage(number=number, before=before, after=outcome(scene), ran=ran, count=count, points=found)


def die_and_go_on(stage: Stage, kills: Sequence[int], scene_at: Path, *, twice: bool) -> Case:
    """Kill a runner at the first point, the next one at the second, and let the last go on to the end; `twice`: and one more after it."""
    scene = stage.before.copy_to(scene_at)
    differs = []
    try:
        known = 0
        for point in kills:
            status = in_a_process(scene, stage.work(scene), kill_at(point))
            if status == 0:
                break  # it had nothing more to do
            if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
                differs.append(f"a runner ended with {status}")
            known += 1
        if in_a_process(scene, stage.work(scene)) != 0:
            differs.append("the last runner failed")
        found = outcome(scene)
        differs += [f"{name}: {_short(stage.after[name], found[name])}" for name in stage.after if stage.after[name] != found[name]]
        ran = len(scene.ran.read_text().splitlines())
        if not stage.ran <= ran <= stage.ran + known:
            differs.append(f"{ran} containers ran, {stage.ran} undisturbed")
        if twice:
            journal = (scene.run / ledger.JOURNAL).read_bytes()
            if in_a_process(scene, stage.work(scene)) != 0 or outcome(scene) != found or (scene.run / ledger.JOURNAL).read_bytes() != journal:
                differs.append("one more runner, which has nothing to do, changed something")
    except Exception:  # noqa: BLE001 - told with the others
        differs.append(traceback.format_exc())
    said = scene.root.with_name(f"{scene.root.name}.said")
    case = Case(stage=stage.number, kills=tuple(kills), differs=tuple(differs), said=said.read_text() if differs and said.exists() else "")
    shutil.rmtree(scene.root)
    return case


def matrix(cases: Sequence[tuple[Stage, Sequence[int]]], folder: Path, *, every: int = 4) -> list[Case]:
    """All cases on all processors; one more runner is started after one in `every`."""
    workers = os.cpu_count() or 1
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            with (folder / f"cases-{worker}").open("w") as file:
                for at in range(worker, len(cases), workers):
                    stage, kills = cases[at]
                    case = die_and_go_on(stage, kills, folder / f"case-{worker}", twice=at % every == 0)
                    file.write(json.dumps(asdict(case)) + "\n")
                    file.flush()
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    lines = [line for worker in range(workers) for line in (folder / f"cases-{worker}").read_text().splitlines()]
    assert len(lines) == len(cases)
    return [Case(**json.loads(line)) for line in lines]


def _short(wanted: object, found: object) -> str:
    return f"{str(wanted)[:300]} became {str(found)[:300]}" if not isinstance(wanted, dict) or not isinstance(found, dict) else str(
        {name: (wanted.get(name), found.get(name)) for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)}
    )[:600]
