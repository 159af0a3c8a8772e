"""An engine that fails under one container: what it did counts for nothing, it is done again, and nothing is left."""

from __future__ import annotations

import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import docker.errors
import pytest

from runner import leases
from runner.errors import EngineError, EngineFailedError, StuckContainerError
from runner.sandbox import translate
from runner.sandbox.docker import DockerSandbox
from runner.sandbox.leased import LeasedSandbox
from runner.sandbox.steady import IN_A_ROW, Patience, SteadySandbox
from runner.sandbox.tenants import is_gone
from runner.trial import Ending, Progress, Result, TrialSpec
from tests.docker.conftest import ours, real_socket
from tests.docker.faulty import Fault, Faults, faulty
from tests.docker.test_sandbox import GATE, LIMITS, gated_spec

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

TRIAL = r"-train[/?]"
"""In the requests that name the container of the trial and not its holder."""
WORK = "gate(); time.sleep(0.5); open('/out/result', 'w').write('42')"


@dataclass
class Bench:
    """A sandbox on an engine that fails as it is told."""

    client: DockerClient
    faults: Faults
    spec: TrialSpec
    folder: Path
    labels: dict[str, str]
    patience: Patience = field(default_factory=lambda: Patience(seconds=30, sleep=lambda seconds: time.sleep(min(seconds, 0.05))))
    created: list[str] = field(default_factory=list)
    shown: list[Progress] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def run(self, script: str, **limits: float) -> Result:
        (self.folder / "train.py").write_text(GATE + textwrap.dedent(script))
        spec = replace(self.spec, limits=replace(LIMITS, **limits))  # type: ignore[arg-type]
        inner = DockerSandbox(self.client)
        sandbox = SteadySandbox(inner, absent=lambda: None, stopping=lambda: False, tell=self.told.append, patience=self.patience)
        sandbox.needs(lambda: inner.reap(self.labels))
        return sandbox.run(spec, self.folder / "out", created=self.created.append, progress=self.shown.append)


@pytest.fixture
def label() -> str:
    return f"autoresearch.test={uuid.uuid4().hex}"


@pytest.fixture
def bench(engine: DockerClient, tmp_path: Path, cpu_image: str, label: str) -> Iterator[Bench]:
    spec = gated_spec(tmp_path, cpu_image, label)
    with faulty(tmp_path / "s", real_socket()) as faults:
        client = docker.DockerClient(base_url=f"unix://{tmp_path}/s", version="auto", timeout=60)
        yield Bench(client, faults, spec, tmp_path, dict([label.split("=")]))
        client.close()
    assert ours(engine, label) == []


def forty_two(result: Result) -> bool:
    path = result.output("result")
    return result.ending is Ending.FINISHED and path is not None and path.read_text() == "42"


def test_without_a_fault_nothing_is_done_twice(bench: Bench) -> None:
    assert forty_two(bench.run(WORK))
    assert len(bench.created) == 1


LOST = {
    "the volume is made": Fault(asks=r"POST \S*/volumes/create", cut=0, times=1),
    "the holder is made": Fault(asks=r"POST \S*/containers/create\?name=\S*-holder", cut=0, times=1),
    "the holder is started": Fault(asks=r"POST \S*-holder/start", cut=0, times=1),
    "the inputs are in": Fault(asks=r"PUT \S*-holder/archive", cut=0, times=1),
    "the trial is made": Fault(asks=r"POST \S*/containers/create\?name=\S*-train", cut=0, times=1),
    "half of it is told": Fault(asks=r"POST \S*/containers/create\?name=\S*-train", cut=150, times=1),
    "the trial is started": Fault(asks=r"POST \S*/containers/[0-9a-f]{64}/start", cut=0, times=1),
    "it is looked at": Fault(asks=r"GET \S*/containers/[0-9a-f]{64}/json", cut=40, skip=3, times=1),
    "the gate is open": Fault(asks=r"POST \S*/exec/\w+/start", cut=0, times=1),
    "the result is read": Fault(asks=r"GET \S*-holder/archive", cut=700, times=1),
}
"""Requests whose answers are lost after the engine has acted."""


@pytest.mark.parametrize("when", [pytest.param(when, marks=[] if when == "the trial is made" else [pytest.mark.slow]) for when in LOST])
def test_a_lost_answer_is_made_good(bench: Bench, when: str) -> None:
    lost = bench.faults.add(replace(LOST[when]))

    assert forty_two(bench.run(WORK)), when

    assert lost.done == 1
    assert 1 <= len(bench.created) <= 2


