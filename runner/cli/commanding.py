"""The flags of `run` about a command that proposes, and the agent that they mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.agents.command import CommandAgent, Options
    from runner.cli.session import Session
    from runner.money import Purse

SECONDS = 600

CommandOption = Annotated[
    str | None,
    typer.Option("--command", metavar="C", help="For command: what edits the file, with {prompt_file}, {workdir} and {seconds} (docs/agents.md)."),
]
SecondsOption = Annotated[
    int | None, typer.Option("--command-seconds", min=1, max=86_400, metavar="S", help=f"For command: its deadline. [default: {SECONDS}]")
]
PassOption = Annotated[list[str] | None, typer.Option("--pass-env", metavar="NAME", help="For command: a variable that it has; repeatable.")]
PathOption = Annotated[
    list[Path] | None, typer.Option("--agent-path", metavar="DIR", help="For command: a folder it is installed in, shown read-only; repeatable.")
]


@dataclass(frozen=True, kw_only=True)
class Commanded:
    """The flags as they were given."""

    command: str | None
    seconds: int | None
    passed: Sequence[str]
    paths: Sequence[Path]

    def check(self, *, wanted: bool) -> None:
        """Raises `UsageError` if they do not go with the agent."""
        flags = (("--command", self.command), ("--command-seconds", self.seconds), ("--pass-env", self.passed), ("--agent-path", self.paths))
        given = [flag for flag, value in flags if value]
        if wanted and self.command is None:
            message = "--agent command wants --command '...', a command that edits the file in its folder; docs/agents.md has some"
            raise UsageError(message)
        if given and not wanted:
            message = f"{given[0]} goes with --agent command, and only with it"
            raise UsageError(message)

    def options(self, closed: Sequence[Path]) -> Options:
        """What they mean; `closed` is shown to no agent.  Raises `UsageError`, or `AgentError` if the sandbox lacks the program."""
        from runner.agents import bubblewrap
        from runner.agents.command import Options

        assert self.command is not None
        found = Options(
            command=self.command,
            seconds=self.seconds or SECONDS,
            passed=bubblewrap.passed_variables(self.passed, os.environ),
            agent_paths=bubblewrap.shown_paths(self.paths, closed=closed, home=Path.home()),
        )
        first = bubblewrap.words(self.command, prompt_file="", seconds=found.seconds)[0]
        bubblewrap.refuse_unseen(first, found.agent_paths)
        return found


def commanded(flags: Commanded, session: Session, *, limit: int, purse: Purse) -> CommandAgent:
    """The agent, after its sandbox was tried.  Raises `AgentError` or `UsageError`."""
    from runner.agents.command import CommandAgent
    from runner.agents.confined import try_sandbox
    from runner.cli import parts
    from runner.cli.steering import count, shown_by

    state = session.workspace.state
    options = flags.options(closed=[state, parts.data_root(state)])
    try_sandbox(session.folder)
    header = session.ledger.state.header
    assert header is not None
    shown = shown_by(session.folder, session.checkout.root, session.task, header)
    return CommandAgent(options, shown.facts, session.folder, limit=limit, count=count, purse=purse)
