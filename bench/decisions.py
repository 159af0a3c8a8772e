"""What verdicts do with changes whose worth is known: a real improvement, a harm, and three that change nothing.

Each repetition is a run of its own, with its own seed: baselines, then one trial of each candidate through the command
line, as a user has it.  The improvement comes last; if something else is kept, the rest goes on in a run with the same
seed and new baselines, so that every candidate is compared with the unmodified file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.whole import throwaway
from runner.constants import set_constants
from runner.errors import AutoresearchError, EngineError
from runner.literals import Value
from runner.trial import Verdict

STATE = Path(__file__).resolve().parents[1] / ".autoresearch"
REPETITIONS = {"tiny": 20, "smoke": 3}
FIRST_SEED = 101
GAIN = "gain, median (lowest to highest)"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A change of the unmodified file."""

    what: str
    kept: bool
    """Whether it should be."""
    constants: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """By preset."""
    text: Sequence[tuple[str, str]] = ()
    """Old and new; the old one is there once."""

    def of(self, source: str, preset: str) -> str:
        """The changed file.  Raises `EngineError` if the file no longer has what is changed."""
        for old, new in self.text:
            if source.count(old) != 1:
                message = f"{source.count(old)} times in train.py, and not once: {old!r}"
                raise EngineError(message)
            source = source.replace(old, new)
        return set_constants(source, self.constants.get(preset, {}))


CANDIDATES = {
    "worse": Candidate(
        what="far too low a rate for the output matrix",
        kept=False,
        constants={"tiny": {"UNEMBEDDING_LR": 0.0003}, "smoke": {"UNEMBEDDING_LR": 0.0003}},
    ),
    "seed": Candidate(
        what="other initial weights",
        kept=False,
        text=[("torch.manual_seed(SEED)", "torch.manual_seed(SEED + 1)")],
    ),
    "no-op": Candidate(
        what="a sum the other way round",
        kept=False,
        text=[("return x + self.mlp(norm(x))", "return self.mlp(norm(x)) + x")],
    ),
    "neutral": Candidate(
        what="the same arithmetic in other words, as in tests/candidates/neutral.py",
        kept=False,
        text=[
            (
                "        return self.output(F.relu(self.hidden(x)).square())\n",
                "        hidden = self.hidden(x).clamp_min(0)\n        return self.output(hidden * hidden)\n",
            ),
            (
                """    if progress < WARMUP:
        return progress / WARMUP
    if progress < 1 - WARMDOWN:
        return 1.0
    left = (1 - progress) / WARMDOWN
    return left + (1 - left) * FINAL_LR
""",
                """    rise = progress / WARMUP if progress < WARMUP else 1.0
    left = (1 - progress) / WARMDOWN if progress >= 1 - WARMDOWN else 1.0
    return min(rise, left + (1 - left) * FINAL_LR)
""",
            ),
        ],
    ),
    "better": Candidate(
        what="rates and warm-down that suit the length of the training",
        kept=True,
        constants={
            "tiny": {
                "EMBEDDING_LR": 0.3,
                "UNEMBEDDING_LR": 0.007,
                "MATRIX_LR": 0.05,
                "WARMDOWN": 0.5,
                "MOMENTUM": 0.9,
                "X0_INIT": 0.2,
            },
            "smoke": {"MATRIX_LR": 0.04, "EMBEDDING_LR": 0.9, "UNEMBEDDING_LR": 0.005, "WARMDOWN": 0.75},
        },
    ),
}
"""In the order of their trials."""

# ------------------------------------------------------------------------------------------ the trials