REMOVALS = {
    "its answer is lost": Fault(asks=rf"DELETE \S*{TRIAL}", cut=0, times=1),
    "it is under way already": Fault(asks=rf"DELETE \S*{TRIAL}", status=409, said="removal of container x is already in progress", times=4),
    "it fails": Fault(asks=rf"DELETE \S*{TRIAL}", status=500, times=3),
    "the engine says that it did and did not": Fault(asks=rf"DELETE \S*{TRIAL}", status=204, times=3),
    "of a volume its answer is lost": Fault(asks=r"DELETE \S*/volumes/", cut=0, times=2),
    "of a volume it fails": Fault(asks=r"DELETE \S*/volumes/", status=500, times=2),
}


@pytest.mark.parametrize("why", [pytest.param(why, marks=[] if why == "it is under way already" else [pytest.mark.slow]) for why in REMOVALS])
def test_a_removal_is_tried_until_it_is_done_and_costs_no_result(bench: Bench, why: str) -> None:
    spoilt = bench.faults.add(replace(REMOVALS[why]))

    assert forty_two(bench.run(WORK)), why

    assert spoilt.done == spoilt.times
    assert len(bench.created) == 1, "what was finished is not done again"


@pytest.mark.slow
@pytest.mark.parametrize("asks", [r"POST \S*/containers/create", r"POST \S*/start$", r"/json$", r"PUT ", r"/archive"])
def test_an_engine_that_is_out_of_order_for_a_moment_costs_no_trial(bench: Bench, asks: str) -> None:
    bench.faults.add(Fault(asks=asks, status=500, times=1))

    assert forty_two(bench.run(WORK))


@pytest.mark.slow
def test_an_engine_that_stays_out_of_order_ends_it_with_advice(bench: Bench) -> None:
    broken = bench.faults.add(Fault(asks=r"POST \S*/containers/[0-9a-f]{64}/start", status=500, said="cannot start a shim"))

    with pytest.raises(EngineFailedError, match=r"failed 3 times in a row under the container of phase train: .*cannot start a shim.*doctor") as caught:
        bench.run(WORK)

    assert caught.value.exit_code == 3
    assert broken.done == IN_A_ROW
    assert {one.phase for one in bench.shown} == {"engine failed, waiting"}


def test_what_does_not_pass_by_itself_is_said_at_once(bench: Bench) -> None:
    gone = bench.faults.add(Fault(asks=r"POST \S*/containers/create", status=404, said="No such image: sha256:1"))

    with pytest.raises(EngineError, match="autoresearch images build") as caught:
        bench.run(WORK)

    assert not isinstance(caught.value, EngineFailedError)
    assert gone.done == 1


# -- ended from outside ----------------------------------------------------------------------------


def meddle(engine: DockerClient, bench: Bench, act: Callable[[str], object], **limits: float) -> Result:
    """The result of a container to whose first try somebody else does something."""
    done: list[str] = []

    def wait_and_act() -> None:
        while not bench.created:
            time.sleep(0.02)
        while not engine.api.inspect_container(bench.created[0])["State"]["Running"]:
            time.sleep(0.02)
        time.sleep(0.5)
        act(bench.created[0])
        done.append("acted")

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    result = bench.run(f"gate(); time.sleep(4); {WORK.partition('; ')[2]}", **limits)
    thread.join()
    assert done == ["acted"]
    return result


@pytest.mark.parametrize(
    "how",
    [
        "kill",
        pytest.param("remove", marks=pytest.mark.slow),
        pytest.param("stop", marks=pytest.mark.slow),
        pytest.param("the holder", marks=pytest.mark.slow),
    ],
)
def test_a_container_that_somebody_else_ends_is_no_crash_of_the_candidate(engine: DockerClient, bench: Bench, label: str, how: str) -> None:
    def act(identifier: str) -> None:
        if how == "kill":
            engine.api.kill(identifier)
        elif how == "remove":
            engine.api.remove_container(identifier, force=True)
        elif how == "stop":
            engine.api.stop(identifier, timeout=5)
        else:
            (holder,) = engine.api.containers(filters={"label": [label, "autoresearch.role=holder"]})
            engine.api.remove_container(holder["Id"], force=True)

    assert forty_two(meddle(engine, bench, act))
    assert len(bench.created) == 2


