"""`status`, `log`, `show`, `report`, `champion`, `export-model` and `stop`: look at a run, or end it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner import ledger
from runner.cli import parts
from runner.cli.app import HERE, JsonOption, TagOption, TaskOption, app
from runner.cli.comparing import ReferenceOption, reference_for
from runner.errors import StateError, UsageError
from runner.ledger import is_held, judged
from runner.trial import Record, Verdict

if TYPE_CHECKING:
    from runner.report.standing import Standing

TrialArgument = Annotated[int, typer.Argument(metavar="N", min=0, help="Number of the trial.")]


@app.command()
def status(task: TaskOption = HERE, tag: TagOption = None, reference: ReferenceOption = None, as_json: JsonOption = False) -> None:
    """How the latest run stands."""
    from runner.report.costs import (
        ahead_of,
        costs_of,
        costs_text,
        costs_values,
        forecast_text,
        forecast_values,
    )
    from runner.report.reference import reference_text, reference_values
    from runner.report.table import status_lines, status_values

    folder, found = parts.glance(task, tag)
    price = parts.gpu_price(folder, found.state.header or {})
    spent, ahead = costs_of(found.state, found.account, price), ahead_of(found.state, found.account, price)
    # Only who compares two runs has to read them.
    state = found.state if reference is None else ledger.read(folder)
    other = reference_for(task, folder, state, reference)
    if as_json:
        values = status_values(folder, found.summary, running=is_held(folder), open_trial=found.open_trial)
        compared = None if other is None else reference_values(other, state.records)
        typer.echo(json.dumps({**values, "cost": costs_values(spent), "forecast": forecast_values(ahead), "reference": compared}))
    else:
        lines = status_lines(folder, found.summary, running=is_held(folder), open_trial=found.open_trial)
        lines += [f"cost      {costs_text(spent)}", *([f"forecast  {forecast_text(ahead)}"] if ahead is not None else [])]
        lines += [f"reference {reference_text(other, state.records)}"] if other is not None else []
        for line in lines:
            typer.echo(line)


@app.command()
def log(task: TaskOption = HERE, tag: TagOption = None, as_json: JsonOption = False) -> None:
    """Every trial of a run, oldest first."""
    from runner.report.jsonrow import record_json
    from runner.report.table import print_log

    _, _, state = parts.look(task, tag)
    if as_json:
        for record in state.records:
            typer.echo(json.dumps(record_json(record)))
    else:
        print_log(state.records)


@app.command()
def show(trial: TrialArgument, task: TaskOption = HERE, tag: TagOption = None, as_json: JsonOption = False) -> None:
    """One trial: result, rationale, diff, where its log is."""
    from runner.difftext import unified_diff
    from runner.report.jsonrow import record_json
    from runner.report.show import show_text

    workspace = parts.open_workspace(task)
    folder, found = parts.glance(task, tag)
    record = _record(folder, found, trial)
    header = found.state.header or {}
    frozen = parts.load_frozen(folder, workspace.root, header["preset"], header["overrides"])
    before = header["head"] if record.verdict is Verdict.BASELINE or record.parent is None else record.parent
    diff = ""
    if record.commit is not None:
        old, new = (workspace.read(commit, frozen.editable).decode(errors="replace") for commit in (before, record.commit))
        diff = unified_diff(old, new, frozen.editable)
    if as_json:
        typer.echo(json.dumps({**record_json(record), "diff": diff}))
    else:
        typer.echo(show_text(record, diff), nl=False)


@app.command()
def report(
    task: TaskOption = HERE,
    tag: TagOption = None,
    final: Annotated[bool, typer.Option("--final", help="Measure baseline and kept commits again: fresh seeds, locked test split.")] = False,
    reference: ReferenceOption = None,
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, max=100, metavar="N", help="With --final: seeds for each commit, 3 if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the plot and write results.tsv again; with --final show how much of the gain is real."""
    from runner.money import account
    from runner.report.costs import costs_of, costs_text, costs_values
    from runner.report.live import publish
    from runner.report.reference import reference_text, reference_values
    from runner.report.table import print_log

    if final and reference is not None:
        message = "--reference goes without --final, which measures the run's own commits"
        raise UsageError(message)
    if final:
        from runner.cli.finals import final_report

        final_report(task, tag, repeats=repeats, as_json=as_json)
        return
    if repeats is not None:
        message = "--repeats goes with --final, and only with it"
        raise UsageError(message)
    _, folder, state = parts.look(task, tag)
    if not state.records:
        message = f"run {folder.name!r} has no finished trial yet"
        raise UsageError(message)
    other = reference_for(task, folder, state, reference)
    publish(folder, state.records, other)
    spent = costs_of(state, account(state.records), parts.gpu_price(folder, state.header or {}))
    paths = {"plot": str(folder / "progress.png"), "results": str(folder / "results.tsv")}
    if as_json:
        compared = None if other is None else reference_values(other, state.records)
        typer.echo(json.dumps({**paths, "cost": costs_values(spent), "reference": compared}))
    else:
        print_log(state.records)
        typer.echo(f"cost     {costs_text(spent)}")
        if other is not None:
            typer.echo(f"reference {reference_text(other, state.records)}")
        for name, path in paths.items():
            typer.echo(f"{name:8} {path}")


