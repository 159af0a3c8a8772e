"""What else happened to a container of ours: ended, stopped or paused from outside, or its engine restarted.

Its exit alone does not say: a container that somebody killed, or that went down with its engine, ends as one whose program
crashed by a signal.  The engine's stream of events does: what we did not do is in it, and it ends when the engine does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import docker.errors

from runner.errors import EngineFailedError
from runner.sandbox.translate import ENGINE_TROUBLE

if TYPE_CHECKING:
    from docker import DockerClient

FROM_OUTSIDE = {"kill": "killed", "stop": "stopped", "pause": "paused", "restart": "restarted", "update": "given other limits"}
"""Events that no container causes by itself, in words."""
SETTLE_SECONDS, AFTER_DEATH_SECONDS = 2.0, 0.1
"""An exit may be seen before the event that caused it is told."""
CLOSE_SECONDS = 1.0


class Witness:
    """A context manager: watches one container's events from its entry to its exit.

    An engine that does not tell events is believed as before: what it says of the exit counts.
    """

    def __init__(self, client: DockerClient, identifier: str) -> None:
        self._client, self._id = client, identifier
        self._seen: str | None = None
        self._ours = self._over = self._lost = False
        self._settled = threading.Event()
        self._stream: Any = None
        self._thread = threading.Thread(target=self._loop, name="witness", daemon=True)

    def __enter__(self) -> Self:
        with suppress(docker.errors.APIError):
            self._stream = self._client.events(decode=True, filters={"type": "container", "container": self._id})
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is None:
            return
        self._over = True
        with suppress(*ENGINE_TROUBLE, AttributeError, ValueError):
            self._stream.close()
        self._thread.join(CLOSE_SECONDS)

    def ours(self) -> None:
        """From now on it is us who end it."""
        self._ours = True

    def refuse(self, exit_code: int) -> None:
        """Raise `EngineFailedError` if the container, which has ended, did not end by its own doing or ours."""
        if self._stream is None:
            return
        if exit_code and not self._ours and self._settled.wait(SETTLE_SECONDS) and not self._lost:
            self._settled.clear()
            self._settled.wait(AFTER_DEATH_SECONDS)
        if self._seen is not None:
            message = f"container {self._id[:12]} was {self._seen} from outside, by somebody or something else on this engine"
            raise EngineFailedError(message)
        if self._lost and exit_code and not self._ours:
            message = f"the engine was restarted, or lost, while container {self._id[:12]} ran, which ended with exit code {exit_code}"
            raise EngineFailedError(message)

    def _loop(self) -> None:
        with suppress(*ENGINE_TROUBLE, AttributeError, ValueError):
            for event in self._events():
                action = str(event.get("Action") or event.get("status") or "")
                if action in FROM_OUTSIDE and not self._ours:
                    self._seen = self._seen or FROM_OUTSIDE[action]
                if action == "die":
                    self._settled.set()
        self._lost = not self._over
        self._settled.set()

    def _events(self) -> Iterator[dict[str, Any]]:
        yield from self._stream
