"""What the host loses to attacks that leave their container or use it up, and how soon it has it again.

Runs `autoresearch selftest` for the areas `escape` and `exhaustion`: the very function of the command, with the real engine,
images and data, and with a view that takes readings in its place on the screen.  Before each trial nothing goes on for
some seconds, and after it nothing until the host has again what it had, so that each figure belongs to one attack.  The
baselines are trials like any other: their medians are the honest row to compare with.  The last row is a plain process that
takes as much memory as a container may have and ends: how soon what nobody holds is offered again is the machine's own affair.

The figures are of the whole machine, so nothing else should run on it; containers of others are counted and told.  Ends
with 1 if an attack succeeded, something was left behind, or something was not given back after a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.host import KINDS, PERIOD_SECONDS, Before, Recovery, Sampler, Slowest, Taken, Tolerance
from runner.cli import parts, selftesting
from runner.errors import AutoresearchError, EngineError
from runner.ledger import JOURNAL
from runner.resources import resource
from runner.sandbox.cputime import belongs
from runner.selftest import catalogue
from runner.selftest.outcome import Outcome
from runner.selftest.view import SelftestView
from runner.settings import TaskLimits
from runner.task import load_task
from runner.trial import Record, Verdict

STATE = (Path(__file__).resolve().parents[1] / ".autoresearch").resolve()
PRESET = "tiny"
"""The selftest's own choice."""
AREAS = ("escape", "exhaustion")
QUIET_SECONDS = 3.0
"""Before each trial, to know what the host has and how soon it answers when nothing goes on."""
STEADY = 8 << 20
"""Bytes by which free memory may change in that time; else it is waited for once more, until the recovery's cap is reached."""
RECOVERY_SECONDS = 60.0
AS_BEFORE = Tolerance(memory=64 << 20, disk=32 << 20, tasks=8)
"""The runner's own memory grows a little, a trial's logs stay on the disk, the kernel's own threads come and go."""

TAKES_MEMORY = "import sys, time; taken = b'x' * int(sys.argv[1]); time.sleep(1)"
"""A process that writes to so many bytes, keeps them for a moment and ends."""
NEVER = math.inf
"""Stands for None where values are compared."""

Say = Callable[[str], None]

# ------------------------------------------------------------------------------------------ the readings


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial: what it took from the host, and when that was back."""

    trial: int | None
    name: str
    """Of the attack, `baseline` or `control`."""
    area: str
    ending: str | None
    seconds: float
    """From the candidate's commit to the recorded verdict."""
    taken: Taken
    recovery: Recovery
    """After the verdict, until memory, disk and tasks were as before."""
    load_before: float
    left: tuple[str, ...]
    """Containers, volumes and processes that were there then and not before."""
    beside: int
    """Containers of others that ran before the trial or after it: then the figures are theirs too."""


