"""An engine of the test's own that dies in the middle of a run, is started again or is not, loses an image or has no space left."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import docker.errors
import pytest

from runner import images
from runner.cli.parts import owner_labels
from tests.docker import engines
from tests.docker.conftest import STATE, ours
from tests.docker.engines import Rootful
from tests.docker.toy import TRAIN, ToyTask, ended

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(500)]

ONE_TRIAL = [(0, "train"), (0, "claim"), (0, "audit")]


def carried(engine: DockerClient, address: str) -> None:
    engines.carry(engine, images.image_id("prepare", STATE), address)


@pytest.fixture(scope="module")
def own(engine: DockerClient) -> Iterator[Rootful]:
    with engines.restartable() as found:
        carried(engine, found.address)
        yield found


@contextmanager
def client_of(engine: Rootful) -> Iterator[DockerClient]:
    client = docker.DockerClient(base_url=engine.address, version="auto", timeout=60)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def task(own: Rootful, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyTask]:
    data = tmp_path_factory.getbasetemp() / "toy-data"
    made = ToyTask(tmp_path / "toy", own.address, AUTORESEARCH_DATA=str(data))
    yield made
    with client_of(own) as client:
        assert [name for name in ours(client, "autoresearch.tag=t") if "prepare" not in name] == []


def until(true: Callable[[], object], running: subprocess.Popen[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert running.poll() is None, ended(running)
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def in_phase(task: ToyTask, phase: str, trial: int = 0) -> Callable[[], bool]:
    return lambda: (trial, phase) in task.phases("t")


def scores(task: ToyTask) -> list[tuple[int, str, float | None]]:
    return [(one["trial"], one["verdict"], one["val_bpb"]) for one in task.records()]


def test_killed_in_training_and_started_again(own: Rootful, task: ToyTask) -> None:
    """What ran is lost, the training volume is there again, nothing is counted."""
    running = task.spawn(*task.begin)
    until(in_phase(task, "train"), running)
    time.sleep(1.5)
    own.kill()
    time.sleep(6)
    own.start()
    said = ended(running)

    assert task.phases("t") == [(0, "train"), *ONE_TRIAL]
    assert "engine failed, waiting" in said
    (baseline,) = scores(task)
    assert baseline[:2] == (0, "baseline")
    assert baseline[2] is not None
    assert [event for event in task.journal("t") if event["event"] == "failed"] == []


def test_killed_in_the_claim_training_is_not_done_again(own: Rootful, task: ToyTask) -> None:
    running = task.spawn(*task.begin)
    until(in_phase(task, "claim"), running)
    time.sleep(0.7)
    own.kill()
    time.sleep(1)
    own.start()
    ended(running)

    assert task.phases("t") == [(0, "train"), (0, "claim"), (0, "claim"), (0, "audit")]
    assert scores(task)[0][1] == "baseline"


def test_killed_between_two_phases(own: Rootful, task: ToyTask) -> None:
    running = task.spawn(*task.begin)
    until((task.folder / ".autoresearch/t/trials/0000/checkpoint.safetensors").exists, running)
    until(lambda: "-train" not in str(docker_ps(own)), running)
    own.kill()
    own.start()
    ended(running)

    assert [phase for _, phase in task.phases("t")][-2:] == ["claim", "audit"]
    assert scores(task)[0][1] == "baseline"


def docker_ps(engine: Rootful) -> list[str]:
    with client_of(engine) as client:
        return [one["Names"][0] for one in client.api.containers()]


def test_told_to_end_in_training_and_started_again(own: Rootful, task: ToyTask) -> None:
    """It ends its containers by a signal first, which looks like a crash of what ran there."""
    running = task.spawn(*task.begin)
    until(in_phase(task, "train"), running)
    time.sleep(1.5)
    own.terminate()
    own.start()
    ended(running)

    assert task.phases("t") == [(0, "train"), *ONE_TRIAL]
    assert scores(task)[0][1] == "baseline"


def test_never_started_again_it_ends_after_a_while_and_the_same_command_goes_on(own: Rootful, task: ToyTask) -> None:
    task.environment["AUTORESEARCH_ENGINE_WAIT"] = "4"
    command = task.begin
    running = task.spawn(*command)
    until(in_phase(task, "train"), running)
    time.sleep(1)
    own.kill()
    killed = time.monotonic()
    said = ended(running, code=3)

    assert time.monotonic() - killed < 25
    assert "did not come back within" in said
    assert "no engine answers at" in said
    assert "the same command goes on" in said
    # Without an engine nothing begins, and nothing is counted against the trial.
    assert "no engine answers at" in task.call(*command, code=3)
    own.start()
    said = task.call(*command)

    assert "note: removed" in said
    assert "that an earlier runner left in the engine" in said
    assert task.phases("t") == [(0, "train"), *ONE_TRIAL]
    assert scores(task)[0][1] == "baseline"


def test_a_wish_to_stop_is_heard_while_the_engine_is_waited_for(own: Rootful, task: ToyTask) -> None:
    command = task.begin
    running = task.spawn(*command)
    until(in_phase(task, "train"), running)
    own.kill()
    time.sleep(3)
    began = time.monotonic()
    try:
        task.call("stop", "--tag", "t")
        assert "asked to stop while the container engine was waited for" in ended(running, code=3)
        assert time.monotonic() - began < 15
    finally:
        own.start()

    running = task.spawn(*command)
    until(lambda: len(task.phases("t")) == 2, running)
    own.kill()
    time.sleep(3)
    began = time.monotonic()
    try:
        running.send_signal(signal.SIGINT)
        assert "interrupted" in ended(running, code=130)
        assert time.monotonic() - began < 15
    finally:
        own.start()
    task.call(*command)
    assert scores(task)[0][1] == "baseline"


def test_killed_once_in_every_phase_of_a_candidate_it_is_judged_as_if_nothing_had_been(own: Rootful, task: ToyTask) -> None:
    candidate = task.folder.parent / "candidate.py"
    candidate.write_text(TRAIN.replace("3.0", "2.9"))
    command = ("trial", "--candidate", str(candidate), "--cpu", "--tag", "t", "--json")
    running = task.spawn(*command)
    for phase in ("train", "claim", "audit"):
        until(in_phase(task, phase, trial=1), running)
        own.kill()
        own.start()
    (found,) = [json.loads(line) for line in ended(running).splitlines()]

    assert (found["trial"], found["verdict"], found["ending"]) == (1, "discard", "finished"), found
    assert [phase for trial, phase in task.phases("t") if trial == 1].count("train") == 2
    first, second = scores(task)
    assert first[2] == second[2]


def test_with_live_restore_the_container_that_lived_on_is_removed_and_run_again(engine: DockerClient, tmp_path: Path) -> None:
    with engines.restartable("--live-restore") as own:
        carried(engine, own.address)
        task = ToyTask(tmp_path / "toy", own.address)
        running = task.spawn(*task.begin)
        until(in_phase(task, "train"), running)
        time.sleep(1)
        own.kill()
        own.start()
        ended(running)

        assert task.phases("t") == [(0, "train"), *ONE_TRIAL]
        assert scores(task)[0][1] == "baseline"
        with client_of(own) as client:
            assert client.api.containers(all=True) == []


def test_an_image_that_is_removed_in_the_middle_ends_it_with_what_to_do(engine: DockerClient, own: Rootful, task: ToyTask) -> None:
    image = images.image_id("prepare", STATE)
    command = task.begin
    running = task.spawn(*command)
    until(in_phase(task, "train"), running)
    gone = threading.Event()

    def remove() -> None:
        with client_of(own) as client:
            while not gone.is_set():
                # As long as a container has it the engine refuses.
                with suppress(docker.errors.APIError):
                    client.api.remove_image(image, force=True)
                    gone.set()

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        said = ended(running, code=3)
    finally:
        gone.set()
        thread.join()
        carried(engine, own.address)

    assert f"the engine has no image {image[:19]}" in said
    assert "autoresearch images build" in said
    assert [event["event"] for event in task.journal("t")][-1] != "judged"
    task.call(*command)
    assert scores(task)[0][1] == "baseline"


def test_volumes_that_somebody_pruned_are_filled_again(own: Rootful, task: ToyTask) -> None:
    """Also those of claim and audit, which nothing uses while the training runs."""
    running = task.spawn(*task.begin)
    until(in_phase(task, "train"), running)
    time.sleep(1)
    with client_of(own) as client:
        pruned = client.api.prune_volumes()["VolumesDeleted"]
    ended(running)

    # The others are in use.
    mine = owner_labels(task.folder / ".autoresearch")["autoresearch.state"]
    assert sorted(name.split("-")[2] for name in pruned if mine in name) == ["audit", "claim"]
    assert task.phases("t") == ONE_TRIAL
    assert scores(task)[0][1] == "baseline"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 1.2 GB."""
    point = tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200m", "autoresearch-test", str(point)], check=True)
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


def test_a_full_disk_of_the_engine_is_named_and_once_there_is_space_it_goes_on(engine: DockerClient, small_disk: Path, tmp_path: Path) -> None:
    with engines.restartable(data=small_disk / "data") as own:
        carried(engine, own.address)
        task = ToyTask(tmp_path / "toy", own.address)
        task.call("prepare")
        filler = small_disk / "filler"
        with filler.open("wb") as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        command = task.begin
        said = task.call(*command, code=3)
        assert "the container engine's disk is full, not the task's" in said
        assert "Docker Root Dir" in said
        filler.unlink()
        task.call(*command)

        assert scores(task)[0][1] == "baseline"
        assert [path.name for path in small_disk.iterdir()] == ["data"]
        with client_of(own) as client:
            assert client.api.containers(all=True) == []
