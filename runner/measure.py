"""One trial: train in a container, claim in a second one that alone sees the validation text, then the score."""

from __future__ import annotations

import json
import math
import secrets
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner import score
from runner.errors import DataError
from runner.prepare import Prepared
from runner.protocols import Sandbox
from runner.task import Task
from runner.trial import (
    AuditFacts,
    Ending,
    InputFile,
    Limits,
    OutputFile,
    Progress,
    Record,
    Result,
    Seconds,
    TrialSpec,
    Verdict,
    VolumeMount,
)

CHECKPOINT = "checkpoint.safetensors"
OVERRUN = 1.01
"""A timed trial may exit this much later than its budget; later is `timed_out`."""
RESERVE_SECONDS = 3.0
"""Of a timed budget, for saving: train.py is told to stop this much earlier."""
FIRST_CAP_SECONDS = 1800.0
"""Cap of a phase that has no budget in seconds and no baseline yet to derive one from."""
CAP_FACTOR, CAP_SLACK_SECONDS = 4.0, 10.0
"""A phase may take this many times the baseline's median, and a little more: neighbours take CPU time."""
SUMMARY_BYTES = 64 << 10
SUMMARY_KEYS = 32
CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Wall seconds that a phase may take after its gate."""

    train: float
    claim: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is known about a candidate after its containers are gone."""

    ending: Ending | None
    """None: no container of this trial ever came to an end."""
    reason: str
    seed: int | None = None
    val_bpb: float | None = None
    score_level: str | None = None
    charge: float | None = None
    """Bits per byte for computation beyond the baselines'; added before the score is compared."""
    slack: float | None = None
    compute_seconds: float | None = None
    audit: AuditFacts | None = None
    memory_gb: float | None = None
    params: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: Seconds
    summary: tuple[tuple[str, str], ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    log_path: Path | None = None
    guards_broken: str | None = None
    """Which guard metrics are outside their bounds, in words: such a candidate is never kept."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where trials of a run happen; fixed when the run starts."""

    image: str
    """Engine id of the image."""
    gpu: str | None
    prepare_volume: str
    data_volume: str
    labels: tuple[tuple[str, str], ...]


class Measurer:
    """Runs trials of one task on one place."""

    def __init__(self, sandbox: Sandbox, task: Task, prepared: Prepared, place: Place) -> None:
        self._sandbox, self._task, self._prepared, self._place = sandbox, task, prepared, place

    def measure(
        self,
        trial: int,
        folder: Path,
        *,
        seed: int,
        caps: Caps,
        created: Callable[[str, str], None],
        progress: Callable[[Progress], None],
    ) -> Measurement:
        """Run the trial whose candidate lies in `folder`/train.py; its checkpoint stays in `folder`.

        `created` is told phase and container id before each container starts.  Raises what `Sandbox.run`
        raises.
        """
        spec = self._train_spec(trial, folder, seed, caps)
        train = self._sandbox.run(
            spec, folder, created=lambda name: created("train", name), progress=progress
        )
        measured = self._after_train(train)
        if measured.ending is not Ending.FINISHED:
            return measured
        order = self._hand_out_rows(folder)
        spec = self._claim_spec(trial, folder, seed, caps)
        claim = self._sandbox.run(
            spec, folder, created=lambda name: created("claim", name), progress=progress
        )
        (folder / "rows.bin").unlink()
        return self._after_claim(measured, claim, order)

    def _train_spec(self, trial: int, folder: Path, seed: int, caps: Caps) -> TrialSpec:
        budget = self._task.budget
        told: dict[str, Any] = (
            {"steps": budget.steps}
            if budget.steps is not None
            else {"seconds": budget.seconds, "reserve_seconds": RESERVE_SECONDS}
        )
        self._write_trial(folder, phase="train", seed=seed, budget=told, gate="/data/gated")
        place = self._place
        limits = self._task.limits
        return self._spec(
            trial,
            "train",
            ("python3", "/in/train.py"),
            files=self._inputs(folder),
            volumes=(self._prepare_mount(), VolumeMount(volume=place.data_volume, target="/data", gated=True)),
            outputs=(
                OutputFile(name=CHECKPOINT, max_bytes=limits.checkpoint_mb << 20),
                OutputFile(name="summary.json", max_bytes=SUMMARY_BYTES, required=False),
                OutputFile(name="progress.json", max_bytes=SUMMARY_BYTES, required=False),
            ),
            seconds=caps.train,
        )

    def _claim_spec(self, trial: int, folder: Path, seed: int, caps: Caps) -> TrialSpec:
        data = self._prepared
        self._write_trial(
            folder,
            phase="claim",
            seed=seed,
            gate="/in/gated",
            rows=data.val_rows,
            batch_rows=self._task.score.batch_rows,
        )
        size = data.val_rows * data.sequence_length * 4
        gated = tuple(InputFile(name=name, path=folder / name) for name in (CHECKPOINT, "rows.bin"))
        return self._spec(
            trial,
            "claim",
            ("python3", "/prepare/claim.py"),
            files=self._inputs(folder),
            gated_files=gated,
            volumes=(self._prepare_mount(),),
            outputs=(OutputFile(name="nll.bin", max_bytes=size),),
            seconds=caps.claim,
        )

    def _spec(
        self,
        trial: int,
        phase: str,
        command: tuple[str, ...],
        *,
        files: tuple[InputFile, ...],
        volumes: tuple[VolumeMount, ...],
        outputs: tuple[OutputFile, ...],
        seconds: float,
        gated_files: tuple[InputFile, ...] = (),
    ) -> TrialSpec:
        return TrialSpec(
            phase=phase,
            image=self._place.image,
            command=command,
            environment=_environment(self._task.limits.cpus, self._place.gpu),
            files=files,
            gated_files=gated_files,
            volumes=volumes,
            outputs=outputs,
            limits=self._limits(seconds),
            gpu=self._place.gpu,
            labels=(*self._place.labels, ("autoresearch.trial", str(trial))),
        )

    def _limits(self, seconds: float) -> Limits:
        limits = self._task.limits
        return Limits(
            memory_bytes=int(limits.memory_gb * (1 << 30)),
            cpus=limits.cpus,
            pids=limits.pids,
            output_bytes=limits.output_mb << 20,
            scratch_bytes=limits.scratch_mb << 20,
            log_bytes=limits.log_mb << 20,
            startup_seconds=self._task.budget.startup_seconds,
            seconds=seconds,
        )

    def _inputs(self, folder: Path) -> tuple[InputFile, ...]:
        return tuple(InputFile(name=name, path=folder / name) for name in ("train.py", "trial.json"))

    def _prepare_mount(self) -> VolumeMount:
        return VolumeMount(volume=self._place.prepare_volume, target="/prepare")

    def _write_trial(self, folder: Path, **values: Any) -> None:
        common = {
            "device": "cuda" if self._place.gpu else "cpu",
            "threads": max(1, math.floor(self._task.limits.cpus)),
            "out": "/out",
            "prepare": "/prepare",
        }
        (folder / "trial.json").write_text(json.dumps({**common, **values}))

    def _hand_out_rows(self, folder: Path) -> score.Order:
        """Write the validation rows in an order of this container's own."""
        order = score.shuffled(self._prepared.val_rows, secrets.randbits(128))
        self._prepared.rows("val")[order.permutation].tofile(folder / "rows.bin")
        return order

    def _after_train(self, train: Result) -> Measurement:
        summary, losses, steps, tokens = _own_words(train)
        measured = Measurement(
            ending=train.ending,
            reason=f"train: {train.reason}",
            memory_gb=_gib(train.peak_memory_bytes),
            steps=steps,
            tokens=tokens,
            seconds=Seconds(startup=train.startup_seconds, train=train.seconds, total=train.total_seconds),
            summary=summary,
            losses=losses,
            log_path=train.log_path,
        )
        checkpoint = train.output(CHECKPOINT)
        if checkpoint is None:
            return measured
        try:
            return replace(measured, params=score.count_parameters(checkpoint))
        except score.RefusedCheckpointError as error:
            return replace(measured, ending=Ending.INVALID_OUTPUT, reason=f"train: {CHECKPOINT}: {error}")

    def _after_claim(self, measured: Measurement, claim: Result, order: score.Order) -> Measurement:
        seconds = replace(
            measured.seconds,
            claim=claim.seconds,
            total=(measured.seconds.total or 0.0) + claim.total_seconds,
        )
        memory = max((gb for gb in (measured.memory_gb, _gib(claim.peak_memory_bytes)) if gb is not None), default=None)
        measured = replace(measured, seconds=seconds, memory_gb=memory)
        path = claim.output("nll.bin")
        if path is None:
            return replace(measured, ending=claim.ending, reason=f"claim: {claim.reason}", log_path=claim.log_path)
        try:
            val_bpb = self._score(path, order)
        except score.RefusedClaimError as error:
            return replace(measured, ending=Ending.INVALID_OUTPUT, reason=f"claim: {error}")
        finally:
            path.unlink()
        return replace(measured, val_bpb=val_bpb, reason="scored")

    def _score(self, path: Path, order: score.Order) -> float:
        data = self._prepared
        claim = score.read_claim(path, rows=data.val_rows, sequence_length=data.sequence_length, order=order)
        targets, lengths = data.rows("val")[:, 1:], data.token_bytes()
        if int(lengths[targets].sum(dtype="int64")) != data.val_bytes:
            message = f"{data.path} does not have the {data.val_bytes} validation bytes that its manifest names: run `autoresearch prepare` again"
            raise DataError(message)
        return score.bits_per_byte(claim, targets, lengths)


def caps(task: Task, records: Sequence[Record]) -> Caps:
    """What the phases may take, from the budget where it is in seconds, else from the run's own baselines."""
    baselines = [record.seconds for record in records if record.verdict is Verdict.BASELINE]
    train = (
        task.budget.seconds * OVERRUN
        if task.budget.seconds is not None
        else _derived([seconds.train for seconds in baselines])
    )
    return Caps(train=train, claim=_derived([seconds.claim for seconds in baselines]))


def _derived(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    if not known:
        return FIRST_CAP_SECONDS
    return CAP_FACTOR * statistics.median(known) + CAP_SLACK_SECONDS


def _environment(cpus: float, gpu: str | None) -> tuple[tuple[str, str], ...]:
    """Everything a trial's processes find in their environment, built from empty."""
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
        # An image may ask for every GPU by its own environment; this is the word that counts.
        *((("NVIDIA_DRIVER_CAPABILITIES", "compute,utility"),) if gpu else (("NVIDIA_VISIBLE_DEVICES", "void"),)),
    )


def _own_words(
    train: Result,
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[int, float], ...], int | None, int | None]:
    """Summary, loss curve, steps and tokens as the trial tells them; anything odd is left out."""
    summary = _numbers(_json(train.output("summary.json")))
    told = _json(train.output("progress.json"))
    steps = summary.get("num_steps")
    millions = summary.get("total_tokens_M")
    tokens = told.get("tokens")
    if not _whole(tokens):
        tokens = round(millions * 1e6) if millions is not None and millions >= 0 else None
    return (
        tuple((name, f"{value:g}") for name, value in summary.items()),
        _curve(told.get("losses")),
        int(steps) if steps is not None and steps >= 0 else None,
        tokens,
    )


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _numbers(value: dict[str, Any]) -> dict[str, float]:
    pairs = list(value.items())[:SUMMARY_KEYS]
    return {
        name[:40]: float(number)
        for name, number in pairs
        # A name that cannot be printed would end whatever shows it later.
        if name.isascii() and name.isidentifier() and isinstance(number, int | float) and not isinstance(number, bool) and _sane(number)
    }


def _curve(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, list):
        return ()
    points = [point for point in value[:CURVE_POINTS] if isinstance(point, list) and len(point) == 2]
    return tuple(
        (step, float(loss))
        for step, loss in points
        if _whole(step) and isinstance(loss, int | float) and _sane(loss)
    )


def _sane(number: float) -> bool:
    return -1e15 < number < 1e15


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15


def _gib(size: int | None) -> float | None:
    return None if size is None else size / (1 << 30)
