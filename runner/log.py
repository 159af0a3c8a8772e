"""structlog, set up once: events go to the run's folder as JSON lines, never a trial's own output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from runner.errors import StateError


@contextmanager
def events_to(path: Path) -> Iterator[None]:
    """Append every event logged inside the block to `path`.  Raises `StateError` if it cannot be opened."""
    try:
        file = path.open("a", encoding="utf-8", buffering=1)
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
        logger_factory=structlog.WriteLoggerFactory(file=file),
        cache_logger_on_first_use=False,
    )
    try:
        with file:
            yield
    finally:
        structlog.reset_defaults()
