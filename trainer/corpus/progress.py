"""Progress and errors as JSON lines on standard output, the only thing the host hears while we work."""

from __future__ import annotations

import json
import sys
import threading
import time

INTERVAL_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0

_lock = threading.Lock()
_last: dict[str, object] = {}


def say(**fields: object) -> None:
    """Write one JSON object as one line."""
    with _lock:
        if "stage" in fields:
            _last.clear()
            _last.update(fields)
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


def heartbeat() -> None:
    """From now on repeat the last word about progress every few seconds: silence means that we hang."""

    def beat() -> None:
        while True:
            time.sleep(HEARTBEAT_SECONDS)
            if _last:
                say(**_last)

    threading.Thread(target=beat, daemon=True).start()


class Stage:
    """One step of the work with a counter; says the first and last value and at most two a second between."""

    def __init__(self, name: str, *, total: int | None, unit: str, note: str = "") -> None:
        self.name, self.total, self.unit, self.note = name, total, unit, note
        self.done = 0
        self._due = 0.0
        self._say()

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more units."""
        self.done += amount
        if time.monotonic() >= self._due:
            self._say()

    def finish(self, note: str | None = None) -> None:
        """Say the last value; what was counted becomes the total."""
        self.total = self.done
        if note is not None:
            self.note = note
        self._say()

    def _say(self) -> None:
        self._due = time.monotonic() + INTERVAL_SECONDS
        say(stage=self.name, done=self.done, total=self.total, unit=self.unit, note=self.note)
