"""Real servers on real sockets play the engine."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn, ThreadingUnixStreamServer

import pytest

from runner.errors import EngineError
from runner.sandbox.connect import connect
from runner.setup import engine
from runner.setup.engine import Endpoint, Machine, State

NOTHING = Machine(root=True, apt=False, systemd=False, dockerd=None)


class FakeEngine(BaseHTTPRequestHandler):
    """Says who it is, and nothing else."""

    protocol_version = "HTTP/1.1"
    api = "1.41"

    def do_GET(self) -> None:
        body = b"OK"
        if self.path.endswith("/version"):
            body = json.dumps({"ApiVersion": self.api, "Version": "20.10.24", "Arch": "amd64"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Quiet."""

    def address_string(self) -> str:
        return ""


class OldEngine(FakeEngine):
    api = "1.40"


class OtherProgram(FakeEngine):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()


class UnixServer(ThreadingUnixStreamServer):
    daemon_threads = True


class TcpServer(ThreadingMixIn, HTTPServer):
    daemon_threads = True


@contextmanager
def serving(server: UnixServer | TcpServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def on_socket(path: Path, kind: type[BaseHTTPRequestHandler] = FakeEngine) -> Iterator[Endpoint]:
    with serving(UnixServer(str(path), kind)):
        yield Endpoint(f"unix://{path}", "default")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root passes every permission, so step down for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --------------------------------------------------------------------------------------------------- finding


def test_docker_host_comes_first(tmp_path: Path) -> None:
    found = engine.discover({"DOCKER_HOST": "tcp://box:2375", "DOCKER_CONTEXT": "other"}, tmp_path)
    assert found == Endpoint("tcp://box:2375", "DOCKER_HOST")


def test_then_the_default_socket(tmp_path: Path) -> None:
    assert engine.discover({}, tmp_path) == Endpoint("unix:///var/run/docker.sock", "default")
    assert engine.discover({"DOCKER_CONTEXT": "default"}, tmp_path).is_default


def write_context(folder: Path, name: str, host: str) -> None:
    meta = folder / "contexts" / "meta" / sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


@pytest.mark.parametrize("named_by", ["environment", "config"])
def test_the_docker_context_counts(tmp_path: Path, named_by: str) -> None:
    folder = tmp_path / ".docker"
    write_context(folder, "rootless", "unix:///run/user/1000/docker.sock")
    environment = {"DOCKER_CONTEXT": "rootless"} if named_by == "environment" else {}
    if named_by == "config":
        (folder / "config.json").write_text('{"currentContext": "rootless"}')
    found = engine.discover(environment, tmp_path)
    assert (found.url, found.source) == ("unix:///run/user/1000/docker.sock", "docker context `rootless`")
    assert not found.is_default


def test_a_context_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="docker context `gone` cannot be read"):
        engine.discover({"DOCKER_CONTEXT": "gone"}, tmp_path)


def test_tls_files_are_taken_from_where_the_client_takes_them(tmp_path: Path) -> None:
    environment = {"DOCKER_HOST": "tcp://box:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/certs"}
    assert engine.discover(environment, tmp_path).tls == Path("/certs")
    environment.pop("DOCKER_CERT_PATH")
    assert engine.discover(environment, tmp_path).tls == tmp_path / ".docker"


# ---------------------------------------------------------------------------------------------------- asking


def test_an_engine_on_a_socket(tmp_path: Path) -> None:
    with on_socket(tmp_path / "s") as endpoint:
        found = engine.examine(endpoint)
    assert (found.state, found.version, found.api) == (State.READY, "20.10.24", "1.41")
    assert found.architecture == "amd64"


def test_an_engine_named_by_docker_host_over_tcp(tmp_path: Path) -> None:
    server = TcpServer(("127.0.0.1", 0), FakeEngine)
    with serving(server):
        endpoint, found = engine.require({"DOCKER_HOST": f"tcp://127.0.0.1:{server.server_port}"})
    assert found.state is State.READY
    assert endpoint.source == "DOCKER_HOST"


