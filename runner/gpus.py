"""Which NVIDIA GPUs are here, by NVML.  The only module that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runner.errors import GpuError


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


def memory_used(uuid: str) -> int | None:
    """Bytes in use on the GPU with this UUID, or None if NVML does not say."""
    try:
        with _nvml() as nvml:
            return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used)
    except GpuError:
        return None


def foreign_processes(uuid: str) -> list[str]:
    """The processes that compute on the GPU with this UUID, as far as the driver tells; called when ours do not.

    Raises `GpuError` if the driver does not answer.
    """
    with _nvml() as nvml:
        try:
            found = nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError_NotSupported:  # some virtual GPUs
            return []
        return [f"process {one.pid} with {(one.usedGpuMemory or 0) >> 20} MiB" for one in found]


def index_of(uuid: str) -> int:
    """The index of the GPU with this UUID.  Raises `GpuError` if it is not there."""
    for gpu in discover():
        if gpu.uuid == uuid:
            return gpu.index
    message = f"GPU {uuid} is no longer in this machine"
    raise GpuError(message)


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
