"""The exclusive right to one GPU, between all runners of a machine, whoever they belong to.

A lease is a lock that the kernel holds on a file named after the GPU's UUID, in one folder that all share.  The kernel lets go of
the lock when its owner dies, however that is; but the owner's container may live on, and nobody else can look into another
user's engine.  So the file also says until when a container may run, and that is honoured unless the container is known to be
gone.  Times are of the kernel's monotonic clock: the same for all, and no clock that is set moves it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import pwd
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.errors import GpuError

SHARED = Path("/run/lock/autoresearch")
"""Where an admin makes the folder that all users share; it is taken if it is there."""
ENVIRONMENT = "AUTORESEARCH_LEASES"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MAX_BYTES = 4096
MAX_SECONDS = 9 * 24 * 3600.0
"""A deadline further away than this is not believed: everybody may write to the file.  No container has longer, with the largest
budget and start-up that a task can ask for."""
MARGIN_SECONDS = 60.0
"""Between the note and the start of the container, whose own deadline counts from there."""
STUCK_SECONDS = 7 * 24 * 3600.0
"""So long nobody else takes a GPU from a container that does not die."""
_UUID = re.compile(r"[A-Za-z0-9/_.:-]{1,128}")

Gone = Callable[[str, str], bool]
"""Whether it is known that no such container runs: the engine's id, the container's id."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a lease's file says of its owner."""

    boot: str
    uid: int
    pid: int
    run: str
    engine: str
    """Id of the engine that the owner's containers run on."""
    container: str
    """Id of the one that may run on the GPU; empty: none."""
    deadline: float
    """Of the monotonic clock, after which no container of the owner's runs."""


class Lease:
    """One GPU, held; what the file says is kept true."""

    def __init__(self, handle: int, uuid: str, run: str, engine: str) -> None:
        self.uuid = uuid
        self.container = ""
        """Which container may run on it."""
        self._handle, self._run, self._engine = handle, run, engine

    def cover(self, container: str, seconds: float) -> None:
        """Say, before it is started, that `container` may run for so long from now."""
        self._say(container, now() + seconds + MARGIN_SECONDS)

    def uncover(self) -> None:
        """Say that no container of ours runs any more."""
        self._say("", 0.0)

    def stuck(self) -> None:
        """Say that the container does not die: it may run until the machine is started again, or its owner finds it gone."""
        self.cover(self.container, STUCK_SECONDS)

    def _say(self, container: str, deadline: float) -> None:
        self.container = container
        note = Note(
            boot=_boot(),
            uid=os.getuid(),
            pid=os.getpid(),
            run=self._run,
            engine=self._engine,
            container=container,
            deadline=deadline,
        )
        _write(self._handle, note)


@contextmanager
def held(place: Path, uuid: str, *, run: str, engine: str, gone: Gone) -> Iterator[Lease]:
    """Hold the GPU `uuid` as long as the block lasts, by a file in the folder `place`.

    `run` is for people; `engine` is the id of the one that our containers run on; `gone` is asked only about a container of
    this user's.  Raises `GpuError` if somebody else has the GPU, or had it and a container may still run on it, or if the
    folder is not fit to be shared.
    """
    handle = _open(place, uuid)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GpuError(f"GPU {uuid} is leased by {_owner(_read(handle))}: wait for it, or name another with --gpus") from None
        _refuse_replaced(place, uuid, handle)
        left = _read(handle)
        if left is not None and _may_run(left, gone):
            rest = math.ceil(left.deadline - now())
            raise GpuError(
                f"GPU {uuid}: {_owner(left)} died and left a container that may run for {rest} s more. "
                f"Its owner can end that by starting a run there again; else wait"
            )
        lease = Lease(handle, uuid, run, engine)
        lease.uncover()
        try:
            yield lease
        finally:
            # What was interrupted has removed its container, as a rule.
            if not lease.container or gone(engine, lease.container):
                os.ftruncate(handle, 0)
    finally:
        os.close(handle)  # which gives the lock back


