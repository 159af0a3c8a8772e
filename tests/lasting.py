"""A whole run of which everything lasts beyond its runner: real git, journal, lease, loop and measurer, and a fake engine in a folder.

What `runner.cli.session` does with a real engine, `FakedSession` does with this one, in the same order.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runner import leases, ledger
from runner.cli.session import Session
from runner.cli.starting import Wanted, held
from runner.images import ImageRecord
from runner.loop import Stops
from runner.measure import Measurer
from runner.phases import Place
from runner.prepare import load
from runner.report.tsv import write_tsv
from runner.sandbox.leased import LeasedSandbox
from runner.task import load_task
from runner.trial import Ending, PhaseImages, Progress, Record, Refusal, Result, TrialSpec
from runner.tried import OPEN, Gate
from runner.workspace import Workspace
from tests.conftest import run_git
from tests.fakes import LENGTH, VOCAB, ScriptedAgent, prepared_folder
from tests.test_measure import ModelSandbox, table

TAG = "t"
DATE = "2026-11-26T00:00:00+00:00"
TASK = f"""\
editable: trainer/train.py
prepare: trainer
brief: program.md
data: {{dataset: kjv, vocab_size: {VOCAB}, sequence_length: {LENGTH}}}
budget: {{steps: 20, tokens: {4 * LENGTH}}}
limits: {{memory_gb: 1, cpus: 1, checkpoint_mb: 1, output_mb: 4}}
score: {{batch_rows: 2}}
judge: {{baselines: 2, sigma_prior: 0.1, sigma_prior_weight: 4, tau: 0.01, repeats: 1, champion_measurements: 2}}
"""
BASE = "SHARP = 2.0\n"
PROPOSALS: dict[str, str | Refusal] = {
    "a keep": "SHARP = 1.5\n",
    "a discard": "SHARP = 1.8\n",
    "a crash": "SHARP = 1.0  # CRASH\n",
    "a refusal": Refusal(agent="scripted", idea="a patch", reason="hunk 1 does not apply", token="3"),
    "a champion measured again for a candidate": "SHARP = 1.45\n",
    "a keep on top of a keep": "SHARP = 0.5\n",
}
STAGES = ("the start and two baselines", *PROPOSALS)

# -- the engine, whole and fake ------------------------------------------------------------------------


class Engine:
    """Containers as files in a folder: what a runner left there is there for the next one."""

    ID = "fake-engine"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, labels: Mapping[str, str]) -> str:
        identifier = uuid.uuid4().hex
        self._put(identifier, labels, "created")
        return identifier

    def start(self, identifier: str) -> None:
        self._put(identifier, self._labels(identifier), "running")

    def stop(self, identifier: str) -> None:
        self._put(identifier, self._labels(identifier), "exited")

    def remove(self, identifier: str) -> None:
        (self._folder / identifier).unlink(missing_ok=True)

    def reap(self, labels: Mapping[str, str]) -> int:
        ours = [found for found in self.there() if labels.items() <= self._labels(found).items()]
        for identifier in ours:
            self.remove(identifier)
        return len(ours)

    def there(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir())

    def is_gone(self, engine: str, identifier: str) -> bool:
        if engine != self.ID:
            return False
        return identifier not in self.there() or json.loads((self._folder / identifier).read_text())["state"] != "running"

    def _labels(self, identifier: str) -> dict[str, str]:
        labels: dict[str, str] = json.loads((self._folder / identifier).read_text())["labels"]
        return labels

    def _put(self, identifier: str, labels: Mapping[str, str], state: str) -> None:
        # By rename, as an engine's own state is never half written.
        part = self._folder.with_name("engine.part")
        part.write_text(json.dumps({"labels": dict(labels), "state": state}))
        part.replace(self._folder / identifier)


@dataclass
class LastingSandbox(ModelSandbox):
    """`SHARP = x` in a candidate's file says how sure of itself its model is; `CRASH` crashes its training."""

    engine: Engine = field(kw_only=True)
    ran: Path = field(kw_only=True)
    """Where every container that was started has a line: its trial, phase and seed."""

    def run(self, spec: TrialSpec, destination: Path, *, created: Callable[[str], None], progress: Callable[[Progress], None]) -> Result:
        identifier = self.engine.create(dict(spec.labels))
        try:
            created(identifier)
            self.engine.start(identifier)
            result = self._work(spec, destination, progress)
            self.engine.stop(identifier)
            with self.ran.open("a") as file:
                file.write(f"{dict(spec.labels)['autoresearch.trial']} {spec.phase} {self.told[-1]['seed']}\n")
        finally:
            self.engine.remove(identifier)
        return result

    def reap(self, labels: dict[str, str]) -> int:
        return self.engine.reap(labels)

    def _work(self, spec: TrialSpec, destination: Path, progress: Callable[[Progress], None]) -> Result:
        source = next(one.path for one in spec.files if one.name == "train.py").read_text()
        sharp = np.float32(re.findall(r"SHARP = ([\d.]+)", source)[0])
        self.model = lambda ids: table()[ids] * sharp
        self.endings = {"train": Ending.CRASHED} if "CRASH" in source else {}
        return super().run(spec, destination, created=lambda _: None, progress=progress)


@dataclass
class TableView:
    """Writes results.tsv as the shipped views do, without their plot."""

    folder: Path

    def started(self, trial: int, idea: str) -> None:
        pass

    def progress(self, trial: int, progress: Progress) -> None:
        pass

    def finished(self, record: Record, records: Sequence[Record]) -> None:
        write_tsv(records, self.folder / "results.tsv")


