"""What a score that nobody can forge costs: claim and audit, measured on this machine or bounded for a full-size GPU.

By default measurements of the unmodified file through the runner's own measurer.  With --gpu-arithmetic a bound for
preset h100: what can be measured here at full size is measured, the rest follows from the constants below.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.whole import STEPS, Contained, bench
from runner import images
from runner.cli import parts
from runner.compute import caps
from runner.errors import AutoresearchError, EngineError
from runner.ledger import make_state
from runner.measure import CHECKPOINT, Measurement, Measurer
from runner.notes import Notes
from runner.phases import NLL, ROWS, Place
from runner.prepare import Prepared
from runner.resources import resource
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.holder import holder
from runner.sandbox.inside_holder import take
from runner.task import Task, load_task
from runner.trial import Ending, InputFile, Limits, PhaseImages, Progress, Result, TrialSpec

STATE = Path(__file__).resolve().parents[1] / ".autoresearch"
SEED = 1
SMOKE_SECONDS = 8.0
"""What claim and audit of preset smoke may take together, start-up, containers and copies included."""
SHARE = 0.1
"""Of the budget: what they may take at full size."""

# ------------------------------------------------------------------------------------------- measured


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One measurement of the unmodified file; wall seconds."""

    phases: Mapping[str, Contained]
    """`train`, `claim`, `audit` and `confirm`, the audit before a keep."""
    added: float
    """From the end of the train container's call to the score."""
    whole: float
    """All up to the score, the confirmation not included."""

    def work(self, phase: str) -> float:
        """Gate to exit."""
        return self.phases[phase].result.seconds

    def host(self) -> float:
        """Outside the calls of the sandbox: files, draws, the estimate."""
        return self.added - sum(self.phases[phase].result.total_seconds for phase in ("claim", "audit"))

    def round(self, rounds: int, more: int) -> float:
        """One round more, from the two audits; where these have as many, the audit's share, loading included."""
        if more > rounds:
            return (self.work("confirm") - self.work("audit")) / (more - rounds)
        return self.work("audit") / rounds


def measure(preset: str, trials: int) -> tuple[Task, list[Cost]]:
    """So many measurements, after one that warms up and is the reference of the others."""
    make_state(STATE)
    with (
        tempfile.TemporaryDirectory(prefix="score-") as folder,
        bench(preset, SEED, STATE, Path(folder)) as made,
    ):
        costs: list[Cost] = []
        for number in range(trials + 1):
            say(f"measurement {number} of {trials}{'' if number else ' (warms up)'}; load {os.getloadavg()[0]:.1f}")
            place = Path(folder) / str(number)
            place.mkdir()
            (place / "train.py").write_text(made.source)
            references = [Path(folder) / "0"] if number else []
            began, known = time.monotonic(), len(made.sandbox.contained)
            with_audit = made.measurer.measure(
                number,
                place,
                seed=SEED + number,
                caps=caps(made.task, []),
                references=references,
                notes=Notes(),
                progress=ignore,
            )
            ended = time.monotonic()
            if with_audit.val_bpb is None:
                raise EngineError(f"the unmodified file gave no score: {with_audit.reason}")
            made.measurer.confirm(
                number,
                place,
                with_audit,
                caps=caps(made.task, []),
                references=references,
                notes=Notes(),
                progress=ignore,
            )
            phases = dict(zip(("train", "claim", "audit", "confirm"), made.sandbox.contained[known:], strict=True))
            costs.append(Cost(phases=phases, added=ended - phases["train"].ended, whole=ended - began))
        return made.task, costs[1:]


def show(task: Task, costs: Sequence[Cost]) -> str:
    """Medians for a person."""
    rounds, more = task.score.audit_rounds, task.score.confirm_rounds
    phases = list(costs[0].phases)
    lines = [
        f"preset {task.preset}: {len(costs)} measurements, after one to warm up",
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; {rounds} rounds in the audit, {more} in the one before a keep",
        "",
        f"{'seconds (medians)':<34}" + "".join(f"{phase:>10}" for phase in phases),
    ]
    for step in STEPS:
        cells = [statistics.median(cost.phases[phase].steps[step] for cost in costs) for phase in phases]
        lines.append(f"  {step:<32}" + "".join(f"{cell:>10.3f}" for cell in cells))
    used = [statistics.median(cost.phases[phase].result.cpu_seconds or math.nan for cost in costs) for phase in phases]
    lines += [f"  {'processors, start to exit':<32}" + "".join(f"{cell:>10.3f}" for cell in used), ""]
    rows: dict[str, Callable[[Cost], float]] = {
        "claim and audit, all of it": lambda cost: cost.added,
        "of it after the gates": lambda cost: cost.work("claim") + cost.work("audit"),
        "of it the host's arithmetic": Cost.host,
        "a round of the audit": lambda cost: cost.round(rounds, more),
        "whole measurement": lambda cost: cost.whole,
        "share of the measurement": lambda cost: cost.added / cost.whole,
    }
    lines += [f"{name:<34}{statistics.median(map(of, costs)):>10.3f}" for name, of in rows.items()]
    if task.preset == "smoke":
        lines.append(f"claim and audit within {SMOKE_SECONDS:.0f} s: {'yes' if holds(task, costs) else 'NO'}")
    return "\n".join(lines)


