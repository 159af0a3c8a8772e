"""Many short trials on the real engine with all kinds of endings, while things go wrong: what was done, and whether all held.

    python -m bench.soak [--trials 200] [--seed 1] [--folder DIR] [--json]

Nine trials in ten report their own score and take two seconds, the tenth is audited.  Which files are tried, what is done to the
run and when follow from the seed.  With --folder the same command goes on after it was ended.  Ends with 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.faults import Kind, Outcome, kinds
from runner import ledger
from runner.constants import set_constants
from runner.sandbox.connect import connect
from tests.docker.disks import Disk
from tests.docker.quick import ROOT, YAML, Driven, audited, quick

if TYPE_CHECKING:
    from docker import DockerClient

STATE = ROOT / ".autoresearch"
CANDIDATES = ROOT / "tests" / "candidates"
AUDITED_PART = 10
STRETCH = 60
WARM_UP = 15
"""Trials of the stretch before memory is looked at: what is imported late, and caches that fill once."""
MAX_DESCRIPTORS = 3
MAX_BYTES_A_TRIAL = 100_000
"""Records, and what is told of them to agents and views, take some."""
QUICK_YAML = YAML.replace("seconds: 20", "seconds: 10").replace("memory_gb: 0.5", "memory_gb: 0.125")


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A file that is proposed, and what must come of it."""

    source: str
    kind: str
    ending: str | None
    verdict: str | None = None
    """None: either way is right."""
    early: bool = False
    """The dry run may have seen it: then it is refused, by whatever it met there."""

    def fits(self, ending: str | None, verdict: str) -> bool:
        """Whether that is what must come of it."""
        if self.early and verdict == "invalid":
            return ending is not None
        return ending == self.ending and self.verdict in (None, verdict)


@dataclass(kw_only=True)
class Log:
    """What was done and found so far; on the disk, so that a soak can go on."""

    path: Path
    seconds: float = 0.0
    invocations: int = 0
    injected: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    """Of these, how often the command ended well before or in spite of it."""
    checked: Counter[str] = field(default_factory=Counter)
    """By invariant, how often it was looked at."""
    violated: list[str] = field(default_factory=list)
    stretch: dict[str, Any] | None = None

    def check(self, invariant: str, wrong: list[str], *, where: str) -> None:
        """Note that an invariant was looked at, and what was wrong."""
        self.checked[invariant] += 1
        for one in wrong:
            self.violated.append(f"{invariant}: {one} ({where})")
            print(f"soak: VIOLATED {self.violated[-1]}", file=sys.stderr, flush=True)

    def save(self) -> None:
        """Put it on the disk."""
        value = {name: getattr(self, name) for name in ("seconds", "invocations", "injected", "late", "checked", "violated", "stretch")}
        self.path.write_text(json.dumps(value))

    @classmethod
    def load(cls, path: Path) -> Log:
        """What is there, or a new one."""
        known = json.loads(path.read_text()) if path.exists() else {}
        for name in ("injected", "late", "checked"):
            known[name] = Counter(known.get(name, {}))
        return cls(path=path, **known)


# ----------------------------------------------------------------------------------------------- what is tried


def short_files(count: int, chance: random.Random) -> list[Tried]:
    """Files that print their score, and some that do otherwise."""
    weights = {"keep": 25, "discard": 30, "crash": 13, "time-out": 8, "out of memory": 8, "invalid output": 10, "refused": 6}
    best = 0.5
    found: list[Tried] = []
    for number in range(count):
        kind = chance.choices(list(weights), list(weights.values()))[0]
        head = f"import time\nNUMBER = {number}\ntime.sleep({chance.uniform(0, 0.4):.2f})\n"
        made = {"crashed": f"{head}raise SystemExit(3)\n", "timed_out": f"{head}time.sleep(60)\n"}
        if kind == "keep":
            best = round(best + chance.uniform(0.02, 0.05), 4)
            one = Tried(source=f"{head}print('acc: {best}')\n", kind=kind, ending="finished", verdict="keep")
        elif kind == "discard":
            worse = round(best - chance.uniform(0.02, 0.3), 4)
            one = Tried(source=f"{head}print('acc: {worse}')\n", kind=kind, ending="finished", verdict="discard")
        elif kind == "crash":
            one = Tried(source=made["crashed"], kind=kind, ending="crashed", verdict="crash")
        elif kind == "time-out":
            one = Tried(source=made["timed_out"], kind=kind, ending="timed_out", verdict="crash")
        elif kind == "out of memory":
            one = Tried(source=f"{head}much = b'x' * (1 << 30)\n", kind=kind, ending="out_of_memory", verdict="crash")
        elif kind == "invalid output" or not found:
            one = Tried(source=f"{head}print('acc: 9')\nprint('acc: 9')\n", kind="invalid output", ending="invalid_output", verdict="crash")
        else:
            one = Tried(source=found[-1].source, kind=kind, ending=None, verdict="invalid")
        found.append(one)
    return found


