"""Another run to hold a run against: found, and refused if their scores cannot be compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner.cli import parts
from runner.errors import UsageError
from runner.ledger import State
from runner.report.summary import summarise

if TYPE_CHECKING:
    from runner.report.reference import Reference

ReferenceOption = Annotated[
    str | None, typer.Option("--reference", metavar="TAG", help="Another run of this task to compare with: the keyless tuner's, for instance.")
]


def reference_for(task: Path, folder: Path, state: State, tag: str | None) -> Reference | None:
    """The run `tag` as a reference for the run in `folder`; None: nobody asked for one.

    Raises `UsageError` if there is no such run, it has no baseline yet, or its scores are not comparable.
    """
    from runner.report.reference import reference_of

    if tag is None:
        return None
    workspace, other_folder, other = parts.look(task, tag)
    if other_folder == folder:
        message = f"--reference {tag}: that is the run itself; name another"
        raise UsageError(message)
    if summarise(other.records).baseline is None:
        message = f"--reference {tag}: it has no baseline yet, so there is nothing to compare with"
        raise UsageError(message)
    clash = difference(folder, state, other_folder, other, workspace.root)
    if clash is not None:
        message = f"--reference {tag}: {clash}, so the scores cannot be compared; name a run that was started alike"
        raise UsageError(message)
    return reference_of(tag, other.records)


def difference(folder: Path, state: State, other_folder: Path, other: State, root: Path) -> str | None:
    """Why the scores of two runs cannot be compared, or None."""
    header, another = state.header or {}, other.header or {}
    one, two = (parts.load_frozen(where, root, head["preset"], head["overrides"]) for where, head in ((folder, header), (other_folder, another)))
    facts = (
        ("preset", header["preset"], another["preset"]),
        ("score level", one.score.level, two.score.level),
        ("metric", one.score.metric, two.score.metric),
        ("direction", one.score.direction, two.score.direction),
        ("budget", _budget(one.budget.seconds, one.budget.steps), _budget(two.budget.seconds, two.budget.steps)),
        ("data", state.data and state.data[:12], other.data and other.data[:12]),
        ("place", "a GPU" if header["gpu"] else "the CPU", "a GPU" if another["gpu"] else "the CPU"),
    )
    return next((f"its {name} is {theirs or 'none'}, and this run's {ours or 'none'}" for name, ours, theirs in facts if ours != theirs), None)


def _budget(seconds: float | None, steps: int | None) -> str:
    return f"{steps} steps" if seconds is None else f"{seconds:g} s"
