"""What start-up of a hardened container costs against a plain `docker run` of the same image, and where the time goes.

The same command that does nothing, in turns within one run, so that whatever else the machine does hits all ways alike:

- plain: `docker run --rm` as a person types it, and the same calls through the engine's API;
- hardened: the create call of a trial, read back, with start, end and removal, as the sandbox makes them;
- for information plain without a network: a trial has none, and making one takes the engine longer than the rest of a start;
- for information a whole call of the sandbox, which also makes two volumes and a second container and copies files in.

The bound is on hardened to plain, whole containers from the create call to the removal.  Ends with 1 if it is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.whole import Call, Noted
from runner import images
from runner.cli import parts
from runner.errors import AutoresearchError, EngineError
from runner.phases import environment
from runner.resources import resource
from runner.sandbox import container
from runner.sandbox.build import Builder
from runner.sandbox.create import create_container
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.translate import engine_errors, remove_container
from runner.task import load_task
from runner.trial import InputFile, Limits, TrialSpec, VolumeMount

STATE = (Path(__file__).resolve().parents[1] / ".autoresearch").resolve()
BOUND = 1.3
"""Hardened to plain: what start-up may cost."""
COMMAND = ("python3", "-c", "pass")
PRESET = "smoke"
"""Whose limits the hardened container has."""
ROUNDS, WARM_UP = 20, 2
POLL_SECONDS = 0.005
"""Both sides look as often whether the container has ended; the client's own way to wait is in `docker run` alone."""
LATE_SECONDS = 0.5
"""So long after we were interrupted the engine may still make what the docker client asked for."""
LABEL = "autoresearch.bench"

CLI = "plain: docker run --rm"
PLAIN = "plain, through the API"
OFFLINE = "plain without a network, API"
HARDENED = "hardened"
SANDBOX = "whole call of the sandbox"
STEPS = ("create", "start", "until it ended", "remove")
SANDBOX_STEPS = (
    "two volumes, holder container, files in",
    "create, read back",
    "start, end noticed, log kept",
    "remove",
    "holder and volumes removed",
)

Steps = Mapping[str, float]
"""Seconds by step; together the whole."""
Way = Callable[[], Steps]

# --------------------------------------------------------------------------------------------- the ways


