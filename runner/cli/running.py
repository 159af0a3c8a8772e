"""`run` and `trial`: start or continue a run."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runner import ledger
from runner.cli import parts
from runner.cli.app import HERE, JsonOption, TagOption, TaskOption, app, run_folder
from runner.cli.setting_up import VOLUMES_LOCK, prepared_for
from runner.errors import DataError, StateError, UsageError
from runner.ledger import Event, Ledger

if TYPE_CHECKING:
    from runner.loop import Outcome, Stops
    from runner.measure import Measurer
    from runner.prepare import Prepared
    from runner.protocols import Agent, View
    from runner.task import Task
    from runner.trial import Record
    from runner.workspace import Workspace

MAX_SOURCE_BYTES = 1 << 20


class AgentName(StrEnum):
    """Who proposes."""

    TUNER = "tuner"
    REPLAY = "replay"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The flags that a new run is made by; a run under way keeps its own."""

    preset: str | None
    cpu: bool
    gpus: str | None
    seed: int | None
    dataset: str | None
    source: Path | None

    def overrides(self) -> dict[str, object]:
        """What the flags lay over the task's file."""
        data: dict[str, object] = {}
        if self.dataset is not None:
            data["dataset"] = self.dataset
        if self.source is not None:
            data |= {"source": str(self.source.resolve()), "dataset": self.dataset or "files"}
        return {"data": data} if data else {}


