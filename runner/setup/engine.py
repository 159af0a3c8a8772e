"""`python3 -m runner.setup.engine start|stop|status`: a Docker engine that answers.

`start` does nothing where an engine answers at the address that the docker client would use.  Otherwise, as
root on Debian or Ubuntu, it installs `docker.io` and starts `dockerd`; elsewhere it says what to do.  `stop`
ends what `start` started, and nothing else.  Speaks HTTP to the engine itself, so no docker client is needed.
Standard library only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from runner.errors import EngineError
from runner.setup.steps import CommandError, Heartbeat, Stopwatch, apt_install, run, say

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
MINIMUM_API = (1, 41)
MINIMUM_NAME = "API 1.41, Docker 20.10"
ANSWER_SECONDS = 10.0
START_SECONDS = 60.0
STOP_SECONDS = 60.0
SERVICE_SECONDS = 15.0
LOG_TAIL = 15

ROOTLESS_FIRST = (
    "Best: run an engine of your own without root (`dockerd-rootless-setuptool.sh install`; Debian packages "
    "docker.io, rootlesskit, uidmap, slirp4netns) and set DOCKER_HOST to its socket. Otherwise an "
    "administrator can put you into the group `docker`; whoever is in that group has the power of root on "
    "this machine."
)


class State(Enum):
    """What a look at the engine found."""

    READY = "ready"
    NOT_INSTALLED = "not installed"
    NOT_RUNNING = "not running"
    FORBIDDEN = "permission denied"
    TOO_OLD = "too old"
    UNUSABLE = "unusable"


@dataclass(frozen=True)
class Endpoint:
    """Where the engine is looked for, and who said so."""

    url: str
    source: str
    tls: Path | None = None
    """Folder with ca.pem, cert.pem and key.pem."""

    @property
    def is_default(self) -> bool:
        """True if nobody named a place."""
        return self.source == "default"


@dataclass(frozen=True)
class Found:
    """What a look at the engine found, with the sentence for the user."""

    state: State
    message: str
    version: str = ""
    api: str = ""
    architecture: str = ""


# ------------------------------------------------------------------------------------------------- finding


def discover(environment: Mapping[str, str], home: Path | None = None) -> Endpoint:
    """The address that the docker client would use: DOCKER_HOST, else the docker context, else the default."""
    tls = None
    if environment.get("DOCKER_TLS_VERIFY"):
        tls = Path(environment.get("DOCKER_CERT_PATH") or _config_folder(environment, home))
    if host := environment.get("DOCKER_HOST"):
        return Endpoint(host, "DOCKER_HOST", tls)
    folder = _config_folder(environment, home)
    context = environment.get("DOCKER_CONTEXT") or _current_context(folder)
    if context and context != "default":
        return _context_endpoint(folder, context)
    return Endpoint(DEFAULT_SOCKET, "default")


def _config_folder(environment: Mapping[str, str], home: Path | None) -> Path:
    named = environment.get("DOCKER_CONFIG")
    return Path(named) if named else (home or Path.home()) / ".docker"


def _current_context(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    return str(config.get("currentContext") or "") if isinstance(config, dict) else ""


def _context_endpoint(folder: Path, name: str) -> Endpoint:
    key = sha256(name.encode()).hexdigest()
    meta = folder / "contexts" / "meta" / key / "meta.json"
    source = f"docker context `{name}`"
    try:
        host = json.loads(meta.read_text(encoding="utf-8"))["Endpoints"]["docker"]["Host"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{source} cannot be read ({meta}: {error}); choose another: docker context use default"
        raise EngineError(message) from error
    tls = folder / "contexts" / "tls" / key / "docker"
    return Endpoint(str(host), source, tls if tls.is_dir() else None)


# ----------------------------------------------------------------------------------------- asking the engine


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(endpoint: Endpoint, timeout: float) -> http.client.HTTPConnection:
    parts = urlsplit(endpoint.url)
    if parts.scheme == "unix":
        return _UnixConnection(parts.path, timeout)
    if parts.scheme in {"tcp", "http", "https"} and parts.hostname:
        if endpoint.tls is None and parts.scheme != "https":
            return http.client.HTTPConnection(parts.hostname, parts.port or 2375, timeout=timeout)
        context = ssl.create_default_context()
        if endpoint.tls is not None:
            context.load_verify_locations(endpoint.tls / "ca.pem")
            context.load_cert_chain(endpoint.tls / "cert.pem", endpoint.tls / "key.pem")
        return http.client.HTTPSConnection(
            parts.hostname, parts.port or 2376, timeout=timeout, context=context
        )
    message = (
        f"{endpoint.source} says {endpoint.url!r}; only unix:// and tcp:// addresses are supported. For an "
        "engine behind ssh forward its socket: ssh -L /tmp/engine.sock:/var/run/docker.sock HOST"
    )
    raise EngineError(message)


def _get(endpoint: Endpoint, path: str, timeout: float) -> tuple[int, bytes]:
    connection = _connection(endpoint, timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(1 << 20)
    finally:
        connection.close()


def examine(endpoint: Endpoint, *, installed: bool | None = None, timeout: float = ANSWER_SECONDS) -> Found:
    """Ask the engine who it is.  Never raises: what is wrong is in the answer.

    `installed`: whether an engine's program is on this machine (None: look).
    """
    where = f"{endpoint.url} ({endpoint.source})"
    try:
        status, _ = _get(endpoint, "/_ping", timeout)
        if status != http.client.OK:
            return Found(State.UNUSABLE, f"what answers at {where} is no container engine (status {status})")
        _, body = _get(endpoint, "/version", timeout)
        facts = json.loads(body)
        api, version = str(facts["ApiVersion"]), str(facts.get("Version", "?"))
        numbers = tuple(int(part) for part in api.split(".")[:2])
    except PermissionError:
        message = f"permission denied for the engine at {where}. {ROOTLESS_FIRST}"
        return Found(State.FORBIDDEN, message)
    except EngineError as error:
        return Found(State.UNUSABLE, str(error))
    except (ValueError, KeyError, TypeError) as error:
        return Found(State.UNUSABLE, f"what answers at {where} is no container engine ({error!r})")
    except (OSError, http.client.HTTPException) as error:
        return _absent(endpoint, error, installed=installed)
    if numbers < MINIMUM_API:
        message = f"the engine at {where} is too old: API {api}, version {version}; needed: {MINIMUM_NAME}"
        return Found(State.TOO_OLD, message, version, api)
    message = f"engine {version} (API {api}) answers at {where}"
    return Found(State.READY, message, version, api, str(facts.get("Arch", "")))


def _absent(endpoint: Endpoint, error: Exception, *, installed: bool | None) -> Found:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if not endpoint.is_default:
        message = (
            f"no engine answers at {endpoint.url}, which {endpoint.source} names ({reason}): "
            f"start it, or take {endpoint.source} away"
        )
        return Found(State.NOT_RUNNING, message)
    if installed is None:
        installed = any(shutil.which(program) for program in ("dockerd", "docker", "podman"))
    if not installed:
        message = (
            "no container engine is installed. As root on Debian or Ubuntu: make engine. Elsewhere install "
            "Docker (docs.docker.com/engine/install), and set DOCKER_HOST if its socket is not the usual one"
        )
        return Found(State.NOT_INSTALLED, message)
    message = (
        f"Docker is installed but no engine answers at {endpoint.url} ({reason}). Start it: "
        "sudo systemctl start docker; as root without systemd: make engine"
    )
    return Found(State.NOT_RUNNING, message)


def require(environment: Mapping[str, str]) -> tuple[Endpoint, Found]:
    """The engine that answers.  Raises `EngineError` with what is wrong and what to do."""
    endpoint = discover(environment)
    found = examine(endpoint)
    if found.state is not State.READY:
        raise EngineError(found.message)
    return endpoint, found


# ----------------------------------------------------------------------------------------- starting, stopping


@dataclass(frozen=True)
class Machine:
    """What `start` may do here; a test hands in another."""

    root: bool
    apt: bool
    systemd: bool
    dockerd: str | None

    @staticmethod
    def look() -> Machine:
        """This machine."""
        return Machine(
            root=os.geteuid() == 0,
            apt=shutil.which("apt-get") is not None,
            systemd=Path("/run/systemd/system").is_dir(),
            dockerd=shutil.which("dockerd"),
        )


def start(folder: Path, endpoint: Endpoint, machine: Machine) -> Found:
    """See to it that an engine answers.  Raises `EngineError` or `CommandError`."""
    watch = Stopwatch()
    found = examine(endpoint)
    if found.state is State.READY:
        say(f"engine: {found.message} ({watch})")
        return found
    startable = found.state in {State.NOT_INSTALLED, State.NOT_RUNNING} and endpoint.is_default
    if not startable or not machine.root or not (machine.dockerd or machine.apt):
        raise EngineError(found.message)
    folder.mkdir(parents=True, exist_ok=True)
    keep_out_of_git(folder.parent)
    if machine.dockerd is None:
        packages = ["docker.io"] if machine.systemd else ["docker.io", "cgroupfs-mount"]
        apt_install(packages, what="installing docker.io", say=say)
        say(f"engine: installed {' and '.join(packages)} ({watch})")
    if machine.systemd:
        run(["systemctl", "start", "docker.service"], what="starting the docker service", say=say)
        (folder / "service").write_text("docker.service\n", encoding="utf-8")
        return _await(endpoint, None, folder, watch, SERVICE_SECONDS)
    dockerd = machine.dockerd or shutil.which("dockerd") or "/usr/sbin/dockerd"
    return _await(endpoint, launch(folder, dockerd), folder, watch, START_SECONDS)


def keep_out_of_git(state: Path) -> None:
    """A state folder ignores itself and is nobody else's."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    ignore = state / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")