# -- a runner ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A folder with everything that outlives a runner."""

    root: Path

    @property
    def task(self) -> Path:
        return self.root / "task"

    @property
    def engine(self) -> Path:
        return self.root / "engine"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def ran(self) -> Path:
        return self.root / "ran"

    @property
    def run(self) -> Path:
        return self.task / ".autoresearch" / TAG

    def copy_to(self, root: Path) -> Scene:
        shutil.copytree(self.root, root, symlinks=True)
        return Scene(root)


@dataclass(kw_only=True)
class FakedSession(Session):
    """A session whose engine is `engine`, in the order in which a real one takes hold of things."""

    scene: Scene
    prepared: Path

    @contextmanager
    def _measuring(self) -> Iterator[tuple[Measurer, Gate]]:
        header = self.ledger.state.header
        assert header is not None
        labels = {"autoresearch": "1", "autoresearch.run": header["id"]}
        engine = Engine(self.scene.engine)
        engine.reap({"autoresearch.run": header["id"]})
        gone = engine.is_gone
        with leases.held(self.scene.leases, "GPU-0", run=TAG, engine=Engine.ID, gone=gone) as lease:
            prepared = load(self.prepared)
            self._same_data(prepared)
            place = Place(
                images=PhaseImages(**header["images"]),
                gpu=None,
                prepare_volumes=tuple((phase, phase) for phase in ("train", "claim", "audit")),
                data_volume=None,
                labels=tuple(labels.items()),
            )
            sandbox = LeasedSandbox(LastingSandbox(engine=engine, ran=self.scene.ran), lease)
            # Every draw is the same, so that two runs can be compared to the last bit.
            yield Measurer(sandbox, self.task, prepared, place, randbits=lambda bits: 0x5EED % (1 << bits)), OPEN


def new_scene(root: Path) -> Scene:
    """A task in a repository that no run was made in, and an engine without containers."""
    scene = Scene(root)
    for folder in (scene.engine, scene.leases, scene.temporary):
        folder.mkdir(parents=True)
    scene.ran.write_text("")
    trainer = scene.task / "trainer"
    trainer.mkdir(parents=True)
    (trainer / "train.py").write_text(BASE)
    (trainer / "prepare.py").write_text("fixed = True\n")
    (scene.task / "program.md").write_text("find something better\n")
    (scene.task / "autoresearch.yaml").write_text(TASK)
    run_git(scene.task, "init", "-q")
    run_git(scene.task, "add", "-A")
    run_git(scene.task, "commit", "-qm", "task")
    ledger.make_state(scene.run.parent)
    record = ImageRecord(**{name: 0 if name == "size_bytes" else "x" for name in ImageRecord.__dataclass_fields__} | {"kind": "cpu"})  # type: ignore[arg-type]
    (scene.run.parent / "images.json").write_text(json.dumps({"cpu": asdict(record)}))
    prepared_folder(scene.run.parent / "data")
    return scene


def run_once(scene: Scene, sources: Sequence[str | Refusal]) -> None:
    """What `autoresearch run --cpu --tag t` does, but for the engine."""
    workspace = Workspace(scene.task)
    checkout = load_task(scene.task)
    wanted = Wanted(preset=None, cpu=True, gpus=None, seed=None, dataset=None, source=None)
    with held(workspace, checkout, scene.run, wanted, now=lambda: DATE) as run:
        if run.state.records:
            write_tsv(run.state.records, scene.run / "results.tsv")
        session = FakedSession(
            task=load_task(scene.run / "task"),
            folder=scene.run,
            ledger=run,
            workspace=workspace,
            checkout=checkout,
            view=TableView(scene.run),
            as_json=True,
            now=lambda: DATE,
            scene=scene,
            prepared=scene.run.parent / "data",
        )
        session.go(ScriptedAgent(list(sources)), Stops())


# -- what must not depend on it ------------------------------------------------------------------------


ONCE = ("run", "data", "proposed", "candidate", "measured", "confirmed", "judged", "done")
"""Events that a trial, or a measurement of it, has once whatever happens."""


def outcome(scene: Scene) -> dict[str, Any]:
    """Everything that a run leaves, but for what differs between two undisturbed runs: ids of containers and of the run, processes."""
    state = ledger.read(scene.run)
    assert state.header is not None
    events = [json.loads(line) for line in (scene.run / ledger.JOURNAL).read_bytes().splitlines()]
    refs = run_git(scene.task, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/autoresearch")
    return {
        "refs": refs.splitlines(),
        "notes": _notes(scene),
        "header": {name: value for name, value in state.header.items() if name != "id"},
        "data": state.data,
        "records": [ledger.record_to_json(record) for record in state.records],
        "open": (sorted(state.opened), state.unfinished),
        "announced": sorted(f"{event['event']} {event.get('trial')} {event.get('index')}" for event in events if event["event"] in ONCE),
        "results.tsv": (scene.run / "results.tsv").read_text() if state.records else "",
        "files": _files(scene.run.parent, without={f"{TAG}/{name}" for name in (ledger.JOURNAL, "lock")}),
        "checkout": _files(scene.task, skip={".autoresearch", ".git"}),
        "git": sorted(path.relative_to(scene.task).as_posix() for path in (scene.task / ".git").rglob("*") if path.suffix == ".lock" or path.name == "index"),
        "containers": Engine(scene.engine).there(),
        "leases": {path.name: path.read_text() for path in scene.leases.iterdir()},
        "temporary": sorted(path.name for path in scene.temporary.iterdir()),
    }


def _notes(scene: Scene) -> dict[str, str]:
    listed = [line.split() for line in run_git(scene.task, "notes", "--ref=autoresearch", "list").splitlines()]
    return {commit: run_git(scene.task, "cat-file", "blob", blob) for blob, commit in listed}


def _files(root: Path, *, without: Collection[str] = (), skip: Collection[str] = ()) -> dict[str, str]:
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skip]
        for name in names:
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if relative not in without:
                found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