class ReadingView(SelftestView):
    """Implements `runner.protocols.View`: waits before and after each trial and keeps what the host lost in between."""

    def __init__(self, client: Any, sampler: Sampler, folder: Path, say: Say) -> None:
        """`folder` is where the selftest makes its task."""
        super().__init__(as_json=True)
        self._client, self._sampler, self._say = client, sampler, say
        self._state = folder / ".autoresearch"
        self._under_way: dict[int, tuple[Before, set[str], set[str], float]] = {}
        self.rows: list[Row] = []

    def started(self, trial: int, idea: str) -> None:
        """Look at the host while nothing goes on."""
        there, others = self._in_engine(), self._others()
        self._under_way[trial] = (_calm(self._sampler), there, others, time.monotonic())

    def finished(self, record: Record, records: Sequence[Record]) -> None:
        """Wait until the host is as before, and look at what is left."""
        ended = time.monotonic()
        before, there, others, began = self._under_way.pop(record.trial)
        recovery = self._sampler.recovery(ended, before, AS_BEFORE, RECOVERY_SECONDS)
        honest = record.verdict is Verdict.BASELINE
        area = "" if honest else record.idea.partition(":")[0]
        row = Row(
            trial=record.trial,
            name="baseline" if honest else record.token,
            area=area,
            ending=None if record.ending is None else str(record.ending),
            seconds=ended - began,
            taken=self._sampler.taken(began, ended, before),
            recovery=recovery,
            load_before=before.load,
            left=(*sorted(self._in_engine() - there), *self._processes(record)),
            beside=len(others | self._others()),
        )
        self._add(row)

    def control(self, size: int) -> None:
        """What a plain process does to the host that takes so many bytes and ends."""
        others, before, began = self._others(), _calm(self._sampler), time.monotonic()
        subprocess.run([sys.executable, "-I", "-c", TAKES_MEMORY, str(size)], check=True)
        ended = time.monotonic()
        row = Row(
            trial=None,
            name="control",
            area="",
            ending="a plain process",
            seconds=ended - began,
            recovery=self._sampler.recovery(ended, before, AS_BEFORE, RECOVERY_SECONDS),
            taken=self._sampler.taken(began, ended, before),
            load_before=before.load,
            left=(),
            beside=len(others | self._others()),
        )
        self._add(row)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._say(" | ".join(_cells(row)))

    def tell(self, outcome: Outcome) -> None:
        """What became of one attack."""
        self.outcomes.append(outcome)
        if outcome.succeeded:
            self._say(f"{outcome.attack} SUCCEEDED: {outcome.reason}")

    def _in_engine(self) -> set[str]:
        """The containers and volumes of the selftest's task."""
        wanted = {"label": [f"{name}={value}" for name, value in parts.owner_labels(self._state).items()]}
        containers = {f"container {one['Names'][0].lstrip('/')}" for one in self._client.api.containers(all=True, filters=wanted)}
        return containers | {f"volume {one['Name']}" for one in self._client.api.volumes(wanted)["Volumes"] or ()}

    def _others(self) -> set[str]:
        """Running containers that are not the selftest's."""
        state = parts.owner_labels(self._state)["autoresearch.state"]
        return {str(one["Id"]) for one in self._client.api.containers() if one["Labels"].get("autoresearch.state") != state}

    def _processes(self, record: Record) -> Iterable[str]:
        """Those that still are in a control group of the trial's containers, which the journal names."""
        lines = (self._state / record.tag / JOURNAL).read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        containers = [one["container"] for one in events if one["event"] == "created" and one["trial"] == record.trial]
        for process in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()):
            for identifier in containers:
                if belongs(process, identifier):
                    yield f"process {process} in {identifier[:12]}"


def _calm(sampler: Sampler) -> Before:
    """What the host is like when nothing goes on, and memory neither comes back nor goes."""
    give_up = time.monotonic() + RECOVERY_SECONDS
    while True:
        began = time.monotonic()
        time.sleep(QUIET_SECONDS)
        before = sampler.before(began, time.monotonic())
        if abs(before.drift) <= STEADY or time.monotonic() > give_up:
            return before


def measure(names: Sequence[str], say: Say) -> tuple[dict[str, Any], list[Row]]:
    """All of it, as JSON values and as rows; raises what the runner's parts raise, with nothing left behind."""
    attacks = catalogue.choose(catalogue.load(), names=names, areas=() if names else AREAS)
    client: Any = parts.connect()
    info = client.info()
    data = Path(info["DockerRootDir"])
    if not data.is_dir():
        raise EngineError(f"the engine keeps its data in {data}, which is not on this machine: there is no host to look at")
    limits = parts.within(load_task(resource(), PRESET), client).limits
    places = {"engine": data, "/tmp": Path("/tmp"), "state": STATE}
    # The selftest's own folder, engine and order of attacks, as `autoresearch selftest --task` has them.
    with (
        Sampler(list(places.values()), STATE) as sampler,
        selftesting._throwaway(STATE, keep=lambda: False) as folder,  # noqa: SLF001
    ):
        view = ReadingView(client, sampler, folder, say)
        say(f"{len(attacks)} attacks after the baselines; load average {os.getloadavg()[0]:.1f}")
        selftesting._try_all(folder, PRESET, attacks, view)  # noqa: SLF001
        view.control(int(limits.memory_gb * (1 << 30)))
        same = [[name for name, place in places.items() if place.stat().st_dev == one.stat().st_dev] for one in sampler.places]
    return report(view, limits, same, info), view.rows


