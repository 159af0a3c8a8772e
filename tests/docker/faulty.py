"""An engine that is slow, fails or loses its answers: the real one behind a socket that does so to chosen requests."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 16


@dataclass(kw_only=True)
class Fault:
    """What becomes of the requests whose first line (`DELETE /v1.41/containers/name?force=True`) matches `asks`."""

    asks: str
    delay: float = 0.0
    """Seconds before the engine gets the request."""
    status: int | None = None
    """Given as the answer; the engine never hears of it."""
    said: str = "out of order"
    """The message with `status`."""
    cut: int | None = None
    """The engine acts, and of its answer so many bytes arrive before the connection is closed."""
    skip: int = 0
    """So many matching requests pass before the first that does not."""
    times: int | None = None
    """So many requests; None: all."""
    done: int = 0

    def takes(self, line: str) -> bool:
        """True if this is a request to spoil; it counts."""
        if not re.search(self.asks, line) or (self.times is not None and self.done >= self.times):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.done += 1
        return True


@dataclass(kw_only=True)
class Faults:
    """What the socket does now; a test changes it as it goes."""

    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The first lines of all requests."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, fault: Fault) -> Fault:
        self.faults.append(fault)
        return fault

    def find(self, line: str) -> Fault | None:
        with self._lock:
            self.asked.append(line)
            return next((one for one in self.faults if one.takes(line)), None)


@contextmanager
def faulty(socket_path: Path, real: str, *faults: Fault) -> Iterator[Faults]:
    """An engine at the unix socket `socket_path`: the one at `real`, but for the faults."""
    known = Faults(faults=list(faults))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(socket_path))
    listening.listen(64)

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=_serve, args=(connection, real, known), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield known
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        socket_path.unlink()


def _serve(near: socket.socket, real: str, faults: Faults) -> None:
    with near, suppress(OSError, ValueError), near.makefile("rb") as asked:
        while _exchange(near, asked, real, faults):
            pass


def _exchange(near: socket.socket, asked: BinaryIO, real: str, faults: Faults) -> bool:
    """One request and its answer; False: the connection is over."""
    first = asked.readline()
    if not first:
        return False
    headers = http.client.parse_headers(asked)
    fault = faults.find(first.decode(errors="replace").rsplit(" ", 1)[0]) or Fault(asks="")
    time.sleep(fault.delay)
    if fault.status is not None:
        for _ in _body(asked, headers):
            pass
        said = f'{{"message":"{fault.said}"}}' if fault.status >= 400 else ""
        near.sendall(f"HTTP/1.1 {fault.status} Told\r\nContent-Type: application/json\r\nContent-Length: {len(said)}\r\n\r\n{said}".encode())
        return True
    with socket.socket(socket.AF_UNIX) as far:
        far.connect(real)
        upgrade = headers.get("Upgrade") is not None
        if not upgrade:
            del headers["Connection"]
            headers["Connection"] = "close"
        far.sendall(first + headers.as_bytes())
        with suppress(BrokenPipeError):  # it may have answered already
            for part in _body(asked, headers):
                far.sendall(part)
        left = fault.cut
        while data := far.recv(CHUNK):
            if left is not None:
                data, left = data[:left], max(0, left - len(data))
            if data:
                near.sendall(data)
    # One exchange a connection: the client makes another.
    near.shutdown(socket.SHUT_RDWR)
    return False


def _body(asked: BinaryIO, headers: http.client.HTTPMessage) -> Iterator[bytes]:
    if headers.get("Transfer-Encoding") == "chunked":
        while True:
            line = asked.readline()
            yield line + asked.read(int(line, 16) + 2)
            if int(line, 16) == 0:
                return
    if size := int(headers.get("Content-Length", 0)):
        yield asked.read(size)
