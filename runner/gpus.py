"""Which NVIDIA GPUs are here, by NVML.  The only module that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runner.disturbance import Reading
from runner.errors import GpuError

SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}
"""Bits of the driver's reasons for low clocks (nvml.h) that no trial causes by itself on a sound machine.  The software's limit
of power (0x4) is not among them: it is the card's normal state under load."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card; containers are given it by UUID, the index is for people."""

    index: int
    uuid: str
    name: str
    memory_gb: float


def discover() -> list[Gpu]:
    """Every GPU that NVML lists, by index.  Raises `GpuError` if NVML is not there."""
    with _nvml() as nvml:
        return [_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def pick(index: int) -> Gpu:
    """The GPU with this index.  Raises `GpuError`: a missing GPU is never a slower run."""
    found = discover()
    for gpu in found:
        if gpu.index == index:
            return gpu
    there = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in found) or "none"
    message = f"there is no GPU {index}; this machine has: {there}"
    raise GpuError(message)


def reading(uuid: str) -> Reading | None:
    """What the driver says of the GPU with this UUID now, or None if it does not answer."""
    try:
        with _nvml() as nvml:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            return Reading(
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
                processes=tuple(one.pid for one in _processes(nvml, handle)),
                slowed=_slowed(nvml, handle),
            )
    except GpuError:
        return None


def foreign_processes(uuid: str) -> list[str]:
    """The processes that compute on the GPU with this UUID, as far as the driver tells; called when ours do not.

    Raises `GpuError` if the driver does not answer.
    """
    with _nvml() as nvml:
        found = _processes(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        return [f"process {one.pid} with {(one.usedGpuMemory or 0) >> 20} MiB" for one in found]


def index_of(uuid: str) -> int:
    """The index of the GPU with this UUID.  Raises `GpuError` if it is not there."""
    for gpu in discover():
        if gpu.uuid == uuid:
            return gpu.index
    message = f"GPU {uuid} is no longer in this machine"
    raise GpuError(message)


def _processes(nvml: Any, handle: Any) -> list[Any]:
    try:
        return list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError_NotSupported:  # some virtual GPUs
        return []


def _slowed(nvml: Any, handle: Any) -> str | None:
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except nvml.NVMLError_NotSupported:
        return None
    return next((why for bit, why in SLOWDOWNS.items() if bits & bit), None)


def _describe(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory_gb=nvml.nvmlDeviceGetMemoryInfo(handle).total / (1 << 30),
    )


@contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        message = f"no NVIDIA driver answers here ({error}): use --cpu, or install the driver"
        raise GpuError(message) from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        message = f"the NVIDIA driver refused: {error}"
        raise GpuError(message) from error
    finally:
        pynvml.nvmlShutdown()
