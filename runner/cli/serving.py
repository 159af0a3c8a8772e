"""`mcp`: tools for an agent that drives a run."""

from __future__ import annotations

from pathlib import Path

from runner.cli import parts
from runner.cli.app import HERE, TagOption, TaskOption, app, written_defect
from runner.cli.running import CpuOption, GpusOption, PresetOption
from runner.errors import UsageError


@app.command()
def mcp(task: TaskOption = HERE, tag: TagOption = None, preset: PresetOption = None, gpus: GpusOption = None, cpu: CpuOption = False) -> None:
    """Serve tools to an agent by the Model Context Protocol, on standard input and output."""
    from importlib.metadata import version

    from runner.agents.shown import read_brief
    from runner.driver import CommandDriver
    from runner.mcpserver import serve
    from runner.task import load_task

    if cpu and gpus is not None:
        message = "--cpu and --gpus exclude each other"
        raise UsageError(message)
    workspace = parts.open_workspace(task)
    checkout = load_task(task)
    driver = CommandDriver(
        task=str(task.resolve()),
        tag=_Tag(workspace.state, None if tag is None else parts.checked_tag(tag)),
        read_brief=lambda: read_brief(checkout.root / checkout.brief),
        flags=[
            *([] if preset is None else [f"--preset={preset}"]),
            *([] if gpus is None else [f"--gpus={gpus}"]),
            *(["--cpu"] if cpu else []),
        ],
    )
    serve(driver, version=version("autoresearch"), defect=written_defect)


class _Tag:
    """The run that is driven: the one that was asked for, else the latest when there first was one.

    Another run that somebody starts meanwhile is not the agent's.
    """

    def __init__(self, state: Path, tag: str | None) -> None:
        self._state, self._tag = state, tag

    def __call__(self) -> str | None:
        if self._tag is None and (found := parts.runs(self._state)):
            self._tag = found[-1].name
        return self._tag
