"""A language model's server on the loopback interface: OpenAI's protocol over real HTTP, by a script, answer by answer."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Handler"], None]
"""Answers one request."""


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]

    @property
    def key(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def texts(self) -> list[str]:
        """The messages' texts, first to last."""
        return [message["content"] for message in self.body["messages"]]


@dataclass
class ModelServer:
    """What the server does next, and what it was asked."""

    script: list[Behaviour] = field(default_factory=list)
    """Taken one by one, first to last; then `always`."""
    beside: Mapping[str, Behaviour] = field(default_factory=dict)
    """By how a path ends: what is answered there without the script."""
    always: Behaviour | None = None
    """None: what is asked after the script's end is an error 500 that says so."""
    requests: list[Request] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    hung_up: threading.Event = field(default_factory=threading.Event)
    """The client closed a connection on which it was kept waiting."""
    url: str = ""
    """What a client takes as its base address."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_models: ModelServer

    def do_POST(self) -> None:
        served = self.server_of_models
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name.lower(): value for name, value in self.headers.items()}
        served.requests.append(Request(self.path, headers, json.loads(data)))
        aside = next((one for end, one in served.beside.items() if self.path.partition("?")[0].endswith(end)), None)
        if aside is not None:
            aside(self)
            return
        behaviour = served.script.pop(0) if served.script else served.always or status(500, "the script has ended")
        with suppress(ConnectionError):
            behaviour(self)

    def log_message(self, *arguments: object) -> None:
        """Nothing on the screen."""

    def send(self, data: bytes, code: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.head(len(data), code, kind, **headers)
        self.wfile.write(data)

    def head(self, length: int, code: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def wait(self, seconds: float) -> bool:
        """Whether the client is still there after so long."""
        self.connection.settimeout(seconds)
        with suppress(TimeoutError):
            # An open connection has nothing to say; one that ends reads as empty or as an error.
            if not self.connection.recv(1, socket.MSG_PEEK):
                self.server_of_models.hung_up.set()
                return False
        return not self.server_of_models.ended.is_set()


# ------------------------------------------------------------------------------------------- good answers

USAGE = {"prompt_tokens": 120, "completion_tokens": 30, "total_tokens": 150}


def completion(
    text: str | None = "an idea",
    *,
    finish: str = "stop",
    usage: dict[str, Any] | None = USAGE,
    model: str | None = None,
    **message: Any,
) -> dict[str, Any]:
    """The object that a server sends; `message` are further fields of the message."""
    told = {} if usage is None else {"usage": usage}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1795000000,
        "model": model,
        "choices": [choice],
        **told,
    }


def sends(value: Any) -> Behaviour:
    """Answers with `value`; an object's `model` None becomes the one that was asked for."""

    def behaviour(handler: Handler) -> None:
        if isinstance(value, dict) and value.get("model", "") is None:
            asked = handler.server_of_models.requests[-1].body.get("model")
            handler.send(json.dumps({**value, "model": asked}).encode())
        else:
            handler.send(json.dumps(value).encode())

    return behaviour


def answers(text: str | None = "an idea", **options: Any) -> Behaviour:
    """A good answer; `options` as in `completion`."""
    return sends(completion(text, **options))


def answers_with(write: Callable[[Request], str]) -> Behaviour:
    """A good answer that depends on the request."""

    def behaviour(handler: Handler) -> None:
        answers(write(handler.server_of_models.requests[-1]))(handler)

    return behaviour


without_usage = answers(usage=None)
cached = answers(usage={**USAGE, "prompt_tokens_details": {"cached_tokens": 100}})
cut = answers("half an", finish="length")
null = answers(None)
no_choices = sends({**completion(), "choices": []})
thinking = answers("<think>let me see</think>an idea")
reasoning = answers("an idea", reasoning_content="let me see")
only_reasoning = answers(None, finish="length", reasoning_content="let me see")
filtered = answers("", finish="content_filter")

# -------------------------------------------------------------------------------------------------- errors


def status(code: int, message: str = "", *, error_code: str | None = None, kind: str = "error", **headers: str) -> Behaviour:
    """An error as OpenAI's API sends it."""
    error = {"message": message or f"error {code}", "type": kind, "param": None, "code": error_code}

    def behaviour(handler: Handler) -> None:
        handler.send(json.dumps({"error": error}).encode(), code, **headers)

    return behaviour


def page(code: int, text: str = "<html><body><h1>Bad Gateway</h1></body></html>") -> Behaviour:
    """HTML where JSON was due, as from a proxy in between."""

    def behaviour(handler: Handler) -> None:
        handler.send(text.encode(), code, "text/html")

    return behaviour


def slow_down(seconds: int | None = None) -> Behaviour:
    told = {} if seconds is None else {"Retry_After": str(seconds)}
    return status(429, "Rate limit reached for requests", error_code="rate_limit_exceeded", kind="requests", **told)


no_credit = status(
    429,
    "You exceeded your current quota, please check your plan and billing details.",
    error_code="insufficient_quota",
    kind="insufficient_quota",
)
unknown_model = status(
    404,
    "The model `no-such-model` does not exist or you do not have access to it.",
    error_code="model_not_found",
    kind="invalid_request_error",
)
too_long = status(
    400,
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    error_code="context_length_exceeded",
    kind="invalid_request_error",
)
forbidden = status(403, "Your project may not use this model", error_code="model_not_allowed")
bad_request = status(400, "Invalid 'temperature': expected a value <= 2", kind="invalid_request_error")


def repeats_key(code: int, error_code: str | None = None) -> Behaviour:
    """An error whose text has the key that was sent, as providers do it."""

    def behaviour(handler: Handler) -> None:
        key = handler.server_of_models.requests[-1].key
        status(code, f"Incorrect API key provided: {key}.", error_code=error_code)(handler)

    return behaviour


wrong_key = repeats_key(401, "invalid_api_key")

# ------------------------------------------------------------------------------------------ broken answers


def truncated(handler: Handler) -> None:
    """The first half of a JSON object, and its length is said to be that."""
    data = json.dumps(completion()).encode()
    handler.send(data[: len(data) // 2])


def empty(handler: Handler) -> None:
    handler.send(b"")


def resets(handler: Handler) -> None:
    """Closes the connection with a reset instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def hangs(handler: Handler) -> None:
    """No answer, for as long as the client waits."""
    while handler.wait(0.05):
        pass
    handler.close_connection = True


def drips(seconds: float = 1.0) -> Behaviour:
    """A good answer, a byte now and then: never silent, never done."""

    def behaviour(handler: Handler) -> None:
        data = json.dumps(completion()).encode()
        handler.head(len(data))
        for at in range(len(data)):
            handler.wfile.write(data[at : at + 1])
            if not handler.wait(seconds):
                break
        handler.close_connection = True

    return behaviour


# -------------------------------------------------------------------------------------------------- serving


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        """A connection that was reset on purpose is no news."""


@contextmanager
def model_server(*script: Behaviour, always: Behaviour | None = None) -> Iterator[ModelServer]:
    """The server, with its address in `url`."""
    served = ModelServer(script=list(script), always=always)
    handler = type("Bound", (Handler,), {"server_of_models": served})
    httpd = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    try:
        yield served
    finally:
        served.ended.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
