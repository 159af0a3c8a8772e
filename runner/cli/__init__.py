"""The command line: flags to configuration to parts to loop, and errors to exit codes.

The one place that builds concrete classes.  What is slow to import is imported inside the commands.
"""

from __future__ import annotations

from runner.interrupts import at_once

with at_once():  # nothing has begun
    from runner.cli import (  # registers the commands
        looking,
        running,
        selftesting,
        serving,
        setting_up,
        steering,
    )
    from runner.cli.app import app

__all__ = ["app", "looking", "running", "selftesting", "serving", "setting_up", "steering"]
