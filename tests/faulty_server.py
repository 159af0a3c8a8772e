"""A real HTTP server on the loopback interface that misbehaves as it is told, answer by answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


@dataclass
class Served:
    """What the server has, does next, and was asked."""

    data: bytes = b""
    etag: str | None = '"one"'
    headers: dict[str, str] = field(default_factory=dict)
    """Sent with every file."""
    faults: list[Answer] = field(default_factory=list)
    """Taken one by one, first to last; after them every answer is right."""
    files: dict[str, bytes] = field(default_factory=dict)
    """By the last part of the path; `data` if it is not here."""
    requests: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request (lower case), with `path`."""
    ended: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def do_GET(self) -> None:
        lower = {name.lower(): value for name, value in self.headers.items()}
        self.served.requests.append({"path": self.path, **lower})
        answer = self.served.faults.pop(0) if self.served.faults else right
        with suppress(ConnectionError):
            answer(self)

    def log_message(self, *arguments: object) -> None:
        """Nothing on the screen."""

    @property
    def file(self) -> bytes:
        return self.served.files.get(self.path.rsplit("/", 1)[-1], self.served.data)

    def wanted(self) -> tuple[int, int]:
        """Status and first byte, as a server that keeps to the rules has them."""
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if asked is None or (condition is not None and condition != self.served.etag):
            return 200, 0
        return 206, int(asked.removeprefix("bytes=").removesuffix("-"))

    def head(self, status: int, length: int, start: int = 0, etag: str | None = None) -> None:
        self.send_response(status)
        for name, value in self.served.headers.items():
            self.send_header(name, value)
        if etag or self.served.etag:
            self.send_header("ETag", etag or self.served.etag or "")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(self.file) - 1}/{len(self.file)}")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def body(self, data: bytes, *, close: bool = False) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.close_connection = self.close_connection or close


def right(handler: Handler) -> None:
    status, start = handler.wanted()
    rest = handler.file[start:]
    handler.head(status, len(rest), start)
    handler.body(rest)


def truncated(count: int) -> Answer:
    """Promises everything, sends `count` bytes and hangs up."""

    def answer(handler: Handler) -> None:
        status, start = handler.wanted()
        handler.head(status, len(handler.file) - start, start)
        handler.body(handler.file[start : start + count], close=True)

    return answer


def stalled(count: int) -> Answer:
    """Sends `count` bytes and then nothing, with the connection open."""

    def answer(handler: Handler) -> None:
        status, start = handler.wanted()
        handler.head(status, len(handler.file) - start, start)
        handler.body(handler.file[start : start + count], close=True)
        handler.served.ended.wait(20)

    return answer


def dripping(handler: Handler) -> None:
    """A byte now and then: never silent, never done."""
    status, start = handler.wanted()
    handler.head(status, len(handler.file) - start, start)
    for at in range(start, len(handler.file)):
        handler.body(handler.file[at : at + 1], close=True)
        if handler.served.ended.wait(0.05):
            return


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def claiming(difference: int) -> Answer:
    """Says that the file is longer (or shorter) than it is."""

    def answer(handler: Handler) -> None:
        start = handler.wanted()[1]
        rest = handler.file[start:]
        handler.head(206 if start else 200, len(rest) + difference, start)
        handler.body(rest[: len(rest) + difference], close=True)

    return answer


def corrupt(handler: Handler) -> None:
    """The right length, the wrong bytes."""
    handler.head(200, len(handler.file))
    handler.body(bytes(byte ^ 1 for byte in handler.file))


def whole_whatever_was_asked(handler: Handler) -> None:
    handler.head(200, len(handler.file))
    handler.body(handler.file)


def rest_of_another_file(handler: Handler) -> None:
    """Ignores If-Range and answers with the end of a file of another name."""
    start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    handler.head(206, len(handler.file) - start, start, etag='"another"')
    handler.body(bytes(len(handler.file) - start))


def rest_from_elsewhere(handler: Handler) -> None:
    """The right file, but not from the byte that was asked for."""
    handler.head(206, len(handler.file) - 1, 1)
    handler.body(handler.file[1:])


@contextmanager
def server(served: Served, host: str = "127.0.0.1") -> Iterator[Served]:
    """The server, with its address in `url`."""
    handler = type("Bound", (Handler,), {"served": served})
    httpd = ThreadingHTTPServer((host, 0), handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://{host}:{httpd.server_port}"
    try:
        yield served
    finally:
        served.ended.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The block ends within so many seconds."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds
