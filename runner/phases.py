"""What each phase of a trial is given: the specs of its containers and the files that are handed in.

Rows reach every container in an order of its own.  The audit's questions show a row up to a cut and training text after
it; the text is drawn without a look at what it hides.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.prepare import Prepared, Split
from runner.task import Task
from runner.trial import InputFile, Limits, OutputFile, PhaseImages, Round, TrialSpec, VolumeMount

CHECKPOINT = "checkpoint.safetensors"
NLL = "nll.bin"
ROWS = "rows.bin"
RESERVE_SECONDS = 3.0
"""Of a timed budget, for saving: train.py is told to stop this much earlier."""
SUMMARY_BYTES = 64 << 10
DRY_STEPS = 3
SAID = "dry.json"
SAID_BYTES = 4 << 10

Rows = npt.NDArray[np.uint16]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where trials of a run happen; fixed when the run starts."""

    images: PhaseImages
    gpu: str | None
    prepare_volumes: tuple[tuple[str, str], ...]
    """Phase and the volume that it alone sees as /prepare."""
    data_volume: str | None
    """The training rows, for a budget in seconds; a budget in steps hands out its own."""
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Cap:
    """What one phase may take after its gate."""

    seconds: float
    """On the wall."""
    cpu_seconds: float | None = None


class Phases:
    """Builds the specs of the containers of one task's trials."""

    def __init__(self, task: Task, prepared: Prepared, place: Place) -> None:
        self._task, self._prepared, self._place = task, prepared, place

    def room(self, references: Sequence[Path], split: Split = "val") -> int:
        """Bytes on the host's disk that a measurement may need beside the `references`, the baselines' folders.

        A checkpoint is taken to be as large as the first baseline's, which is kept.
        """
        data, limits, options = self._prepared, self._task.limits, self._task.score
        row, rows = 2 * (data.sequence_length + 1), len(data.rows(split))
        handed = self._handed_rows() if self._task.budget.steps is not None else 0
        sizes = [path.stat().st_size for one in references if (path := one / CHECKPOINT).exists()]
        rounds = max(options.audit_rounds, options.confirm_rounds)
        claimed = 2 * 4 * rows * data.sequence_length  # for a moment it is there twice
        asked = rounds * rows * (row + 4 * data.vocab_size)
        return row * max(handed, rows) + max(sizes, default=0) + claimed + asked + (limits.log_mb << 20)

    def train(self, trial: int, folder: Path, *, seed: int, cap: Cap, stop_after: int | None = None) -> TrialSpec:
        """Training: sees the training rows behind the gate, gives a checkpoint.

        `stop_after`: train.py is told that its budget is used up after so many steps.
        """
        budget = self._task.budget
        told: dict[str, Any]
        if budget.steps is not None:
            gate, told = "/in/gated", {"steps": budget.steps}
        else:
            gate, told = "/data/gated", {"seconds": budget.seconds, "reserve_seconds": RESERVE_SECONDS}
        more: dict[str, Any] = {}
        if stop_after is not None:
            told["stop_after"] = stop_after
            more["batch_rows"] = self._task.score.batch_rows
        gated, volumes = self._training_rows(folder, seed)
        self._tell(folder, phase="train", seed=seed, budget=told, gate=gate, **more)
        limits = self._task.limits
        spec = self._spec(trial, folder, "train", ("python3", "/in/train.py"), cap)
        return replace(
            spec,
            gated_files=gated,
            volumes=(*spec.volumes, *volumes),
            outputs=(
                OutputFile(name=CHECKPOINT, max_bytes=limits.checkpoint_mb << 20),
                OutputFile(name="summary.json", max_bytes=SUMMARY_BYTES, required=False),
                OutputFile(name="progress.json", max_bytes=SUMMARY_BYTES, required=False),
            ),
        )

    def dry(self, trial: int, folder: Path, *, seed: int, cap: Cap, startup_seconds: float) -> TrialSpec:
        """The dry run: what training sees, for a few steps, and then the saved weights loaded; gives its word on what failed.

        Nothing is compiled on a GPU, which would take longer than everything else.
        """
        spec = self.train(trial, folder, seed=seed, cap=cap, stop_after=DRY_STEPS)
        return replace(
            spec,
            phase="dry",
            command=("python3", "/prepare/dry.py"),
            environment=(*spec.environment, *(() if self._place.gpu is None else (("TORCHDYNAMO_DISABLE", "1"),))),
            outputs=(OutputFile(name=SAID, max_bytes=SAID_BYTES, required=False),),
            limits=replace(spec.limits, startup_seconds=startup_seconds),
        )

    def claim(
        self, trial: int, folder: Path, *, seed: int, cap: Cap, order: Indices, split: Split = "val"
    ) -> TrialSpec:
        """The claim: the checkpoint and all rows of `split`, in `order`, behind the gate."""
        data = self._prepared
        (folder / ROWS).write_bytes(data.rows(split)[order].tobytes())
        self._tell(
            folder,
            phase="claim",
            seed=seed,
            gate="/in/gated",
            rows=len(order),
            batch_rows=self._task.score.batch_rows,
        )
        return replace(
            self._spec(trial, folder, "claim", ("python3", "/prepare/claim.py"), cap),
            gated_files=(self._checkpoint(folder), InputFile(name=ROWS, path=folder / ROWS)),
            outputs=(OutputFile(name=NLL, max_bytes=len(order) * data.sequence_length * 4),),
        )

    def audit(
        self,
        trial: int,
        folder: Path,
        *,
        seed: int,
        cap: Cap,
        questions: Sequence[tuple[Indices, Rows]],
        seen_as: str = "audit",
    ) -> TrialSpec:
        """The audit: the checkpoint and the first question behind the gate, the others one after the other.

        Each question is cuts int64 [K] and ids uint16 [K, T].  `seen_as` names the phase whose image and mount it has.
        """
        rounds, count = [], len(questions[0][0])
        for number, (cuts, ids) in enumerate(questions):
            path = folder / f"question-{number}.bin"
            path.write_bytes(cuts.astype("<i4").tobytes() + ids.astype("<u2").tobytes())
            rounds.append(
                Round(
                    question=InputFile(name=path.name, path=path),
                    answer=OutputFile(
                        name=f"answer-{number}.bin", max_bytes=count * self._prepared.vocab_size * 4
                    ),
                )
            )
        self._tell(
            folder,
            phase="audit",
            seed=seed,
            gate="/in/gated",
            rows=count,
            batch_rows=self._task.score.batch_rows,
            rounds=[(one.question.name, one.answer.name) for one in rounds],
        )
        return replace(
            self._spec(trial, folder, "audit", ("python3", "/prepare/audit.py"), cap, seen_as=seen_as),
            gated_files=(self._checkpoint(folder),),
            rounds=tuple(rounds),
        )

    def _training_rows(
        self, folder: Path, seed: int
    ) -> tuple[tuple[InputFile, ...], tuple[VolumeMount, ...]]:
        if self._task.budget.steps is None:
            assert self._place.data_volume is not None
            return (), (VolumeMount(volume=self._place.data_volume, target="/data", gated=True),)
        rows = handed_out(self._prepared.train_rows, self._handed_rows(), seed)
        (folder / ROWS).write_bytes(self._prepared.rows("train")[rows].tobytes())
        return (InputFile(name=ROWS, path=folder / ROWS),), ()

    def _handed_rows(self) -> int:
        tokens = self._task.budget.tokens
        if tokens is None:
            return self._prepared.train_rows
        return math.ceil(tokens / self._prepared.sequence_length)

    def _checkpoint(self, folder: Path) -> InputFile:
        return InputFile(name=CHECKPOINT, path=folder / CHECKPOINT)

    def _spec(
        self,
        trial: int,
        folder: Path,
        phase: str,
        command: tuple[str, ...],
        cap: Cap,
        *,
        seen_as: str | None = None,
    ) -> TrialSpec:
        """What all phases have in common."""
        place, seen_as = self._place, seen_as or phase
        prepare = VolumeMount(volume=dict(place.prepare_volumes)[seen_as], target="/prepare")
        return TrialSpec(
            phase=phase,
            image=str(getattr(place.images, seen_as)),
            holder_image=place.images.train,
            command=command,
            environment=environment(self._task.limits.cpus, place.gpu),
            files=tuple(InputFile(name=name, path=folder / name) for name in ("train.py", "trial.json")),
            volumes=(prepare,),
            limits=self._limits(cap),
            gpu=place.gpu,
            labels=(*place.labels, ("autoresearch.trial", str(trial))),
        )

    def _limits(self, cap: Cap) -> Limits:
        limits = self._task.limits
        return Limits(
            memory_bytes=int(limits.memory_gb * (1 << 30)),
            cpus=limits.cpus,
            pids=limits.pids,
            output_bytes=limits.output_mb << 20,
            scratch_bytes=limits.scratch_mb << 20,
            log_bytes=limits.log_mb << 20,
            startup_seconds=self._task.budget.startup_seconds,
            seconds=cap.seconds,
            cpu_seconds=cap.cpu_seconds,
        )

    def _tell(self, folder: Path, **values: Any) -> None:
        common = {
            "device": "cuda" if self._place.gpu else "cpu",
            "threads": max(1, math.floor(self._task.limits.cpus)),
            "out": "/out",
            "prepare": "/prepare",
        }
        (folder / "trial.json").write_text(json.dumps({**common, **values}))


