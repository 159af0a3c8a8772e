"""One measurement of a task that reports its own score: its command in one container, then the line that it printed.

The task's files, as committed, are unpacked in a folder of the container that the command may write; the candidate's file
takes its place among them when the clock starts (`runner.inside_command`).  Evaluation and candidate share that container,
so nothing in the number can be checked: it is `reported`, and there is nothing to confirm.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from runner.asking import Work
from runner.compute import Caps
from runner.errors import UsageError
from runner.inside_command import CANDIDATE, STDOUT
from runner.measure import Measurement
from runner.notes import Notes
from runner.phases import environment
from runner.protocols import Sandbox
from runner.reported import SCORE_LEVEL, RefusedMetricError, parse
from runner.room import refuse_full
from runner.task import Task
from runner.trial import Ending, InputFile, Limits, OutputFile, Progress, Result, Seconds, TrialSpec

PROGRAM = Path(__file__).with_name("inside_command.py").read_text(encoding="utf-8")
ARCHIVE = "task.tar"
PLACE = "/scratch/task"
"""Where the command finds the task; also its working directory."""
MAX_BYTES, MAX_FILES = 512 << 20, 20_000
"""Of a task's folder.  It is unpacked anew for every trial, into memory."""
OUTPUT_SLACK_BYTES = 1 << 20
_AUDITED_ONLY = ("PYTHONPATH", "AUTORESEARCH_TRIAL")


class ReportedMeasurer:
    """Measures candidates of one task on one place, by the task's own word."""

    def __init__(
        self,
        sandbox: Sandbox,
        task: Task,
        archive: Path,
        *,
        image: str,
        gpu: str | None,
        labels: tuple[tuple[str, str], ...],
    ) -> None:
        """`archive` is what `pack` made of the task's folder, `image` an engine id, `gpu` a UUID."""
        self._sandbox, self._task, self._archive = sandbox, task, archive
        self._image, self._gpu, self._labels = image, gpu, labels

    def measure(
        self,
        trial: int,
        folder: Path,
        *,
        seed: int,
        caps: Caps,
        references: Sequence[Path] = (),  # noqa: ARG002 - there is nothing to compare with
        notes: Notes,
        progress: Callable[[Progress], None],
    ) -> Measurement:
        """Run the command with the candidate in `folder`/train.py and read what it reports.

        `val_bpb` is the metric in its own unit and direction.  Raises what `Sandbox.run` raises.
        """
        refuse_full(folder, 2 * self._task.limits.log_mb << 20)  # the output, and the log that has it too
        work = Work(self._sandbox, trial, folder, seed, caps, notes, progress)
        result = work.known("trained")
        if result is None:
            result = work.run(self._spec(trial, folder, seed=seed, seconds=caps.train))
            work.done("trained", result, *(name for name, _ in result.outputs))
        return self._measured(result, seed)

    def confirm(
        self,
        trial: int,  # noqa: ARG002 - the seam
        folder: Path,  # noqa: ARG002
        measured: Measurement,
        *,
        caps: Caps,  # noqa: ARG002
        references: Sequence[Path],  # noqa: ARG002
        notes: Notes,  # noqa: ARG002
        progress: Callable[[Progress], None],  # noqa: ARG002
    ) -> Measurement:
        """What was measured: no container can tell whether a reported number is true."""
        return measured

    def _spec(self, trial: int, folder: Path, *, seed: int, seconds: float) -> TrialSpec:
        score, log_bytes = self._task.score, self._task.limits.log_mb << 20
        assert score.command is not None
        inside = (f"/in/{ARCHIVE}", PLACE, self._task.editable, "/in/gated", "/out", str(log_bytes))
        return TrialSpec(
            phase="command",
            image=self._image,
            command=("python3", "-I", "-c", PROGRAM, *inside, *score.command),
            environment=self._environment(seed),
            files=(InputFile(name=ARCHIVE, path=self._archive),),
            gated_files=(InputFile(name=CANDIDATE, path=folder / "train.py"),),
            outputs=(OutputFile(name=STDOUT, max_bytes=log_bytes),),
            limits=self._limits(seconds),
            gpu=self._gpu,
            labels=(*self._labels, ("autoresearch.trial", str(trial))),
        )

    def _environment(self, seed: int) -> tuple[tuple[str, str], ...]:
        common = environment(self._task.limits.cpus, self._gpu)
        return (
            *((name, value) for name, value in common if name not in _AUDITED_ONLY),
            ("AUTORESEARCH_SEED", str(seed)),
            ("AUTORESEARCH_SECONDS", f"{self._task.budget.seconds:g}"),
        )

    def _limits(self, seconds: float) -> Limits:
        limits = self._task.limits
        return Limits(
            memory_bytes=int(limits.memory_gb * (1 << 30)),
            cpus=limits.cpus,
            pids=limits.pids,
            output_bytes=(limits.log_mb << 20) + OUTPUT_SLACK_BYTES,
            scratch_bytes=limits.scratch_mb << 20,
            log_bytes=limits.log_mb << 20,
            startup_seconds=self._task.budget.startup_seconds,
            seconds=seconds,
        )

    def _measured(self, result: Result, seed: int) -> Measurement:
        measured = Measurement(
            ending=result.ending,
            reason=f"command: {result.reason}",
            seed=seed,
            memory_gb=None if result.peak_memory_bytes is None else result.peak_memory_bytes / (1 << 30),
            seconds=Seconds(startup=result.startup_seconds, train=result.seconds, total=result.total_seconds),
            log_path=result.log_path,
        )
        path = result.output(STDOUT)
        if path is None:
            return measured
        options = self._task.score
        try:
            metrics = parse(path.read_bytes(), options)
        except RefusedMetricError as error:
            return replace(measured, ending=Ending.INVALID_OUTPUT, reason=f"command: {error}")
        return replace(
            measured,
            reason="reported by the command itself, not verified",
            val_bpb=metrics.value,
            score_level=SCORE_LEVEL,
            summary=((str(options.metric), repr(metrics.value)), *((name, repr(value)) for name, value in metrics.guards)),
            guards_broken=metrics.broken,
        )


def pack(folder: Path, archive: Path) -> None:
    """Make `archive` of all regular files below `folder`; the same files give the same bytes."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                info = tarfile.TarInfo(path.relative_to(folder).as_posix())
                info.size, info.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
                with path.open("rb") as file:
                    tar.addfile(info, file)


def check_fits(folder: Path, task: Task) -> None:
    """Raise `UsageError` if the task's files leave the command no room where they are unpacked."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 20
    for name, limit in (("scratch_mb", task.limits.scratch_mb), ("memory_gb", int(task.limits.memory_gb * 1024))):
        if size * 2 > limit:
            raise UsageError(
                f"the task's folder has {size:,} MB of files, and every trial gets a copy of it in memory: "
                f"set limits.{name} to twice that at least"
            )