def audited_files(count: int, chance: random.Random, base: str) -> list[Tried]:
    """Files that train a language model, and some that do otherwise."""
    weights = {"scored": 70, "crash": 10, "time-out": 6, "out of memory": 4, "invalid output": 10}
    others = {"crash": ("raises", "crashed"), "time-out": ("sleeps", "timed_out"), "out of memory": ("eats_memory", "out_of_memory"),
              "invalid output": ("prints_score", "invalid_output")}  # fmt: skip
    found = []
    for number in range(count):
        kind = chance.choices(list(weights), list(weights.values()))[0]
        if kind == "scored":
            changed = {"MATRIX_LR": round(0.04 * chance.uniform(0.3, 2), 5), "EMBEDDING_LR": round(0.9 * chance.uniform(0.2, 1.2), 5)}
            found.append(Tried(source=set_constants(base, changed), kind=kind, ending="finished"))
        else:
            name, ending = others[kind]
            source = f"{(CANDIDATES / name).with_suffix('.py').read_text()}\nNUMBER = {number}\n"
            found.append(Tried(source=source, kind=kind, ending=ending, verdict="crash", early=True))
    return found


# ----------------------------------------------------------------------------------------------- one run


@dataclass(kw_only=True)
class Part:
    """One run, what is tried on it, and what is done to it."""

    name: str
    task: Driven
    tried: list[Tried]
    kinds: dict[str, Kind]
    at_once: tuple[int, int]
    """Least and most trials of one invocation."""

    def judged(self) -> int:
        """How many proposals have a record."""
        return sum(record.agent == "replay" for record in ledger.read(self.task.run).records)

    def soak(self, log: Log, client: DockerClient, *, seed: int, say: Callable[[str], None]) -> None:
        """Until everything was tried."""
        command = self.task.propose(*(one.source for one in self.tried))
        while self.judged() < len(self.tried):
            chance = random.Random(f"{seed} {self.name} {log.invocations}")
            name = chance.choices(list(self.kinds), [kind.weight for kind in self.kinds.values()])[0]
            trials = chance.randint(*self.at_once)
            began, there = time.monotonic(), self.task.left(client)
            outcome = self.kinds[name].inject(self.task, (*command, "--trials", str(trials)), chance)
            log.invocations += 1
            log.seconds += time.monotonic() - began
            log.injected[name] += 1
            log.late[name] += outcome.code == 0
            self._check(log, client, name, outcome, there)
            log.save()
            say(f"{self.name}: {self.judged()} of {len(self.tried)} judged; {name}: exit {outcome.code} after {time.monotonic() - began:.0f} s")
        self._conclude(log, client, command)

    def _check(self, log: Log, client: DockerClient, name: str, outcome: Outcome, there: list[str]) -> None:
        where = f"{self.name}, invocation {log.invocations}, {name}, exit {outcome.code}"
        said = outcome.said.strip().splitlines()
        messages = [line for line in said if not line.startswith("note: ")]
        wrong = [] if outcome.code in self.kinds[name].codes else [f"exit {outcome.code}: {said[-1:]}"]
        log.check("exit code as documented", wrong, where=where)
        wanted = 0 if outcome.code <= 0 else len(messages) if name == "Ctrl-C twice" else 1
        log.check("one message", [] if len(messages) == wanted else said[-5:], where=where)
        if outcome.clean:
            # What one that was killed left is the next one's, unless that is ended before it comes to it.
            left = sorted(set(self.task.left(client)) - set(there if outcome.code else ()))
            log.check("nothing left in the engine", [str(left)] if left else [], where=where)
        if outcome.code == 0:
            log.check("journal, branch, notes and results agree", self.task.violations(between=False), where=where)

    def _conclude(self, log: Log, client: DockerClient, command: tuple[str, ...]) -> None:
        where = f"{self.name}, at the end"
        self.task.call(*command)
        log.check("journal, branch, notes and results agree", self.task.violations(), where=where)
        left = self.task.left(client)
        log.check("nothing left in the engine", [str(left)] if left else [], where=where)
        removed = self.task.json("reap")[0]["removed"]
        log.check("nothing to reap", [f"{removed} things"] if removed else [], where=where)
        records = [record for record in ledger.read(self.task.run).records if record.agent == "replay"]
        tokens = [record.token for record in records]
        expected = [str(number) for number in range(len(self.tried))]
        log.check("trials recorded = trials tried", [] if tokens == expected else [f"{tokens}"], where=where)
        wrong = [
            f"trial {record.trial}, {one.kind}: {record.ending} {record.verdict} ({record.reason})"
            for record, one in zip(records, self.tried, strict=False)
            if not one.fits(record.ending, record.verdict)
        ]
        log.check("every ending is the one that was injected", wrong, where=where)

    def endings(self) -> Counter[str]:
        """How many trials of each kind."""
        return Counter(one.kind for one in self.tried)


