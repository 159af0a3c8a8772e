"""A whole trial as the runner does it, with the runner's own parts, and where its seconds go.

Nothing in the runner is changed for this: the sandbox is wrapped at its seam, and the engine's client that it is given
notes when each call began and ended.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from runner import ledger
from runner.cli import parts
from runner.cli.session import open_session
from runner.cli.setting_up import prepared_for
from runner.cli.starting import Wanted
from runner.errors import EngineError
from runner.loop import Loop, Stops
from runner.measure import CHECKPOINT, Measurer
from runner.prepare import Prepared
from runner.protocols import Agent
from runner.run import Run
from runner.sandbox.build import Builder
from runner.sandbox.docker import DockerSandbox
from runner.task import Task
from runner.trial import Progress, Result, TrialSpec

TAG = "bench"
STEPS = ("copy in", "start-up", "work", "copy out", "clean-up")
"""What the seconds of one container are divided into."""

# ----------------------------------------------------------------------------------------------- noting


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the engine's client."""

    name: str
    first: object
    """The first argument: often a container's id."""
    began: float
    ended: float


class Noted:
    """Stands for the engine's client and passes everything on."""

    def __init__(self, target: Any, calls: list[Call], prefix: str = "") -> None:
        self._target, self._calls, self._prefix = target, calls, prefix

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not self._prefix and name in ("api", "containers", "volumes"):
            return Noted(value, self._calls, f"{name}.")
        return self._timed(name, value) if self._prefix and callable(value) else value

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                first = arguments[0] if arguments else None
                self._calls.append(Call(name=self._prefix + name, first=first, began=began, ended=time.monotonic()))

        return call


@dataclass(frozen=True, kw_only=True)
class Contained:
    """One container call: what was asked, what came, and when."""

    spec: TrialSpec
    trial: Mapping[str, Any]
    """Its trial.json."""
    result: Result
    began: float
    ended: float
    steps: Mapping[str, float]


class NotingSandbox:
    """Implements `runner.protocols.Sandbox` around another."""

    def __init__(self, inner: DockerSandbox, calls: list[Call], folder: Path) -> None:
        """A link to each trial's checkpoint is kept in `folder`: the runner removes it soon."""
        self._inner, self._calls, self._folder = inner, calls, folder
        self.contained: list[Contained] = []

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        """See `Sandbox.run`."""
        identifiers: list[str] = []

        def note(identifier: str) -> None:
            identifiers.append(identifier)
            created(identifier)

        trial = next(file.path for file in spec.files if file.name == "trial.json").read_bytes()
        began = time.monotonic()
        result = self._inner.run(spec, destination, created=note, progress=progress)
        ended = time.monotonic()
        steps = self._divide(identifiers[0], spec.phase, result, began, ended)
        self.contained.append(
            Contained(spec=spec, trial=json.loads(trial), result=result, began=began, ended=ended, steps=steps)
        )
        if (checkpoint := result.output(CHECKPOINT)) is not None:
            os.link(checkpoint, self.checkpoint(self.contained[-1]))
        return result

    def checkpoint(self, run: Contained) -> Path:
        """The checkpoint of a train container."""
        return self._folder / f"{run.trial['seed']}.safetensors"

    def reap(self, labels: dict[str, str]) -> int:
        """See `Sandbox.reap`."""
        return self._inner.reap(labels)

    def _divide(
        self, identifier: str, phase: str, result: Result, began: float, ended: float
    ) -> dict[str, float]:
        # Started by its id, removed by its name, which ends in the phase.
        mine = [
            call
            for call in self._calls
            if call.began >= began and (call.first == identifier or str(call.first).endswith(f"-{phase}"))
        ]
        start = next((call for call in mine if call.name == "api.start"), None)
        remove = next((call for call in mine if call.name == "api.remove_container"), None)
        if start is None or remove is None:
            message = "the sandbox starts or removes containers in a way that this program does not know"
            raise EngineError(message)
        gate = start.ended + result.startup_seconds
        moments = (began, start.began, gate, gate + result.seconds, remove.began, ended)
        return {name: moments[i + 1] - moments[i] for i, name in enumerate(STEPS)}


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Where the seconds of one trial went; the phases add up to all of it."""

    seconds: float
    phases: Mapping[str, float]
    calls: Mapping[str, tuple[int, float]]
    """Of the engine's client, by name: how many and seconds together."""

    @staticmethod
    def of(began: float, ended: float, contained: Sequence[Contained], calls: Sequence[Call]) -> Whole:
        """From the moments of one trial, and all containers and calls of the run."""
        contained = [run for run in contained if began <= run.began <= ended]
        phases = {"host: before": contained[0].began - began}
        phases["host: between"] = sum(b.began - a.ended for a, b in pairwise(contained))
        for run in contained:
            phases |= {f"{run.spec.phase}: {name}": value for name, value in run.steps.items()}
        phases["host: judge and record"] = ended - contained[-1].ended
        by_name: defaultdict[str, list[float]] = defaultdict(list)
        for call in calls:
            if began <= call.began <= ended:
                by_name[call.name].append(call.ended - call.began)
        totals = {name: (len(values), sum(values)) for name, values in by_name.items()}
        return Whole(seconds=ended - began, phases=phases, calls=totals)