def holds(task: Task, costs: Sequence[Cost]) -> bool:
    """Whether the requirement on preset smoke is met; there is none on others."""
    return task.preset != "smoke" or statistics.median(cost.added for cost in costs) <= SMOKE_SECONDS


# ------------------------------------------------------------------------------------------ full size

PARAMETERS = 81_000_000
"""Of preset h100, all in float32 in the checkpoint."""
MEASURED_TOKENS_PER_SECOND, MEASURED_DIM, MEASURED_DEPTH = 4.2e6, 512, 8
"""Forward pass in bfloat16, compiled, rows of 2,048, vocabulary 8,192, on one H200."""
STARTUP_SECONDS = 13.0
"""Before the gate: a first compilation of 9 s on the same H200, imports 2.5 s, CUDA context 1.5 s (both assumed)."""
LOGIT_PASSES, GPU_BYTES_PER_SECOND = 5, 2e12
"""The claim's log-softmax reads and writes float32 logits so often (assumed), at 60 % of an H100's memory speed."""
TO_GPU_BYTES_PER_SECOND = 1e9
"""Weights from the memory of the container to the GPU and answers back, ordinary memory (assumed)."""
COPIED = 64 << 20
"""Bytes that copies are measured with."""
PART = 10
"""The host's arithmetic is measured on so small a part of the rows."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured here."""

    engine: float
    """Seconds of one container call in which nothing is done."""
    put: float
    """Bytes per second into a container."""
    get: float
    """And out of one."""
    taken: float
    """Bytes per second of an answer from the trial's reach into the holder's."""
    host: Mapping[str, float]
    """Seconds of the host's own arithmetic and files after claim, audit and confirmation, at full size."""


def rates(task: Task) -> Rates:
    """Measure what does not need a GPU."""
    make_state(STATE)
    client = parts.connect()
    with tempfile.TemporaryDirectory(prefix="score-", dir="/dev/shm") as memory, tempfile.TemporaryDirectory(prefix="score-") as disk:
        big = Path(memory) / "big"
        big.write_bytes(os.urandom(COPIED))
        began = time.monotonic()
        if not take(str(big), f"{memory}/taken", COPIED):
            raise EngineError("the copy of an answer failed")
        taken = COPIED / (time.monotonic() - began)
        spec = _idle(InputFile(name="big", path=big))
        say(f"copies of {COPIED >> 20} MiB in and out of a container, three times")
        puts, gets = [], []
        for _ in range(3):
            began = time.monotonic()
            with holder(client, spec) as held:
                puts.append(time.monotonic() - began)
                began = time.monotonic()
                held.fetch("big", Path(disk) / "back", max_bytes=COPIED, place="in/gated")
                gets.append(time.monotonic() - began)
        big.write_bytes(b"-")
        say("a container in which nothing is done, three times")
        sandbox, calls, starts = DockerSandbox(client), [], []
        for _ in range(3):
            result = sandbox.run(spec, Path(disk), created=ignore, progress=ignore)
            if result.ending is not Ending.FINISHED:
                raise EngineError(f"the container in which nothing is done ended as {result.ending}: {result.reason}")
            calls.append(result.total_seconds)
            began = time.monotonic()
            with holder(client, spec):
                starts.append(time.monotonic() - began)
        put = COPIED / max(statistics.median(puts) - statistics.median(starts), 1e-3)
        say(f"the host's arithmetic on a {PART}th of the rows")
        return Rates(
            engine=statistics.median(calls),
            put=put,
            get=COPIED / statistics.median(gets),
            taken=taken,
            host={phase: PART * seconds for phase, seconds in _host(task, Path(disk)).items()},
        )


def _idle(file: InputFile) -> TrialSpec:
    """A container that passes the gate and ends."""
    program = "touch /out/ready; until ls /in/gated/big >/dev/null 2>&1; do sleep 0.01; done"
    return TrialSpec(
        phase="claim",
        image=images.image_ids("cpu", STATE).train,
        command=("sh", "-c", program),
        gated_files=(file,),
        limits=Limits(
            memory_bytes=1 << 30, cpus=1, output_bytes=1 << 20, scratch_bytes=1 << 20, startup_seconds=60, seconds=60
        ),
        labels=tuple(parts.owner_labels(STATE).items()),
    )