class Ways:
    """The ways of running the same command once; each gives its seconds."""

    def __init__(self, client: Any, spec: TrialSpec, *, volumes: tuple[str, str], folder: Path) -> None:
        """`volumes` are those that the hardened container has as /in and /out; `folder` is for logs."""
        self._client, self._spec, self._folder = client, spec, folder
        self._calls: list[Call] = []
        noted: Any = Noted(client, self._calls)
        self._sandbox = DockerSandbox(noted)
        self._body = container.trial_body(spec, in_volume=volumes[0], out_volume=volumes[1])
        labels = dict(spec.labels)
        self._plain = {"Image": spec.image, "Cmd": list(spec.command), "Labels": labels}
        labelled = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
        self._words = ["docker", "run", "--rm", *labelled, spec.image, *spec.command]
        self.network = "unknown"
        """Which one the engine gave a plain container."""

    def all(self) -> dict[str, Way]:
        """By name; without the docker client if there is none."""
        return {
            **({CLI: self._by_client} if shutil.which("docker") else {}),
            PLAIN: self._plainly,
            OFFLINE: self._offline,
            HARDENED: self._hardened,
            SANDBOX: self._whole,
        }

    def _by_client(self) -> Steps:
        began = time.monotonic()
        done = subprocess.run(self._words, capture_output=True, text=True, check=False)
        took = time.monotonic() - began
        if done.returncode != 0:
            raise EngineError(f"`docker run` ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        return {"all": took}

    def _plainly(self) -> Steps:
        return self._by_api(self._create_plain, self._remove_plain)

    def _offline(self) -> Steps:
        # As in a trial: with the mode alone the engine still makes a sandbox for the network, half of what a start takes.
        body = {**self._plain, "NetworkDisabled": True, "HostConfig": {"NetworkMode": "none"}}
        return self._by_api(lambda: str(self._client.api.create_container_from_config(body)["Id"]), self._remove_plain)

    def _hardened(self) -> Steps:
        return self._by_api(
            lambda: create_container(self._client, self._body), lambda identifier: remove_container(self._client, identifier)
        )

    def _create_plain(self) -> str:
        return str(self._client.api.create_container_from_config(self._plain)["Id"])

    def _remove_plain(self, identifier: str) -> None:
        self._client.api.remove_container(identifier, v=True)

    def _by_api(self, create: Callable[[], str], remove: Callable[[str], None]) -> Steps:
        moments = [time.monotonic()]
        identifier = create()
        moments.append(time.monotonic())
        self._client.api.start(identifier)
        moments.append(time.monotonic())
        while (found := self._client.api.inspect_container(identifier))["State"]["Running"]:
            if found["HostConfig"]["NetworkMode"] != "none":
                self.network = self._network(found)
            time.sleep(POLL_SECONDS)
        moments.append(time.monotonic())
        remove(identifier)
        moments.append(time.monotonic())
        if found["State"]["ExitCode"] != 0:
            raise EngineError(f"a container that does nothing ended with exit code {found['State']['ExitCode']}")
        return {name: moments[i + 1] - moments[i] for i, name in enumerate(STEPS)}

    @staticmethod
    def _network(found: Mapping[str, Any]) -> str:
        named = [name for name, one in found["NetworkSettings"]["Networks"].items() if one.get("IPAddress")]
        return ", ".join(named) or "none: the engine has no bridge"

    def _whole(self) -> Steps:
        self._calls.clear()
        began = time.monotonic()
        result = self._sandbox.run(self._spec, self._folder, created=_ignore, progress=_ignore)
        ended = time.monotonic()
        # It never asks for data, which is no ending of a trial; the exit code says that the command ran.
        if result.exit_code != 0:
            raise EngineError(f"a container that does nothing ended as {result.ending}: {result.reason}")
        created = [call for call in self._calls if call.name == "api.create_container_from_config"]
        started = [call for call in self._calls if call.name == "api.start"]
        removed = {str(call.first).rsplit("-", 1)[-1]: call for call in reversed(self._calls) if call.name == "api.remove_container"}
        if len(created) != 2 or len(started) != 2 or removed.keys() != {self._spec.phase, "holder"}:
            raise EngineError("the sandbox makes and removes containers in a way that this program does not know")
        moments = (began, created[1].began, started[1].began, removed[self._spec.phase].began, removed["holder"].began, ended)
        return {name: moments[i + 1] - moments[i] for i, name in enumerate(SANDBOX_STEPS)}


def _ignore(_: object) -> None:
    """Nobody is told."""


@contextmanager
def ways(client: Any, folder: Path) -> Iterator[tuple[Ways, TrialSpec]]:
    """Everything that the ways need, made once; at the end nothing of it is in the engine."""
    token = uuid.uuid4().hex[:12]
    labels = {**parts.owner_labels(STATE), LABEL: token}
    task = parts.within(load_task(resource(), PRESET), client)
    prepare = f"autoresearch-bench-{token}-prepare"
    spec = TrialSpec(
        phase="train",
        image=images.image_ids("cpu", STATE).train,
        command=COMMAND,
        environment=environment(task.limits.cpus, None),
        files=(InputFile(name="train.py", path=resource() / task.editable),),
        volumes=(VolumeMount(volume=prepare, target="/prepare"),),
        limits=Limits(
            memory_bytes=int(task.limits.memory_gb * (1 << 30)),
            cpus=task.limits.cpus,
            pids=task.limits.pids,
            output_bytes=task.limits.output_mb << 20,
            scratch_bytes=task.limits.scratch_mb << 20,
            log_bytes=task.limits.log_mb << 20,
            startup_seconds=60,
            seconds=60,
        ),
        labels=tuple(labels.items()),
    )
    made = (f"autoresearch-bench-{token}-in", f"autoresearch-bench-{token}-out")
    options = (container.in_volume_options(spec), container.out_volume_options(spec))
    with Builder.connect() as engine:
        try:
            with engine_errors(spec.image):
                client.volumes.create(name=prepare, labels=labels)
                for name, wanted in zip(made, options, strict=True):
                    client.volumes.create(name=name, driver="local", driver_opts=wanted, labels=labels)
                yield Ways(client, spec, volumes=made, folder=folder), spec
        except BaseException:
            time.sleep(LATE_SECONDS)
            raise
        finally:
            engine.remove_containers({LABEL: token})
            engine.remove_volumes({LABEL: token})


# ------------------------------------------------------------------------------------------- the rounds


@dataclass(frozen=True, kw_only=True)
class Round:
    """Every way once."""

    load: float
    """Load average of one minute when all were done."""
    steps: Mapping[str, Steps]
    """By way."""

    def whole(self, way: str) -> float:
        """Seconds of all steps."""
        return sum(self.steps[way].values())

    def start(self, way: str) -> float:
        """Seconds until the engine says that the process runs."""
        return self.steps[way]["create"] + self.steps[way]["start"]


Value = Callable[[Round], float]
BOUNDED: dict[str, Value] = {
    f"{HARDENED} / {CLI}": lambda found: found.whole(HARDENED) / found.whole(CLI),
    f"{HARDENED} / {PLAIN}": lambda found: found.whole(HARDENED) / found.whole(PLAIN),
}
INFORMATION: dict[str, Value] = {
    f"{HARDENED} / {OFFLINE}": lambda found: found.whole(HARDENED) / found.whole(OFFLINE),
    f"create and start alone, {HARDENED} / {PLAIN}": lambda found: found.start(HARDENED) / found.start(PLAIN),
    f"{SANDBOX} / {PLAIN}": lambda found: found.whole(SANDBOX) / found.whole(PLAIN),
}


def take_turns(known: Mapping[str, Way], rounds: int, say: Callable[[str], None]) -> list[Round]:
    """So many rounds after those that warm up; another way is first in each."""
    names, found = list(known), []
    for number in range(-WARM_UP, rounds):
        first = number % len(names)
        steps = {name: known[name]() for name in names[first:] + names[:first]}
        one = Round(load=os.getloadavg()[0], steps=steps)
        which = f"round {number + 1} of {rounds}" if number >= 0 else "warms up"
        say(f"{which}: " + "  ".join(f"{name} {one.whole(name):.3f}" for name in names))
        if number >= 0:
            found.append(one)
    return found


# ------------------------------------------------------------------------------------------- the report


def report(client: Any, spec: TrialSpec, network: str, rounds: Sequence[Round]) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    info, names = client.info(), list(rounds[0].steps)
    bounded = {name: _spread(rounds, of) for name, of in BOUNDED.items() if CLI in names or CLI not in name}
    worst = max(row["median"] for row in bounded.values())
    return {
        "image": spec.image,
        "command": list(spec.command),
        "rounds": len(rounds),
        "cores": os.cpu_count(),
        "load_average": _spread(rounds, lambda found: found.load),
        "engine": {
            "version": info["ServerVersion"],
            "storage": info["Driver"],
            "cgroup": info.get("CgroupVersion") or "1",
            "docker_client": CLI in names,
            "network_of_a_plain_container": network,
        },
        "kernel": platform.release(),
        "seconds": {name: _spread(rounds, partial(Round.whole, way=name)) for name in names},
        "steps": {
            name: {step: statistics.median(found.steps[name][step] for found in rounds) for step in rounds[0].steps[name]}
            for name in names
            if name != CLI
        },
        "ratios": bounded,
        "ratios_for_information": {name: _spread(rounds, of) for name, of in INFORMATION.items()},
        "bound": BOUND,
        "worst": worst,
        "holds": worst <= BOUND,
    }


def _spread(rounds: Sequence[Round], of: Value) -> dict[str, float]:
    values = [of(found) for found in rounds]
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def show(found: Mapping[str, Any]) -> str:
    """The report for a person, its tables in Markdown."""
    load, engine = found["load_average"], found["engine"]
    client = "" if engine["docker_client"] else "; there is no docker client here, so the API alone stands for `docker run`"
    lines = [
        f"`{' '.join(found['command'])}` in image {found['image'][7:19]}, limits of preset {PRESET}",
        f"{found['rounds']} rounds, each way once in each, after {WARM_UP} rounds to warm up{client}",
        f"engine {engine['version']}, {engine['storage']}, cgroup v{engine['cgroup']}, kernel {found['kernel']}",
        f"network of a plain container: {engine['network_of_a_plain_container']}",
        f"{found['cores']} cores, load average {load['median']:.1f} ({load['lowest']:.1f} to {load['highest']:.1f})",
        "",
        "| seconds, create call to removal | median | lowest | highest |",
        "|---|---|---|---|",
        *(_row(name, row) for name, row in found["seconds"].items()),
        "",
        f"| seconds of the steps (medians) | {' | '.join(STEPS)} |",
        f"|---|{'---|' * len(STEPS)}",
        *(
            f"| {name} | {' | '.join(f'{seconds:.3f}' for seconds in steps.values())} |"
            for name, steps in found["steps"].items()
            if name != SANDBOX
        ),
        "",
        f"| {SANDBOX}, for information: what a trial pays for each of its containers | seconds (medians) |",
        "|---|---|",
        *(f"| {name} | {seconds:.3f} |" for name, seconds in found["steps"][SANDBOX].items()),
        "",
        "| ratio, within each round | median | lowest | highest |",
        "|---|---|---|---|",
        *(_row(f"**{name}**", row) for name, row in found["ratios"].items()),
        *(_row(f"for information: {name}", row) for name, row in found["ratios_for_information"].items()),
        "",
        f"hardened / plain: {found['worst']:.2f}; at most {found['bound']}: {'yes' if found['holds'] else 'NO'}",
    ]
    return "\n".join(lines)


def _row(name: str, row: Mapping[str, float]) -> str:
    return f"| {name} | {row['median']:.3f} | {row['lowest']:.3f} | {row['highest']:.3f} |"


# ------------------------------------------------------------------------------------------ the command


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All of it; raises what the runner's parts raise, with nothing left behind."""
    client: Any = parts.connect()
    with tempfile.TemporaryDirectory(prefix="startup-") as folder, ways(client, Path(folder)) as (made, spec):
        known = made.all()
        if CLI not in known:
            say("there is no docker client here: the same calls through the API alone")
        found = take_turns(known, rounds, say)
        return report(client, spec, made.network, found)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"rounds to measure [default: {ROUNDS}]")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of tables")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error("--rounds: at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found = measure(asked.rounds, lambda text: print(f"startup: {text}", file=sys.stderr, flush=True))
    except AutoresearchError as error:
        print(f"startup: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps(found) if asked.json else show(found))
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