def handed_out(there: int, wanted: int, seed: int) -> Indices:
    """Which of `there` training rows a trial gets, int64 [wanted]: whole passes in an order that the seed gives."""
    passes = [np.random.default_rng((seed, number)).permutation(there) for number in range(-(-wanted // there))]
    return np.concatenate(passes)[:wanted]


def question(
    rows: Rows, cuts: Indices, filler: Rows, random: np.random.Generator, order: Indices
) -> tuple[Indices, Rows]:
    """One round of the audit: cuts int64 [K] and ids uint16 [K, T], both in `order`.

    `rows` uint16 [K, T + 1] are shown up to the cut, a row of the training text `filler` uint16 [n, T + 1] stands after it.
    """
    length = rows.shape[1] - 1
    after = np.asarray(filler[random.integers(len(filler), size=len(rows))])[:, :length]
    shown = np.arange(length) <= cuts[:, None]
    return cuts[order], np.where(shown, rows[:, :length], after)[order]


KEEP_MEMORY = tuple(
    (f"MALLOC_{name}_", str(size)) for name, size in (("MMAP_THRESHOLD", 1 << 30), ("TRIM_THRESHOLD", 1 << 30), ("TOP_PAD", 64 << 20))
)
"""glibc's allocator keeps what a tensor frees for the next one.  By default each large tensor is fresh memory, which the
kernel clears page by page: a fifth of a CPU training, and the part of its cost that varies most (docs/performance.md)."""


def environment(cpus: float, gpu: str | None) -> tuple[tuple[str, str], ...]:
    """Everything a trial's processes find in their environment, built from empty, but for the word about GPUs (`sandbox.container`)."""
    threads = str(max(1, math.floor(cpus)))
    return (
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("PYTHONPATH", "/prepare"),
        ("PYTHONUNBUFFERED", "1"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("AUTORESEARCH_TRIAL", "/in/trial.json"),
        ("OMP_NUM_THREADS", threads),
        # Spinning threads make a trial several times slower beside any other process.
        ("OMP_WAIT_POLICY", "PASSIVE"),
        ("TORCHINDUCTOR_CACHE_DIR", "/scratch/inductor"),
        ("TRITON_CACHE_DIR", "/scratch/triton"),
        ("TMPDIR", "/scratch"),
        *(() if gpu else KEEP_MEMORY),
    )
