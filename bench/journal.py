"""What looking at a run and going on with it cost, by the number of its trials: 100, 1,000 and 10,000.

    .venv/bin/python bench/journal.py                        about 10 minutes, 1 GB in the temporary folder
    .venv/bin/python bench/journal.py --trials 10000 --rounds 3

The runs are made up (`bench/longrun.py`); everything that is timed is the runner's own: the commands in this process, beyond the
interpreter's start and the imports; `status` as a process too; the next prompt as a running loop builds it; and a whole turn of
the loop with a measurer that answers at once, so that all of it is bookkeeping.  Each figure is a median.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.longrun import LongRun, make
from runner import gates, ledger
from runner.cli import app, parts
from runner.cli.steering import CONTEXT_TOKENS, count, shown_by
from runner.coarse import Teller
from runner.ledger import Ledger
from runner.loop import Loop, Stops
from runner.measure import Caps, Measurement
from runner.notes import Notes, result_to_json
from runner.report.live import JsonView
from runner.run import Run
from runner.task import Task
from runner.trial import Ending, Progress, Proposal, Record, Refusal, Result, Seconds
from runner.tried import Gate
from runner.workspace import Workspace

SIZES, ROUNDS = (100, 1000, 10_000), 9
LIMIT_MS = 150.0
LIMITED = ("status", "next prompt", "turn of the loop")


def clock() -> float:
    """Seconds: of the wall, or of the processor in this process and in those that it has waited for."""
    return sum(os.times()[:4]) if "--cpu" in sys.argv else time.perf_counter()


@dataclass
class AtOnce:
    """Measures in no time: a score that is never kept."""

    def measure(
        self, trial: int, folder: Path, *, seed: int, caps: Caps, references: Sequence[Path],
        notes: Notes, progress: Callable[[Progress], None],
    ) -> Measurement:  # fmt: skip
        """See `runner.loop.Measures`."""
        for phase, step in (("train", "trained"), ("claim", "claimed"), ("audit", "audited")):
            for event in ("created", "started", "exited"):
                notes.write(event, phase=phase, container="0" * 64)
            notes.write(step, number=1, result=result_to_json(Result(ending=Ending.FINISHED, reason="exit code 0"), folder, ()))
        return Measurement(
            ending=Ending.FINISHED, reason="scored", seed=seed, val_bpb=3.0, score_level="audited", seconds=Seconds(total=1.0),
            losses=tuple((step, 7.0 / (1 + step / 50) ** 0.5) for step in range(1, 161)),
        )  # fmt: skip

    def confirm(self, trial: int, folder: Path, measured: Measurement, **_: Any) -> Measurement:
        """See `runner.loop.Measures`."""
        return measured


@dataclass
class Turns:
    """An agent that proposes small changes and notes when it is asked: from one time to the next is a turn."""

    name: str = "turns"
    asked: list[float] = field(default_factory=list)

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
        """See `runner.protocols.Agent`."""
        self.asked.append(clock())
        return Proposal(agent=self.name, idea=f"idea {len(self.asked)}", why="because", source=f"{champion}\nTURN = {time.time_ns()}\n")


class Nobody:
    """In a model's place: prompts are only built."""

    name = "nobody"

    def complete(self, messages: Any, *, seconds: float) -> Any:
        """Is never called."""
        raise NotImplementedError

    def most_usd(self, prompt_tokens: int) -> float | None:
        """Is never called."""
        raise NotImplementedError


# --------------------------------------------------------------------------------------------- timing


