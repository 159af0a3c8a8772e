"""Engines of other kinds than the one that tests run on: started for a test, each in a network namespace of its own, and gone
after it.

A second engine in one network namespace would remove the first one's bridge.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import docker.errors

from runner.setup.engine import Endpoint, State, examine

if TYPE_CHECKING:
    from docker import DockerClient

START_SECONDS = 60.0
STOP_SECONDS = 30.0
DOCKERD = ("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")
"""Without a network of its own: what runs there has none either."""


def processes(folder: Path) -> list[int]:
    """Those whose command line names `folder`: the engine's own, its containers' shims and what began them."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdecimal() and f"{folder}/".encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@contextmanager
def place() -> Iterator[Path]:
    """A folder with a short name, since names of sockets are short; nothing of it is mounted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for process in processes(folder):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        end = time.monotonic() + STOP_SECONDS
        while processes(folder) and time.monotonic() < end:
            time.sleep(0.1)
        mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in sorted((one for one in mounted if one.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(folder)


def _program(process: int) -> str:
    """The name of what a process runs; empty if it is gone."""
    try:
        return Path(os.fsdecode(Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0])).name
    except OSError:
        return ""


@dataclass(kw_only=True)
class Rootful:
    """A Docker engine of root's that can be killed and started again; what is on its disk stays."""

    folder: Path
    arguments: tuple[str, ...] = ()
    path: str = ""
    """Goes before the PATH on which it, and what it looks for, are found."""
    data: Path | None = None
    """Where it keeps images; None: in `folder`."""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix://{self.folder}/s"

    def start(self) -> None:
        """Returns when it answers."""
        folder = self.folder
        command = [
            "dockerd", "--data-root", f"{self.data or folder / 'data'}", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/pid",
            "--containerd-namespace", folder.name, "--containerd-plugins-namespace", f"{folder.name}-plugins",
            "-H", self.address, *DOCKERD, *self.arguments,
        ]  # fmt: skip
        search = f"{self.path}{os.pathsep}{os.environ['PATH']}" if self.path else os.environ["PATH"]
        self._process = _started(folder, command, {"PATH": search}, self.address)

    def kill(self) -> None:
        """Without a word, and with it its containerd, which the kernel ends too.  Containers go on until the next start ends them."""
        assert self._process is not None
        victims = [self._process.pid, *(one for one in processes(self.folder) if _program(one) == "containerd")]
        for process in victims:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        # The next engine would take a dying containerd for one that it can use.
        end = time.monotonic() + STOP_SECONDS
        while any(Path(f"/proc/{process}").exists() for process in victims) and time.monotonic() < end:
            time.sleep(0.05)

    def terminate(self) -> None:
        """As a person does who restarts it: it ends its containers first."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """With everything that runs there."""
        if self._process is not None:
            _stopped(self._process, self.address)


@contextmanager
def restartable(*arguments: str, path: str = "", data: Path | None = None) -> Iterator[Rootful]:
    """A started engine of root's; `data` is where it keeps images, by default in its own folder."""
    with place() as folder:
        engine = Rootful(folder=folder, arguments=arguments, path=path, data=data)
        try:
            engine.start()
            yield engine
        finally:
            engine.stop()


@contextmanager
def rootful(*arguments: str, path: str = "") -> Iterator[str]:
    """The address of a Docker engine of root's; `path` goes before the PATH on which it, and what it looks for, are found."""
    with restartable(*arguments, path=path) as engine:
        yield engine.address


@contextmanager
def user(name: str) -> Iterator[pwd.struct_passwd]:
    """A unix user with a range of subordinate ids, gone at the end with everything that runs as them."""
    forget(name)  # of a test that was killed
    try:
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True)
        found = pwd.getpwnam(name)
        Path(found.pw_dir).chmod(0o700)
        yield found
    finally:
        forget(name)


def forget(name: str) -> None:
    """Remove a user with home, subordinate ids and processes; fine if there is none."""
    if name not in {one.pw_name for one in pwd.getpwall()}:
        return
    subprocess.run(["pkill", "-KILL", "-u", name], check=False)
    time.sleep(0.2)
    subprocess.run(["userdel", "--force", *(["--remove"] if Path(pwd.getpwnam(name).pw_dir).is_dir() else []), name], check=True, capture_output=True)


