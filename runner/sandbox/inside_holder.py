"""What the holder container runs: looks at the folder that the trial writes, and says what it sees.

The runner passes this file's text to the holder's python.  The trial may put anything into the folder while it is
looked at (links, pipes, leases, files that change under the eye), and the container engine, which runs as root on the
host, must not be the one to stumble over it: so nobody else looks while the trial lives.

Prints `ready` once something called `ready` is there, then, when it changes, `said {"step": 12, "loss": 3.25}`.

Where the host asks in rounds, it also takes each answer out of the trial's reach, and only then makes the next question
readable: nobody can answer an earlier question with what a later one shows.
"""

import json
import os
import stat
import sys
import time

READY_POLL_SECONDS = 0.02
ANSWER_POLL_SECONDS = 0.004
CHUNK = 1 << 20
PROGRESS_POLL_SECONDS = 1.0
MAX_BYTES = 64 << 10
MAX_STEP = 10**12

Round = tuple[str, str, int]
"""The question's file, the answer's file, and the bytes that an answer has."""


def is_ready(folder: str) -> bool:
    """True if there is anything of that name, whatever it is; nothing is followed or opened."""
    try:
        os.lstat(f"{folder}/ready")
    except OSError:
        return False
    return True


def said(folder: str) -> str:
    """Step and loss in the trial's progress file as JSON; empty for anything but a small regular file with those."""
    try:
        # Opening never waits: neither for a pipe's other end nor for a lease to be broken.
        handle = os.open(f"{folder}/progress.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return ""
    try:
        data = os.read(handle, MAX_BYTES) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    except OSError:
        return ""
    finally:
        os.close(handle)
    try:
        value = json.loads(data)
        step, loss = value.get("step"), value.get("loss")
    except (ValueError, AttributeError, RecursionError):
        return ""
    step = step if type(step) is int and 0 <= step < MAX_STEP else None
    loss = loss if type(loss) is float and -1e9 < loss < 1e9 else None
    return "" if step is None and loss is None else json.dumps({"step": step, "loss": loss})


def take(source: str, target: str, size: int) -> bool:
    """Copy the regular file `source` of exactly `size` bytes to `target`; False as long as there is none.

    The trial can write to the file meanwhile; then that is its answer.
    """
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return False
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        with open(f"{target}.partial", "wb") as copy:  # noqa: PTH123 - no pathlib: starts faster
            left = size
            while left:
                chunk = os.read(handle, min(CHUNK, left))
                if not chunk:
                    return False
                copy.write(chunk)
                left -= len(chunk)
    except OSError:
        return False
    finally:
        os.close(handle)
    os.rename(f"{target}.partial", target)  # noqa: PTH104
    return True


def hold_rounds(out: str, inside: str, kept: str, rounds: list[Round], end: float) -> None:
    """Take the answers one after the other; after each, let the next question be read, and at last say `end`."""
    for (_, answer, size), following in zip(rounds, [*rounds[1:], None], strict=True):
        while not take(f"{out}/{answer}", f"{kept}/{answer}", size):
            if time.monotonic() >= end:
                return
            time.sleep(ANSWER_POLL_SECONDS)
        if following is None:
            os.close(os.open(f"{inside}/end", os.O_WRONLY | os.O_CREAT, 0o444))
        else:
            os.chmod(f"{inside}/{following[0]}", 0o444)  # noqa: PTH101


def main(folder: str, seconds: float, rounds: list[Round]) -> None:
    """Look for `seconds`, then end: a holder whose runner died does not stay."""
    end = time.monotonic() + seconds
    while not is_ready(folder) and time.monotonic() < end:
        time.sleep(READY_POLL_SECONDS)
    print("ready", flush=True)  # noqa: T201 - this is how it speaks
    if rounds:
        hold_rounds(folder, "/hold/in/gated", "/hold/kept", rounds, end)
    last = ""
    while time.monotonic() < end:
        now = said(folder)
        if now and now != last:
            print(f"said {now}", flush=True)  # noqa: T201
            last = now
        time.sleep(PROGRESS_POLL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), json.loads(sys.argv[3]))