def stretch(part: Part, trials: int) -> dict[str, Any]:
    """One invocation of so many trials that nothing happens to: the process's memory and file descriptors at each trial's end."""
    child = part.task.spawn(*part.task.propose(*(one.source for one in part.tried)), "--trials", str(trials))
    proc, rows = Path("/proc") / str(child.pid), []
    while child.poll() is None:
        with suppress(OSError, IndexError):
            status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
            row = (part.judged(), int(status["VmRSS"].split()[0]) * 1024, len(list((proc / "fd").iterdir())), int(status["Threads"]))
            rows.append(row)
        time.sleep(0.25)
    out, err = child.communicate()
    if child.returncode:
        raise RuntimeError(f"exit {child.returncode}\n{out}\n{err}")
    # The lowest of each trial: what it needs for a moment is given back.
    lowest = {judged: min(row[1] for row in rows if row[0] == judged) for judged, *_ in rows}
    descriptors = {judged: min(row[2] for row in rows if row[0] == judged) for judged, *_ in rows}
    late = [judged for judged in sorted(lowest) if WARM_UP <= judged < trials]
    if len(late) < 3:
        return {"trials": trials, "bytes_a_trial": None, "descriptors_more": None, "rss": list(lowest.values())}
    slope = float(np.polyfit(late, [lowest[judged] for judged in late], 1)[0])
    return {
        "trials": trials,
        "rss_first": lowest[late[0]],
        "rss_last": lowest[late[-1]],
        "rss_most": max(row[1] for row in rows),
        "bytes_a_trial": slope,
        "descriptors": [descriptors[late[0]], descriptors[late[-1]]],
        "descriptors_more": descriptors[late[-1]] - descriptors[late[0]],
        "threads_most": max(row[3] for row in rows),
    }


def check_stretch(log: Log) -> None:
    """Whether the process grew."""
    found = log.stretch or {}
    if found.get("bytes_a_trial") is None:
        return
    grown = found["bytes_a_trial"] > MAX_BYTES_A_TRIAL
    log.check("no growth of memory", [f"{found['bytes_a_trial']:.0f} bytes a trial"] if grown else [], where="the stretch")
    more = found["descriptors_more"]
    log.check("no growth of file descriptors", [f"{more} more"] if more > MAX_DESCRIPTORS else [], where="the stretch")


