"""Run a command in bubblewrap until it ends or has to: what it says is kept, and nothing of it is left running."""

from __future__ import annotations

import json
import os
import select
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runner.agents.bubblewrap import INSTALL, Confinement, arguments
from runner.errors import AgentError
from runner.report.text import plain

KEPT_BYTES = 1 << 20
"""Of each of its two streams: the first half of that and the last."""
LOOK_SECONDS = 1.0
END_SECONDS = 30.0
"""For the kernel to end everything in a process namespace."""
CHUNK = 64 << 10
CUT = b"\n[... cut here ...]\n"


@dataclass
class Kept:
    """Beginning and end of a stream of any length."""

    most: int = KEPT_BYTES
    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    cut: bool = False

    def add(self, data: bytes) -> None:
        """Take in more of it."""
        room = self.most // 2 - len(self.head)
        self.head += data[: max(room, 0)]
        self.tail += data[max(room, 0) :]
        if len(self.tail) > self.most // 2:
            self.cut = True
            del self.tail[: len(self.tail) - self.most // 2]

    @property
    def text(self) -> str:
        """What was kept, and a line where something was not."""
        return bytes(self.head + (CUT if self.cut else b"") + self.tail).decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended and what it said."""

    exit_code: int | None
    """None: it was stopped."""
    stopped: str = ""
    """Why it was."""
    stdout: str
    stderr: str


class _Status:
    """What bubblewrap reports: the sandbox's first process, with which all others die, and the command's exit code."""

    def __init__(self, source: int) -> None:
        self._source, self._read = source, bytearray()
        self.first: int | None = None
        """A handle to that process, which no reuse of its number can mislead."""

    def look(self) -> None:
        with suppress(BlockingIOError):
            while data := os.read(self._source, CHUNK):
                self._read += data
        number = self._said("child-pid")
        if self.first is None and number is not None:
            with suppress(ProcessLookupError):
                self.first = os.pidfd_open(number)

    @property
    def exit_code(self) -> int | None:
        """None as long as the command has not ended, or never began."""
        return self._said("exit-code")

    def _said(self, name: str) -> int | None:
        for line in self._read.splitlines():
            with suppress(ValueError):
                found = json.loads(line).get(name)
                if isinstance(found, int):
                    return found
        return None

    def close(self) -> None:
        os.close(self._source)
        if self.first is not None:
            os.close(self.first)


def run(
    confinement: Confinement, command: Sequence[str], environment: Mapping[str, str], *, seconds: float, look: Callable[[], str | None]
) -> Ended:
    """Run it for at most `seconds`, and only as long as `look`, which is asked once a second, gives no reason to stop it.

    Whatever leaves, an exception or a result, everything in the sandbox has ended.  Raises `AgentError` if there is no sandbox.
    """
    # By our own PATH: the sandbox's may name a folder of the agent's first.
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        message = f"there is no bubblewrap (bwrap) here, and an agent runs in nothing less. {INSTALL}"
        raise AgentError(message)
    source, status = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # In a session of its own: a Ctrl-C is ours, and we end it.
        process = subprocess.Popen(
            arguments(bwrap, confinement, command, status=status), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=dict(environment), pass_fds=(status,), start_new_session=True, cwd="/",
        )  # fmt: skip
    except OSError as error:
        os.close(source)
        message = f"bubblewrap (bwrap) cannot be started: {error.strerror}"
        raise AgentError(message) from error
    finally:
        os.close(status)
    reported = _Status(source)
    out, err = Kept(), Kept()
    try:
        try:
            stopped = _follow(process, reported, (out, err), seconds, look)
        finally:
            _end(process, reported)
        for stream, kept in ((process.stdout, out), (process.stderr, err)):
            _drain(stream.fileno() if stream else -1, kept)
        if not stopped and reported.exit_code is None:
            raise AgentError(_no_sandbox(err.text))
        return Ended(exit_code=None if stopped else reported.exit_code, stopped=stopped, stdout=out.text, stderr=err.text)
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        reported.close()


def try_sandbox(scratch: Path) -> None:
    """Raises `AgentError` if bubblewrap is missing, or cannot make a sandbox on this machine."""
    run(Confinement(scratch=scratch), ["true"], {"PATH": "/usr/bin:/bin"}, seconds=END_SECONDS, look=lambda: None)


def _follow(
    process: subprocess.Popen[bytes], reported: _Status, streams: tuple[Kept, Kept], seconds: float, look: Callable[[], str | None]
) -> str:
    """Read what it says until the command has ended, or for the reason that is given."""
    began = looked = time.monotonic()
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for stream, kept in zip((process.stdout, process.stderr), streams, strict=True):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                selector.register(stream.fileno(), selectors.EVENT_READ, kept)
            while True:
                now = time.monotonic()
                if now >= began + seconds:
                    return f"it was still running after {seconds:g} s"
                if now >= looked + LOOK_SECONDS:
                    looked = now
                    if (reason := look()) is not None:
                        return reason
                ready = selector.select(max(0.0, min(began + seconds, looked + LOOK_SECONDS) - now))
                reported.look()
                for key, _ in ready:
                    if key.data is None:
                        return ""
                    data = os.read(key.fd, CHUNK)
                    if data:
                        key.data.add(data)
                    else:
                        selector.unregister(key.fd)
    finally:
        os.close(ended)


def _end(process: subprocess.Popen[bytes], reported: _Status) -> None:
    """End the first process in the sandbox, and with it, by the kernel, every other.  Raises `AgentError` if they stay."""
    if reported.first is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(reported.first, signal.SIGKILL)
    process.kill()
    process.wait()
    # It may have begun only now; then it dies with the bubblewrap outside.
    reported.look()
    if reported.first is not None and not select.select([reported.first], [], [], END_SECONDS)[0]:
        message = f"the command could not be ended within {END_SECONDS:g} s (a process of it hangs in the kernel?)"
        raise AgentError(message)


def _drain(source: int, kept: Kept) -> None:
    """What is left in a pipe that nobody writes to any more."""
    with suppress(BlockingIOError):
        while data := os.read(source, CHUNK):
            kept.add(data)


def _no_sandbox(said: str) -> str:
    last = plain(said.strip().rpartition("\n")[2], 300)
    return (
        f"bubblewrap makes no sandbox here: {last or 'it did not say why'}. It needs user namespaces "
        "(sysctl user.max_user_namespaces above 0; on Ubuntu 24.04 an AppArmor profile for bwrap too; in a container, leave to make them)"
    )
