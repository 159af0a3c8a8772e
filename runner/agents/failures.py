"""Pure: when an agent that asks a model has failed so often that it is taken to be of no use here."""

from __future__ import annotations

from collections.abc import Sequence

from runner.errors import AgentError
from runner.trial import Record, Verdict

FAILURES_IN_A_ROW = 8
"""Proposals that came to no container."""


def refuse_useless(records: Sequence[Record], *, agent: str, asked: str) -> None:
    """Raises `AgentError` if the last proposals of `agent` in this invocation's `records` came to no trial.

    `asked` is what a person calls the model or the command.
    """
    last = [record for record in records if record.agent == agent][-FAILURES_IN_A_ROW:]
    if len(last) == FAILURES_IN_A_ROW and all(record.verdict is Verdict.INVALID and record.ending is None for record in last):
        message = (
            f"the last {FAILURES_IN_A_ROW} proposals of {asked} came to no trial, at last: {last[-1].reason}. "
            "`autoresearch show N` has each; the same command goes on"
        )
        raise AgentError(message)
