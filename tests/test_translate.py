"""What an engine refuses, in our words: which kind of error it is, and what to do.  And removals, that may have to be tried again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import docker
import docker.errors
import pytest
import requests.exceptions

from runner.errors import AutoresearchError, EngineError, EngineFailedError, GpuError, StuckContainerError
from runner.sandbox.translate import engine_errors, remove_container, remove_volume
from tests.test_setup_engine import on_socket


@pytest.mark.parametrize(
    ("said", "kind", "advice"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', GpuError, "Install the NVIDIA container toolkit"),
        (
            "failed to create task for container: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1",
            GpuError,
            "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
        ),
        ("CDI device injection failed: CDI registry initialization failure", GpuError, "nvidia-ctk cdi generate"),
        ("write /x: no space left on device", EngineError, "the container engine's disk is full, not the task's"),
        ("No such image: sha256:1", EngineError, "autoresearch images build"),
        ("something else", EngineError, "the container engine refused: something else"),
    ],
)
def test_what_the_engine_refuses_becomes_an_error_of_ours(said: str, kind: type[AutoresearchError], advice: str) -> None:
    error = docker.errors.APIError("500 Server Error", explanation=said)

    with pytest.raises(kind) as raised, engine_errors():
        raise error

    assert type(raised.value) is kind
    assert advice in str(raised.value)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, EngineError), (403, EngineError), (404, EngineFailedError), (409, EngineFailedError), (500, EngineFailedError), (503, EngineFailedError)],
)
def test_what_may_pass_by_itself_is_a_failure_of_the_engine(status: int, kind: type[EngineError]) -> None:
    response = requests.models.Response()
    response.status_code = status

    with pytest.raises(EngineError) as raised, engine_errors():
        raise docker.errors.APIError("no", response=response, explanation="it did not work")

    assert type(raised.value) is kind
    assert "it did not work" in str(raised.value)


@pytest.mark.parametrize("error", [requests.exceptions.ConnectionError(), requests.exceptions.ReadTimeout(), requests.exceptions.ChunkedEncodingError()])
def test_an_engine_that_is_silent_has_failed(error: Exception) -> None:
    with pytest.raises(EngineFailedError, match=f"stopped answering .{type(error).__name__}"), engine_errors():
        raise error


class Scripted(BaseHTTPRequestHandler):
    """Answers each DELETE as it is told, and has the container until the last answer was given."""

    protocol_version = "HTTP/1.1"
    answers: list[int | None]
    """Statuses; None: the connection is closed without one."""
    asked: int

    def do_DELETE(self) -> None:
        kind = type(self)
        kind.asked += 1
        status = kind.answers.pop(0) if len(kind.answers) > 1 else kind.answers[0]
        if status is None:
            self.close_connection = True
        else:
            self._say(status)

    def do_GET(self) -> None:
        self._say(404 if self.answers == [404] else 200)

    def address_string(self) -> str:
        return "a unix socket"

    def log_message(self, *arguments: object) -> None:
        """Nothing on the screen."""

    def _say(self, status: int) -> None:
        data = b"" if status == 204 else b'{"message": "as it was told"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)


Remove = Callable[..., int]


@pytest.fixture
def remove(tmp_path: Path) -> Iterator[Remove]:
    """Removes a container of an engine that answers so; how often that was asked for."""
    clients = []

    def call(*answers: int | None, seconds: float = 5.0, volume: bool = False) -> int:
        class Told(Scripted):
            asked = 0

        Told.answers = list(answers)
        with on_socket(tmp_path / "s", Told) as endpoint:
            client = docker.DockerClient(base_url=endpoint.url, version="1.41", timeout=5)
            clients.append(client)
            try:
                if volume:
                    remove_volume(client, "v")
                else:
                    remove_container(client, "a" * 64, seconds=seconds)
            finally:
                (tmp_path / "s").unlink()
        return Told.asked

    yield call
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([404], 1),
        ([204, 404], 1),  # it is gone
        ([409, 409, 404], 2),  # being removed by somebody else, then gone
        ([500, 503, 204, 404], 3),
        ([None, None, 204, 404], 3),  # lost answers
        ([204, 204, 404], 2),  # it said so, and it was not true
    ],
)
def test_a_container_is_removed_until_it_is_gone(remove: Remove, answers: list[int | None], asked: int) -> None:
    assert remove(*answers) == asked


@pytest.mark.parametrize("status", [204, 409, 500])
def test_a_container_that_does_not_go_is_stuck_after_a_while(remove: Remove, status: int) -> None:
    began = time.monotonic()

    with pytest.raises(StuckContainerError, match=r"container a{12} does not die: for 1 s .*`docker rm -f a{12}`") as caught:
        remove(status, seconds=1.0)

    assert time.monotonic() - began < 4
    assert ("as it was told" in str(caught.value)) is (status != 204)


def test_an_engine_that_is_gone_is_not_asked_for_ever(remove: Remove) -> None:
    with pytest.raises(requests.exceptions.ConnectionError):
        remove(None, seconds=60.0)


def test_what_may_not_be_removed_is_no_container_that_does_not_die(remove: Remove) -> None:
    with pytest.raises(docker.errors.APIError):
        remove(403, seconds=60.0)


@pytest.mark.parametrize("answers", [[404], [204], [409, 409, 204], [500, 204], [None, None, 204]])
def test_a_volume_is_removed_until_it_is_gone(remove: Remove, answers: list[int | None]) -> None:
    assert remove(*answers, volume=True) == len(answers)
