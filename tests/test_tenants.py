"""Which containers may use a GPU, from what an engine says of them."""

from __future__ import annotations

from typing import Any

import pytest

from runner.gpus import Gpu, Part
from runner.sandbox.tenants import uses

UUID = "GPU-1"
CARD = Gpu(index=2, uuid="GPU-C", name="a card", memory_gb=40, minor=2)
PART = Gpu(index=2, uuid="MIG-1", name="a part", memory_gb=5, minor=2, part=Part(number=1, card="GPU-C"))


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
        (made(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=3"]}]), 3, True),
        (made(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=gpu3"]}]), 3, True),
        (made(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=3:0"]}]), 3, False),
        (made(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": ["vendor.com/net=3", "vendor.com/net=all"]}]), 3, False),
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
        (made([f"NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=GPU-2, nvidia.com/gpu={UUID}"], Runtime="nvidia"), 0, True),
        (made(["NVIDIA_VISIBLE_DEVICES=runtime.nvidia.com/gpu=all"], Runtime="nvidia"), 0, True),
    ],
)
def test_a_container_may_use_the_gpu_it_was_given(found: dict[str, Any], index: int, *, may: bool) -> None:
    assert uses(found, Gpu(index=index, uuid=UUID, name="a card", memory_gb=40, minor=index)) is may


@pytest.mark.parametrize(
    ("names", "may"),
    [
        (["MIG-1"], True),
        (["2:1"], True),
        (["mig2:1"], True),
        (["GPU-C"], True),
        (["2"], True),
        (["gpu2"], True),
        (["all"], True),
        (["MIG-2"], False),
        (["2:0"], False),
        (["mig2:11"], False),
        (["1"], False),
        (["1:1"], False),
        (["GPU-1", "MIG-2"], False),
    ],
)
def test_a_part_is_given_with_its_card_and_not_with_another_part(names: list[str], *, may: bool) -> None:
    by_cdi = [f"nvidia.com/gpu={name}" for name in names]

    assert uses(made(DeviceRequests=[{"DeviceIDs": names}]), PART) is may
    assert uses(made(DeviceRequests=[{"Driver": "cdi", "DeviceIDs": by_cdi}]), PART) is may
    assert uses(made([f"NVIDIA_VISIBLE_DEVICES={','.join(names)}"], Runtime="nvidia"), PART) is may


@pytest.mark.parametrize("gpu", [CARD, PART])
def test_who_was_given_so_many_cards_or_a_cards_file_may_use_its_parts(gpu: Gpu) -> None:
    assert uses(made(DeviceRequests=[{"Count": 3}]), gpu)
    assert uses(made(DeviceRequests=[{"Count": -1}]), gpu)
    assert uses(made(Devices=[{"PathOnHost": "/dev/nvidia2"}]), gpu)
    assert not uses(made(DeviceRequests=[{"Count": 2}]), gpu)
    assert not uses(made(Devices=[{"PathOnHost": "/dev/nvidia1"}]), gpu)


def test_the_device_file_is_named_by_its_own_number_and_not_by_the_index() -> None:
    card = Gpu(index=0, uuid="GPU-C", name="a card", memory_gb=40, minor=3)
    for number, may in ((3, True), (0, False)):
        device = {"PathOnHost": f"/dev/nvidia{number}", "PathInContainer": "/dev/nvidia0", "CgroupPermissions": "rw"}
        assert uses({"HostConfig": {"Devices": [device]}, "Config": {"Env": []}}, card) is may
