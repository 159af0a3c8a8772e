"""Every error a user can meet, with the exit code it ends in.

::

    AutoresearchError
     ├── UsageError        2   flags, autoresearch.yaml, presets
     ├── EngineError       3   no engine, too old, permission, disk full, image missing or not buildable
     │    └── EngineFailedError      it failed under way: trying again may help
     │         └── StuckContainerError    a container of ours that does not die: trying again does not
     ├── GpuError          4   asked for and absent, or leased
     ├── AgentError        5   proposer or model
     ├── DataError         6   prepared data missing, damaged or not downloadable
     ├── StateError        7   repository or state folder: held, full, moved, checked out
     └── BaselineError     8   the baseline gave no score
    KeyboardInterrupt    130   Ctrl-C
    Terminated           143   SIGTERM; 129 where the terminal has closed (SIGHUP)

A trial that fails is a value (`runner.trial.Result`), never one of these.  A message says what is
wrong, where, and what to do next.  Anything else that escapes is a defect of ours (exit code 70).
"""

from __future__ import annotations

import signal

EXIT_DEFECT = 70


class AutoresearchError(Exception):
    """Root of the tree; `exit_code` is what the process ends with."""

    exit_code = EXIT_DEFECT


class UsageError(AutoresearchError):
    """A flag, a configuration key or a preset is wrong."""

    exit_code = 2


class EngineError(AutoresearchError):
    """The container engine or an image it needs is not usable."""

    exit_code = 3


class EngineFailedError(EngineError):
    """The engine was usable and failed under way: gone, restarted, out of order, or a container of ours was ended from outside.

    What was measured meanwhile counts for nothing, and may be measured again.
    """


class StuckContainerError(EngineFailedError):
    """A container of ours can be neither killed nor removed, and may hold what it was given."""


class GpuError(AutoresearchError):
    """The GPU asked for is absent or taken."""

    exit_code = 4


class AgentError(AutoresearchError):
    """The agent cannot propose (any more)."""

    exit_code = 5


class DataError(AutoresearchError):
    """Prepared data are missing, damaged or could not be fetched."""

    exit_code = 6


class StateError(AutoresearchError):
    """The repository or the state folder is held, its disk full, foreign or was changed by hand."""

    exit_code = 7


class BaselineError(AutoresearchError):
    """The unmodified baseline gave no score, so nothing can be compared with it."""

    exit_code = 8


class Terminated(BaseException):
    """SIGTERM or SIGHUP: like KeyboardInterrupt, nothing but the error boundary may stop it."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
