"""When isolation is tried again, and when what held before is taken for granted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.cli import parts
from runner.errors import EngineError
from tests.test_probe import FACTS, FakeSandbox


class FakeClient:
    """Says what engine it is."""

    def __init__(self, **facts: object) -> None:
        self._facts = {"ID": "E", "ServerVersion": "20.10", "KernelVersion": "6.1", **facts}

    def info(self) -> dict[str, Any]:
        return self._facts


def probes(
    state: Path,
    facts: dict[str, Any] | None = None,
    *,
    image: str = "i",
    gpu: str | None = None,
    cdi: frozenset[str] = frozenset(),
    again: bool = False,
    **engine: object,
) -> int:
    """How many containers were run to find out."""
    sandbox = FakeSandbox(json.dumps(FACTS if facts is None else facts))
    client: Any = FakeClient(**engine)
    parts.try_isolation(sandbox, client, state, image, gpu, {"a": "b"}, cdi=cdi, again=again)
    return len(sandbox.specs)


def test_what_held_is_not_tried_again_unless_asked_or_something_changed(tmp_path: Path) -> None:
    assert probes(tmp_path) == 1
    assert probes(tmp_path) == 0
    assert probes(tmp_path, again=True) == 1
    assert probes(tmp_path) == 0
    assert probes(tmp_path, KernelVersion="6.2") == 1
    assert probes(tmp_path) == 1
    assert probes(tmp_path, image="another") == 1
    on_gpu = FACTS | {"gpus": ["nvidia0"]}
    assert probes(tmp_path, on_gpu, image="another", gpu="GPU-1") == 1
    # Another way to the GPU.
    assert probes(tmp_path, on_gpu, image="another", gpu="GPU-1", cdi=frozenset({"nvidia.com/gpu=GPU-1"})) == 1
    assert probes(tmp_path, on_gpu, image="another", gpu="GPU-1", cdi=frozenset({"nvidia.com/gpu=GPU-1"})) == 0


def test_what_does_not_hold_is_refused_every_time(tmp_path: Path) -> None:
    assert probes(tmp_path) == 1
    for _ in range(2):
        with pytest.raises(EngineError, match="pids: any number"):
            probes(tmp_path, FACTS | {"processes": None}, again=True)
    # Nor is what held before believed now.
    assert probes(tmp_path) == 1


def test_an_engine_that_says_that_it_does_not_limit_is_refused_without_a_container(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"pids: the engine says that it cannot limit them here; cpus: the engine says"):
        probes(tmp_path, PidsLimit=False, CpuCfsQuota=False)


def test_a_runtime_that_the_engine_does_not_have_is_refused_by_name(tmp_path: Path) -> None:
    client: Any = FakeClient(Runtimes={"runc": {}, "io.containerd.runc.v2": {}})
    with pytest.raises(EngineError, match=r"--runtime runsc: the engine has io.containerd.runc.v2, runc"):
        parts.try_isolation(FakeSandbox("{}"), client, tmp_path, "i", None, {}, runtime="runsc", again=True)