def test_a_candidate_that_kills_itself_has_crashed(bench: Bench) -> None:
    result = bench.run("import signal; gate(); os.kill(os.getpid(), signal.SIGKILL)")

    assert (result.ending, len(bench.created)) == (Ending.CRASHED, 1)


# -- slow ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("delay", [1.0, 2.0])
def test_a_slow_engine_neither_lengthens_a_trial_nor_ends_an_honest_one(bench: Bench, delay: float) -> None:
    """Every request that bears on the clock is slow; the others would only take longer."""
    bench.faults.add(Fault(asks=r"/containers/\S+/(json|kill|logs)|/exec/", delay=delay))
    endless = bench.run("gate(); time.sleep(600)", seconds=10)
    assert (endless.ending, endless.output("result"), len(bench.created)) == (Ending.TIMED_OUT, None, 1)
    # Opening the gate takes three requests, seeing that it runs and killing it two or three.
    assert 10 <= endless.seconds < 10 + 7 * delay + 2

    # It is ready in time, ends in time, and is not blamed for when the engine says so.
    honest = bench.run(f"gate(); time.sleep(1); {WORK.partition('; ')[2]}", seconds=10, startup_seconds=4 * delay)
    assert forty_two(honest)


@pytest.mark.slow
def test_an_exit_that_a_slow_engine_tells_too_late_is_no_verdict(engine: DockerClient, bench: Bench) -> None:
    """It ends two seconds before its deadline, and the engine says so some seconds after it."""
    slow = Fault(asks=r"GET \S*/containers/[0-9a-f]{64}/json", delay=9.0, times=1)

    result = meddle(engine, bench, lambda _: bench.faults.add(slow), seconds=6)

    assert forty_two(result)
    assert (slow.done, len(bench.created)) == (1, 2)


# -- a container that does not die -----------------------------------------------------------------


@pytest.mark.slow
def test_a_container_that_does_not_die_ends_it_and_keeps_its_gpu(engine: DockerClient, bench: Bench, tmp_path: Path, label: str) -> None:
    bench.faults.add(Fault(asks=r"POST \S*/containers/[0-9a-f]{64}/kill", status=204))
    bench.faults.add(Fault(asks=rf"DELETE \S*{TRIAL}", status=204))
    place = tmp_path / "leases"
    place.mkdir()
    (tmp_path / "train.py").write_text(f"{GATE}gate(); time.sleep(600)")
    spec = replace(bench.spec, limits=replace(LIMITS, seconds=2.0, kill_seconds=3.0))
    engine_id = str(engine.info()["ID"])
    began = time.monotonic()

    def trial() -> None:
        def gone(on: str, identifier: str) -> bool:
            return is_gone(engine, on, identifier)

        with leases.held(place, "GPU-1", run="r", engine=engine_id, gone=gone) as lease:
            leased = LeasedSandbox(DockerSandbox(bench.client), lease)
            steady = SteadySandbox(leased, absent=lambda: None, stopping=lambda: False, tell=bench.told.append)
            steady.run(spec, tmp_path / "out", created=bench.created.append, progress=lambda _: None)

    with pytest.raises(StuckContainerError, match=r"container autoresearch-\w+-train does not die: .*`docker rm -f autoresearch-") as caught:
        trial()

    assert time.monotonic() - began < translate.REMOVE_SECONDS + 40
    assert caught.value.exit_code == 3
    assert len(bench.created) == 1, "it is not tried again beside one that lives"
    assert engine.api.inspect_container(bench.created[0])["State"]["Running"]
    # Nobody has the GPU now: another user must wait, and its owner as long as the container lives.
    (path,) = place.glob("*.lease")
    note = path.read_text()
    assert bench.created[0] in note
    for gone in (lambda *_: False, lambda on, identifier: is_gone(engine, on, identifier)):
        with pytest.raises(Exception, match="left a container that may run for 6"), leases.held(place, "GPU-1", run="other", engine="E", gone=gone):
            pass
    # The next start tries again; once it succeeds the GPU is free.
    bench.faults.add(Fault(asks=rf"DELETE \S*/containers/{bench.created[0]}", status=204))
    with pytest.raises(StuckContainerError, match=f"container {bench.created[0][:12]} does not die"):
        DockerSandbox(bench.client).reap(bench.labels)
    bench.faults.faults.clear()
    assert DockerSandbox(bench.client).reap(bench.labels) >= 3
    with leases.held(place, "GPU-1", run="r", engine=engine_id, gone=lambda on, identifier: is_gone(engine, on, identifier)):
        pass
    assert path.read_bytes() == b""