def launch(folder: Path, dockerd: str) -> int:
    """Start `dockerd` detached and give its pid; its log and pid file are in `folder`."""
    pid_file = folder / "dockerd.pid"
    pid_file.unlink(missing_ok=True)
    log = os.open(folder / "dockerd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return os.posix_spawn(
            dockerd,
            [dockerd, "--pidfile", str(pid_file)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)


def _await(
    endpoint: Endpoint,
    pid: int | None,
    folder: Path,
    watch: Stopwatch,
    seconds: float,
) -> Found:
    started = time.monotonic()
    with Heartbeat("waiting for the engine to answer", say):
        while True:
            found = examine(endpoint, installed=True)
            if found.state is State.READY:
                break
            died = pid is not None and _has_ended(pid)
            if died or time.monotonic() - started > seconds:
                what = "dockerd ended" if died else f"no answer after {seconds:.0f} s"
                raise EngineError(f"{what}: {found.message}\n{_log_tail(folder)}")
            time.sleep(0.2)
    say(f"engine: {found.message}; log and pid file in {folder} ({watch})")
    return found


def _log_tail(folder: Path) -> str:
    log = folder / "dockerd.log"
    if not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
    return "\n".join([f"the end of {log}:", *lines])


def our_process(folder: Path) -> int | None:
    """The pid of the dockerd that `start` started, if it is alive and still that very program."""
    pid_file = folder / "dockerd.pid"
    try:
        pid = int(pid_file.read_text(encoding="utf-8"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    is_dockerd = any(Path(os.fsdecode(word)).name == "dockerd" for word in words[:2])
    return pid if is_dockerd and os.fsencode(str(pid_file)) in words else None


def stop(folder: Path) -> str:
    """End what `start` started; say what was done."""
    service = folder / "service"
    if service.exists():
        run(
            ["systemctl", "stop", "docker.service", "docker.socket"],
            what="stopping the docker service",
            say=say,
        )
        service.unlink()
        return "stopped the docker service, which `make engine` had started"
    pid = our_process(folder)
    if pid is None:
        return "nothing to stop: no engine was started from here"
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    with Heartbeat("waiting for the engine to end", say):
        while our_process(folder) is not None:
            if time.monotonic() > deadline:
                message = (
                    f"dockerd (pid {pid}) did not end within {STOP_SECONDS:.0f} s; see {folder}/dockerd.log"
                )
                raise EngineError(message)
            _has_ended(pid)
            time.sleep(0.1)
    (folder / "dockerd.pid").unlink(missing_ok=True)
    return f"stopped the engine that was started from here (pid {pid})"


def _has_ended(pid: int) -> bool:
    """Whether our child has ended; collects it, so that it does not stay as a zombie.  False for others."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python3 -m runner.setup.engine", description=__doc__)
    parser.add_argument("action", choices=["start", "stop", "status"])
    parser.add_argument("--folder", type=Path, default=ROOT / ".autoresearch" / "engine")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    watch = Stopwatch()
    try:
        if options.action == "stop":
            say(f"engine: {stop(folder)} ({watch})")
            return 0
        endpoint = discover(os.environ)
        if options.action == "start":
            start(folder, endpoint, Machine.look())
            return 0
        found = examine(endpoint)
        say(f"engine: {found.message}")
    except EngineError as error:
        say(f"engine: {error}")
        return error.exit_code
    except CommandError as error:
        say(f"{error.tail}\nengine: {error}")
        return EngineError.exit_code
    return 0 if found.state is State.READY else EngineError.exit_code


if __name__ == "__main__":
    sys.exit(main())
