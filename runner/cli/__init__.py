"""The command line: flags to configuration to parts to loop, and errors to exit codes.

The one place that builds concrete classes.  What is slow to import is imported inside the commands.
"""

from __future__ import annotations

from runner.cli import looking, running, selftesting, serving, setting_up, steering  # registers the commands
from runner.cli.app import app

__all__ = ["app", "looking", "running", "selftesting", "serving", "setting_up", "steering"]
