"""What a locked-down trial costs: a whole trial of the runner against the same train.py run bare on this machine.

Both sides take turns in one run, so that whatever else the machine does hits both alike.  The bare side has the wheels
of the image, and the variables, seed, steps and threads of the container; it must give the same checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.bare import Bare, Timing, provide
from bench.whole import Bench, Whole, bench
from runner import images, score
from runner.errors import AutoresearchError, EngineError
from runner.ledger import make_state
from runner.measure import CHECKPOINT
from runner.trial import Proposal, Record
from runner.wheels import sha256_of

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".autoresearch"
PAIRS = {"smoke": 3, "tiny": 5}
"""Presets whose budget is in steps, so that both sides do the same work; and how many pairs are measured."""
SEED = 1
CALLS_SHOWN = 8

Say = Callable[[str], None]
Value = Callable[["Pair"], float]

# ------------------------------------------------------------------------------------------- the pairs


@dataclass(frozen=True, kw_only=True)
class BareTrial:
    """Train and claim of one trial, bare."""

    seed: int
    train: Timing
    claim: Timing
    loop: float
    """Seconds of the training loop, by train.py's own word."""
    checkpoint: str
    """SHA-256."""
    val_bpb: float


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same trial, by the runner and bare."""

    load: float
    """Load average of one minute when both were done."""
    whole: Whole
    loop: float
    """Seconds of the training loop in the container, by train.py's own word."""
    checkpoint: str
    val_bpb: float
    bare: BareTrial

    def train(self) -> float:
        """Seconds of the train phase in the container: gate to exit."""
        return self.whole.phases["train: work"]

    def around(self) -> float:
        """Seconds in which neither train.py nor claim.py ran: the runner's and the engine's own."""
        working = [self.whole.phases[f"{phase}: {step}"] for phase in ("train", "claim") for step in ("start-up", "work")]
        return self.whole.seconds - sum(working)


RATIOS: dict[str, Value] = {
    "whole trial / bare process": lambda pair: pair.whole.seconds / pair.bare.train.whole,
    "whole trial / bare process and bare claim": lambda pair: (
        pair.whole.seconds / (pair.bare.train.whole + pair.bare.claim.whole)
    ),
    "train phase / bare training loop": lambda pair: pair.train() / pair.bare.loop,
    "train phase / bare train phase": lambda pair: pair.train() / pair.bare.train.work,
    "training loop / bare training loop": lambda pair: pair.loop / pair.bare.loop,
}


