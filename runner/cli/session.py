"""A run held by this process, with the parts that work on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from runner import ledger
from runner.cli import parts
from runner.cli.app import run_folder
from runner.cli.setting_up import prepared_for
from runner.cli.starting import Wanted, held, refuse_other_level, refuse_other_wishes, which_run
from runner.clock import Now, utc_now
from runner.errors import AutoresearchError, DataError, Terminated
from runner.interrupts import held_back
from runner.ledger import Event, Ledger
from runner.trial import Verdict

if TYPE_CHECKING:
    from runner.dryrun import DryRun
    from runner.loop import Outcome, Stops
    from runner.measure import Measurer
    from runner.measure_reported import ReportedMeasurer
    from runner.money import Purse
    from runner.prepare import Prepared
    from runner.protocols import Agent, Sandbox, View
    from runner.sandbox.docker import DockerSandbox, Engine
    from runner.sandbox.steady import SteadySandbox
    from runner.task import Task
    from runner.tried import Gate
    from runner.workspace import Workspace

PHASES = ("train", "claim", "audit")


@dataclass(kw_only=True)
class Session:
    """A run held by this process: its ledger, its task, its parts."""

    task: Task
    folder: Path
    ledger: Ledger
    workspace: Workspace
    checkout: Task
    view: View
    as_json: bool
    probed_anew: bool = True
    """Whether isolation is tried although it held before on the same engine."""
    now: Now = utc_now

    @property
    def header(self) -> Event:
        """What is fixed for the run."""
        assert self.ledger.state.header is not None
        return self.ledger.state.header

    @property
    def gpu_usd_per_hour(self) -> float | None:
        """None: it does not run on a GPU, or that has no price."""
        return self.task.cost.gpu_usd_per_hour if self.header["gpu"] else None

    def purse(self, limit: float | None) -> Purse:
        """What this invocation may spend: at most `limit` dollars."""
        from runner.money import Purse

        return Purse(limit, gpu_usd_per_hour=self.gpu_usd_per_hour, journal=self.ledger.write)

    def tell(self, agent: str, stops: Stops, *, asks: bool, limit: float | None) -> None:
        """Who proposes, and what that will probably cost, for a person."""
        from runner.money import account, forecast
        from runner.report.costs import forecast_text

        if self.as_json:
            return
        typer.echo(f"agent {agent}")
        records = self.ledger.state.records
        due = max(0, self.task.judge.baselines - sum(record.verdict is Verdict.BASELINE for record in records))
        ahead = forecast(
            account(records), trials=stops.trials, hours=stops.hours, gpu=bool(self.header["gpu"]),
            gpu_usd_per_hour=self.gpu_usd_per_hour, asks=asks, baselines=due, at_least=self.task.budget.seconds,
        )  # fmt: skip
        if ahead is not None:
            typer.echo(f"forecast {forecast_text(ahead)}")
        if limit is not None and not asks and self.gpu_usd_per_hour is None:
            typer.echo("note: --max-usd limits nothing here: no model is asked, and the task has no cost.gpu_usd_per_hour for a GPU")

    def go(self, agent: Agent, stops: Stops, purse: Purse | None = None) -> Outcome:
        """Run the loop with everything in place."""
        from runner.loop import Loop
        from runner.run import Run

        run = Run(task=self.task, tag=self.folder.name, ledger=self.ledger, workspace=self.workspace, now=self.now)
        with self._measuring() as (measurer, gate):
            return Loop(run, measurer, agent, self.view, gate=gate, purse=purse or self.purse(None)).run(stops)

    @contextmanager
    def _measuring(self) -> Iterator[tuple[Measurer | ReportedMeasurer, Gate]]:
        """What measures candidates, and what they have to pass before."""
        from runner import gpus
        from runner.sandbox import cdi
        from runner.sandbox.docker import DockerSandbox

        header = self.ledger.state.header
        assert header is not None
        client = parts.connect()
        task = parts.within(self.task, client)
        labels = parts.owner_labels(self.workspace.state)
        trial_labels = tuple({**labels, "autoresearch.run": header["id"], "autoresearch.tag": self.folder.name}.items())
        offered = cdi.offered(client) if header["gpu"] else frozenset()
        engine = DockerSandbox(client, gpu=gpus.reading, cdi=offered, runtime=header.get("runtime"))
        left = engine.reap({"autoresearch.run": header["id"]}) + parts.reap_dead(engine, self.workspace.state)
        if left:
            typer.echo(f"note: removed {left} containers and volumes that an earlier runner left in the engine", err=self.as_json)
        with _leaving_nothing(engine, header["id"]), parts.leased(engine, client, header["gpu"], run=self.folder.name) as leased:
            sandbox = parts.steady(leased, stopping=(self.folder / "stop").exists, tell=lambda said: typer.echo(f"note: {said}", err=True))
            sandbox.needs(partial(parts.same_engine, client, str(client.info()["ID"])))
            sandbox.needs(partial(engine.reap, {"autoresearch.run": header["id"]}))
            try_isolation = partial(
                parts.try_isolation, leased, client, self.workspace.state, header["image"], header["gpu"], dict(trial_labels), cdi=offered,
                runtime=header.get("runtime"), device_file=gpus.find(header["gpu"]).device_file if header["gpu"] else None,
            )  # fmt: skip
            again = iter([self.probed_anew])
            sandbox.needs(lambda: try_isolation(again=next(again, True)))
            if task.score.reported:
                yield self._reporting(sandbox, task, header, trial_labels), parts.gate(task, None)
            else:
                prepared = self._prepared(task, client)
                with self._auditing(sandbox, client, task, prepared, trial_labels) as (measurer, dry_run):
                    card_gb = gpus.find(header["gpu"]).memory_gb if header["gpu"] else None
                    yield measurer, parts.gate(task, prepared, card_gb=card_gb, dry_run=dry_run)

    def _reporting(
        self, sandbox: Sandbox, task: Task, header: Event, labels: tuple[tuple[str, str], ...]
    ) -> ReportedMeasurer:
        from runner.measure_reported import ARCHIVE, ReportedMeasurer, pack

        pack(self.folder / "task", self.folder / ARCHIVE)
        return ReportedMeasurer(
            sandbox, task, self.folder / ARCHIVE, image=header["image"], gpu=header["gpu"], labels=labels
        )

    @contextmanager
    def _auditing(
        self, sandbox: SteadySandbox, client: Engine, task: Task, prepared: Prepared, trial_labels: tuple[tuple[str, str], ...]
    ) -> Iterator[tuple[Measurer, DryRun | None]]:
        """What measures, and what tries first; None where the task has no dry run."""
        from runner.dryrun import PROGRAM, DryRun
        from runner.measure import Measurer
        from runner.phases import Phases, Place
        from runner.sandbox.volumes import provide
        from runner.trial import PhaseImages

        labels = parts.owner_labels(self.workspace.state)
        header = self.ledger.state.header
        assert header is not None
        fixed = {
            phase: parts.prepare_volume(task, prepared, self.folder / "task", labels, phase) for phase in PHASES
        }
        with ExitStack() as stack:
            timed = task.budget.seconds is not None
            rows = stack.enter_context(parts.data_volume(prepared, labels)) if timed else None
            volumes = [*fixed.values(), *([rows] if rows else [])]

            def fill() -> None:
                with ledger.one_at_a_time(self.workspace.state / parts.VOLUMES_LOCK):
                    for volume in volumes:
                        provide(client, header["image"], volume)

            sandbox.needs(fill)
            place = Place(
                images=PhaseImages(**header["images"]),
                gpu=header["gpu"],
                prepare_volumes=tuple((phase, volume.name) for phase, volume in fixed.items()),
                data_volume=rows.name if rows else None,
                labels=trial_labels,
            )
            dry_run = DryRun(sandbox, Phases(task, prepared, place), task, on_gpu=header["gpu"] is not None)
            # A task that was made by an earlier version has no program for it.
            there = task.gates.dry_run and (self.folder / "task" / str(task.prepare) / PROGRAM).is_file()
            yield Measurer(sandbox, task, prepared, place), dry_run if there else None

    def _prepared(self, task: Task, client: Engine) -> Prepared:
        """The task's data, every byte of them checked."""
        prepared = prepared_for(task, self.workspace.state, client, quiet=self.as_json)
        prepared.verify()
        self._same_data(prepared)
        return prepared

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
def open_session(
    task: Path, tag: str | None, wanted: Wanted, *, new: bool, as_json: bool, only_token: str | None = None
) -> Iterator[Session]:
    """Hold the run that the flags mean, started if there is none, for as long as the block lasts.

    With `only_token` machine-readable output has that one proposal's record alone.
    """
    from runner.log import events_to
    from runner.report.live import JsonView, LiveView, Unharmed
    from runner.task import load_task

    workspace = parts.open_workspace(task)
    folder = which_run(workspace, tag, new=new)
    workspace.refuse_checked_out(folder.name)
    checkout = load_task(task)
    with held(workspace, checkout, folder, wanted) as run, events_to(folder / "events.jsonl"), ExitStack() as stack:
        run_folder.set(folder)
        records = run.state.records
        view = Unharmed(JsonView(folder, records, only_token=only_token) if as_json else LiveView(folder, records))
        stack.callback(view.close)
        header = run.state.header
        assert header is not None
        refuse_other_wishes(header, wanted)
        frozen = parts.load_frozen(folder, checkout.root, header["preset"], header["overrides"])
        refuse_other_level(checkout, frozen, f"run {header['tag']!r}", "the two are never mixed on one branch; use --new")
        if not as_json:
            _tell(workspace, header, frozen, folder)
        yield Session(
            task=frozen,
            folder=folder,
            ledger=run,
            workspace=workspace,
            checkout=checkout,
            view=view,
            as_json=as_json,
            probed_anew=only_token is None,
        )


@contextmanager
def _leaving_nothing(engine: DockerSandbox, run: str) -> Iterator[None]:
    """A signal may come between the making of a container and the block that removes it."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        with held_back(), suppress(AutoresearchError):
            engine.reap({"autoresearch.run": run})
        raise


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
