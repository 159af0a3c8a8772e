"""Two real users of one machine: they share leases through one folder that an admin made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

ALICE, BOB = 12001, 12002
"""Users need no name; the kernel knows numbers."""
PYTHON = "/usr/bin/python3"
"""The one that every user may run."""
ROOT = Path(__file__).parents[2]

HOLD = """
    import sys
    from pathlib import Path
    from runner import leases
    from runner.errors import GpuError

    try:
        with leases.held(leases.folder(), "GPU-1", run=sys.argv[1], engine="E", gone=lambda *_: True) as lease:
            lease.cover("a container", float(sys.argv[2]))
            print("held", flush=True)
            sys.stdin.readline()
            lease.uncover()
    except GpuError as error:
        print(error, flush=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that both users reach, with the part of the runner that they need, and `shared` as the admin makes it."""
    assert os.geteuid() == 0, "this test makes two users: it has to run as root"
    folder = Path(tempfile.mkdtemp(prefix="two-users-"))
    folder.chmod(0o755)
    (folder / "runner").mkdir(mode=0o755)
    for name in ("__init__.py", "errors.py", "leases.py"):
        (folder / "runner" / name).write_text((ROOT / "runner" / name).read_text())
        (folder / "runner" / name).chmod(0o644)
    shared = folder / "shared"
    subprocess.run(["install", "-d", "-m", "1777", str(shared)], check=True)
    yield folder
    shutil.rmtree(folder)


def runner(place: Path, user: int, run: str, seconds: float = 60) -> subprocess.Popen[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "AUTORESEARCH_LEASES": str(place / "shared")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [PYTHON, "-B", "-c", textwrap.dedent(HOLD), run, str(seconds)],
        cwd=place, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True,
        user=user, group=user, extra_groups=[],
    )  # fmt: skip


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_user_has_the_gpu_and_the_other_is_told(place: Path) -> None:
    alice = runner(place, ALICE, "nightly")
    assert said(alice) == "held"

    bob = runner(place, BOB, "bobs")
    assert said(bob).startswith(f"GPU GPU-1 is leased by user {ALICE} (run nightly, process {alice.pid})")
    bob.communicate(timeout=20)

    alice.communicate("done\n", timeout=20)
    bob = runner(place, BOB, "bobs")
    assert said(bob) == "held"
    bob.communicate("done\n", timeout=20)


def test_the_deadline_of_a_killed_user_is_honoured_by_the_other_who_cannot_look_into_the_engine(place: Path) -> None:
    alice = runner(place, ALICE, "nightly")
    assert said(alice) == "held"
    alice.send_signal(signal.SIGKILL)
    alice.communicate(timeout=20)

    bob = runner(place, BOB, "bobs")
    assert "died and left a container that may run for" in said(bob)
    bob.communicate(timeout=20)

    # The owner knows that the container is gone.
    again = runner(place, ALICE, "nightly", seconds=0)
    assert said(again) == "held"
    again.send_signal(signal.SIGKILL)
    again.communicate(timeout=20)
    path = place / "shared" / "GPU-1.lease"
    assert json.loads(path.read_text())["uid"] == ALICE
    assert path.stat().st_mode & 0o777 == 0o666


def test_nobody_else_can_remove_a_lease_that_its_holder_made(place: Path) -> None:
    alice = runner(place, ALICE, "nightly")
    assert said(alice) == "held"
    path = place / "shared" / "GPU-1.lease"

    done = subprocess.run(["rm", "-f", str(path)], user=BOB, group=BOB, extra_groups=[], capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert path.exists()
    alice.communicate("done\n", timeout=20)
