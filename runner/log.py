"""structlog, set up once: events go to the run's folder as JSON lines, never a trial's own output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from runner.errors import StateError


class _Lines:
    """A logger of structlog's.  A line that does not get to the disk is lost: no measurement may be, for its sake."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def msg(self, line: str) -> None:
        with suppress(OSError):
            os.write(self._handle, f"{line}\n".encode(errors="replace"))

    debug = info = warning = error = critical = msg


@contextmanager
def events_to(path: Path) -> Iterator[None]:
    """Append every event logged inside the block to `path`.  Raises `StateError` if it cannot be opened."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}"
        raise StateError(message) from error
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: _Lines(handle),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()
        os.close(handle)
