"""What an engine refuses, in our words: which kind of error it is, and what to do."""

from __future__ import annotations

import docker.errors
import pytest

from runner.errors import AutoresearchError, EngineError, GpuError, StateError
from runner.sandbox.translate import engine_errors


@pytest.mark.parametrize(
    ("said", "kind", "advice"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', GpuError, "Install the NVIDIA container toolkit"),
        (
            "failed to create task for container: CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-1",
            GpuError,
            "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
        ),
        ("CDI device injection failed: CDI registry initialization failure", GpuError, "nvidia-ctk cdi generate"),
        ("write /x: no space left on device", StateError, "disk is full"),
        ("No such image: sha256:1", EngineError, "autoresearch images build"),
        ("something else", EngineError, "the container engine refused: something else"),
    ],
)
def test_what_the_engine_refuses_becomes_an_error_of_ours(said: str, kind: type[AutoresearchError], advice: str) -> None:
    error = docker.errors.APIError("500 Server Error", explanation=said)

    with pytest.raises(kind) as raised, engine_errors():
        raise error

    assert type(raised.value) is kind
    assert advice in str(raised.value)
