"""`python3 -m runner.setup.bubblewrap`: the program that `--agent command` runs agents in, `bwrap`.

Nothing happens if it is there.  As root on Debian or Ubuntu it is installed; elsewhere it says what to do.  Standard library only.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from runner.setup.steps import CommandError, Stopwatch, apt_install, say

PACKAGE = "bubblewrap"


def find() -> str | None:
    """Where the program is."""
    return shutil.which("bwrap")


def install() -> None:
    """As root on Debian or Ubuntu.  Raises `CommandError`."""
    watch = Stopwatch()
    apt_install([PACKAGE], what=f"installing {PACKAGE}", say=say)
    say(f"bubblewrap: installed ({watch})")


@dataclass(frozen=True)
class Means:
    """What this machine offers for it; a test hands in another."""

    find: Callable[[], str | None] = find
    root: bool = os.geteuid() == 0
    apt: bool = shutil.which("apt-get") is not None
    install: Callable[[], None] = install


def provide(means: Means) -> str | None:
    """See to it that the program is there; else say what the user must do."""
    if means.find() is None and means.root and means.apt:
        means.install()
    if (found := means.find()) is None:
        return (
            "bubblewrap (bwrap) is missing: agents of other people run in nothing less, and the tests run some. "
            f"As root on Debian or Ubuntu: apt-get install {PACKAGE}; elsewhere it is the package {PACKAGE} too"
        )
    say(f"bubblewrap: {found}")
    return None


def main() -> int:
    """The command."""
    try:
        missing = provide(Means())
    except CommandError as error:
        missing = f"{error}\n{error.tail}"
    if missing is not None:
        print(f"setup: {missing}", file=sys.stderr)
    return 0 if missing is None else 3


if __name__ == "__main__":
    sys.exit(main())