@contextmanager
def rootless(owner: pwd.struct_passwd) -> Iterator[str]:
    """The address of a Docker engine without root, as `owner` starts one."""
    with place() as folder:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        inner = (
            "rm -f /run/docker /run/containerd; exec dockerd --rootless "
            f"--data-root {folder}/data --exec-root {folder}/exec --pidfile {folder}/pid -H unix://{folder}/run/docker.sock {' '.join(DOCKERD)}"
        )
        kit = ["rootlesskit", "--net=host", "--copy-up=/etc", "--copy-up=/run", f"--state-dir={folder}/kit", "sh", "-c", inner]
        with _running(folder, _as(owner, folder, kit), {}, socket="run/docker.sock") as address:
            yield address


@contextmanager
def podman(owner: pwd.struct_passwd) -> Iterator[str]:
    """The address of Podman's Docker-compatible service without root, as `owner` starts one on a machine without systemd."""
    with place() as folder:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        (folder / "containers.conf").write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/data"\nrunroot = "{folder}/exec"\n'
        )
        service = ["podman", "system", "service", "--time=0", f"unix://{folder}/run/s"]
        configuration = [f"CONTAINERS_CONF={folder}/containers.conf", f"CONTAINERS_STORAGE_CONF={folder}/storage.conf"]
        with _running(folder, _as(owner, folder, service, configuration), {}, socket="run/s") as address:
            yield address


def carry(engine: DockerClient, image: str, address: str) -> None:
    """Give the engine at `address` the image with this id."""
    other = docker.DockerClient(base_url=address, version="auto", timeout=300)
    try:
        for _ in other.api.load_image(engine.api.get_image(image)):  # type: ignore[no-untyped-call]
            pass
        assert other.api.inspect_image(image)["Id"].removeprefix("sha256:") == image.removeprefix("sha256:")  # type: ignore[no-untyped-call]
    finally:
        other.close()


def _as(owner: pwd.struct_passwd, folder: Path, command: Sequence[str], environment: Sequence[str] = ()) -> list[str]:
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    os.chown(runtime, owner.pw_uid, owner.pw_gid)
    return [
        "setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups", "--",
        "env", "-i", f"HOME={owner.pw_dir}", f"USER={owner.pw_name}", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        f"XDG_RUNTIME_DIR={runtime}", *environment, *command,
    ]  # fmt: skip


def _kill_containers(address: str) -> None:
    """What runs there, before the engine is ended: an engine that is killed leaves it."""
    with suppress(docker.errors.DockerException, OSError), closing(docker.DockerClient(base_url=address, version="auto", timeout=20)) as client:
        for one in client.api.containers():
            client.api.remove_container(one["Id"], force=True)


@contextmanager
def _running(folder: Path, command: Sequence[str], environment: Mapping[str, str], socket: str = "s") -> Iterator[str]:
    """What `command` serves at the unix socket `socket` in `folder`, from the moment at which it answers."""
    address = f"unix://{folder}/{socket}"
    process = _started(folder, command, environment, address)
    try:
        yield address
    finally:
        _stopped(process, address)


def _started(folder: Path, command: Sequence[str], environment: Mapping[str, str], address: str) -> subprocess.Popen[bytes]:
    log = folder / "log"
    with log.open("ab") as written:
        process = subprocess.Popen(
            ["unshare", "--net", "--", *command],
            stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
    try:
        _await(process, Endpoint(address, "a test"), log)
    except BaseException:
        _stopped(process, address)
        raise
    return process


def _await(process: subprocess.Popen[bytes], endpoint: Endpoint, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while examine(endpoint).state is not State.READY:
        if process.poll() is not None or time.monotonic() > end:
            said = log.read_text(errors="replace")[-3000:]
            message = f"{process.args!r} does not answer: {examine(endpoint).message}\n{said}"
            raise AssertionError(message)
        time.sleep(0.1)


def _stopped(process: subprocess.Popen[bytes], address: str) -> None:
    _kill_containers(address)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
