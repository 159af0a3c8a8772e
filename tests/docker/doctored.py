"""An engine that does not do what it is told: the real one behind a socket that changes what passes through it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

Change = Callable[[dict[str, Any]], None]
_CREATE = re.compile(rb"POST \S*/containers/create[? ]")
_INSPECT = re.compile(rb"GET \S*/containers/([0-9a-zA-Z_.-]+)/json[? ]")
_INFO = re.compile(rb"GET \S*/info[? ]")
CHUNK = 1 << 16


@contextmanager
def doctored(
    socket_path: Path, real: str, *, ignores: Change, claims: Change | None = None, info: Change | None = None
) -> Iterator[str]:
    """The address of an engine that applies `ignores` to the body of every create call before it reaches the one at
    the unix socket `real`, `claims` to what that one says of a container afterwards, and `info` to what it says of itself."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(socket_path))
    listening.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=_Connection(connection, real, ignores, claims, info).serve, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"unix://{socket_path}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


class _Connection:
    def __init__(
        self, near: socket.socket, real: str, ignores: Change, claims: Change | None, info: Change | None
    ) -> None:
        self._near, self._real = near, real
        self._ignores = ignores
        self._changes = [(_INSPECT, claims), (_INFO, info)]
        self._far = socket.socket(socket.AF_UNIX)
        self._far.connect(real)

    def serve(self) -> None:
        back = threading.Thread(target=self._back, daemon=True)
        back.start()
        with suppress(OSError), self._near.makefile("rb") as asked:
            while self._request(asked):
                pass
        with suppress(OSError):
            self._far.shutdown(socket.SHUT_WR)
        back.join()
        self._near.close()
        self._far.close()

    def _back(self) -> None:
        """Every answer goes back as it comes."""
        with suppress(OSError):
            while data := self._far.recv(CHUNK):
                self._near.sendall(data)
            self._near.shutdown(socket.SHUT_WR)

    def _request(self, asked: BinaryIO) -> bool:
        first = asked.readline()
        if not first:
            return False
        headers = http.client.parse_headers(asked)
        for asks, change in self._changes:
            if change and asks.match(first):
                self._near.sendall(self._changed(first, headers, change))
                return True
        if headers.get("Transfer-Encoding") == "chunked":
            self._far.sendall(first + headers.as_bytes())
            while True:
                size = asked.readline()
                data = asked.read(int(size, 16) + 2)
                self._far.sendall(size + data)
                if int(size, 16) == 0:
                    return True
        data = asked.read(int(headers.get("Content-Length", 0)))
        if _CREATE.match(first):
            body = json.loads(data)
            self._ignores(body)
            data = json.dumps(body).encode()
            headers.replace_header("Content-Length", str(len(data)))
        self._far.sendall(first + headers.as_bytes() + data)
        return True

    def _changed(self, first: bytes, headers: http.client.HTTPMessage, change: Change) -> bytes:
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(self._real)
            headers["Connection"] = "close"
            asking.sendall(first + headers.as_bytes())
            answer = http.client.HTTPResponse(asking)
            answer.begin()
            data = answer.read()
        if answer.status == http.HTTPStatus.OK:
            value = json.loads(data)
            change(value)
            data = json.dumps(value).encode()
        head = f"HTTP/1.1 {answer.status} {answer.reason}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        return head.encode() + data
