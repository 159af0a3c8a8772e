"""Running other programs so that a person sees what is going on: one line per step, never silent for long."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

Say = Callable[[str], None]

HEARTBEAT_SECONDS = 4.0
TAIL_LINES = 30
LINE_WIDTH = 90


class CommandError(Exception):
    """A program ended with an error; `tail` is the end of what it said."""

    def __init__(self, command: Sequence[str], code: int, tail: str) -> None:
        super().__init__(f"`{' '.join(command)}` ended with exit code {code}")
        self.command = tuple(command)
        self.code = code
        self.tail = tail


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


class Stopwatch:
    """Seconds since it was made, as they are shown."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._start

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s"


class Heartbeat:
    """While it is open, says every few seconds what is being done, unless something else was said."""

    def __init__(self, what: str, say: Say, every: float = HEARTBEAT_SECONDS) -> None:
        self._what = what
        self._say = say
        self._every = every
        self._watch = Stopwatch()
        self._over = threading.Event()
        self._news = ""
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def note(self, line: str) -> None:
        """Show `line` with the next beat."""
        if not line.startswith("WARNING"):
            self._news = line.strip()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._every):
            news = f": {self._news[:LINE_WIDTH]}" if self._news else ""
            self._say(f"  ... {self._what}, {self._watch.seconds:.0f} s{news}")


def run(
    command: Sequence[str],
    *,
    what: str,
    say: Say = say,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    heartbeat: float = HEARTBEAT_SECONDS,
) -> str:
    """Run `command` and return what it said (both streams).  Raises `CommandError`.

    `env` is added to this process's environment.
    """
    lines: list[str] = []
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with Heartbeat(what, say, heartbeat) as beat:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **(env or {})},
                cwd=cwd,
            )
        except OSError as error:
            raise CommandError(command, 127, str(error)) from error
        with process:
            try:
                for line in process.stdout or ():
                    lines.append(line)
                    tail.append(line)
                    beat.note(line)
            except BaseException:
                process.terminate()
                raise
    if process.returncode:
        raise CommandError(command, process.returncode, "".join(tail))
    return "".join(lines)


def apt_install(packages: Sequence[str], *, what: str, say: Say) -> None:
    """Install Debian packages, as root.  Raises `CommandError`."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    try:
        run(command, what=what, say=say, env=quiet)
    except CommandError:  # most often: the lists are missing or stale
        run(["apt-get", "update"], what="apt-get update", say=say, env=quiet)
        run(command, what=what, say=say, env=quiet)