# ------------------------------------------------------------------------------------------- the report


def report(view: ReadingView, limits: TaskLimits, places: Sequence[Sequence[str]], info: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    succeeded = {outcome.attack: outcome.succeeded for outcome in view.outcomes}
    honest = [row for row in view.rows if row.name == "baseline"]
    attacks = [row for row in view.rows if row.name in succeeded]
    control = [row for row in view.rows if row.name == "control"]
    return {
        "preset": PRESET,
        "limits": {"memory_mib": limits.memory_gb * 1024, "pids": limits.pids, "cpus": limits.cpus},
        "cores": os.cpu_count(),
        "engine": {"version": info["ServerVersion"], "storage": info["Driver"], "cgroup": info.get("CgroupVersion") or "1"},
        "kernel": platform.release(),
        "file_systems": [list(names) for names in places],
        "sample_seconds": PERIOD_SECONDS,
        "as_before": {"memory_mib": AS_BEFORE.memory >> 20, "disk_mib": AS_BEFORE.disk >> 20, "tasks": AS_BEFORE.tasks},
        "recovery_cap_seconds": RECOVERY_SECONDS,
        "baselines": [_values(row) for row in honest],
        "other_containers_beside": sum(row.beside > 0 for row in view.rows),
        "attacks": [_values(row) | {"succeeded": succeeded[row.name]} for row in attacks],
        "control": _values(control[0]),
        "worst": _worst(attacks),
        "holds": not any(succeeded.values()) and all(row.recovery.given_back is not None and not row.left for row in attacks),
    }


def _values(row: Row) -> dict[str, Any]:
    return {
        "trial": row.trial,
        "attack": row.name,
        "area": row.area,
        "ending": row.ending,
        "seconds": row.seconds,
        "memory_mib": row.taken.memory / (1 << 20),
        "disk_mib": row.taken.disk / (1 << 20),
        "tasks": row.taken.tasks,
        "load_average": {"before": row.load_before, "highest": row.taken.load},
        "heartbeats": {kind: asdict(slowest) for kind, slowest in row.taken.beats.items()},
        "given_back_seconds": row.recovery.given_back,
        "recovery_seconds": row.recovery.seconds,
        "not_recovered": list(row.recovery.lacking),
        "left": list(row.left),
        "other_containers": row.beside,
    }


WORST: Mapping[str, tuple[str, Callable[[Row], float]]] = {
    "memory_mib": ("memory, MiB", lambda row: row.taken.memory / (1 << 20)),
    "disk_mib": ("disk, MiB", lambda row: row.taken.disk / (1 << 20)),
    "tasks": ("processes", lambda row: row.taken.tasks),
    "process_ms": ("slowest process, ms", lambda row: 1000 * _order(row.taken.beats["process"])),
    "write_ms": ("slowest write, ms", lambda row: 1000 * _order(row.taken.beats["write"])),
    "given_back_seconds": ("given back, s", lambda row: NEVER if row.recovery.given_back is None else row.recovery.given_back),
    "recovery_seconds": ("recovery, s", lambda row: NEVER if row.recovery.seconds is None else row.recovery.seconds),
}
"""By name: in words, and of a trial."""


def _order(slowest: Slowest) -> float:
    """Refused is worse than slow."""
    return NEVER if slowest.refused or slowest.slowest is None else slowest.slowest


def _middle(rows: Sequence[Row]) -> Row:
    """Of each figure the median."""

    def of(value: Callable[[Row], float]) -> float:
        return statistics.median_high(map(value, rows))

    taken = Taken(
        memory=of(lambda row: row.taken.memory),
        disk=of(lambda row: row.taken.disk),
        tasks=of(lambda row: row.taken.tasks),
        load=of(lambda row: row.taken.load),
        beats={kind: sorted((row.taken.beats[kind] for row in rows), key=_order)[len(rows) // 2] for kind in KINDS},
    )
    recovery = sorted((row.recovery for row in rows), key=lambda one: NEVER if one.seconds is None else one.seconds)[len(rows) // 2]
    return replace(rows[-1], taken=taken, recovery=recovery, seconds=of(lambda row: row.seconds))


def _worst(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Of each figure the highest and whose it is; null where the host refused, or did not recover."""
    found = {}
    for name, (_, of) in WORST.items():
        row = max(rows, key=of)
        found[name] = {"attack": row.name, "value": None if of(row) == NEVER else of(row)}
    return found


HEADINGS = (
    "attack", "ending", "memory MiB", "disk MiB", "processes", "slowest process ms", "slowest write ms", "given back s", "recovery s", "left behind",
)  # fmt: skip


def _cells(row: Row) -> list[str]:
    """One row of the table; a heartbeat's median before is in brackets."""
    beats = row.taken.beats
    return [
        f"{row.area}: {row.name}" if row.area else f"**{row.name}**",
        row.ending or "refused",
        f"{row.taken.memory / (1 << 20):.0f}",
        f"{row.taken.disk / (1 << 20):.0f}",
        f"{row.taken.tasks:.0f}",
        _heartbeat(beats["process"]),
        _heartbeat(beats["write"]),
        "not" if row.recovery.given_back is None else f"{row.recovery.given_back:.1f}",
        f"not {', '.join(row.recovery.lacking)}" if row.recovery.seconds is None else f"{row.recovery.seconds:.1f}",
        ", ".join(row.left) or "nothing",
    ]


def _heartbeat(found: Slowest) -> str:
    if found.refused or found.slowest is None:
        return f"{found.refused} refused"
    return f"{found.slowest * 1000:.0f} ({found.before * 1000:.1f})"


def show(found: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The report for a person, its table in Markdown."""
    engine, limits, near = found["engine"], found["limits"], found["as_before"]
    shared = "; ".join(" and ".join(names) for names in found["file_systems"])
    honest = [row for row in rows if row.name == "baseline"]
    attacks = [row for row in rows if row.area]
    control = [row for row in rows if row.name == "control"]
    loads, quiet = [row.taken.load for row in rows], [row.load_before for row in rows]
    worst = found["worst"]
    lines = [
        f"preset {found['preset']}: a container may have {limits['memory_mib']:.0f} MiB, {limits['pids']} processes, {limits['cpus']:g} processors",
        f"{found['cores']} cores, load average before the trials {min(quiet):.1f} to {max(quiet):.1f}, highest in one {max(loads):.1f}",
        f"engine {engine['version']}, {engine['storage']}, cgroup v{engine['cgroup']}, kernel {found['kernel']}",
        f"sampled every {found['sample_seconds']} s; file systems: {shared}",
        f"containers of others ran beside {found['other_containers_beside']} of the {len(rows)} measurements",
        f"as before: memory within {near['memory_mib']} MiB, disk within {near['disk_mib']} MiB, processes within {near['tasks']}; processes are threads too",
        "",
        f"| {' | '.join(HEADINGS)} |",
        f"|{'---|' * len(HEADINGS)}",
        *(f"| {' | '.join(_cells(row))} |" for row in (_middle(honest), *attacks, *control)),
        "",
        f"| worst of {len(attacks)} attacks | | |",
        "|---|---|---|",
        *(f"| {WORST[name][0]} | {_figure(one['value'])} | {one['attack']} |" for name, one in worst.items()),
        "",
        f"none succeeded, nothing left, all given back within {found['recovery_cap_seconds']:.0f} s: {'yes' if found['holds'] else 'NO'}",
    ]
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "not" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


# ------------------------------------------------------------------------------------------ the command


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attack", action="append", default=[], metavar="NAME", help="this one only; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of tables")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found, rows = measure(asked.attack, lambda text: print(f"exhaustion: {text}", file=sys.stderr, flush=True))
    except AutoresearchError as error:
        print(f"exhaustion: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps(found) if asked.json else show(found, rows))
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