PresetOption = Annotated[str | None, typer.Option("--preset", metavar="P", help="Constants, budget, limits and data for one kind of hardware.")]
GpusOption = Annotated[str | None, typer.Option("--gpus", metavar="N", help="Index of the GPU to use.")]
CpuOption = Annotated[bool, typer.Option("--cpu", help="Use the CPU image; without --preset: smoke.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, max=20_000, help="Seed of a new run [default: 1].")]
NewOption = Annotated[bool, typer.Option("--new", help="Start a new run instead of continuing the latest.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", metavar="D", help="kjv, fineweb-edu, climbmix or files.")]
SourceOption = Annotated[Path | None, typer.Option("--source", metavar="DIR", help="Folder with your text, for --dataset files.")]


@app.command()
def run(
    task: TaskOption = HERE,
    tag: TagOption = None,
    preset: PresetOption = None,
    gpus: GpusOption = None,
    cpu: CpuOption = False,
    agent: Annotated[AgentName, typer.Option(help="Who proposes.")] = AgentName.TUNER,
    proposals: Annotated[Path | None, typer.Option(metavar="PATH", help="For replay: a JSONL file or a folder of patches.")] = None,
    trials: Annotated[int | None, typer.Option(min=0, metavar="N", help="End after N new trials (baselines not counted).")] = None,
    hours: Annotated[float | None, typer.Option(min=0.0, metavar="H", help="Start no new trial after H hours.")] = None,
    seed: SeedOption = None,
    dataset: DatasetOption = None,
    source: SourceOption = None,
    new: NewOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start or continue a run: propose, train, score, keep or not; until a limit or Ctrl-C."""
    from runner.loop import Stops

    if (proposals is None) is (agent is AgentName.REPLAY):
        message = "--proposals goes with --agent replay, and only with it"
        raise UsageError(message)
    wanted = Wanted(preset=preset, cpu=cpu, gpus=gpus, seed=seed, dataset=dataset, source=source)
    with _session(task, tag, wanted, new=new, as_json=as_json) as session:
        proposer = _agent(agent, proposals, session)
        outcome = session.go(proposer, Stops(trials=trials, hours=hours))
        session.summary(outcome)


@app.command()
def trial(
    candidate: Annotated[Path, typer.Option("--candidate", metavar="FILE", help="The whole editable file to try.")],
    message: Annotated[str, typer.Option("--message", "-m", metavar="M", help="The idea, in a line.")] = "",
    task: TaskOption = HERE,
    tag: TagOption = None,
    preset: PresetOption = None,
    gpus: GpusOption = None,
    cpu: CpuOption = False,
    seed: SeedOption = None,
    dataset: DatasetOption = None,
    source: SourceOption = None,
    new: NewOption = False,
    as_json: JsonOption = False,
) -> None:
    """One trial of this very file against the run's champion; starts a run where there is none."""
    from runner.agents.hand import HandAgent
    from runner.loop import Stops

    text = _read_source(candidate)
    wanted = Wanted(preset=preset, cpu=cpu, gpus=gpus, seed=seed, dataset=dataset, source=source)
    agent = HandAgent(text, message or f"{candidate.name} by hand")
    with _session(task, tag, wanted, new=new, as_json=as_json, only_token=agent.token) as session:
        under_way = session.ledger.state.open
        if under_way is not None and under_way.proposed["token"] == agent.token:
            agent.skip()
        session.go(agent, Stops(trials=1))


def _read_source(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)
        if len(data) > MAX_SOURCE_BYTES:
            message = f"--candidate {path}: more than {MAX_SOURCE_BYTES >> 20} MiB"
            raise UsageError(message)
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        message = f"--candidate {path}: {reason}"
        raise UsageError(message) from error


@dataclass(kw_only=True)
class _Session:
    """A run held by this process: its ledger, its task, its parts."""

    task: Task
    folder: Path
    ledger: Ledger
    workspace: Workspace
    checkout: Task
    view: View
    as_json: bool
    sequence_length: int

    def go(self, agent: Agent, stops: Stops) -> Outcome:
        """Run the loop with everything in place."""
        from runner.loop import Loop
        from runner.run import Run

        run = Run(task=self.task, tag=self.folder.name, ledger=self.ledger, workspace=self.workspace)
        with self._measurer() as measurer:
            return Loop(run, measurer, agent, self.view).run(stops)

    @contextmanager
    def _measurer(self) -> Iterator[Measurer]:
        from runner import gpus
        from runner.measure import Measurer, Place
        from runner.sandbox.docker import DockerSandbox
        from runner.sandbox.volumes import provide

        header = self.ledger.state.header
        assert header is not None
        client = parts.connect()
        task = parts.within(self.task, client)
        labels = parts.owner_labels(self.workspace.state)
        trial_labels = {**labels, "autoresearch.run": header["id"], "autoresearch.tag": self.folder.name}
        sandbox = DockerSandbox(client, gpu_memory=gpus.memory_used)
        sandbox.reap({"autoresearch.run": header["id"]})
        parts.reap_dead(sandbox, self.workspace.state)
        prepared = prepared_for(task, self.workspace.state, client, quiet=self.as_json)
        prepared.verify()
        self._same_data(prepared)
        fixed = parts.prepare_volume(task, prepared, self.folder / "task", labels)
        with parts.data_volume(prepared, labels) as rows:
            with ledger.one_at_a_time(self.workspace.state / VOLUMES_LOCK):
                provide(client, header["image"], fixed)
                provide(client, header["image"], rows)
            place = Place(
                image=header["image"],
                gpu=header["gpu"],
                prepare_volume=fixed.name,
                data_volume=rows.name,
                labels=tuple(trial_labels.items()),
            )
            yield Measurer(sandbox, task, prepared, place)

    def _same_data(self, prepared: Prepared) -> None:
        """Scores on two splits of the text cannot be compared.  Raises `DataError`."""
        known = self.ledger.state.data
        if known is None:
            self.ledger.write("data", digest=prepared.digest, path=str(prepared.path))
        elif known != prepared.digest:
            message = (
                f"{prepared.path} is not the data this run began with (another split of the text): put that back, "
                "or start another run with --new"
            )
            raise DataError(message)

    def summary(self, outcome: Outcome) -> None:
        """How the run stands, for a person."""
        from runner.report.live import print_summary

        if not self.as_json:
            print_summary(self.folder, self.task.editable, self.ledger.state.records, outcome.reason)


@contextmanager
def _session(
    task: Path, tag: str | None, wanted: Wanted, *, new: bool, as_json: bool, only_token: str | None = None
) -> Iterator[_Session]:
    from runner.log import events_to
    from runner.report.live import JsonView, LiveView
    from runner.task import load_task

    workspace = parts.open_workspace(task)
    folder = _which_run(workspace, tag, new=new)
    workspace.refuse_checked_out(folder.name)
    checkout = load_task(task)
    with _held(workspace, checkout, folder, wanted) as run, events_to(folder / "events.jsonl"), ExitStack() as stack:
        view = JsonView(folder, only_token=only_token) if as_json else LiveView(folder, run.state.records)
        stack.callback(view.close)
        run_folder.set(folder)
        header = run.state.header
        assert header is not None
        _same_wishes(header, wanted)
        frozen = parts.load_frozen(folder, checkout.root, header["preset"], header["overrides"])
        if not as_json:
            _tell(workspace, header, frozen, folder)
        yield _Session(
            task=frozen,
            folder=folder,
            ledger=run,
            workspace=workspace,
            checkout=checkout,
            view=view,
            as_json=as_json,
            sequence_length=frozen.data.sequence_length,
        )


def _which_run(workspace: Workspace, tag: str | None, *, new: bool) -> Path:
    state = workspace.state
    found = parts.runs(state)
    if tag is not None:
        folder = state / parts.checked_tag(tag)
        if new and folder in found:
            message = f"--new: there is a run {tag!r} already: name another --tag"
            raise UsageError(message)
        return folder
    return state / parts.new_tag(workspace) if new or not found else found[-1]


@contextmanager
def _held(workspace: Workspace, checkout: Task, folder: Path, wanted: Wanted) -> Iterator[Ledger]:
    """The run's ledger; a run that does not exist yet is started, and leaves nothing if it cannot be."""
    fresh = not (folder / ledger.JOURNAL).exists()
    if fresh and folder.name in workspace.tags():
        message = (
            f"there are branches or references of a run {folder.name!r}, but its records are not in {folder.parent}: "
            "name another --tag"
        )
        raise StateError(message)
    with ledger.writing(folder) as run:
        if run.state.header is None:
            try:
                header = _start(workspace, checkout, folder, wanted)
            except BaseException:
                if fresh:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            run.write("run", **header)
        (folder / "stop").unlink(missing_ok=True)  # of an earlier runner
        header = run.state.header or {}
        if not run.state.records:
            workspace.start_branch(folder.name, header["base"])
        yield run


def _start(workspace: Workspace, checkout: Task, folder: Path, wanted: Wanted) -> Event:
    """Everything about a new run that is fixed when it starts."""
    from runner import gpus, images
    from runner.task import apply_preset, choose_preset
    from runner.workspace import CommitText

    if wanted.cpu and wanted.gpus is not None:
        message = "--cpu and --gpus exclude each other"
        raise UsageError(message)
    gpu = None if wanted.cpu else gpus.pick(_gpu_index(wanted.gpus))
    head = workspace.head()
    frozen = parts.freeze(workspace, checkout, head, folder)
    preset = choose_preset(
        frozen, cpu=wanted.cpu, gpu_memory_gb=gpu.memory_gb if gpu else None, named=wanted.preset
    )
    overrides = wanted.overrides()
    task = parts.load_frozen(folder, checkout.root, preset, overrides)
    original = workspace.read(head, task.editable).decode()
    source = apply_preset(original, task)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    text = CommitText(
        subject=f"Baseline of run {folder.name}",
        body=f"{task.editable} with the constants of preset {preset}." if preset else "",
        trailers=(("Autoresearch-Run", folder.name),),
        date=created,
    )
    return {
        "format": ledger.FORMAT,
        "id": uuid.uuid4().hex,
        "tag": folder.name,
        "created": created,
        "head": head,
        "base": workspace.candidate(head, task.editable, source.encode(), text),
        "preset": preset,
        "overrides": overrides,
        "seed": 1 if wanted.seed is None else wanted.seed,
        "image": images.image_id("cuda" if gpu else "cpu", workspace.state),
        "gpu": gpu.uuid if gpu else None,
    }


def _gpu_index(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdecimal():
        message = f"--gpus {text}: name one GPU by its index; several at once are not there yet"
        raise UsageError(message)
    return int(text)


def _same_wishes(header: Event, wanted: Wanted) -> None:
    """A run goes on as it was started; flags that say otherwise are a mistake."""
    from runner import gpus

    where = f"GPU {header['gpu']}" if header["gpu"] else "the CPU"
    clashes = [
        f"{flag} {asked} (it has {has})"
        for flag, asked, has in (
            ("--preset", wanted.preset, header["preset"]),
            ("--seed", wanted.seed, header["seed"]),
        )
        if asked is not None and asked != has
    ]
    if wanted.cpu and header["gpu"]:
        clashes.append(f"--cpu (it runs on {where})")
    if wanted.gpus is not None and not (header["gpu"] and gpus.pick(_gpu_index(wanted.gpus)).uuid == header["gpu"]):
        clashes.append(f"--gpus {wanted.gpus} (it runs on {where})")
    if wanted.overrides() and wanted.overrides() != header["overrides"]:
        clashes.append("--dataset or --source (it has others)")
    if clashes:
        message = f"run {header['tag']!r} was started otherwise than {', '.join(clashes)}: leave that out, or use --new"
        raise UsageError(message)


def _tell(workspace: Workspace, header: Event, task: Task, folder: Path) -> None:
    """What a person should know before the first trial."""
    from runner.task import warnings_for

    edited = workspace.uncommitted(header["head"], [task.editable, "autoresearch.yaml"])
    typer.echo(f"run {header['tag']}  preset {header['preset'] or 'none'}  seed {header['seed']}  branch autoresearch/{header['tag']}")
    typer.echo(f"folder {folder}")
    for warning in warnings_for(task, cpu=header["gpu"] is None):
        typer.echo(f"note: {warning}")
    if edited:
        typer.echo(f"note: {', '.join(edited)} differ from the commit this run started at and take no part in it")


def _agent(name: AgentName, proposals: Path | None, session: _Session) -> Agent:
    if name is AgentName.REPLAY:
        from runner.agents.replay import ReplayAgent

        assert proposals is not None
        return ReplayAgent(proposals)
    from runner.agents.space import load_space
    from runner.agents.tuner import TunerAgent

    header = session.ledger.state.header
    assert header is not None
    # From the checkout: a person may change the ranges while the run goes on.
    space = session.checkout.space
    return TunerAgent(
        space=load_space(session.checkout.root / space, session.task.preset) if space else None,
        journal=session.folder / "tuner.jsonl",
        seed=header["seed"],
        sequence_length=session.sequence_length,
    )


def records_as_json(records: list[Record]) -> str:
    """One JSON object a line."""
    from runner.report.jsonrow import record_json

    return "".join(json.dumps(record_json(record)) + "\n" for record in records)
