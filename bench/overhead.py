"""What a locked-down trial costs: a whole trial of the runner against the same train.py run bare on this machine.

Both sides take turns in one run, so that whatever else the machine does hits both alike.  The bare side has the wheels
of the image, and the variables, seed, steps and threads of the container; it must give the same checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.bare import Bare, Timing, provide
from bench.whole import Bench, Whole, bench
from runner import images
from runner.errors import AutoresearchError, EngineError
from runner.ledger import make_state
from runner.measure import CHECKPOINT
from runner.phases import ROWS, handed_out
from runner.run import SEEDS_PER_TRIAL
from runner.trial import Proposal, Record
from runner.wheels import sha256_of

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".autoresearch"
PAIRS = {"smoke": 3, "tiny": 5}
"""Presets whose budget is in steps, so that both sides do the same work; and how many pairs are measured."""
SEED = 1
PHASES = ("train", "claim", "audit")
CALLS_SHOWN = 8

Say = Callable[[str], None]
Value = Callable[["Pair"], float]

# ------------------------------------------------------------------------------------------- the pairs


@dataclass(frozen=True, kw_only=True)
class BareTrial:
    """Train, claim and audit of one trial, bare."""

    seed: int
    phases: Mapping[str, Timing]
    loop: float
    """Seconds of the training loop, by train.py's own word."""
    checkpoint: str
    """SHA-256."""

    @property
    def train(self) -> Timing:
        """The training alone."""
        return self.phases["train"]

    @property
    def whole(self) -> float:
        """Seconds of all three processes."""
        return sum(timing.whole for timing in self.phases.values())


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The same trial, by the runner and bare."""

    load: float
    """Load average of one minute when both were done."""
    whole: Whole
    loop: float
    """Seconds of the training loop in the container, by train.py's own word."""
    checkpoint: str
    bare: BareTrial

    def train(self) -> float:
        """Seconds of the train phase in the container: gate to exit."""
        return self.whole.phases["train: work"]

    def around(self) -> float:
        """Seconds in which none of the three programs ran: the runner's and the engine's own."""
        working = [self.whole.phases[f"{phase}: {step}"] for phase in PHASES for step in ("start-up", "work")]
        return self.whole.seconds - sum(working)


RATIOS: dict[str, Value] = {
    "whole trial / bare process": lambda pair: pair.whole.seconds / pair.bare.train.whole,
    "whole trial / bare process, claim and audit": lambda pair: pair.whole.seconds / pair.bare.whole,
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

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | None:
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
            self.pairs.append(self._pair(record, self._began, ended))
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

    def _pair(self, record: Record, began: float, ended: float) -> Pair:
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
            bare=bare,
        )

    def _run_bare(self, later: int) -> BareTrial:
        """What the latest trial's containers did, or with 1 the next one's: the runner counts seeds up."""
        prepared, folder = self._made.prepared, self._made.folder
        latest = {run.spec.phase: run for run in self._made.sandbox.contained}
        told = {
            phase: {**run.trial, "seed": run.trial["seed"] + later * SEEDS_PER_TRIAL} for phase, run in latest.items()
        }
        seed, rows, phases = told["train"]["seed"], folder / ROWS, {}

        tokens, length = self._made.task.budget.tokens, prepared.sequence_length
        there = prepared.train_rows
        taken = handed_out(there, there if tokens is None else math.ceil(tokens / length), seed)
        prepared.rows("train")[taken].tofile(rows)
        phases["train"], out = self._bare.run(latest["train"].spec, told["train"], self._source(), {ROWS: rows})
        loop = float(json.loads((out / "summary.json").read_text())["training_seconds"])
        checkpoint = (out / CHECKPOINT).rename(folder / "bare.safetensors")
        validation = prepared.rows("val")
        validation.tofile(rows)
        gated = {CHECKPOINT: checkpoint, ROWS: rows}
        phases["claim"], _ = self._bare.run(latest["claim"].spec, told["claim"], self._source(), gated)
        # Whatever is asked, the work is the same; all rounds lie there from the start.
        asked, end = folder / "question.bin", folder / "end"
        ids = np.asarray(validation[: told["audit"]["rows"], :-1])
        asked.write_bytes(np.zeros(len(ids), dtype="<i4").tobytes() + ids.tobytes())
        end.touch()
        gated = {CHECKPOINT: checkpoint, "end": end, **{name: asked for name, _ in told["audit"]["rounds"]}}
        phases["audit"], _ = self._bare.run(latest["audit"].spec, told["audit"], self._source(), gated)
        return BareTrial(seed=seed, phases=phases, loop=loop, checkpoint=sha256_of(checkpoint))


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
        "same_checkpoint": all(pair.checkpoint == pair.bare.checkpoint for pair in pairs),
    }


def _spread(pairs: Sequence[Pair], of: Value) -> dict[str, float]:
    values = [of(pair) for pair in pairs]
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def _seconds(pairs: Sequence[Pair]) -> dict[str, dict[str, float | None]]:
    """Medians of each phase, and of what the bare side has in its place."""
    rows: dict[str, dict[str, float | None]] = {}
    for name in pairs[0].whole.phases:
        phase, _, step = name.partition(": ")
        there = {"start-up": "startup", "work": "work"}.get(step)
        rows[name] = {
            "trial": statistics.median(pair.whole.phases[name] for pair in pairs),
            "bare": statistics.median(getattr(pair.bare.phases[phase], there) for pair in pairs) if there else None,
        }
    rows["whole"] = {
        "trial": statistics.median(pair.whole.seconds for pair in pairs),
        "bare": statistics.median(pair.bare.whole for pair in pairs),
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
    load, python = found["load_average"], found["python"]
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
        f"  {'of it none of the three programs':<40}{around['median']:>9.3f}",
        "",
        f"{'ratios':<42}{'median':>9}{'lowest':>9}{'highest':>9}",
    ]
    for name, row in found["ratios"].items():
        lines.append(f"  {name:<40}" + "".join(f"{row[key]:>9.3f}" for key in ("median", "lowest", "highest")))
    lines += ["", f"{'calls of the engine in a trial (medians)':<42}{'count':>9}{'seconds':>9}"]
    for name, row in list(found["engine_calls"].items())[:CALLS_SHOWN]:
        lines.append(f"  {name:<40}{row['count']:>9.0f}{row['seconds']:>9.3f}")
    lines += ["", f"checkpoints: {'the same bytes in every pair' if found['same_checkpoint'] else 'DIFFERENT BYTES'}"]
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
        bench(preset, SEED, STATE, Path(folder)) as made,
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
    return 0 if found["same_checkpoint"] else 1


if __name__ == "__main__":
    sys.exit(main())