@app.command()
def champion(task: TaskOption = HERE, tag: TagOption = None, as_json: JsonOption = False) -> None:
    """Print the champion's file: edit that for `autoresearch trial --candidate`."""
    from runner.report.table import champion_values

    workspace = parts.open_workspace(task)
    folder, found = parts.glance(task, tag)
    header = found.state.header or {}
    frozen = parts.load_frozen(folder, workspace.root, header["preset"], header["overrides"])
    tip = workspace.tip(folder.name)
    if tip is None:
        message = f"the branch autoresearch/{folder.name} is gone: `autoresearch run --tag {folder.name}` says what to do"
        raise StateError(message)
    source = workspace.read(tip, frozen.editable).decode(errors="replace")
    if as_json:
        about = champion_values(found.summary, tip)
        typer.echo(json.dumps({"tag": folder.name, "commit": tip, "path": frozen.editable, **about, "source": source}))
    else:
        typer.echo(source, nl=False)


@app.command("export-model")
def export_model(
    trial: TrialArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="By default model-N.safetensors.")] = None,
    task: TaskOption = HERE,
    tag: TagOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy the checkpoint of a kept trial (safetensors) out of the run's folder."""
    from runner.ledger import trial_folder
    from runner.measure import CHECKPOINT

    folder, found = parts.glance(task, tag)
    record = _record(folder, found, trial)
    source = trial_folder(folder, trial) / CHECKPOINT
    if record.score_level == "reported":
        message = f"trial {trial} has no checkpoint: a task that reports its score hands over none"
        raise UsageError(message)
    if not source.is_file():
        message = f"trial {trial} ({record.verdict}) has no checkpoint: only those of the first baseline and the newest kept trials stay"
        raise UsageError(message)
    target = output or Path(f"model-{trial}.safetensors")
    if target.exists() and not force:
        message = f"{target} is there already: name another --output, or --force"
        raise UsageError(message)
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        message = f"cannot write {target}: {error.strerror}"
        raise StateError(message) from error
    value = {"trial": trial, "path": str(target), "bytes": target.stat().st_size, "val_bpb": record.val_bpb, "commit": record.commit}
    typer.echo(json.dumps(value) if as_json else f"{target}: {value['bytes']} bytes, val_bpb {record.val_bpb}")


@app.command()
def stop(task: TaskOption = HERE, tag: TagOption = None, as_json: JsonOption = False) -> None:
    """Ask the runner of a run to end after the current trial."""
    workspace = parts.open_workspace(task)
    folder = parts.run_folder(workspace.state, tag)
    held = is_held(folder)
    if held:
        (folder / "stop").touch()
    if as_json:
        typer.echo(json.dumps({"tag": folder.name, "stopping": held}))
    elif held:
        typer.echo(f"run {folder.name!r} ends after its current trial")
    else:
        typer.echo(f"no runner works on {folder.name!r}: there is nothing to stop")


def _record(folder: Path, found: Standing, trial: int) -> Record:
    record = judged(folder, trial)
    if record is None:
        last = found.summary.last
        message = f"there is no finished trial {trial}" + (f"; the last is {last.trial}" if last is not None else " yet")
        raise UsageError(message)
    return record
