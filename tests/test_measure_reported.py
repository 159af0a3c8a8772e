"""A reported measurement: one container, nothing handed in but the task, and a number that nobody vouches for."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from runner.compute import caps
from runner.errors import EngineError, UsageError
from runner.measure import Measurement
from runner.measure_reported import PROGRAM, ReportedMeasurer, check_fits, pack
from runner.notes import Notes
from runner.protocols import Sandbox
from runner.task import Task, load_task
from runner.trial import Ending, Progress, Result, Seconds, TrialSpec

YAML = """
editable: inside/solve.py
score: {level: reported, command: [./evaluate, --all], metric: acc, direction: maximise, guards: {overlap: {high: 0.5}}}
budget: {seconds: 20, startup_seconds: 7}
limits: {memory_gb: 1, cpus: 1.5, pids: 33, scratch_mb: 64, log_mb: 3}
judge: {tau: 0.01}
"""
GOOD = b"working\nacc: 0.75\noverlap: 0.25\n"


@dataclass
class Speaking:
    """A sandbox whose container prints `says` and ends as told."""

    says: bytes | None = GOOD
    """None: there is no output to read."""
    ending: Ending = Ending.FINISHED
    specs: list[TrialSpec] = field(default_factory=list)
    raises: Exception | None = None

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        self.specs.append(spec)
        created("container-1")
        if self.raises:
            raise self.raises
        progress(Progress(phase=spec.phase, seconds=1.0))
        outputs: tuple[tuple[str, Path], ...] = ()
        if self.says is not None:
            (destination / "stdout").write_bytes(self.says)
            outputs = (("stdout", destination / "stdout"),)
        return Result(
            ending=self.ending,
            reason="exit code 0",
            startup_seconds=0.5,
            seconds=2.0,
            total_seconds=3.0,
            outputs=outputs,
            log_path=destination / "command.log",
            peak_memory_bytes=1 << 29,
        )

    def reap(self, labels: dict[str, str]) -> int:
        return 0


_sandbox: Sandbox = Speaking()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    root = tmp_path / "task"
    (root / "inside").mkdir(parents=True)
    for name, text in (("autoresearch.yaml", YAML), ("program.md", ""), ("inside/solve.py", "old"), ("evaluate", "#!/bin/sh")):
        (root / name).write_text(text)
    (root / "evaluate").chmod(0o755)
    return load_task(root)


def measure(task: Task, folder: Path, sandbox: Speaking, gpu: str | None = None) -> Measurement:
    measurer = ReportedMeasurer(
        sandbox, task, folder / "task.tar", image="sha256:i", gpu=gpu, labels=(("autoresearch.run", "r"),)
    )
    return measurer.measure(
        4, folder, seed=100_004, caps=caps(task, []), notes=Notes(), progress=lambda progress: None
    )


def test_the_container_gets_the_task_its_command_and_the_candidate_behind_the_gate(task: Task, tmp_path: Path) -> None:
    sandbox = Speaking()
    measure(task, tmp_path, sandbox)
    (spec,) = sandbox.specs
    environment = dict(spec.environment)

    assert spec.command == (
        "python3", "-I", "-c", PROGRAM,
        "/in/task.tar", "/scratch/task", "inside/solve.py", "/in/gated", "/out", str(3 << 20), "./evaluate", "--all",
    )  # fmt: skip
    assert [(file.name, file.path) for file in spec.files] == [("task.tar", tmp_path / "task.tar")]
    assert [(file.name, file.path) for file in spec.gated_files] == [("candidate", tmp_path / "train.py")]
    assert [(output.name, output.max_bytes, output.required) for output in spec.outputs] == [("stdout", 3 << 20, True)]
    assert spec.volumes == ()
    assert (environment["AUTORESEARCH_SEED"], environment["AUTORESEARCH_SECONDS"]) == ("100004", "20")
    assert environment["OMP_NUM_THREADS"] == "1"
    assert not {"PYTHONPATH", "AUTORESEARCH_TRIAL"} & set(environment)
    assert spec.labels == (("autoresearch.run", "r"), ("autoresearch.trial", "4"))
    limits = spec.limits
    assert (limits.memory_bytes, limits.cpus, limits.pids, limits.scratch_bytes) == (1 << 30, 1.5, 33, 64 << 20)
    assert (limits.log_bytes, limits.output_bytes) == (3 << 20, 4 << 20)
    assert limits.startup_seconds == 7
    assert limits.seconds == pytest.approx(20.2)


def test_a_gpu_is_handed_on(task: Task, tmp_path: Path) -> None:
    sandbox = Speaking()
    measure(task, tmp_path, sandbox, gpu="GPU-1")

    assert sandbox.specs[0].gpu == "GPU-1"
    assert "NVIDIA_VISIBLE_DEVICES" not in dict(sandbox.specs[0].environment)


def test_the_number_is_what_was_printed_and_its_level_says_so(task: Task, tmp_path: Path) -> None:
    assert measure(task, tmp_path, Speaking()) == Measurement(
        ending=Ending.FINISHED,
        reason="reported by the command itself, not verified",
        seed=100_004,
        val_bpb=0.75,
        score_level="reported",
        memory_gb=0.5,
        seconds=Seconds(startup=0.5, train=2.0, total=3.0),
        summary=(("acc", "0.75"), ("overlap", "0.25")),
        log_path=tmp_path / "command.log",
    )


def test_a_guard_outside_its_bound_is_said_beside_the_number(task: Task, tmp_path: Path) -> None:
    measured = measure(task, tmp_path, Speaking(says=b"acc: 0.99\noverlap: 0.75\n"))

    assert (measured.ending, measured.val_bpb) == (Ending.FINISHED, 0.99)
    assert measured.guards_broken == "outside its guard: overlap is 0.75, above 0.5"


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (b"", "command: no line of the output states acc (`acc: NUMBER`, from the start of a line)"),
        (b"acc: 0.5\nacc: 0.9\noverlap: 0\n", "command: 2 lines of the output state acc, lines 1 and 2 first: it must be one"),
        (b"acc: nan\noverlap: 0\n", "command: acc is nan, which is not finite"),
        (b"acc: 0.9\n", "command: no line of the output states overlap (`overlap: NUMBER`, from the start of a line)"),
    ],
)
def test_an_output_that_does_not_state_the_score_gives_none(task: Task, tmp_path: Path, says: bytes, reason: str) -> None:
    measured = measure(task, tmp_path, Speaking(says=says))

    assert (measured.ending, measured.reason) == (Ending.INVALID_OUTPUT, reason)
    assert (measured.val_bpb, measured.score_level, measured.guards_broken) == (None, None, None)


@pytest.mark.parametrize("ending", [Ending.CRASHED, Ending.TIMED_OUT, Ending.OUT_OF_MEMORY, Ending.INVALID_OUTPUT])
def test_a_command_that_does_not_finish_has_no_score_whatever_it_printed(task: Task, tmp_path: Path, ending: Ending) -> None:
    measured = measure(task, tmp_path, Speaking(says=None, ending=ending))

    assert (measured.ending, measured.val_bpb, measured.reason) == (ending, None, "command: exit code 0")
    assert measured.log_path == tmp_path / "command.log"


def test_a_failed_engine_is_an_error_and_no_value(task: Task, tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        measure(task, tmp_path, Speaking(raises=EngineError("gone")))


def test_there_is_nothing_to_confirm(task: Task, tmp_path: Path) -> None:
    sandbox = Speaking()
    measurer = ReportedMeasurer(sandbox, task, tmp_path / "task.tar", image="i", gpu=None, labels=())
    measured = measure(task, tmp_path, Speaking())

    confirmed = measurer.confirm(
        4, tmp_path, measured, caps=caps(task, []), references=(), notes=Notes(), progress=lambda _: None
    )

    assert confirmed == measured
    assert sandbox.specs == []


def test_an_archive_has_every_regular_file_and_is_the_same_each_time(task: Task, tmp_path: Path) -> None:
    long = task.root / ("x" * 120) / ("y" * 120)
    long.parent.mkdir()
    long.write_bytes(b"deep")
    (task.root / "link").symlink_to("/etc/passwd")
    pack(task.root, tmp_path / "a.tar")
    os.utime(task.root / "evaluate", (1, 1))
    pack(task.root, tmp_path / "b.tar")

    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        modes = {member.name: member.mode for member in archive.getmembers()}
    assert modes == {
        "autoresearch.yaml": 0o644,
        "evaluate": 0o755,
        "inside/solve.py": 0o644,
        "program.md": 0o644,
        f"{'x' * 120}/{'y' * 120}": 0o644,
    }


def test_files_that_leave_no_room_are_refused_by_the_limit_to_raise(task: Task) -> None:
    check_fits(task.root, task)
    with (task.root / "big").open("wb") as file:
        file.truncate(40 << 20)

    with pytest.raises(UsageError, match=r"has 40 MB of files, .*: set limits\.scratch_mb to twice that at least"):
        check_fits(task.root, task)
    limits = replace(task.limits, scratch_mb=1000, memory_gb=0.05)
    with pytest.raises(UsageError, match=r"set limits\.memory_gb to twice that at least"):
        check_fits(task.root, replace(task, limits=limits))
