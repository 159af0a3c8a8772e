"""Dry runs in real containers: what passes, what is found, and what hostile files get out of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner.compute import Caps
from runner.constants import set_constants
from runner.dryrun import DryRun
from runner.phases import Phases, Place
from runner.prepare import load
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.translate import remove_volume
from runner.sandbox.volumes import PreparedVolume, provide
from runner.task import load_task
from runner.trial import Ending, InputFile, PhaseImages
from runner.tried import Barred, Candidate
from tests.conftest import run_git
from tests.docker.conftest import ours
from tests.docker.test_end_to_end import TINY, Task, make_task
from tests.fakes import LENGTH, VOCAB, prepared_folder

if TYPE_CHECKING:
    from docker import DockerClient

__all__ = ["make_task"]  # a fixture

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
LABEL = ("autoresearch.run", "tests-dry-run")
SIZES = {"DEPTH": 2, "MODEL_DIM": 64, "HEAD_DIM": 32, "TOTAL_BATCH_SIZE": 8 * LENGTH, "DEVICE_BATCH_SIZE": 8}
GOOD = set_constants((ROOT / "trainer" / "train.py").read_text(), SIZES)
SEED_LINE = "    torch.manual_seed(SEED)\n"
GATE_LINE = "    budget = open_gate()\n"
LIMITS = {"memory_gb": 1.0, "pids": 64, "output_mb": 8, "checkpoint_mb": 4, "scratch_mb": 16, "log_mb": 1}


def before_the_gate(code: str) -> str:
    return GOOD.replace(SEED_LINE, f"{SEED_LINE}    {code}\n")


def after_the_gate(code: str) -> str:
    return GOOD.replace(GATE_LINE, f"{GATE_LINE}    {code}\n")


@dataclass
class Bench:
    """Looks at candidates, and at their champion once for all."""

    dry_run: DryRun
    folder: Path

    def look(self, source: str, *, champion: str = GOOD) -> Barred | None:
        caps = Caps(train=15.0, claim=1.0, audit=1.0)
        return self.dry_run.examine(Candidate(
            trial=1, folder=self.folder / "trial", source=source, champion=champion, agent="llm", seed=3, caps=caps, step_seconds=0.05, memory_gb=None,
            created=lambda *_: None, progress=lambda _: None,
        ))  # fmt: skip

    def log(self) -> str:
        return (self.folder / "trial" / "dry" / "dry.log").read_text()


@pytest.fixture(scope="module")
def prepare_volume(engine: DockerClient, cpu_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The fixed side of a trial, with a data set of nothing."""
    folder = tmp_path_factory.mktemp("prepare")
    data = {"vocab_size": VOCAB, "sequence_length": LENGTH, "bos": 0, "train_rows": 4, "dataset": "kjv"}
    (folder / "data.json").write_text(json.dumps(data))
    files = [path for path in (ROOT / "trainer").glob("*.py") if path.name != "train.py"] + [folder / "data.json"]
    volume = PreparedVolume(
        name="autoresearch-tests-dry-run-prepare", files=tuple(InputFile(name=path.name, path=path) for path in files), gated=False,
        labels=(("autoresearch", "1"), ("autoresearch.test", "dry-run")),
    )  # fmt: skip
    provide(engine, cpu_image, volume)
    yield volume.name
    remove_volume(engine, volume.name)


@pytest.fixture(scope="module")
def dry_run(engine: DockerClient, cpu_image: str, prepare_volume: str, tmp_path_factory: pytest.TempPathFactory) -> DryRun:
    task = load_task(ROOT, "tiny")
    assert task.data is not None
    limits = replace(task.limits, **LIMITS)  # type: ignore[arg-type]
    data = replace(task.data, vocab_size=VOCAB, sequence_length=LENGTH)
    task = replace(task, data=data, limits=limits, budget=replace(task.budget, tokens=None))
    prepared = load(prepared_folder(tmp_path_factory.mktemp("prepared") / "data"))
    place = Place(
        images=PhaseImages(train=cpu_image, claim=cpu_image, audit=cpu_image), gpu=None, prepare_volumes=(("train", prepare_volume),),
        data_volume=None, labels=(("autoresearch", "1"), LABEL),
    )  # fmt: skip
    return DryRun(DockerSandbox(engine), Phases(task, prepared, place), task, on_gpu=False)


@pytest.fixture
def bench(engine: DockerClient, dry_run: DryRun, tmp_path: Path) -> Iterator[Bench]:
    yield Bench(dry_run, tmp_path)
    assert ours(engine, "=".join(LABEL)) == []