class _Uniform:
    """Implements `runner.protocols.Sandbox`: a model that finds every token equally likely, in no time."""

    def __init__(self, vocab_size: int, checkpoint_bytes: int) -> None:
        self._vocab_size, self._checkpoint_bytes = vocab_size, checkpoint_bytes
        self.spent = 0.0
        """Seconds in here, which are not the host's."""

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        """See `Sandbox.run`."""
        began = time.monotonic()
        destination.mkdir(exist_ok=True)
        outputs = [*spec.outputs, *(one.answer for one in spec.rounds)]
        for output in outputs:
            path = destination / output.name
            if output.name == CHECKPOINT:
                size = self._checkpoint_bytes
                tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
                header = json.dumps({"w": tensor}).encode()
                path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
            elif output.name == NLL:
                np.full(output.max_bytes // 4, math.log(self._vocab_size), dtype="<f4").tofile(path)
            elif spec.phase == "audit":
                path.write_bytes(bytes(output.max_bytes))
        there = tuple((output.name, destination / output.name) for output in outputs if (destination / output.name).exists())
        self.spent += time.monotonic() - began
        return Result(ending=Ending.FINISHED, reason="", seconds=1.0, outputs=there)

    def reap(self, labels: dict[str, str]) -> int:
        """See `Sandbox.reap`."""
        return 0


def _host(task: Task, folder: Path) -> dict[str, float]:
    """Seconds of everything that the host itself does for a score, on a part of the rows: the runner's own measurer."""
    data = task.data
    assert data is not None
    assert data.val_rows is not None
    rows, length, vocab = data.val_rows // PART, data.sequence_length, data.vocab_size
    random = np.random.default_rng(SEED)
    for name in ("val", "train", "prepare"):
        (folder / name).mkdir()
    for name in ("val", "train"):
        random.integers(vocab, size=(rows, length + 1), dtype="<u2").tofile(folder / name / ROWS)
    np.save(folder / "prepare" / "token_bytes.npy", np.full(vocab, 4, dtype=np.uint16))
    prepared = Prepared(
        path=folder,
        manifest={"counts": {"rows": {"val": rows, "train": rows}}},
        digest="",
        dataset=data.dataset,
        vocab_size=vocab,
        sequence_length=length,
        train_rows=rows,
        val_rows=rows,
        val_bytes=4 * rows * length,
    )
    phases = ("train", "claim", "audit")
    place = Place(
        images=PhaseImages(train="", claim="", audit=""),
        gpu="GPU",
        prepare_volumes=tuple((phase, "") for phase in phases),
        data_volume="",
        labels=(),
    )
    sandbox = _Uniform(vocab, 4 * PARAMETERS // PART)
    measurer = Measurer(sandbox, task, prepared, place)

    def measured(name: str, references: list[Path]) -> tuple[Path, Measurement, float]:
        here = folder / name
        here.mkdir()
        (here / "train.py").write_text("")
        began, inside = time.monotonic(), sandbox.spent
        found = measurer.measure(
            0, here, seed=SEED, caps=caps(task, []), references=references, notes=Notes(), progress=ignore
        )
        if found.val_bpb is None:
            raise EngineError(f"the host's arithmetic gave no score: {found.reason}")
        return here, found, time.monotonic() - began - (sandbox.spent - inside)

    references = 3 * [measured("reference", [])[0]]
    here, found, seconds = measured("timed", references)
    began, inside = time.monotonic(), sandbox.spent
    measurer.confirm(0, here, found, caps=caps(task, []), references=references, notes=Notes(), progress=ignore)
    return {"claim and audit": seconds, "confirm": time.monotonic() - began - (sandbox.spent - inside)}


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Seconds by phase: `claim`, `audit` and `confirm`."""

    terms: Mapping[str, Mapping[str, float]]
    budget: float

    def total(self, phases: Sequence[str], *, without: Sequence[str] = ()) -> float:
        """Of all terms but those named."""
        return sum(row.get(phase, 0.0) for name, row in self.terms.items() if name not in without for phase in phases)


STARTUP = "start-up, before the gate"


def bound(task: Task, known: Rates) -> Bound:
    """Every term at full size."""
    data, score = task.data, task.score
    assert data is not None
    assert data.val_rows is not None
    assert task.budget.seconds is not None
    dim, depth = int(str(task.constants["MODEL_DIM"])), int(str(task.constants["DEPTH"]))
    tokens = data.val_rows * data.sequence_length
    rate = MEASURED_TOKENS_PER_SECOND * _weights(MEASURED_DIM, MEASURED_DEPTH, data.vocab_size) / _weights(dim, depth, data.vocab_size)
    checkpoint, rows = 4 * PARAMETERS, 2 * data.val_rows * (data.sequence_length + 1)
    answer = 4 * data.val_rows * data.vocab_size
    rounds = {"claim": 1, "audit": score.audit_rounds, "confirm": score.confirm_rounds}
    answers = {"audit": score.audit_rounds * answer, "confirm": score.confirm_rounds * answer}
    return Bound(
        budget=task.budget.seconds,
        terms={
            "container made, started, removed": dict.fromkeys(rounds, known.engine),
            "checkpoint and rows in": {phase: (checkpoint + count * rows) / known.put for phase, count in rounds.items()},
            STARTUP: dict.fromkeys(rounds, STARTUP_SECONDS),
            "weights to the GPU": dict.fromkeys(rounds, checkpoint / TO_GPU_BYTES_PER_SECOND),
            "forward pass": {phase: count * tokens / rate for phase, count in rounds.items()},
            "log-softmax": {"claim": LOGIT_PASSES * 4 * tokens * data.vocab_size / GPU_BYTES_PER_SECOND},
            "answers off the GPU": {phase: size / TO_GPU_BYTES_PER_SECOND for phase, size in answers.items()},
            "answers out of reach": {phase: size / known.taken for phase, size in answers.items()},
            "likelihoods or answers out": {phase: size / known.get for phase, size in {"claim": 4 * tokens, **answers}.items()},
            # The claim's and the audit's are one measurement: it stands with the audit.
            "host's arithmetic and files": {"audit": known.host["claim and audit"], "confirm": known.host["confirm"]},
        },
    )


def _weights(dim: int, depth: int, vocab_size: int) -> int:
    """Weights that every token is multiplied with: attention 4 and MLP 8 squares of the width a layer, and the output."""
    return 12 * depth * dim**2 + vocab_size * dim


def show_bound(task: Task, known: Rates, found: Bound) -> str:
    """The terms and the shares for a person."""
    assert task.data is not None
    lines = [
        f"preset {task.preset}: {task.data.val_rows} rows of {task.data.sequence_length}, vocabulary {task.data.vocab_size}",
        f"{PARAMETERS / 1e6:.0f} M parameters, a budget of {found.budget:.0f} s",
        f"copies here: {known.put / 1e6:.0f} MB/s in, {known.get / 1e6:.0f} MB/s out, {known.taken / 1e6:.0f} MB/s out of reach",
        f"load average {os.getloadavg()[0]:.1f}",
        "",
        f"{'seconds':<36}{'claim':>9}{'audit':>9}{'confirm':>9}",
    ]
    for name, row in found.terms.items():
        cells = [f"{row[phase]:.2f}" if phase in row else "-" for phase in ("claim", "audit", "confirm")]
        lines.append(f"  {name:<34}" + "".join(f"{cell:>9}" for cell in cells))
    lines.append("")
    for name, phases, without in (
        ("claim and audit but for start-up", ("claim", "audit"), (STARTUP,)),
        ("claim and audit, all of it", ("claim", "audit"), ()),
        ("before a keep, all of it", ("confirm",), ()),
    ):
        total = found.total(phases, without=without)
        verdict = "" if phases == ("confirm",) else f"; within {SHARE:.0%}: {'yes' if total <= SHARE * found.budget else 'NO'}"
        lines.append(f"{name:<36}{total:>9.1f}  {total / found.budget:.1%} of the budget{verdict}")
    lines += [
        "",
        "not measured: anything on a GPU with this network. The speed of the forward pass is one H200's with a smaller network,",
        "scaled by the weights that every token meets (attention's own products grow less); an H100 is taken to be as fast.",
        "Assumed: start-up (compilation on one H200), passes of the log-softmax, speeds to and from the GPU. Copies, containers and",
        "arithmetic are this machine's, under the load shown, and a GPU's host is likely to be faster. Compiling as the baselines do is",
        "charged to nobody, but it takes the time.",
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------ the command


def say(text: str) -> None:
    """What is under way."""
    print(f"score: {text}", file=sys.stderr, flush=True)


def ignore(*_: object) -> None:
    """Nobody is told."""


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=["smoke", "tiny"], default="smoke")
    parser.add_argument("--trials", type=int, default=3, metavar="N")
    parser.add_argument("--gpu-arithmetic", action="store_true", help="bound the cost of preset h100 instead")
    asked = parser.parse_args()
    if asked.trials < 1:
        parser.error("--trials: at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if asked.gpu_arithmetic:
            task = load_task(resource(), "h100")
            known = rates(task)
            found = bound(task, known)
            print(show_bound(task, known, found))
            return 0 if found.total(("claim", "audit"), without=(STARTUP,)) <= SHARE * found.budget else 1
        task, costs = measure(asked.preset, asked.trials)
        print(show(task, costs))
        return 0 if holds(task, costs) else 1
    except AutoresearchError as error:
        print(f"score: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
