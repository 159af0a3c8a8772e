"""Commands in processes of their own; a program of a few lines is in the command line's place."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from runner.driver import CommandDriver, CommandError

ECHO = """
import json, os, sys
print(json.dumps({"arguments": sys.argv[1:], "given": sys.stdin.read(), "session": os.getsid(0)}))
"""
WAITS = """
import signal, sys, time
def ended(*_):
    print("autoresearch: terminated; what was measured is kept", file=sys.stderr)
    sys.exit(143)
signal.signal(signal.SIGTERM, ended)
open(sys.argv[3].removeprefix("--message="), "w").close()
while True: time.sleep(0.05)
"""


def driver(program: str, tag: str | None = "t") -> CommandDriver:
    return CommandDriver(
        task="/some/task", tag=lambda: tag, read_brief=lambda: "brief", flags=["--cpu"], program=[sys.executable, "-c", program]
    )


def test_what_a_trial_is_called_with() -> None:
    found = driver(ECHO).trial("RATE = 'ä'\r\n", "--help\nwhy").wait()

    assert found["arguments"] == ["trial", "--candidate=/dev/stdin", "--message=--help\nwhy", "--cpu", "--task=/some/task", "--tag=t", "--json"]
    assert found["given"] == "RATE = 'ä'\r\n"
    assert found["session"] != os.getsid(0)


def test_without_a_run_there_is_no_tag() -> None:
    assert driver(ECHO, tag=None).champion()["arguments"] == ["champion", "--task=/some/task", "--json"]


def test_the_newest_rows() -> None:
    rows = 'for number in range(5): print(\'{"trial": %d}\' % number)'

    assert driver(rows).history(2) == [{"trial": 3}, {"trial": 4}]
    assert driver(rows).history(9) == [{"trial": number} for number in range(5)]


@pytest.mark.parametrize(
    ("program", "said", "code"),
    [
        ("import sys; sys.exit('Traceback\\nautoresearch: \\x1b[31mno engine\\x07 here')", "no engine here", 1),
        ("import sys; print('noise', file=sys.stderr); sys.exit(2)", "`autoresearch trial` ended with exit code 2", 2),
        ("import os; os.kill(os.getpid(), 9)", "`autoresearch trial` was ended by signal 9; what was measured is kept", 137),
        ("", "the trial was not judged: somebody asked the run to stop; the same file again goes on with it", 0),
    ],
)
def test_what_went_wrong_is_a_sentence(program: str, said: str, code: int) -> None:
    with pytest.raises(CommandError) as caught:
        driver(program).trial("x", "m").wait()

    assert (str(caught.value), caught.value.exit_code) == (said, code)


def test_a_trial_is_ended_as_by_a_person(tmp_path: Path) -> None:
    caught: list[CommandError] = []
    work = driver(WAITS).trial("x", str(tmp_path / "ready"))

    def wait() -> None:
        with pytest.raises(CommandError) as found:
            work.wait()
        caught.append(found.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.05)
    work.stop()
    waiting.join(30)

    assert [(str(one), one.exit_code) for one in caught] == [("terminated; what was measured is kept", 143)]


def test_one_that_was_asked_in_the_background_of_a_shell_is_ended_too(tmp_path: Path) -> None:
    """Such a process and its children ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        test_a_trial_is_ended_as_by_a_person(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
