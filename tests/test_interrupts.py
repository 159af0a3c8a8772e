"""Signals, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

HEAD = """
import os, signal, sys, time
from runner import interrupts
from runner.errors import Terminated
def told(): print("ready", flush=True)
def send(number): os.kill(os.getpid(), number)
"""
FIRST = f"""{HEAD}
interrupts.listen()
try:
    told()
    time.sleep(60)
except KeyboardInterrupt as error:
    print("ended by", interrupts.name_of(error), flush=True)
except Terminated as error:
    print("ended by", interrupts.name_of(error), error.exit_code, flush=True)
"""
SLOW = f"""{FIRST}
try:
    time.sleep(60)  # whatever takes long on the way out
except BaseException:
    print("swallowed", flush=True)
time.sleep(60)
"""


def start(program: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "ended by SIGINT"), (signal.SIGTERM, "ended by SIGTERM 143"), (signal.SIGHUP, "ended by SIGHUP 129")]
)
def test_the_first_signal_is_an_exception(number: int, said: str) -> None:
    child = start(FIRST)
    child.send_signal(number)
    out, err = child.communicate(timeout=10)

    assert (child.returncode, out, err) == (0, f"{said}\n", "")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_ends_the_process_at_once(first: int, second: int, code: int) -> None:
    child = start(SLOW)
    child.send_signal(first)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("ended by")
    began = time.monotonic()
    child.send_signal(second)

    out, err = child.communicate(timeout=10)

    assert (child.returncode, out, err) == (code, "", "")
    assert time.monotonic() - began < 1


def test_what_must_not_be_left_half_done_is_done_first() -> None:
    said = run(f"""{HEAD}
interrupts.listen()
try:
    with interrupts.held_back():
        with interrupts.held_back():
            send(signal.SIGTERM)
            print("inside")
        print("still inside")
    print("never")
except Terminated:
    print("terminated")
with interrupts.held_back():  # on the way out, where nothing is raised a second time
    print("removed")
""")

    assert said.splitlines() == ["inside", "still inside", "terminated", "removed"]


def test_a_signal_outweighs_what_failed_meanwhile() -> None:
    said = run(f"""{HEAD}
interrupts.listen()
try:
    with interrupts.held_back():
        send(signal.SIGINT)
        raise OSError("full")
except KeyboardInterrupt as error:
    print(repr(error.__context__))
""")

    assert said == "OSError('full')\n"


def test_the_second_does_not_wait_for_what_is_held_back() -> None:
    child = start(f"""{HEAD}
interrupts.listen()
with interrupts.held_back():
    told()
    time.sleep(60)
""")
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=10)

    assert child.returncode == 130


def test_nohup_is_honoured() -> None:
    said = run(f"""{HEAD}
signal.signal(signal.SIGHUP, signal.SIG_IGN)
interrupts.listen()
send(signal.SIGHUP)
print("goes on")
""")

    assert said == "goes on\n"


def test_a_background_job_of_a_script_can_be_interrupted_all_the_same() -> None:
    """A shell without job control starts such a one with SIGINT ignored."""
    program = f"""{HEAD}
interrupts.listen()
try:
    send(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "$PROGRAM" & wait $!'],
        env={**os.environ, "PROGRAM": program}, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_a_ctrl_c_while_the_program_is_still_read_ends_it_without_a_word() -> None:
    child = start(f"""{HEAD}
with interrupts.at_once():
    told()
    time.sleep(60)
""")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)

    assert (child.returncode, out, err) == (-signal.SIGINT, "", "")
