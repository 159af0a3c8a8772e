"""What the host has left and how soon it answers, sampled by a process of its own beside whatever goes on.

Ten times a second, each from a thread of its own so that none waits for another: what is free, a process that is started
and ended (fork, exec and wait of `true`), and 4 KiB that are written and fsynced.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from runner.errors import EngineError

PERIOD_SECONDS = 0.1
WRITTEN = bytes(4096)
HELD = ("AnonPages", "Shmem", "SUnreclaim", "KernelStack", "PageTables")
"""Of /proc/meminfo: what somebody has."""
ANSWER_SECONDS = 120.0
"""A heartbeat that takes longer is not waited for: then something is wrong with the sampler itself."""


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """One look at what the host has."""

    at: float
    """Seconds of the monotonic clock, which all processes share."""
    memory: int
    """Bytes that the kernel could give out without swapping (MemAvailable)."""
    held: int
    """Bytes that processes and the kernel itself hold and that cannot be had by dropping files (`HELD`)."""
    disk: tuple[int, ...]
    """Free bytes of each file system, root's reserve included."""
    tasks: int
    """Processes and threads of the whole machine, the dead that nobody has waited for included."""
    load: float
    """Load average of one minute."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One heartbeat."""

    kind: str
    """`process` or `write`."""
    at: float
    """When it began."""
    seconds: float | None
    """None: the host refused it."""


