"""`python -m tests.engines`: what the tests of other engines need."""

from __future__ import annotations

import sys

from runner.setup.steps import CommandError, say
from tests.engines.packages import provide

if __name__ == "__main__":
    try:
        provide()
    except CommandError as error:
        say(f"{error.tail}\nengines: {error}")
        sys.exit(3)
