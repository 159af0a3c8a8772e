"""What an outside agent may do with a run, each thing by the command of that name in a process of its own.

So a trial goes exactly the way of `autoresearch trial`, what a command prints is its own, and whatever ends one of them
(a crash, a signal, no memory) ends neither the server that asked nor the other way round.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from runner.errors import AutoresearchError
from runner.report.text import plain

PROGRAM = (sys.executable, "-P", "-m", "runner.cli")
"""`-P`: else Python looks for modules in the current folder first, which may be one that an agent writes to."""
ENDING_SECONDS = 60.0
"""For a trial that was asked to end: removing a container takes seconds."""
SENTENCE_LIMIT = 2000
SAID = "autoresearch: "
"""What the error boundary's one message starts with."""


class CommandError(AutoresearchError):
    """A command ended with a sentence and this exit code."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        """`exit_code` is the command's own; see `runner.errors`."""
        super().__init__(sentence)
        self.exit_code = exit_code


class Work(Protocol):
    """A trial under way."""

    def wait(self) -> dict[str, Any]:
        """The object that `trial --json` prints.  Raises `AutoresearchError`."""
        ...

    def stop(self) -> None:
        """End it, as Ctrl-C would; what was measured is kept.  `wait` then raises `AutoresearchError`."""
        ...


class Driver(Protocol):
    """Everything that the tools of an outside agent do."""

    def trial(self, source: str, message: str) -> Work:
        """Start a trial of the whole file `source`."""
        ...

    def history(self, limit: int) -> list[dict[str, Any]]:
        """The newest `limit` rows of `log --json`, oldest first.  Raises `AutoresearchError`."""
        ...

    def champion(self) -> dict[str, Any]:
        """What `champion --json` prints.  Raises `AutoresearchError`."""
        ...

    def diff(self, trial: int) -> dict[str, Any]:
        """What the trial changed in its parent's file.  Raises `AutoresearchError`."""
        ...

    def brief(self) -> str:
        """The person's page.  Raises `AutoresearchError`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command under way: implements `Work`."""

    process: subprocess.Popen[str]
    given: str
    """What it reads."""
    name: str

    def rows(self) -> list[dict[str, Any]]:
        """The objects that it prints, once it has ended.  Raises `CommandError`."""
        out, err = self.process.communicate(self.given)
        code = self.process.returncode
        if code != 0:
            # Ended by a signal: the number that a shell gives.
            raise CommandError(_sentence(err, self.name, code), code if code > 0 else 128 - code)
        return [json.loads(line) for line in out.splitlines()]

    def wait(self) -> dict[str, Any]:
        """See `Work`."""
        found = self.rows()
        if not found:
            message = "the trial was not judged: somebody asked the run to stop; the same file again goes on with it"
            raise CommandError(message, 0)
        return found[-1]

    def stop(self) -> None:
        """See `Work`."""
        # Not SIGINT: a process that was started in the background of a shell ignores that.
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(ENDING_SECONDS)
        self.process.kill()


@dataclass(frozen=True, kw_only=True)
class CommandDriver:
    """Implements `Driver` by the command line."""

    task: str
    tag: Callable[[], str | None]
    """Which run; None as long as there is none."""
    read_brief: Callable[[], str]
    flags: Sequence[str] = ()
    """Of `trial`."""
    program: Sequence[str] = field(default=PROGRAM)

    def trial(self, source: str, message: str) -> Work:
        """See `Driver`."""
        # Through a pipe: nothing is left on the disk, however this process ends.
        return self._start("trial", "--candidate=/dev/stdin", f"--message={message}", *self.flags, given=source)

    def history(self, limit: int) -> list[dict[str, Any]]:
        """See `Driver`."""
        return self._start("log").rows()[-limit:]

    def champion(self) -> dict[str, Any]:
        """See `Driver`."""
        return self._start("champion").rows()[0]

    def diff(self, trial: int) -> dict[str, Any]:
        """See `Driver`."""
        row = self._start("show", str(trial)).rows()[0]
        return {key: row[key] for key in ("trial", "commit", "parent", "verdict", "diff")}

    def brief(self) -> str:
        """See `Driver`."""
        return self.read_brief()

    def _start(self, name: str, *arguments: str, given: str = "") -> Command:
        tag = self.tag()
        run = [f"--tag={tag}"] if tag is not None else []
        command = [*self.program, name, *arguments, f"--task={self.task}", *run, "--json"]
        pipe = subprocess.PIPE
        # A session of its own: a Ctrl-C, or the signal with which a client ends its server, is not for the trial.
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace", start_new_session=True
        )
        return Command(process=process, given=given, name=name)


def _sentence(err: str, name: str, code: int) -> str:
    """The message for the user, of everything that stands on standard error."""
    if code < 0:
        return f"`autoresearch {name}` was ended by signal {-code}; what was measured is kept"
    said = [line.removeprefix(SAID) for line in err.splitlines() if line.startswith(SAID)]
    return plain(said[-1], SENTENCE_LIMIT) if said else f"`autoresearch {name}` ended with exit code {code}"
