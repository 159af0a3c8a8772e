"""The program that lays out a reported task and runs its command, started as it is in the container."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from runner import inside_command

PROGRAM = Path(inside_command.__file__).read_text()
CAP = 1000


class Container:
    """The folders that a container has, in `root`."""

    def __init__(self, root: Path) -> None:
        self.gate, self.out, self.place = root / "gated", root / "out", root / "scratch" / "task"
        self.out.mkdir()
        (root / "solve.py").write_text("print('of the archive')\n")
        (root / "tool.sh").write_text("#!/bin/sh\necho tool: 1\n")
        (root / "tool.sh").chmod(0o755)
        self.archive = root / "task.tar"
        with tarfile.open(self.archive, "w") as archive:
            archive.add(root / "solve.py", "inside/solve.py")
            archive.add(root / "tool.sh", "tool.sh")

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        arguments = (self.archive, self.place, "inside/solve.py", self.gate, self.out, CAP, *command)
        return subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def open_gate(self, candidate: str = "print('of the candidate')\n") -> None:
        folder = self.gate.with_name("closed")
        folder.mkdir()
        (folder / "candidate").write_text(candidate)
        folder.rename(self.gate)

    def run(self, *command: str) -> tuple[int, bytes, bytes]:
        """Exit code, log of standard output, log of standard error."""
        self.open_gate()
        child = self.start(*command)
        out, err = child.communicate(timeout=20)
        return child.returncode, out, err

    @property
    def stdout(self) -> bytes:
        return (self.out / "stdout").read_bytes()


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def test_nothing_of_the_candidate_runs_before_the_gate(container: Container) -> None:
    child = container.start(sys.executable, "inside/solve.py")
    deadline = time.monotonic() + 20
    while not (container.out / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)

    assert child.poll() is None
    assert (container.place / "inside" / "solve.py").read_text() == "print('of the archive')\n"
    assert not (container.out / "stdout").exists()

    container.open_gate()
    out, err = child.communicate(timeout=20)

    assert (child.returncode, out, err) == (0, b"of the candidate\n", b"")
    assert container.stdout == b"of the candidate\n"


def test_the_command_runs_in_the_task_and_may_write_there(container: Container) -> None:
    code, out, _ = container.run("sh", "-c", "pwd && ./tool.sh && echo new > inside/new && cat inside/new && cat")

    assert code == 0
    assert out.decode() == f"{container.place}\ntool: 1\nnew\n"


def test_standard_error_stays_out_of_what_is_read(container: Container) -> None:
    code, out, err = container.run("sh", "-c", "echo a; echo 'score: 1' >&2; echo b")

    assert (code, out, err) == (0, b"a\nb\n", b"score: 1\n")
    assert container.stdout == b"a\nb\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [(("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -9 $$"), 137), (("no-such-program",), 127), (("./inside",), 126)],
)
def test_the_exit_code_is_the_commands(container: Container, command: tuple[str, ...], code: int) -> None:
    found, _, err = container.run(*command)

    assert found == code
    assert b"Traceback" not in err


def test_one_byte_beyond_the_cap_says_that_there_was_more(container: Container) -> None:
    code, out, _ = container.run("sh", "-c", f"head -c {CAP} /dev/zero")
    assert (code, len(out), len(container.stdout)) == (0, CAP, CAP)


def test_the_file_ends_where_the_cap_is_and_the_log_goes_on(container: Container) -> None:
    code, out, _ = container.run("sh", "-c", "head -c 300000 /dev/zero; echo end")

    assert (code, len(out), len(container.stdout)) == (0, 300_004, CAP + 1)


def test_a_process_that_is_left_behind_does_not_hold_up_the_end(container: Container) -> None:
    began = time.monotonic()
    code, out, _ = container.run("sh", "-c", "(sleep 5; echo late) 2> /dev/null & echo 'score: 1'")

    assert (code, out) == (0, b"score: 1\n")
    assert time.monotonic() - began < 4


def test_an_archive_that_cannot_be_unpacked_ends_before_the_gate(container: Container) -> None:
    container.archive.write_bytes(b"not an archive" * 100)
    code, _, err = container.run("true")

    assert code == 1
    assert err.endswith(b"the files of the task could not be laid out\n")
    assert not (container.out / "ready").exists()
