"""Leases between real processes: one at a time, whatever becomes of the owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runner import leases
from runner.errors import GpuError

UUID = "GPU-5a1c-07"

OWNER = """
    import sys, time
    from pathlib import Path
    from runner import leases

    with leases.held(Path(sys.argv[1]), sys.argv[2], run="theirs", engine="E", gone=lambda *_: False) as lease:
        if sys.argv[3] != "0":
            lease.cover("autoresearch-1-train", float(sys.argv[3]))
        print("held", flush=True)
        sys.stdin.readline()
"""


@contextmanager
def owner(place: Path, *, covers: float = 0.0, user: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until its standard input ends."""
    command = [sys.executable, "-c", textwrap.dedent(OWNER), str(place), UUID, str(covers or 0)]
    pipe = subprocess.PIPE
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=root, user=user, group=user) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def take(place: Path, *, gone: bool = False) -> list[str]:
    """Hold the lease for a moment; the containers that were asked about."""
    asked: list[str] = []

    def is_gone(engine: str, container: str) -> bool:
        asked.append(f"{container} of {engine}")
        return gone

    with leases.held(place, UUID, run="ours", engine="E", gone=is_gone) as lease:
        assert lease.uuid == UUID
    return asked


def test_one_at_a_time_and_the_other_is_told_who(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        with pytest.raises(GpuError, match=rf"{UUID} is leased by \w+ \(run theirs, process {process.pid}\)"):
            take(tmp_path)
        process.communicate("done\n", timeout=20)

    assert take(tmp_path) == []
    assert (tmp_path / f"{UUID}.lease").read_bytes() == b""


def test_another_gpu_is_another_lease(tmp_path: Path) -> None:
    with owner(tmp_path), leases.held(tmp_path, "MIG-1/2", run="ours", engine="E", gone=lambda *_: False):
        assert (tmp_path / "MIG-1_2.lease").exists()


def test_a_killed_owner_holds_nothing_if_no_container_ran(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()

        assert take(tmp_path) == []


def test_a_killed_owners_container_is_waited_for_unless_it_is_known_to_be_gone(tmp_path: Path) -> None:
    with owner(tmp_path, covers=60) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()

        with pytest.raises(GpuError, match=r"died and left a container that may run for (120|119|118) s more.*starting a run there again"):
            take(tmp_path)
        with pytest.raises(GpuError, match="died and left"):
            take(tmp_path)  # having looked changes nothing
        assert take(tmp_path, gone=True) == ["autoresearch-1-train of E"]


def test_a_deadline_that_has_passed_is_none(tmp_path: Path) -> None:
    with owner(tmp_path, covers=0.3 - leases.MARGIN_SECONDS) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.35)

        assert take(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (leases.BOOT_ID.read_text().strip(), "before-the-machine-was-started-again"),
        ('"deadline": ', '"deadline": 9e9, "was": '),
        ('"deadline": ', '"deadline": NaN, "was": '),
        ('"deadline": ', '"deadline": "soon", "was": '),
        ("{", "["),
    ],
)
def test_a_note_of_another_boot_or_without_sense_holds_nothing(tmp_path: Path, old: str, new: str) -> None:
    with owner(tmp_path, covers=60) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    path = tmp_path / f"{UUID}.lease"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

    assert take(tmp_path) == []


def test_the_file_says_which_container_may_run_and_when_none_does(tmp_path: Path) -> None:
    with leases.held(tmp_path, UUID, run="ours", engine="E", gone=lambda *_: False) as lease:
        lease.cover("one", 100)
        assert '"container": "one"' in (tmp_path / f"{UUID}.lease").read_text()
        lease.uncover()
        assert '"deadline": 0.0' in (tmp_path / f"{UUID}.lease").read_text()


@pytest.mark.parametrize("gone", [True, False])
def test_what_was_interrupted_leaves_a_note_only_if_its_container_may_run(tmp_path: Path, *, gone: bool) -> None:
    def interrupted() -> None:
        with leases.held(tmp_path, UUID, run="ours", engine="E", gone=lambda *_: gone) as lease:
            lease.cover("one", 100)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert ((tmp_path / f"{UUID}.lease").read_bytes() == b"") is gone


def test_a_deadline_may_be_as_far_away_as_a_task_may_ask_for(tmp_path: Path) -> None:
    with owner(tmp_path, covers=8 * 24 * 3600.0 + 3600) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()

        with pytest.raises(GpuError, match="died and left"):
            take(tmp_path)


def test_a_file_that_is_removed_while_it_is_locked_is_no_lease(tmp_path: Path) -> None:
    """As whoever made it may do, even in a sticky folder."""
    handle = leases._open(tmp_path, UUID)
    leases._refuse_replaced(tmp_path, UUID, handle)
    (tmp_path / f"{UUID}.lease").unlink()
    with pytest.raises(GpuError, match="was removed or replaced"):
        leases._refuse_replaced(tmp_path, UUID, handle)
    (tmp_path / f"{UUID}.lease").touch()
    with pytest.raises(GpuError, match="was removed or replaced"):
        leases._refuse_replaced(tmp_path, UUID, handle)
    os.close(handle)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    path, other = tmp_path / f"{UUID}.lease", tmp_path / "other"
    other.write_text("precious")
    path.symlink_to(other)
    with pytest.raises(GpuError, match="a link, which is not followed"):
        take(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(GpuError, match="not a plain file"):
        take(tmp_path)
    path.unlink()
    os.link(other, path)
    with pytest.raises(GpuError, match="not a plain file"):
        take(tmp_path)
    assert other.read_text() == "precious"


def test_a_uuid_is_a_name_and_not_a_path(tmp_path: Path) -> None:
    for uuid in ("", "a b", "x" * 200, "GPU\n"):
        with pytest.raises(GpuError, match="is no UUID"), leases.held(tmp_path, uuid, run="", engine="E", gone=lambda *_: False):
            pass
    with leases.held(tmp_path / ".", "../../up", run="", engine="E", gone=lambda *_: False):
        assert [path.name for path in tmp_path.iterdir()] == [".._.._up.lease"]


def test_the_folder_is_the_one_that_is_named_if_it_can_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setenv(leases.ENVIRONMENT, str(shared))
    with pytest.raises(GpuError, match=r"No such file.*install -d -m 1777"):
        leases.folder()
    shared.mkdir()
    assert leases.folder() == shared
    for mode in (0o777, 0o775):
        shared.chmod(mode)
        with pytest.raises(GpuError, match="not sticky"):
            leases.folder()
    shared.chmod(0o1777)
    assert leases.folder() == shared
    link = tmp_path / "link"
    link.symlink_to(shared)
    monkeypatch.setenv(leases.ENVIRONMENT, str(link))
    with pytest.raises(GpuError, match="links are not followed"):
        leases.folder()


def test_without_one_it_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not leases.SHARED.exists(), "this test needs a machine without the shared folder"
    monkeypatch.delenv(leases.ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    found = leases.folder()

    assert found == tmp_path / "autoresearch" / "leases"
    assert found.stat().st_mode & 0o777 == 0o700