def test_too_old(tmp_path: Path) -> None:
    with on_socket(tmp_path / "s", OldEngine) as endpoint:
        found = engine.examine(endpoint)
    assert found.state is State.TOO_OLD
    assert "API 1.40" in found.message
    assert "1.41" in found.message


def test_permission_denied_names_rootless_first_and_the_group_with_its_price(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with on_socket(path) as endpoint:
        path.chmod(0)
        with as_nobody():
            found = engine.examine(endpoint)
    assert found.state is State.FORBIDDEN
    rootless, group = found.message.index("without root"), found.message.index("group `docker`")
    assert rootless < group
    assert "has the power of root" in found.message


def test_something_else_answers(tmp_path: Path) -> None:
    with on_socket(tmp_path / "s", OtherProgram) as endpoint:
        found = engine.examine(endpoint)
    assert found.state is State.UNUSABLE
    assert "no container engine" in found.message


def test_not_installed_and_not_running_differ(tmp_path: Path) -> None:
    endpoint = Endpoint(f"unix://{tmp_path}/none", "default")
    absent = engine.examine(endpoint, installed=False)
    assert (absent.state, "no container engine is installed" in absent.message) == (State.NOT_INSTALLED, True)
    resting = engine.examine(endpoint, installed=True)
    assert (resting.state, "no engine answers" in resting.message) == (State.NOT_RUNNING, True)


def test_a_dead_docker_host_is_named(tmp_path: Path) -> None:
    found = engine.examine(Endpoint(f"unix://{tmp_path}/none", "DOCKER_HOST"))
    assert found.state is State.NOT_RUNNING
    assert "which DOCKER_HOST names" in found.message


@pytest.mark.parametrize("url", ["ssh://me@box", "box", "npipe:////./pipe/x", "tcp://"])
def test_other_addresses_are_refused_in_words(url: str) -> None:
    found = engine.examine(Endpoint(url, "DOCKER_HOST"))
    assert found.state is State.UNUSABLE
    assert "only unix:// and tcp://" in found.message


def test_an_engine_that_hangs_does_not_hang_us(tmp_path: Path) -> None:
    class Hanging(FakeEngine):
        def do_GET(self) -> None:
            time.sleep(1)

    with on_socket(tmp_path / "s", Hanging) as endpoint:
        started = time.monotonic()
        found = engine.examine(endpoint, timeout=0.2, installed=True)
    assert found.state is State.NOT_RUNNING
    assert time.monotonic() - started < 5


def test_connect_says_the_same(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="which DOCKER_HOST names"):
        connect({"DOCKER_HOST": f"unix://{tmp_path}/none"})
    with on_socket(tmp_path / "s", OldEngine) as endpoint, pytest.raises(EngineError, match="too old"):
        connect({"DOCKER_HOST": endpoint.url})
    with on_socket(tmp_path / "t") as endpoint:
        connect({"DOCKER_HOST": endpoint.url}).close()


# ------------------------------------------------------------------------------------------ starting, stopping

DOCKERD = """\
import http.server, json, os, signal, socketserver, sys
pid_file = sys.argv[sys.argv.index("--pidfile") + 1]
open(pid_file, "w").write(str(os.getpid()))
print("fake dockerd", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"OK" if self.path == "/_ping" else json.dumps({"ApiVersion": "1.41", "Version": "fake"}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a): pass
    def address_string(self): return ""
signal.signal(signal.SIGTERM, lambda *a: sys.exit(0))
socketserver.ThreadingUnixStreamServer(SOCKET, Handler).serve_forever()
"""


def fake_dockerd(folder: Path, socket: Path) -> str:
    program = folder / "dockerd"
    program.write_text(f"#!{sys.executable}\nSOCKET = {str(socket)!r}\n{DOCKERD}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_start_does_nothing_where_an_engine_answers(tmp_path: Path) -> None:
    with on_socket(tmp_path / "s") as endpoint:
        assert engine.start(tmp_path / "engine", endpoint, NOTHING).state is State.READY
    assert not (tmp_path / "engine").exists()


def test_start_then_start_again_then_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    socket, folder = tmp_path / "s", tmp_path / "state" / "engine"
    endpoint = Endpoint(f"unix://{socket}", "default")
    machine = Machine(root=True, apt=False, systemd=False, dockerd=fake_dockerd(tmp_path, socket))
    assert engine.start(folder, endpoint, machine).version == "fake"
    assert str(folder) in capsys.readouterr().out
    pid = engine.our_process(folder)
    assert pid is not None
    assert (tmp_path / "state" / ".gitignore").read_text() == "*\n"

    engine.start(folder, endpoint, machine)
    assert engine.our_process(folder) == pid

    assert f"pid {pid}" in engine.stop(folder)
    assert engine.examine(endpoint, installed=True).state is State.NOT_RUNNING
    assert engine.our_process(folder) is None
    assert "nothing to stop" in engine.stop(folder)


def test_a_dockerd_that_dies_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = tmp_path / "dockerd"
    program.write_text("#!/bin/sh\necho 'failed to mount overlay' >&2\nexit 1\n")
    program.chmod(0o755)
    machine = Machine(root=True, apt=False, systemd=False, dockerd=str(program))
    with pytest.raises(EngineError, match="failed to mount overlay"):
        engine.start(tmp_path / "engine", Endpoint(f"unix://{tmp_path}/s", "default"), machine)


@pytest.mark.parametrize(
    "machine",
    [Machine(root=False, apt=True, systemd=True, dockerd="/usr/sbin/dockerd"), NOTHING],
    ids=["not root", "nothing to install from"],
)
def test_where_it_cannot_start_one_it_says_what_to_do(tmp_path: Path, machine: Machine) -> None:
    with pytest.raises(EngineError, match="make engine"):
        engine.start(tmp_path / "engine", Endpoint(f"unix://{tmp_path}/s", "default"), machine)
    assert not (tmp_path / "engine").exists()


def test_a_named_engine_that_is_dead_is_never_replaced(tmp_path: Path) -> None:
    machine = Machine(root=True, apt=True, systemd=False, dockerd=fake_dockerd(tmp_path, tmp_path / "s"))
    with pytest.raises(EngineError, match="DOCKER_HOST"):
        engine.start(tmp_path / "engine", Endpoint(f"unix://{tmp_path}/s", "DOCKER_HOST"), machine)


def test_stop_leaves_other_processes_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        (tmp_path / "dockerd.pid").write_text(f"{other.pid}\n")
        assert "nothing to stop" in engine.stop(tmp_path)
        assert other.poll() is None
        other.kill()


def test_exit_code_3_and_no_traceback(tmp_path: Path) -> None:
    for action in ("start", "status"):
        done = subprocess.run(
            [sys.executable, "-m", "runner.setup.engine", action, "--folder", str(tmp_path / "engine")],
            env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none"},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3
        assert done.stdout.startswith("engine: no engine answers")
        assert not done.stderr


@pytest.mark.docker
@pytest.mark.skipif(os.geteuid() != 0, reason="starting an engine takes root")
def test_a_real_dockerd_starts_and_stops(tmp_path: Path) -> None:
    """In a network namespace of its own, so that the engine that is there keeps its bridge."""
    real = shutil.which("dockerd")
    assert real is not None
    program = tmp_path / "bin" / "dockerd"
    program.parent.mkdir()
    options = f"--data-root {tmp_path}/data --exec-root {tmp_path}/exec -H unix://{tmp_path}/s --bridge=none --iptables=false"
    program.write_text(f'#!/bin/sh\nexec unshare -n {real} "$@" {options}\n')
    program.chmod(0o755)
    endpoint = Endpoint(f"unix://{tmp_path}/s", "default")
    machine = Machine(root=True, apt=False, systemd=False, dockerd=str(program))
    try:
        assert engine.start(tmp_path / "engine", endpoint, machine).state is State.READY
        assert engine.our_process(tmp_path / "engine") is not None
    finally:
        said = engine.stop(tmp_path / "engine")
    assert "stopped the engine" in said
