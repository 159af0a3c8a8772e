"""A measurement that was cut short goes on where it was: no container whose result is known runs again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from runner.errors import EngineError, StateError
from runner.ledger import Event
from runner.measure import Caps, Measurement
from runner.notes import Notes, result_from_json, result_to_json
from runner.prepare import Prepared, load
from runner.task import Task, load_task
from runner.trial import Ending, Result, TrialSpec
from tests.fakes import prepared_folder, safetensors
from tests.test_measure import Bench, ModelSandbox

CAPS = Caps(train=60.0, claim=60.0, audit=60.0, counts_cpu=True)


@dataclass
class Dying(ModelSandbox):
    """The engine goes away under the containers of these phases, in turn; None lets one pass."""

    dies: list[str | None] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)
    """Phases that something else disturbs, once each."""

    def run(self, spec: TrialSpec, destination: Path, **words: Any) -> Result:
        if self.dies and self.dies[0] == spec.phase:
            self.dies.pop(0)
            words["created"]("dead")
            raise EngineError("it went away")
        result = super().run(spec, destination, **words)
        if spec.phase in self.disturbed:
            self.disturbed.remove(spec.phase)
            return replace(result, ending=Ending.INVALID_ENVIRONMENT, reason="process 7 computed on its GPU too")
        return result


@dataclass
class Journalled:
    """One measurement with a journal, which lasts."""

    bench: Bench
    sandbox: Dying
    events: list[Event] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.bench.folder / "m"

    def measure(self) -> Measurement:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "train.py").write_text("")
        return self.bench.measurer(self.sandbox).measure(
            3, self.folder, seed=11, caps=CAPS, references=(), notes=self._notes("measure"), progress=lambda _: None
        )

    def confirm(self, measured: Measurement) -> Measurement:
        return self.bench.measurer(self.sandbox).confirm(
            3, self.folder, measured, caps=CAPS, references=(), notes=self._notes("confirm"), progress=lambda _: None
        )

    def ran(self) -> list[str]:
        return [spec.phase for spec in self.sandbox.specs]

    def names(self) -> list[str]:
        return [" ".join(str(event[name]) for name in ("event", "phase") if name in event) for event in self.events]

    def _notes(self, do: str) -> Notes:
        def write(event: str, **facts: object) -> None:
            # As it will be read again.
            self.events.append(json.loads(json.dumps({"event": event, "do": do, **facts})))

        return Notes(write=write, steps=lambda: [one for one in self.events if one["event"] in ("trained", "claimed", "audited")])


@pytest.fixture
def task() -> Task:
    return load_task(Path(__file__).parents[1], "tiny")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return load(prepared_folder(tmp_path / "data"))


@pytest.fixture
def journalled(task: Task, prepared: Prepared, tmp_path: Path) -> Journalled:
    (tmp_path / "trials").mkdir()
    return Journalled(Bench(task=task, prepared=prepared, folder=tmp_path / "trials"), Dying())


def test_what_is_written_and_in_which_order(journalled: Journalled) -> None:
    journalled.measure()

    assert journalled.names() == [
        "created train", "started train", "exited train", "trained",
        "created claim", "started claim", "exited claim", "claimed",
        "created audit", "started audit", "exited audit", "audited",
    ]  # fmt: skip
    trained, claimed, audited = (one for one in journalled.events if "result" in one)
    assert list(trained["result"]["outputs"]) == ["checkpoint.safetensors"]
    assert list(claimed["result"]["outputs"]) == ["claim.npy"]
    assert list(audited["result"]["outputs"]) == ["audit-1.npz"]
    # The claim's digest is on record before anybody draws.
    assert json.loads((journalled.folder / "draws.json").read_text())["1"]["sha256"]["claim.npy"] == claimed["result"]["outputs"]["claim.npy"]


@pytest.mark.parametrize(("dies", "ran"), [("train", ["train", "claim", "audit"]), ("claim", ["train", "claim", "audit"]), ("audit", ["train", "claim", "audit"])])
def test_what_came_to_its_end_is_not_run_again(journalled: Journalled, dies: str, ran: list[str]) -> None:
    undisturbed = journalled.measure()
    again = replace(journalled, bench=replace(journalled.bench, folder=journalled.bench.folder / "again"), sandbox=Dying(dies=[dies]), events=[])
    again.bench.folder.mkdir()
    with pytest.raises(EngineError):
        again.measure()
    found = again.measure()

    assert again.ran() == ran
    assert found.ending is Ending.FINISHED
    assert (found.seconds, found.params, found.memory_gb, found.compute_seconds) == (
        undisturbed.seconds, undisturbed.params, undisturbed.memory_gb, undisturbed.compute_seconds,
    )  # fmt: skip
    assert found.val_bpb == pytest.approx(undisturbed.val_bpb, abs=1e-5)


def test_a_measurement_that_is_known_whole_runs_nothing(journalled: Journalled) -> None:
    first = journalled.measure()
    ran = journalled.ran()

    assert journalled.measure() == first
    assert journalled.ran() == ran


@pytest.mark.parametrize("phase", ["train", "claim", "audit"])
def test_a_failure_of_the_trial_is_not_run_again_either(journalled: Journalled, phase: str) -> None:
    journalled.sandbox.endings[phase] = Ending.CRASHED
    first = journalled.measure()
    # Were it asked again it would pass.
    journalled.sandbox.endings.clear()

    assert first.ending is Ending.CRASHED
    assert replace(journalled.measure(), log_path=first.log_path) == first
    assert journalled.ran().count(phase) == 1


def test_a_lost_checkpoint_is_trained_again_and_all_that_came_after_it(journalled: Journalled) -> None:
    journalled.measure()
    (journalled.folder / "checkpoint.safetensors").unlink()

    assert journalled.measure().ending is Ending.FINISHED
    assert journalled.ran() == ["train", "claim", "audit"] * 2


def test_a_changed_claim_is_claimed_again(journalled: Journalled) -> None:
    first = journalled.measure()
    path = journalled.folder / "claim.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    (journalled.folder / "draws.json").unlink()

    assert journalled.measure().val_bpb == pytest.approx(first.val_bpb, abs=1e-5)
    assert journalled.ran() == ["train", "claim", "audit", "claim", "audit"]


def test_a_confirmation_that_was_cut_short_asks_what_it_would_have_asked(journalled: Journalled) -> None:
    measured = journalled.measure()
    journalled.sandbox.dies = ["audit"]
    with pytest.raises(EngineError):
        journalled.confirm(measured)
    # Killed once more, between the answers and the journal.
    first = journalled.confirm(measured)
    journalled.events = [one for one in journalled.events if not (one["event"] == "audited" and one["do"] == "confirm")]
    second = journalled.confirm(measured)
    third = journalled.confirm(measured)

    assert first.audit is not None
    assert measured.audit is not None
    assert first.audit == second.audit == third.audit
    assert first.audit.rounds == measured.audit.rounds + journalled.bench.task.score.confirm_rounds
    assert sorted(path.name for path in journalled.folder.glob("audit-*.npz")) == ["audit-1.npz", "audit-2.npz"]


@pytest.mark.parametrize("phase", ["train", "claim", "audit"])
def test_what_was_disturbed_is_made_again_and_nothing_before_it(journalled: Journalled, phase: str) -> None:
    journalled.sandbox.disturbed = [phase]
    assert journalled.measure().ending is Ending.INVALID_ENVIRONMENT

    found = journalled.measure()
    assert found.ending is Ending.FINISHED
    assert {name: journalled.ran().count(name) for name in ("train", "claim", "audit")} == {"train": 1, "claim": 1, "audit": 1} | {phase: 2}


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(safetensors(3))
    result = Result(
        ending=Ending.FINISHED, reason="exit code 0", exit_code=0, startup_seconds=0.5, seconds=2.0, total_seconds=3.0,
        outputs=(("checkpoint.safetensors", tmp_path / "checkpoint.safetensors"),), log_path=tmp_path / "train.log",
        peak_memory_bytes=7, cpu_seconds=1.5, startup_cpu_seconds=0.25,
    )  # fmt: skip
    value = json.loads(json.dumps(result_to_json(result, tmp_path, ["checkpoint.safetensors"])))

    assert result_from_json(value, tmp_path) == result
    (tmp_path / "checkpoint.safetensors").write_bytes(b"another")
    assert result_from_json(value, tmp_path) is None


@pytest.mark.parametrize("lost", ["claim.npy", "checkpoint.safetensors"])
def test_what_cannot_be_confirmed_any_more_is_said(journalled: Journalled, lost: str) -> None:
    measured = journalled.measure()
    (journalled.folder / lost).unlink()

    with pytest.raises(StateError, match="the journal is older than the files beside it"):
        journalled.confirm(measured)
