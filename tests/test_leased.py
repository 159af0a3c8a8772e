"""A lease says which container may run before it starts, and that none does once it is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import leases
from runner.errors import EngineFailedError, GpuError, StuckContainerError
from runner.sandbox.container import ORPHAN_GRACE_SECONDS
from runner.sandbox.leased import LeasedSandbox
from runner.trial import Ending, Limits, Progress, Result, TrialSpec

LIMITS = Limits(memory_bytes=1, cpus=1, output_bytes=1, scratch_bytes=1, startup_seconds=30, seconds=300)
SPEC = TrialSpec(phase="train", image="sha256:1", command=("true",), limits=LIMITS)


class FakeSandbox:
    """Creates a container that is called c0ffee and ends as it is told."""

    def __init__(self, look: Callable[[], None], error: Exception | None = None) -> None:
        self._look, self._error = look, error

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        assert spec is SPEC
        del destination, progress
        created("c0ffee")
        self._look()
        if self._error is not None:
            raise self._error
        return Result(ending=Ending.FINISHED, reason="exit code 0")

    def reap(self, labels: dict[str, str]) -> int:
        return len(labels)


def test_the_note_is_there_before_the_container_starts_and_gone_after_it(tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []
    told: list[str] = []

    def note() -> dict[str, object]:
        (path,) = tmp_path.glob("*.lease")
        return dict(json.loads(path.read_text()))

    with leases.held(tmp_path, "GPU-1", run="r", engine="E", gone=lambda *_: False) as lease:
        sandbox = LeasedSandbox(FakeSandbox(lambda: seen.append(note())), lease)
        result = sandbox.run(SPEC, tmp_path, created=told.append, progress=lambda _: None)
        after = note()

    assert (result.ending, told, sandbox.reap({"a": "b"})) == (Ending.FINISHED, ["c0ffee"], 1)
    ((container, engine, deadline),) = [(one["container"], one["engine"], one["deadline"]) for one in seen]
    assert (container, engine) == ("c0ffee", "E")
    wanted = leases.now() + 330 + ORPHAN_GRACE_SECONDS + leases.MARGIN_SECONDS
    assert isinstance(deadline, float)
    assert wanted - 5 < deadline <= wanted
    assert (after["container"], after["deadline"]) == ("", 0.0)


@pytest.mark.parametrize("gone", [True, False])
def test_after_an_error_the_note_stays_unless_the_container_is_known_to_be_gone(tmp_path: Path, *, gone: bool) -> None:
    def failing() -> None:
        with leases.held(tmp_path, "GPU-1", run="r", engine="E", gone=lambda *_: gone) as lease:
            sandbox = LeasedSandbox(FakeSandbox(lambda: None, EngineFailedError("it stopped answering")), lease)
            sandbox.run(SPEC, tmp_path, created=lambda _: None, progress=lambda _: None)

    with pytest.raises(EngineFailedError):
        failing()

    (path,) = tmp_path.glob("*.lease")
    assert ('"container": "c0ffee"' in path.read_text()) is not gone


def test_a_container_that_does_not_die_keeps_its_gpu_for_a_week(tmp_path: Path) -> None:
    def stuck() -> None:
        with leases.held(tmp_path, "GPU-1", run="r", engine="E", gone=lambda *_: False) as lease:
            sandbox = LeasedSandbox(FakeSandbox(lambda: None, StuckContainerError("it does not die")), lease)
            sandbox.run(SPEC, tmp_path, created=lambda _: None, progress=lambda _: None)

    with pytest.raises(StuckContainerError):
        stuck()

    (path,) = tmp_path.glob("*.lease")
    note = json.loads(path.read_text())
    assert note["container"] == "c0ffee"
    assert note["deadline"] > leases.now() + 6.9 * 24 * 3600
    with pytest.raises(GpuError, match=r"left a container that may run for 60\d{4} s more"), leases.held(tmp_path, "GPU-1", run="x", engine="E", gone=lambda *_: False):
        pass
    # Once its owner's engine says that it is gone, the GPU is free.
    with leases.held(tmp_path, "GPU-1", run="r", engine="E", gone=lambda *_: True):
        pass