class Driver:
    """The agent of the run: proposes the same file again and again, and runs the bare side between trials.

    Implements `runner.protocols.Agent`.  The runner asks for the next proposal as soon as it is done with a trial, so
    from one answer to the next question is a whole trial.  Which side is first changes from pair to pair.
    """

    name = "bench"

    def __init__(self, made: Bench, bare: Bare, pairs: int, say: Say) -> None:
        self._made, self._bare, self._wanted, self._say = made, bare, pairs, say
        self._began: float | None = None
        self._early: BareTrial | None = None
        self.pairs: list[Pair] = []

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | None:  # noqa: ARG002 - the seam
        """A line of comment makes it another file: the runner refuses the champion's own."""
        ended = time.monotonic()
        record = history[-1]
        if record.val_bpb is None:
            message = f"trial {record.trial} gave no score: {record.reason}"
            raise EngineError(message)
        if self._began is None:
            self._say("the bare side once, so that its files are in memory as the image's are")
            self._run_bare(0)
        else:
            self.pairs.append(self._pair(record, record.val_bpb, self._began, ended))
            ratios = "  ".join(f"{of(self.pairs[-1]):.3f}" for of in RATIOS.values())
            self._say(f"pair {len(self.pairs)} of {self._wanted}: {ratios}  load {self.pairs[-1].load:.1f}")
        if len(self.pairs) == self._wanted:
            return None
        self._early = self._run_bare(1) if len(self.pairs) % 2 else None
        idea = f"pair {len(self.pairs) + 1} of {self._wanted}"
        self._began = time.monotonic()
        return Proposal(agent=self.name, idea=idea, source=self._source())

    def observe(self, record: Record) -> None:
        """There is nothing to learn."""

    def _source(self) -> str:
        return f"{self._made.source}# pair {len(self.pairs) + 1}\n"

    def _pair(self, record: Record, val_bpb: float, began: float, ended: float) -> Pair:
        sandbox = self._made.sandbox
        bare = self._early or self._run_bare(0)
        train = next(run for run in sandbox.contained if run.began >= began)
        if train.trial["seed"] != bare.seed:
            message = f"the runner chose seed {train.trial['seed']} and not {bare.seed}: the sides cannot be compared"
            raise EngineError(message)
        return Pair(
            load=os.getloadavg()[0],
            whole=Whole.of(began, ended, sandbox.contained, self._made.calls),
            loop=float(dict(record.summary)["training_seconds"]),
            checkpoint=sha256_of(sandbox.checkpoint(train)),
            val_bpb=val_bpb,
            bare=bare,
        )

    def _run_bare(self, later: int) -> BareTrial:
        """What the latest trial's containers did, or with 1 the next one's: the runner counts seeds up."""
        prepared, folder = self._made.prepared, self._made.folder
        latest = {run.spec.phase: run for run in self._made.sandbox.contained}
        train, claim = latest["train"], latest["claim"]
        told = {phase: {**run.trial, "seed": run.trial["seed"] + later} for phase, run in latest.items()}

        gated = {"rows.bin": prepared.path / "train" / "rows.bin"}
        trained, out = self._bare.run(train.spec, told["train"], self._source(), gated)
        loop = float(json.loads((out / "summary.json").read_text())["training_seconds"])
        gated = {CHECKPOINT: (out / CHECKPOINT).rename(folder / "bare.safetensors"), "rows.bin": folder / "rows.bin"}
        order = score.shuffled(prepared.val_rows, secrets.randbits(128))
        prepared.rows("val")[order.permutation].tofile(gated["rows.bin"])
        claimed, out = self._bare.run(claim.spec, told["claim"], self._source(), gated)
        length = prepared.sequence_length
        nll = score.read_claim(out / "nll.bin", rows=prepared.val_rows, sequence_length=length, order=order)
        return BareTrial(
            seed=told["train"]["seed"],
            train=trained,
            claim=claimed,
            loop=loop,
            checkpoint=sha256_of(gated[CHECKPOINT]),
            val_bpb=score.bits_per_byte(nll, prepared.rows("val")[:, 1:], prepared.token_bytes()),
        )


# ------------------------------------------------------------------------------------------- the report


