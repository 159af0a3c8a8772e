"""`python -m tests.faked_driver FOLDER`: the real server with a fake of all that its tools do, in a process of its own.

What it is told to do with a trial is the message; FOLDER shows what happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.driver import Driver, Work
from runner.errors import StateError
from runner.mcpserver import serve

SECRET = "sk-canary-0123456789abcdef"


@dataclass
class FakedWork:
    """Implements `Work`."""

    folder: Path
    source: str
    message: str
    stopped: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> dict[str, Any]:
        if self.message == "held":
            error = StateError("run 'x' is held by another runner")
            raise error
        if self.message == "defect":
            raise ZeroDivisionError(SECRET)
        if self.message == "noisy":
            print("printed")
            os.write(1, b"written\n")
            subprocess.run(["echo", "echoed"], check=True)
            subprocess.run(["cat"], check=True)  # reads nothing of the protocol
        if self.message == "slow":
            (self.folder / "started").touch()
            self.stopped.wait()
            error = StateError("terminated")
            raise error
        return {"trial": 4, "verdict": "discard", "idea": self.message, "characters": len(self.source)}

    def stop(self) -> None:
        (self.folder / "stopped").touch()
        self.stopped.set()


@dataclass
class FakedDriver:
    """Implements `Driver`."""

    folder: Path

    def trial(self, source: str, message: str) -> Work:
        return FakedWork(self.folder, source, message)

    def history(self, limit: int) -> list[dict[str, Any]]:
        return [{"trial": number} for number in range(100)][-limit:]

    def champion(self) -> dict[str, Any]:
        return {"source": "RATE = 1\n", "val_bpb": 1.5}

    def diff(self, trial: int) -> dict[str, Any]:
        return {"trial": trial, "diff": "-a\n+b\n"}

    def brief(self) -> str:
        return "find something better\n"


def main() -> None:
    driver: Driver = FakedDriver(Path(sys.argv[1]))
    serve(driver, version="0", defect=lambda: "a defect of ours; please report it")


if __name__ == "__main__":
    main()
