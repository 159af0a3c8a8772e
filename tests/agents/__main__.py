"""`python -m tests.agents`: install the agents that the tests run."""

from __future__ import annotations

import sys

from runner.setup.steps import CommandError, say
from tests.agents.installed import install

NEWEST = (3, 12)
"""Python that aider's requirements have files for."""

if __name__ == "__main__":
    if sys.version_info[:2] > NEWEST:
        sys.exit(f"agents: aider needs Python 3.11 or 3.12, and .venv has {sys.version.split()[0]}: make agents PYTHON=python3.12")
    try:
        install()
    except CommandError as error:
        say(f"{error.tail}\nagents: {error}")
        sys.exit(3)
