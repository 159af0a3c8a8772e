"""What the holder container runs: looks at the folder that the trial writes, and says what it sees.

The runner passes this file's text to the holder's python.  The trial may put anything into the folder while it is
looked at (links, pipes, leases, files that change under the eye), and the container engine, which runs as root on the
host, must not be the one to stumble over it: so nobody else looks while the trial lives.

Prints `ready` once something called `ready` is there, then, when it changes, `said {"step": 12, "loss": 3.25}`.
"""

import json
import os
import stat
import sys
import time

READY_POLL_SECONDS = 0.02
PROGRESS_POLL_SECONDS = 1.0
MAX_BYTES = 64 << 10
MAX_STEP = 10**12


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


def main(folder: str, seconds: float) -> None:
    """Look for `seconds`, then end: a holder whose runner died does not stay."""
    end = time.monotonic() + seconds
    while not is_ready(folder) and time.monotonic() < end:
        time.sleep(READY_POLL_SECONDS)
    print("ready", flush=True)  # noqa: T201 - this is how it speaks
    last = ""
    while time.monotonic() < end:
        now = said(folder)
        if now and now != last:
            print(f"said {now}", flush=True)  # noqa: T201
            last = now
        time.sleep(PROGRESS_POLL_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
