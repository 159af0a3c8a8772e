"""Which containers may use a GPU, from what an engine says of them."""

from __future__ import annotations

from typing import Any

import pytest

from runner.sandbox.tenants import uses

UUID = "GPU-1"


def made(env: list[str] | None = None, **host: Any) -> dict[str, Any]:
    return {"Config": {"Env": env}, "HostConfig": host}


@pytest.mark.parametrize(
    ("found", "index", "may"),
    [
        (made(), 0, False),
        (made(DeviceRequests=None, Devices=None), 0, False),
        (made(DeviceRequests=[{"DeviceIDs": [UUID]}]), 0, True),
        (made(DeviceRequests=[{"DeviceIDs": ["GPU-2"]}]), 0, False),
        (made(DeviceRequests=[{"DeviceIDs": ["0", "2"]}]), 2, True),
        (made(DeviceRequests=[{"DeviceIDs": ["0", "2"]}]), 1, False),
        (made(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={UUID}"]}]), 3, True),
        (made(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]), 3, True),
        (made(DeviceRequests=[{"Count": -1, "DeviceIDs": None}]), 3, True),
        (made(DeviceRequests=[{"Count": 2}]), 1, True),
        (made(DeviceRequests=[{"Count": 2}]), 2, False),
        (made(Devices=[{"PathOnHost": "/dev/nvidia0"}]), 0, True),
        (made(Devices=[{"PathOnHost": "/dev/nvidia1"}]), 0, False),
        (made(Privileged=True), 0, False),
        (made(["NVIDIA_VISIBLE_DEVICES=all"], Runtime="nvidia"), 0, True),
        (made([f"NVIDIA_VISIBLE_DEVICES={UUID},GPU-2"], Runtime="nvidia"), 0, True),
        (made(["NVIDIA_VISIBLE_DEVICES=all"], Runtime="runc"), 0, False),
        (made(["NVIDIA_VISIBLE_DEVICES=void"], Runtime="nvidia"), 0, False),
    ],
)
def test_a_container_may_use_the_gpu_it_was_given(found: dict[str, Any], index: int, *, may: bool) -> None:
    assert uses(found, UUID, index) is may