def test_a_file_that_works_passes(bench: Bench) -> None:
    assert bench.look(GOOD) is None
    assert not (bench.folder / "trial" / "dry").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (before_the_gate("torch.no_such_thing()"), "dry run: AttributeError at line {line} of the file, within 3 steps"),
        (after_the_gate("torch.ones(2, 3) @ torch.ones(2, 3)"), "dry run: RuntimeError at line {line} of the file, within 3 steps"),
        (set_constants(GOOD, {"TOTAL_BATCH_SIZE": 9 * LENGTH}), "dry run: AssertionError at line {line} of the file, within 3 steps"),
        (GOOD.replace("save(model, summary)", "summary"), "dry run: NothingSaved, within 3 steps"),
        # It is another network in another process.
        (
            GOOD.replace("MODEL_DIM = 64 ", 'MODEL_DIM = 64 if __name__ == "__main__" else 96 '),
            "dry run: RuntimeError, when the saved weights were loaded into a new model",
        ),
    ],
)
def test_what_would_fail_in_the_trial_is_found_with_its_line(bench: Bench, source: str, reason: str) -> None:
    found = bench.look(source)

    assert found is not None, "it passed"
    said = found.reason
    assert said == reason.format(line=said.partition("line ")[2].partition(" ")[0])
    assert found.ending is Ending.CRASHED
    assert "Error" in bench.log() or "NothingSaved" in bench.log()
    assert "runpy" not in bench.log()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "ending", "words"),
    [
        (after_the_gate("while True: pass"), Ending.TIMED_OUT, "still running"),
        (before_the_gate("while True: pass"), Ending.TIMED_OUT, "not ready"),
        (after_the_gate("x = [bytearray(1 << 26) for _ in range(999)]"), Ending.OUT_OF_MEMORY, "memory limit of 1.0 GiB"),
        (after_the_gate("import os, itertools; [os.fork() for _ in itertools.count()]"), None, ""),
        (after_the_gate("[print('x' * 1000) for _ in range(100_000)]; 1 / 0"), Ending.CRASHED, "ZeroDivisionError"),
        # There is no room left for its own word.
        (after_the_gate("open('/out/more', 'wb').write(bytes(1 << 26))"), Ending.CRASHED, "exit code 1"),
        (after_the_gate("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), Ending.CRASHED, "ended by signal 11"),
        (before_the_gate("import os; os._exit(0)"), Ending.INVALID_OUTPUT, "without ever asking for the data"),
    ],
)
def test_hostile_files_are_ended_and_leave_nothing(bench: Bench, source: str, ending: Ending | None, words: str) -> None:
    began = time.monotonic()
    found = bench.look(source)

    assert found is not None, "it passed"
    assert ending is None or found.ending is ending, found
    assert words in found.reason
    assert time.monotonic() - began < 150
    assert (bench.folder / "trial" / "dry" / "dry.log").stat().st_size <= 1 << 20
    assert [path.name for path in (bench.folder / "trial" / "dry").iterdir()] == ["dry.log"]


@pytest.mark.slow
def test_a_file_that_says_that_nothing_failed_has_its_trial_to_come(bench: Bench) -> None:
    forged = before_the_gate("import os, pathlib, prepare; prepare.pass_gate(); pathlib.Path('/out/dry.json').write_text('{}'); os._exit(0)")
    assert bench.look(forged) is None


@pytest.mark.slow
def test_what_the_champion_cannot_do_either_refuses_nobody(bench: Bench) -> None:
    assert bench.look(before_the_gate("torch.no_such_thing()"), champion=before_the_gate("torch.nor_such_a_thing()")) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_in_a_dry_run_goes_on_with_it(make_task: Callable[[], Task], engine: DockerClient, tmp_path: Path) -> None:
    task = make_task()
    path = task.folder / "autoresearch.yaml"
    path.write_text(path.read_text().replace("dry_run: false", "dry_run: true"))
    run_git(task.folder, "commit", "-qam", "With dry runs")
    task.call("run", *TINY, "--tag", "dry", "--trials", "0")
    before = task.json("log")
    broken = task.champion().replace(SEED_LINE, f"{SEED_LINE}    import time; time.sleep(4); torch.no_such_thing()\n")
    proposals = tmp_path / "proposals.jsonl"
    proposals.write_text(json.dumps({"idea": "slow and broken", "source": broken}) + "\n")
    replay = ("run", "--tag", "dry", "--agent", "replay", "--proposals", str(proposals))
    child = task.spawn(*replay)
    deadline = time.monotonic() + 60
    while not any("-dry" in name for name in ours(engine, "autoresearch.tag=dry")) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.kill()
    child.communicate()
    assert ours(engine, "autoresearch.tag=dry")

    task.call(*replay)
    *_, record = task.json("log")

    assert (record["verdict"], record["ending"]) == ("invalid", "crashed"), record
    assert record["reason"].startswith("dry run: AttributeError at line ")
    assert [row["trial"] for row in task.json("log")] == [*(row["trial"] for row in before), record["trial"]]
    assert ours(engine, "autoresearch.tag=dry") == []
    shown = task.call("show", str(record["trial"]))
    assert record["reason"] in shown
    told = task.call("prompt")
    assert "> AttributeError: module 'torch' has no attribute 'no_such_thing'" in told
    assert "invalid (crashed)" in told
    path = tmp_path / "same.py"
    path.write_text(broken)
    again = task.trial(path)
    assert (again["verdict"], again["ending"]) == ("invalid", None)
    assert again["reason"].startswith(f"the same program as trial {record['trial']}")