def folder() -> Path:
    """Where leases lie: named by AUTORESEARCH_LEASES, else the machine's, else this user's own, made if need be.

    Raises `GpuError` if a folder that was named or made by an admin cannot be trusted.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return _checked(Path(named), f"{ENVIRONMENT}={named}")
    if SHARED.is_symlink() or SHARED.exists():
        return _checked(SHARED, str(SHARED))
    # Nobody shares this machine, or its admin has not said so (docs/security.md).
    own = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "autoresearch" / "leases"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    return own


def now() -> float:
    """Of the kernel's monotonic clock, which all processes of a machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _checked(place: Path, named: str) -> Path:
    """`place` if nobody but root and its owner can take it away from under our feet."""
    make = f"an admin removes what is there and makes it: `install -d -m 1777 -o root {place}`"
    try:
        found = place.lstat()
    except OSError as error:
        raise GpuError(f"{named}: {error.strerror}; {make}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise GpuError(f"{named} is not a folder (links are not followed); {make}")
    if found.st_uid not in (0, os.getuid()):
        raise GpuError(f"{named} belongs to {_name(found.st_uid)}, who could take leases away; {make}")
    if found.st_mode & (stat.S_IWOTH | stat.S_IWGRP) and not found.st_mode & stat.S_ISVTX:
        raise GpuError(f"{named} can be written by others and is not sticky, so they could remove leases; {make}")
    return place


def _path(place: Path, uuid: str) -> Path:
    return place / f"{uuid.replace('/', '_')}.lease"


def _refuse_replaced(place: Path, uuid: str, handle: int) -> None:
    """Raises `GpuError` if the file that is locked is no longer the one that others will find."""
    locked = os.fstat(handle)
    try:
        there = _path(place, uuid).lstat()
    except OSError:
        there = None
    if there is None or (there.st_dev, there.st_ino) != (locked.st_dev, locked.st_ino):
        raise GpuError(f"lease {_path(place, uuid)} was removed or replaced in this moment: run the same command again")


def _open(place: Path, uuid: str) -> int:
    if not _UUID.fullmatch(uuid):
        raise GpuError(f"{uuid!r} is no UUID of a GPU")
    path = _path(place, uuid)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for _ in range(2):
        try:
            # Never O_CREAT on a file of somebody else's: in a sticky folder the kernel refuses that.
            handle = os.open(path, flags)
            break
        except FileNotFoundError:
            try:
                handle = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(handle, 0o666)  # whatever the umask says: other users lock it too
                break
            except FileExistsError:
                continue
            except OSError as error:
                raise GpuError(f"lease {path}: {error.strerror}") from error
        except OSError as error:
            why = "a link, which is not followed" if error.errno == errno.ELOOP else error.strerror
            raise GpuError(f"lease {path}: {why}") from error
    else:
        raise GpuError(f"lease {path}: it comes and goes")
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(handle)
        raise GpuError(f"lease {path}: not a plain file with one name; an admin removes it")
    return handle


def _boot() -> str:
    return BOOT_ID.read_text().strip()


def _write(handle: int, note: Note) -> None:
    """In one call and padded: a reader without the lock sees the old note or the new one."""
    data = json.dumps(asdict(note)).encode()[: MAX_BYTES - 1].ljust(512) + b"\n"
    os.pwrite(handle, data, 0)
    os.ftruncate(handle, len(data))


def _read(handle: int) -> Note | None:
    """What the last owner wrote; None of nothing, and of what makes no sense."""
    try:
        value = json.loads(os.pread(handle, MAX_BYTES, 0))
        note = Note(
            boot=str(value["boot"]),
            uid=int(value["uid"]),
            pid=int(value["pid"]),
            run=_plain(value["run"]),
            engine=_plain(value["engine"]),
            container=_plain(value["container"]),
            deadline=float(value["deadline"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    return note if math.isfinite(note.deadline) else None


def _plain(value: object) -> str:
    return "".join(letter for letter in str(value) if letter.isprintable())[:80]


def _may_run(note: Note, gone: Gone) -> bool:
    """Whether a container that the dead owner left may still run."""
    if note.boot != _boot() or not now() < note.deadline <= now() + MAX_SECONDS:
        return False
    return not (note.uid == os.getuid() and note.container and gone(note.engine, note.container))


def _owner(note: Note | None) -> str:
    return "somebody" if note is None else f"{_name(note.uid)} (run {note.run}, process {note.pid})"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
