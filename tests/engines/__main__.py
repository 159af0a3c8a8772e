"""`python -m tests.engines`: the packages of Debian that the tests of other engines need."""

from __future__ import annotations

import shutil
import sys

from runner.setup.steps import CommandError, apt_install, say

PROGRAMS = {
    "rootlesskit": "rootlesskit",
    "newuidmap": "uidmap",
    "podman": "podman",
    "setpriv": "util-linux",
    "useradd": "passwd",
    "pkill": "procps",
}

if __name__ == "__main__":
    missing = sorted(package for program, package in PROGRAMS.items() if shutil.which(program) is None)
    try:
        if missing:
            apt_install(missing, what="installing engines of other kinds", say=say)
            say(f"engines: installed {', '.join(missing)}")
    except CommandError as error:
        say(f"{error.tail}\nengines: {error}")
        sys.exit(3)