# -------------------------------------------------------------------------------------------- the parts


@dataclass(frozen=True, kw_only=True)
class Once(Wanted):
    """A run with one baseline in which every trial is measured once and, by its score, nothing is kept."""

    def overrides(self) -> dict[str, object]:
        """See `Wanted.overrides`."""
        never = {"k": 5.0, "k_at_once": 5.0, "near": 5.0, "repeats": 0, "remeasure_champion_every": 0}
        return {"judge": {"baselines": 1, **never}}


@dataclass(kw_only=True)
class Bench:
    """A run in a task repository of its own, ready to go."""

    task: Task
    prepared: Prepared
    folder: Path
    """For what lasts as long as this."""
    source: str
    """The unmodified file, with the preset's constants."""
    fixed: Mapping[str, Path]
    """What lies in /prepare, by name."""
    sandbox: NotingSandbox
    measurer: Measurer
    """On that sandbox."""
    calls: list[Call]
    engine: str
    go: Callable[[Agent], None] = field(repr=False)
    """Run the loop until the agent has nothing more."""


@contextmanager
def throwaway(folder: Path, state: Path) -> Iterator[Path]:
    """A new task in `folder` with the images and the data of `state`; at the end nothing of it is in the engine."""
    command = Path(sys.executable).with_name("autoresearch")
    subprocess.run([command, "init", folder], check=True, stdout=subprocess.DEVNULL)
    os.environ["AUTORESEARCH_DATA"] = str(parts.data_root(state))
    own = parts.open_workspace(folder).state
    ledger.make_state(own)
    shutil.copy(state / "images.json", own)
    try:
        yield folder
    finally:
        with Builder.connect() as engine:
            engine.remove_containers(parts.owner_labels(own))
            engine.remove_volumes(parts.owner_labels(own))


@contextmanager
def bench(preset: str, seed: int, state: Path, folder: Path) -> Iterator[Bench]:
    """Make a task below `folder`, start a run in it, and take everything away at the end.

    Its data are those below `state`; the ones of a shipped text are made if they are not there.
    """
    calls: list[Call] = []
    client = parts.connect()
    noted: Any = Noted(client, calls)
    wanted = Once(preset=preset, cpu=True, gpus=None, seed=seed, dataset=None, source=None)
    with (
        throwaway(folder / "task", state) as place,
        # No proposal has this token, so nothing is printed.
        open_session(place, TAG, wanted, new=False, as_json=True, only_token=TAG) as session,
    ):
        task, workspace = parts.within(session.task, client), session.workspace
        prepared = prepared_for(task, workspace.state, client, quiet=True)
        header = session.ledger.state.header or {}
        labels = {**parts.owner_labels(workspace.state), "autoresearch.run": header["id"], "autoresearch.tag": TAG}
        fixed = parts.prepare_volume(task, prepared, session.folder / "task", labels, "train")
        sandbox = NotingSandbox(DockerSandbox(noted), calls, folder)
        # What a command does, but for the sandbox, which is ours.
        auditing = session._auditing(parts.steady(sandbox, stopping=lambda: False, tell=print), client, task, prepared, tuple(labels.items()))  # noqa: SLF001
        with auditing as (measurer, _):

            def go(agent: Agent) -> None:
                run = Run(task=task, tag=TAG, ledger=session.ledger, workspace=workspace)
                Loop(run, measurer, agent, session.view).run(Stops())

            yield Bench(
                task=task,
                prepared=prepared,
                folder=folder,
                source=workspace.read(header["base"], task.editable).decode(),
                fixed={file.name: file.path for file in fixed.files},
                sandbox=sandbox,
                measurer=measurer,
                calls=calls,
                engine=str(client.version()["Version"]),
                go=go,
            )
