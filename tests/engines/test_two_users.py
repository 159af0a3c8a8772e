"""Two unix users of one machine, each with an engine of their own without root: neither reaches what is the other's."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from runner import images
from runner.sandbox.probe import unlimited
from tests.docker import engines
from tests.docker.conftest import STATE
from tests.engines.test_engines import UNLIMITED

pytestmark = [pytest.mark.engines, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NAMES = ("ar-alice", "ar-bob")


@dataclass(frozen=True)
class User:
    """A user with an engine, and the runner as they would have installed it."""

    entry: pwd.struct_passwd
    address: str
    installed: Path
    leases: Path

    @property
    def home(self) -> Path:
        return Path(self.entry.pw_dir)

    def shell(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this user."""
        return subprocess.run(
            command, cwd="/", user=self.entry.pw_uid, group=self.entry.pw_gid, extra_groups=[], env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=False, umask=0o022,
        )  # fmt: skip

    def autoresearch(self, *arguments: str, engine: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command line as this user, where nothing of ours lies in a folder of root's."""
        within = self.installed
        program = (
            f"mount --bind {ROOT} {within}/project && mount --bind {sysconfig.get_path('purelib')} {within}/packages "
            f"&& mount --bind {sys.base_prefix} {within}/python && exec setpriv --reuid={self.entry.pw_uid} --regid={self.entry.pw_gid} "
            f'--clear-groups -- env -i HOME={self.home} PATH=/usr/bin:/bin LD_LIBRARY_PATH={within}/python/lib DOCKER_HOST={engine or self.address} '
            f"AUTORESEARCH_LEASES={self.leases} PYTHONPATH={within}/project:{within}/packages GIT_CONFIG_GLOBAL=/dev/null "
            f'{within}/python/bin/python3 -B -c "from runner.cli import app; app()" "$@"'
        )
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", program, "autoresearch", *arguments],
            cwd=self.home, capture_output=True, text=True, check=False, timeout=200,
        )  # fmt: skip


@pytest.fixture(scope="module")
def users() -> Iterator[tuple[User, User]]:
    assert os.geteuid() == 0, "this test makes two users: it has to run as root"
    image = images.image_id("cpu", STATE)
    source = docker.from_env(timeout=300)
    with ExitStack() as stack:
        stack.callback(source.close)
        installed = Path(tempfile.mkdtemp(prefix="installed-"))
        stack.callback(shutil.rmtree, installed)
        installed.chmod(0o755)
        for name in ("project", "packages", "python"):
            (installed / name).mkdir(mode=0o755)
        leases = installed / "leases"
        subprocess.run(["install", "-d", "-m", "1777", str(leases)], check=True)
        made = []
        for name in NAMES:
            entry = stack.enter_context(engines.user(name))
            address = stack.enter_context(engines.rootless(entry))
            engines.carry(source, image, address)
            made.append(User(entry, address, installed, leases))
        yield made[0], made[1]


def with_task(user: User) -> Path:
    """A task of the user's own, and the record of the images that lie in their engine."""
    task = user.home / "task"
    if not task.exists():
        done = user.autoresearch("init", str(task))
        assert done.returncode == 0, done.stdout + done.stderr
        known = json.loads((STATE / "images.json").read_text())
        # Training, claim and audit from one image: nothing is run here that would need three.
        known["cpu"] |= {"claim_id": known["cpu"]["id"], "audit_id": known["cpu"]["id"]}
        state = task / ".autoresearch"
        state.mkdir(mode=0o700, exist_ok=True)
        (state / "images.json").write_text(json.dumps({"cpu": known["cpu"]}))
        for path in (state, state / "images.json"):
            os.chown(path, user.entry.pw_uid, user.entry.pw_gid)
    return task


def test_an_engine_that_cannot_limit_is_refused_with_what_it_cannot(users: tuple[User, User]) -> None:
    for user in users:
        task = with_task(user)

        checked = user.autoresearch("doctor", "--task", str(task), "--json")
        told = {one["check"]: one for one in map(json.loads, checked.stdout.splitlines())}
        assert told["engine"]["ok"], told
        with closing(docker.DockerClient(base_url=user.address, version="auto")) as client:
            if not unlimited(client.info()):
                assert told["isolation"]["ok"], told
                continue
        assert not told["isolation"]["ok"]
        assert checked.returncode == 3, checked
        assert all(name in told["isolation"]["detail"].lower() for name in UNLIMITED), told["isolation"]

        done = user.autoresearch("run", "--task", str(task), "--cpu", "--preset", "tiny", "--trials", "0")
        assert done.returncode == 3, done.stdout + done.stderr
        assert all(name in done.stderr.lower() for name in UNLIMITED), done.stderr
        assert "Traceback" not in done.stderr
        print(f"\n{user.entry.pw_name}: {done.stderr.strip()}")


def test_nobody_reaches_anothers_engine(users: tuple[User, User]) -> None:
    alice, bob = users
    for one, other in ((alice, bob), (bob, alice)):
        task = with_task(one)
        done = one.autoresearch("run", "--task", str(task), "--cpu", "--preset", "tiny", "--trials", "0", engine=other.address)
        assert done.returncode == 3
        assert "permission denied" in done.stderr


def test_nobody_reads_anothers_runs(users: tuple[User, User]) -> None:
    alice, bob = users
    task = with_task(alice)
    # Even where the home is open to all, as some distributions make it.
    alice.home.chmod(0o755)
    task.chmod(0o755)
    try:
        assert bob.shell("ls", str(task)).returncode == 0
        for path in (task / ".autoresearch", task / ".autoresearch" / "images.json"):
            done = bob.shell("cat" if path.suffix else "ls", str(path))
            assert done.returncode != 0
            assert "Permission denied" in done.stderr
        assert (task / ".autoresearch").stat().st_mode & 0o777 == 0o700
    finally:
        alice.home.chmod(0o700)


def test_both_lease_in_one_folder(users: tuple[User, User]) -> None:
    """The lease itself is tried with two processes of two users in tests/docker/test_users.py; here, that both may."""
    for user in users:
        done = user.shell("sh", "-c", f"echo > {user.leases}/{user.entry.pw_name}")
        assert done.returncode == 0, done.stderr
    alice, bob = users
    assert bob.shell("rm", "-f", f"{alice.leases}/{alice.entry.pw_name}").returncode != 0