class Cli:
    """The installed command on one task."""

    def __init__(self, task: Path, preset: str) -> None:
        self._task, self._preset = task, preset

    def __call__(self, command: str, tag: str, *more: str) -> str:
        """What the command prints.  Raises `EngineError` if it fails."""
        program = Path(sys.executable).with_name("autoresearch")
        called = [str(program), command, "--task", str(self._task), "--tag", tag, *more]
        done = subprocess.run(called, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode != 0:
            message = f"`autoresearch {command}` ended with exit code {done.returncode}"
            raise EngineError(message)
        return done.stdout

    def start(self, tag: str, seed: int) -> str:
        """A run with its baselines; gives the unmodified file."""
        self("run", tag, "--cpu", "--preset", self._preset, "--seed", str(seed), "--trials", "0", "--json")
        return self("champion", tag)

    def records(self, tag: str) -> list[dict[str, Any]]:
        """Everything that was measured, a record a trial."""
        return [json.loads(line) for line in self("log", tag, "--json").splitlines()]


def repetition(cli: Cli, preset: str, number: int, folder: Path) -> dict[str, Any]:
    """One trial of each candidate: its record, and the measurements of candidate and champion that it took."""
    tags = [f"r{number}"]
    source = cli.start(tags[0], FIRST_SEED + number)
    trials, known, kept = {}, len(cli.records(tags[0])), False
    for name, candidate in CANDIDATES.items():
        if kept:
            tags.append(f"r{number}-{name}")
            cli.start(tags[-1], FIRST_SEED + number)
            known = len(cli.records(tags[-1]))
        path = folder / f"{name}.py"
        path.write_text(candidate.of(source, preset))
        record = json.loads(cli("trial", tags[-1], "--candidate", str(path), "--message", candidate.what, "--json"))
        records = cli.records(tags[-1])
        # The champion's repeats for this trial's sake have later numbers.
        spent = sum(len(one["measurements"]) for one in records[known:])
        trials[name] = {**record, "spent": spent}
        known, kept = len(records), record["verdict"] == Verdict.KEEP
    baselines = [one for tag in tags for one in cli.records(tag) if one["verdict"] == Verdict.BASELINE]
    return {"preset": preset, "repetition": number, "baselines": baselines, "trials": trials}


def finished(out: Path, preset: str) -> list[dict[str, Any]]:
    """The repetitions that `out` has; a last line that was cut off is none."""
    found = []
    for line in out.read_text().splitlines() if out.exists() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [one for one in found if one["preset"] == preset]


# ------------------------------------------------------------------------------------------ the report


def show(preset: str, repetitions: Sequence[dict[str, Any]]) -> str:
    """The counts."""
    baselines = [one for repetition in repetitions for one in repetition["baselines"]]
    lines = [
        f"preset {preset}: {len(repetitions)} repetitions, {len(baselines)} baselines",
        f"baselines: val_bpb {_spread(baselines, 'val_bpb')}, charge {_spread(baselines, 'charge')}",
        "",
        f"{'candidate':<10}{'should be':<11}{'kept':>5}{'not':>5}{'measured':>10}{GAIN:>36}{'charge':>28}  endings",
    ]
    for name, candidate in CANDIDATES.items():
        trials = [repetition["trials"][name] for repetition in repetitions]
        kept = sum(trial["verdict"] == Verdict.KEEP for trial in trials)
        endings = Counter(trial["ending"] or trial["verdict"] for trial in trials)
        lines.append(
            f"{name:<10}{'kept' if candidate.kept else 'discarded':<11}{kept:>5}{len(trials) - kept:>5}"
            f"{statistics.fmean(trial['spent'] for trial in trials):>10.2f}{_spread(trials, 'gain'):>36}"
            f"{_spread(trials, 'charge'):>28}  {', '.join(f'{count} {ending}' for ending, count in endings.items())}"
        )
    lines += ["", "`measured`: mean number of measurements that a trial took, those of the champion for its sake included"]
    return "\n".join(lines)


def _spread(records: Iterable[dict[str, Any]], key: str) -> str:
    values = [one[key] for one in records if one[key] is not None]
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})" if values else "-"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(REPETITIONS), default="tiny")
    parser.add_argument("--repetitions", type=int, metavar="R", help="[default: 20 of tiny, 3 of smoke]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines; what is finished in it is not run again")
    asked = parser.parse_args()
    out = asked.out or STATE / "bench" / f"decisions-{asked.preset}.jsonl"
    wanted = asked.repetitions or REPETITIONS[asked.preset]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    done, code = finished(out, asked.preset), 0
    missing = sorted(set(range(wanted)) - {one["repetition"] for one in done})
    out.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="decisions-"))
    try:
        with throwaway(folder / "task", STATE) as task, out.open("a") as lines:
            for number in missing:
                print(f"decisions: repetition {number + 1} of {wanted}; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
                one = repetition(Cli(task, asked.preset), asked.preset, number, folder)
                # A line that was cut off stays one by itself.
                lines.write(("\n" if lines.tell() else "") + json.dumps(one))
                lines.flush()
                done.append(one)
    except AutoresearchError as error:
        print(f"decisions: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    finally:
        shutil.rmtree(folder)
    if done:
        print(show(asked.preset, done))
    return code


if __name__ == "__main__":
    sys.exit(main())