def commands(run: LongRun, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the commands that look at a run, in this process."""
    named = {
        "status": ["status"], "status --json": ["status", "--json"], "show N": ["show", str(run.champion)], "champion": ["champion"],
        "log --json": ["log", "--json"], "log": ["log"], "prompt": ["prompt"],
    }  # fmt: skip
    return {name: _times(partial(_command, run, words), rounds) for name, words in named.items()}


def _command(run: LongRun, words: list[str]) -> None:
    with redirect_stdout(io.StringIO()):
        app([*words, "--task", str(run.task)], standalone_mode=False)


def process(run: LongRun, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of whole processes."""
    status = [sys.executable, "-m", "runner.cli", "status", "--task", str(run.task)]
    return {"status, a process": _times(lambda: subprocess.run(status, check=True, stdout=subprocess.DEVNULL), rounds)}


def prompts(run: LongRun, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of the next prompt, in a loop that has built one before."""
    from runner.agents.llm import LlmAgent

    with _held(run) as (task, held):
        header = held.ledger.state.header or {}
        context = shown_by(run.folder, run.task, task, header)
        agent = LlmAgent(Nobody(), context, limit=CONTEXT_TOKENS, count=count)
        source, teller = held.source(held.champion()), Teller()
        return {"next prompt": _times(lambda: agent.preview(source, teller.told(held.records)), rounds)}


def turns(run: LongRun, rounds: int) -> dict[str, list[float]]:
    """Milliseconds from one question to the agent to the next, and until the first one."""
    with _held(run) as (_, held):
        gate = Gate(
            fingerprint=gates.fingerprint,
            rules=gates.RULES,
            refuse=lambda source, champion, tried: gates.refuse(source, champion=champion, tried=tried, limits=gates.GateLimits(), held_out=None),
        )
        agent, began = Turns(), clock()
        loop = Loop(held, AtOnce(), agent, JsonView(run.folder), gate=gate)
        with redirect_stdout(io.StringIO()):
            loop.run(Stops(trials=rounds + 3))
    at = agent.asked
    return {
        "reading, to the first question": [1e3 * (at[0] - began)],
        "first turn": [1e3 * (at[1] - at[0])],
        "turn of the loop": [1e3 * (after - before) for before, after in pairwise(at[1:])],
    }


@contextmanager
def _held(run: LongRun) -> Iterator[tuple[Task, Run]]:
    workspace = Workspace(run.task)
    with ledger.writing(run.folder) as held:
        header = held.state.header or {}
        task = parts.load_frozen(run.folder, workspace.root, header["preset"], header["overrides"])
        task = replace(task, judge=replace(task.judge, remeasure_champion_every=0))
        yield task, _run(task, held, workspace)


def _run(task: Task, held: Ledger, workspace: Workspace) -> Run:
    return Run(task=task, tag=held.folder.name, ledger=held, workspace=workspace)


def _times(work: Callable[[], object], rounds: int) -> list[float]:
    took = []
    for _ in range(rounds + 1):
        began = clock()
        work()
        took.append(1e3 * (clock() - began))
        if sum(took) > 60_000:
            break
    return took[1:] or took


WHAT = {"commands": commands, "process": process, "prompts": prompts, "turns": turns}


def main() -> int:
    """Print a table; 1 if something takes longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=WHAT, nargs="*", default=list(WHAT))
    parser.add_argument("--profile", action="store_true", help="Where the time of each goes.")
    parser.add_argument("--cpu", action="store_true", help="Processor time, in steps of 10 ms, where neighbours are busy.")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="Make the runs there, or use those that are there.")
    asked = parser.parse_args()
    os.environ["GIT_CONFIG_GLOBAL"] = os.devnull
    with tempfile.TemporaryDirectory(prefix="autoresearch-bench-") as scratch:
        root = asked.keep or Path(scratch)
        found: dict[str, dict[int, float]] = {}
        for size in asked.trials:
            run = _made(root / str(size), size)
            for name in asked.only:
                for what, took in _profiled(partial(WHAT[name], run, asked.rounds), profile=asked.profile).items():
                    found.setdefault(what, {})[size] = statistics.median(took)
    return _print(found, asked.trials)


def _made(root: Path, size: int) -> LongRun:
    root.mkdir(parents=True, exist_ok=True)
    if not (root / "champion").exists():
        run = make(root, size)
        (root / "champion").write_text(str(run.champion))
    task = root / "task"
    return LongRun(task=task, folder=task / ".autoresearch" / "long", champion=int((root / "champion").read_text()))


def _profiled(work: Callable[[], dict[str, list[float]]], *, profile: bool) -> dict[str, list[float]]:
    if not profile:
        return work()
    with cProfile.Profile() as seen:
        found = work()
    pstats.Stats(seen, stream=sys.stderr).sort_stats("cumulative").print_stats(40)
    return found


def _print(found: dict[str, dict[int, float]], sizes: Sequence[int]) -> int:
    print(f"load {os.getloadavg()[0]:.1f}; medians, milliseconds; last column: the last over the first")
    print(f"{'':32}" + "".join(f"{size:>10}" for size in sizes) + f"{'ratio':>9}")
    over = 0
    for what, by in found.items():
        late = what in LIMITED and by[sizes[-1]] > LIMIT_MS
        over += late
        cells = "".join(f"{by[size]:>10.1f}" for size in sizes)
        print(f"{what:32}{cells}{by[sizes[-1]] / by[sizes[0]]:>9.1f}{f'   over {LIMIT_MS:g}' if late else ''}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
