"""What the container of a reported trial runs first: it lays out the task, waits for the gate, and runs the command.

The runner passes this file's text to the container's python.  Up to the gate nothing of the candidate is in the
container, so laying out a large repository costs no budget and leaves nothing to work ahead with.  From the gate on the
clock runs, and the candidate's file is put in its place.

Standard output goes to the log and, up to a cap, into a file of its own: the metric is read from that alone, and in the
log it would be mixed with standard error.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

CANDIDATE = "candidate"
"""The candidate's file behind the gate."""
STDOUT = "stdout"
"""What the command printed; one byte more than the cap says that there was more."""
GATE_POLL_SECONDS = 0.002
EXIT_POLL_SECONDS = 0.05
CHUNK = 1 << 16
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def lay_out(archive: str, place: str) -> None:
    """Unpack the task; it is the candidate's to change, in this container."""
    os.makedirs(place, exist_ok=True)  # noqa: PTH103 - no pathlib: starts faster
    if subprocess.run(["tar", "-xf", archive, "-C", place], check=False).returncode:
        sys.exit("the files of the task could not be laid out")


def pass_gate(out: str, gate: str) -> None:
    """Say `ready`, and wait until the folder `gate` can be read."""
    os.close(os.open(f"{out}/ready", os.O_WRONLY | os.O_CREAT, 0o444))
    while True:
        try:
            os.listdir(gate)  # noqa: PTH208
        except OSError:
            time.sleep(GATE_POLL_SECONDS)
        else:
            return


def run(command: list[str], place: str, out: str, cap: int) -> int:
    """Run the command to its end; its exit code, or 128 and the signal that ended it."""
    with open(f"{out}/{STDOUT}", "wb") as copy:  # noqa: PTH123
        try:
            child = subprocess.Popen(command, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        except OSError as error:
            sys.stderr.write(f"{command[0]}: {error.strerror}\n")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        relay(child, copy.write, cap + 1)
    code = child.wait()
    return 128 - code if code < 0 else code


def relay(child: subprocess.Popen[bytes], keep: Callable[[bytes], object], room: int) -> None:
    """Everything that `child` prints until it has ended, to our own standard output and, the first `room` bytes, to `keep`.

    A process that it left behind may hold the pipe open for ever; what the command itself wrote is in it by then.
    """
    assert child.stdout is not None
    source, ended = child.stdout.fileno(), False
    while True:
        if select.select([source], [], [], 0 if ended else EXIT_POLL_SECONDS)[0]:
            chunk = os.read(source, CHUNK)
            if not chunk:
                return
            keep(chunk[:room])
            room -= len(chunk[:room])
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
        elif ended:
            return
        else:
            ended = child.poll() is not None


def main(archive: str, place: str, editable: str, gate: str, out: str, cap: int, command: list[str]) -> int:
    """The whole way; returns the exit code."""
    lay_out(archive, place)
    pass_gate(out, gate)
    shutil.copyfile(f"{gate}/{CANDIDATE}", f"{place}/{editable}")  # the file's mode stays
    return run(command, place, out, cap)


if __name__ == "__main__":
    _archive, _place, _editable, _gate, _out, _cap, *_command = sys.argv[1:]
    sys.exit(main(_archive, _place, _editable, _gate, _out, int(_cap), _command))
