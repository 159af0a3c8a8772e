"""Ctrl-C, SIGTERM and a terminal that closes: the first ends a command cleanly, the second at once.

The first is an exception in the main thread, wherever that is, so that containers, volumes and leases go on the way out.
What must not be left half done (a line of the journal, a call of git, a removal) holds it back until it is done.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from runner.errors import Terminated

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SHOW_CURSOR = b"\x1b[?25h"


class _Watch:
    """What this process has been told; signals belong to the process, so there is one."""

    first: int | None = None
    """Number of the first signal."""
    raised = False
    holds = 0


def listen() -> None:
    """Handle the signals from here on.  One that `nohup` had ignored stays ignored."""
    _Watch.first, _Watch.raised, _Watch.holds = None, False, 0
    for number in SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)


@contextmanager
def at_once() -> Iterator[None]:
    """A Ctrl-C inside the block ends the process without a word."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Nothing inside the block is interrupted; a first signal that comes meanwhile is raised at its end."""
    _Watch.holds += 1
    try:
        yield
    finally:
        _Watch.holds -= 1
        _raise_if_due()


def name_of(ended: KeyboardInterrupt | Terminated) -> str:
    """Which signal it was."""
    return signal.SIGINT.name if isinstance(ended, KeyboardInterrupt) else signal.Signals(ended.exit_code - 128).name


def _arrived(number: int, _frame: FrameType | None) -> None:
    if _Watch.first is not None:
        with suppress(OSError):
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), _SHOW_CURSOR)
        os._exit(128 + number)
    _Watch.first = number
    _raise_if_due()


def _raise_if_due() -> None:
    if _Watch.first is None or _Watch.raised or _Watch.holds:
        return
    _Watch.raised = True
    if _Watch.first == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(_Watch.first)
