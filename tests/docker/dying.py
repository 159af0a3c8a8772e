"""`autoresearch` that kills itself before or after one line of a journal: python -m tests.docker.dying before|after EVENT PHASE ARGUMENTS...

PHASE is that of a container's line, or - for any line of the event.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from runner.cli import app


def watch(moment: str, event: str, phase: str) -> None:
    """Kill this process before the line is written, or once it is on the disk."""
    wanted = {"before": ("c_call", "write"), "after": ("c_return", "fsync")}[moment]
    line: dict[str, Any] = {}

    def profile(frame: FrameType, what: str, function: Any) -> None:
        if what not in ("c_call", "c_return") or function.__name__ not in ("write", "fsync"):
            return
        if frame.f_code.co_name == "_write_all" and frame.f_locals["data"]:
            line.update({"phase": "-", **json.loads(frame.f_locals["data"])})
        if (what, function.__name__) == wanted and line.get("event") == event and phase in ("-", line["phase"]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(profile)


if __name__ == "__main__":
    watch(*sys.argv[1:4])
    sys.argv[1:4] = []
    app(prog_name="autoresearch")