# ----------------------------------------------------------------------------------------------- the whole


def soak(folder: Path, *, trials: int, seed: int, say: Callable[[str], None]) -> tuple[Log, Counter[str]]:
    """Everything in `folder`; what was found, and how many trials of each kind there were."""
    log = Log.load(folder / "soak.json")
    heavy = trials // AUDITED_PART
    with closing(connect()) as client:
        short = _short_part(folder, trials - heavy, seed)
        if log.stretch is None:
            many = min(STRETCH, (trials - heavy) // 3)
            say(f"a stretch of {many} trials that nothing happens to")
            log.stretch = stretch(short, many)
            check_stretch(log)
            log.save()
        short.soak(log, client, seed=seed, say=say)
        kinds_of = short.endings()
        if heavy:
            audited_part = _audited_part(folder, heavy, seed)
            audited_part.soak(log, client, seed=seed, say=say)
            kinds_of += Counter({f"audited: {kind}": count for kind, count in audited_part.endings().items()})
    return log, kinds_of


def _disk(task: Driven, size: str) -> Disk | None:
    """A disk that can be filled, where this process may mount one."""
    if os.geteuid() != 0:
        return None
    disk = Disk(task.folder / ".autoresearch", size)
    task.lend_images()
    return disk


def _short_part(folder: Path, count: int, seed: int) -> Part:
    place = folder / "short"
    task = Driven(place, STATE, ("--cpu",)) if place.exists() else quick(place, STATE, yaml=QUICK_YAML)
    return Part(
        name="short", task=task, tried=short_files(count, random.Random(f"{seed} short")), kinds=dict(kinds(_disk(task, "96m"))), at_once=(2, 8)
    )


def _audited_part(folder: Path, count: int, seed: int) -> Part:
    place = folder / "audited"
    if place.exists():
        task = Driven(place, STATE, ("--cpu", "--preset", "tiny"), AUTORESEARCH_DATA=str(place.with_name("audited-data")))
    else:
        task = audited(place, STATE)
    disk = _disk(task, "256m")
    task.call(*task.go(), "--trials", "0")
    header = ledger.read(task.run).header or {}
    base = subprocess.run(["git", "show", f"{header['base']}:trainer/train.py"], cwd=place, check=True, capture_output=True, text=True).stdout
    return Part(
        name="audited", task=task, tried=audited_files(count, random.Random(f"{seed} audited"), base), kinds=dict(kinds(disk)), at_once=(1, 4)
    )


def show(log: Log, tried: Counter[str]) -> str:
    """For a person."""
    lines = [f"{tried.total()} trials in {log.invocations + 1} invocations, {log.seconds / 60:.0f} minutes", "", "tried"]
    lines += [f"  {count:4}  {kind}" for kind, count in sorted(tried.items())]
    lines += ["", "injected (of these without an effect: it came too late, or was repeated)"]
    lines += [f"  {count:4} ({log.late[name]:2})  {name}" for name, count in sorted(log.injected.items())]
    lines += ["", "held, how often looked at"]
    broken = Counter(one.split(":", 1)[0] for one in log.violated)
    lines += [f"  {'NO ' if broken[name] else 'yes'} {count:4}  {name}" for name, count in sorted(log.checked.items())]
    lines += ["", f"the stretch: {json.dumps(log.stretch)}", *(f"VIOLATED {one}" for one in log.violated)]
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200, metavar="N", help="how many in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where to work, and to go on; by default nothing is kept")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    asked = parser.parse_args()
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="autoresearch-soak-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"soak: {time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    try:
        log, tried = soak(folder, trials=asked.trials, seed=asked.seed, say=say)
    finally:
        if asked.folder is None:
            for place in folder.glob("*/.autoresearch"):
                subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)
    if asked.json:
        print(json.dumps({"tried": tried, "injected": log.injected, "late": log.late, "checked": log.checked, "violated": log.violated, "stretch": log.stretch}))
    else:
        print(show(log, tried))
    return 1 if log.violated else 0


if __name__ == "__main__":
    sys.exit(main())