def report(preset: str, made: Bench, record: images.ImageRecord, python: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    return {
        "preset": preset,
        "pairs": len(pairs),
        "steps": made.task.budget.steps,
        "threads": made.sandbox.contained[-1].trial["threads"],
        "cores": os.cpu_count(),
        "load_average": _spread(pairs, lambda pair: pair.load),
        "engine": made.engine,
        "kernel": platform.release(),
        "python": {"image": record.python, "bare": python},
        "torch": record.torch,
        "seconds": _seconds(pairs),
        "seconds_around": _spread(pairs, Pair.around),
        "ratios": {name: _spread(pairs, of) for name, of in RATIOS.items()},
        "engine_calls": _calls(pairs),
        "same": {
            "checkpoint": all(pair.checkpoint == pair.bare.checkpoint for pair in pairs),
            "val_bpb_difference": max(abs(pair.val_bpb - pair.bare.val_bpb) for pair in pairs),
        },
    }


def _spread(pairs: Sequence[Pair], of: Value) -> dict[str, float]:
    values = [of(pair) for pair in pairs]
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _seconds(pairs: Sequence[Pair]) -> dict[str, dict[str, float | None]]:
    """Medians of each phase, and of what the bare side has in its place."""
    bare: dict[str, Value] = {
        "train: start-up": lambda pair: pair.bare.train.startup,
        "train: work": lambda pair: pair.bare.train.work,
        "claim: start-up": lambda pair: pair.bare.claim.startup,
        "claim: work": lambda pair: pair.bare.claim.work,
    }
    rows: dict[str, dict[str, float | None]] = {}
    for name in pairs[0].whole.phases:
        there = bare.get(name)
        rows[name] = {
            "trial": statistics.median(pair.whole.phases[name] for pair in pairs),
            "bare": statistics.median(map(there, pairs)) if there else None,
        }
    rows["whole"] = {
        "trial": statistics.median(pair.whole.seconds for pair in pairs),
        "bare": statistics.median(pair.bare.train.whole + pair.bare.claim.whole for pair in pairs),
    }
    return rows


def _calls(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """How often the engine was called in a trial, and for how many seconds together; medians, the longest first."""
    found = {}
    for name in {name for pair in pairs for name in pair.whole.calls}:
        both = [pair.whole.calls.get(name, (0, 0.0)) for pair in pairs]
        found[name] = {
            "count": statistics.median(count for count, _ in both),
            "seconds": statistics.median(seconds for _, seconds in both),
        }
    return dict(sorted(found.items(), key=lambda item: -item[1]["seconds"]))


def show(found: dict[str, Any]) -> str:
    """The report for a person."""
    load, same, python = found["load_average"], found["same"], found["python"]
    lines = [
        f"preset {found['preset']}: {found['steps']} steps, {found['threads']} threads, {found['cores']} cores",
        f"{found['pairs']} pairs, taking turns, after one of each side to warm up",
        f"load average {load['median']:.1f} ({load['lowest']:.1f} to {load['highest']:.1f}), our own two threads included",
        f"engine {found['engine']}, torch {found['torch']}, Python {python['image']} in the image and {python['bare']} bare",
        "",
        f"{'seconds (medians)':<42}{'trial':>9}{'bare':>9}",
    ]
    for name, row in found["seconds"].items():
        bare = "-" if row["bare"] is None else f"{row['bare']:.3f}"
        lines.append(f"  {name:<40}{row['trial']:>9.3f}{bare:>9}")
    around = found["seconds_around"]
    lines += [
        f"  {'of it neither train.py nor claim.py':<40}{around['median']:>9.3f}",
        "",
        f"{'ratios':<42}{'median':>9}{'lowest':>9}{'highest':>9}",
    ]
    for name, row in found["ratios"].items():
        lines.append(f"  {name:<40}" + "".join(f"{row[key]:>9.3f}" for key in ("median", "lowest", "highest")))
    lines += ["", f"{'calls of the engine in a trial (medians)':<42}{'count':>9}{'seconds':>9}"]
    for name, row in list(found["engine_calls"].items())[:CALLS_SHOWN]:
        lines.append(f"  {name:<40}{row['count']:>9.0f}{row['seconds']:>9.3f}")
    checkpoint = "the same bytes in every pair" if same["checkpoint"] else "DIFFERENT BYTES"
    lines += ["", f"checkpoints: {checkpoint}; val_bpb differs by at most {same['val_bpb_difference']:.1e}"]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------- the command


def measure(preset: str, pairs: int, say: Say) -> dict[str, Any]:
    """All of it; raises what the runner's parts raise, with nothing left behind."""
    make_state(STATE)
    cache = STATE / "bench"
    cache.mkdir(mode=0o700, exist_ok=True)
    found = [record for record in images.list_images(STATE) if record.kind == "cpu"]
    record_id = images.image_id("cpu", STATE)
    record = next(record for record in found if record.id == record_id)
    environment = provide(record, STATE / "wheels" / f"cpu-{platform.machine()}", cache, say)
    with (
        tempfile.TemporaryDirectory(dir=cache, prefix="run-") as folder,
        bench(preset, SEED, record, STATE, Path(folder)) as made,
    ):
        driver = Driver(made, Bare(environment, Path(folder) / "bare", made.fixed), pairs, say)
        say(f"preset {preset}: one baseline to warm up, then {pairs} pairs; load average {os.getloadavg()[0]:.1f}")
        made.go(driver)
        return report(preset, made, record, environment.version, driver.pairs)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PAIRS), default="smoke")
    parser.add_argument("--pairs", type=int, metavar="N", help="pairs to measure [default: 3 of smoke, 5 of tiny]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of tables")
    asked = parser.parse_args()
    pairs = PAIRS[asked.preset] if asked.pairs is None else asked.pairs
    if pairs < 1:
        parser.error("--pairs: at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found = measure(asked.preset, pairs, lambda text: print(f"bench: {text}", file=sys.stderr, flush=True))
    except AutoresearchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps(found) if asked.json else show(found))
    return 0 if found["same"]["checkpoint"] else 1


if __name__ == "__main__":
    sys.exit(main())