KINDS = ("process", "write")


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the host was like when nothing went on: medians."""

    memory: float
    held: float
    drift: float
    """Bytes of memory by which the last third of that time had more than the first."""
    disk: tuple[float, ...]
    tasks: float
    load: float
    """Highest load average of one minute, from whatever went on earlier."""
    beats: Mapping[str, float]
    """Seconds of a heartbeat, by kind."""


@dataclass(frozen=True, kw_only=True)
class Slowest:
    """Heartbeats of one kind while something went on; seconds."""

    before: float
    median: float | None
    slowest: float | None
    refused: int


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The most that was taken at any one look, against before."""

    memory: float
    """Bytes."""
    disk: float
    """Bytes, of the file system that lost most."""
    tasks: float
    load: float
    """Highest load average of one minute, not against before."""
    beats: Mapping[str, Slowest]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How near to before is as before."""

    memory: int
    """Bytes, of what is available and of what is held."""
    disk: int
    """Bytes."""
    tasks: int

    def lacking(self, before: Before, now: Gauge) -> tuple[str, ...]:
        """What the host does not have again: of `memory` (available), `held memory`, `disk` and `processes`."""
        has = {
            "memory": now.memory >= before.memory - self.memory,
            "held memory": now.held <= before.held + self.memory,
            "disk": all(free >= had - self.disk for free, had in zip(now.disk, before.disk, strict=True)),
            "processes": now.tasks <= before.tasks + self.tasks,
        }
        return tuple(name for name, held in has.items() if not held)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """When all was as before."""

    seconds: float | None
    """None: not within the cap."""
    given_back: float | None
    """The same but for available memory: nobody holds anything any more, and how soon the machine offers it again is its own
    affair.  A virtual machine may hand freed pages to its host first."""
    lacking: tuple[str, ...] = ()
    """What was not as before at the cap."""


class Sampler:
    """A context manager: samples from its entry to its exit."""

    def __init__(self, places: Sequence[Path], writes_in: Path) -> None:
        """`places` are looked at for free disk, each file system once; heartbeats are written in `writes_in`."""
        self.places = list({path.stat().st_dev: path for path in places}.values())
        context = multiprocessing.get_context("spawn")
        self._receiving, sending = context.Pipe(duplex=False)
        self._sending = sending
        names = [str(path) for path in self.places]
        self._process = context.Process(target=_sample, args=(sending, names, str(writes_in)), daemon=True)
        self._thread = threading.Thread(target=self._receive, name="samples", daemon=True)
        self._news = threading.Condition()
        self._gauges: list[Gauge] = []
        self._beats: list[Beat] = []
        self._over: str | None = None

    def __enter__(self) -> Self:
        self._process.start()
        # Ours is closed, so that the end of the process is the end of the pipe.
        self._sending.close()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()
        self._thread.join()

    def before(self, began: float, ended: float) -> Before:
        """Of a time in which nothing went on."""
        gauges, beats = self._between(began, ended)
        memory = [one.memory for one in gauges]
        third = max(len(memory) // 3, 1)
        return Before(
            memory=statistics.median(memory),
            held=statistics.median(one.held for one in gauges),
            drift=statistics.median(memory[-third:]) - statistics.median(memory[:third]),
            disk=tuple(statistics.median(one.disk[i] for one in gauges) for i in range(len(self.places))),
            tasks=statistics.median(one.tasks for one in gauges),
            load=max(one.load for one in gauges),
            beats={kind: statistics.median(_seconds(beats, kind)) for kind in KINDS},
        )

    def taken(self, began: float, ended: float, before: Before) -> Taken:
        """Of a time in which something went on; waits for heartbeats that are under way at its end."""
        gauges, beats = self._between(began, ended)
        return Taken(
            memory=max(before.memory - one.memory for one in gauges),
            disk=max(had - one.disk[i] for one in gauges for i, had in enumerate(before.disk)),
            tasks=max(one.tasks - before.tasks for one in gauges),
            load=max(one.load for one in gauges),
            beats={kind: self._slowest(beats, kind, before) for kind in KINDS},
        )

    def recovery(self, since: float, before: Before, tolerance: Tolerance, cap: float) -> Recovery:
        """Waits until all is as before, at most `cap` seconds after `since`."""
        seen, given_back = 0, None
        with self._news:
            while True:
                for one in self._gauges[seen:]:
                    lacking = tolerance.lacking(before, one)
                    if one.at >= since and given_back is None and {*lacking} <= {"memory"}:
                        given_back = one.at - since
                    if one.at >= since and not lacking:
                        return Recovery(seconds=one.at - since, given_back=given_back)
                    if one.at >= since + cap:
                        return Recovery(seconds=None, given_back=given_back, lacking=lacking)
                seen = len(self._gauges)
                self._wait()

    @staticmethod
    def _slowest(beats: Sequence[Beat], kind: str, before: Before) -> Slowest:
        seconds = _seconds(beats, kind)
        return Slowest(
            before=before.beats[kind],
            median=statistics.median(seconds) if seconds else None,
            slowest=max(seconds, default=None),
            refused=sum(one.kind == kind and one.seconds is None for one in beats),
        )

    def _between(self, began: float, ended: float) -> tuple[list[Gauge], list[Beat]]:
        """What began in that time."""
        give_up = time.monotonic() + ANSWER_SECONDS
        with self._news:
            while not self._complete(ended):
                if time.monotonic() > give_up:
                    raise EngineError(f"the host answered nothing for {ANSWER_SECONDS:.0f} s")
                self._wait()
            gauges = [one for one in self._gauges if began <= one.at <= ended]
            beats = [one for one in self._beats if began <= one.at <= ended]
        if not gauges:
            raise EngineError("nothing was sampled: the time was too short")
        return gauges, beats

    def _complete(self, ended: float) -> bool:
        """Whether each kind has a sample from after that moment: then none from before it is under way."""
        latest = {one.kind: one.at for one in self._beats[-50:]}
        return bool(self._gauges) and self._gauges[-1].at > ended and all(latest.get(kind, 0.0) > ended for kind in KINDS)

    def _wait(self) -> None:
        if self._over is not None:
            raise EngineError(f"the sampler ended: {self._over}")
        self._news.wait(PERIOD_SECONDS)

    def _receive(self) -> None:
        over = "killed"
        try:
            while True:
                one = self._receiving.recv()
                with self._news:
                    if isinstance(one, Gauge):
                        self._gauges.append(one)
                    elif isinstance(one, Beat):
                        self._beats.append(one)
                    else:
                        over = str(one)
                    self._news.notify_all()
        except (EOFError, OSError):
            with self._news:
                self._over = over
                self._news.notify_all()


def _seconds(beats: Sequence[Beat], kind: str) -> list[float]:
    return [one.seconds for one in beats if one.kind == kind and one.seconds is not None]


# ------------------------------------------------------------------------------------- in the other process


def _sample(sending: Connection, places: Sequence[str], writes_in: str) -> None:
    """Sample until whoever asked for it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lock = threading.Lock()

    def send(one: object) -> None:
        try:
            with lock:
                sending.send(one)
        except OSError:
            os._exit(0)

    program = shutil.which("true") or "/bin/true"
    with tempfile.TemporaryFile(dir=writes_in) as file:
        file.write(WRITTEN)
        file.flush()
        handle = file.fileno()
        measures: list[Callable[[], object]] = [
            lambda: _look(places),
            lambda: _beat("process", lambda: _start(program)),
            lambda: _beat("write", lambda: _write(handle)),
        ]
        threads = [threading.Thread(target=_repeat, args=(one, send), daemon=True) for one in measures]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _repeat(measure: Callable[[], object], send: Callable[[object], None]) -> None:
    due = time.monotonic()
    while True:
        try:
            send(measure())
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            send(repr(error))
            os._exit(1)
        due = max(due + PERIOD_SECONDS, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0.0))


def _look(places: Sequence[str]) -> Gauge:
    at = time.monotonic()
    memory = {name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())}
    words = Path("/proc/loadavg").read_text().split()
    found = [os.statvfs(place) for place in places]
    return Gauge(
        at=at,
        memory=memory["MemAvailable"],
        held=sum(memory[name] for name in HELD),
        disk=tuple(one.f_bfree * one.f_frsize for one in found),
        tasks=int(words[3].split("/")[1]),
        load=float(words[0]),
    )


def _beat(kind: str, work: Callable[[], None]) -> Beat:
    at = time.monotonic()
    try:
        work()
    except OSError:
        return Beat(kind=kind, at=at, seconds=None)
    return Beat(kind=kind, at=at, seconds=time.monotonic() - at)


def _start(program: str) -> None:
    os.waitpid(os.posix_spawn(program, [program], {}), 0)


def _write(handle: int) -> None:
    os.pwrite(handle, WRITTEN, 0)
    os.fsync(handle)
