"""A driver with two GPUs that do not exist, for processes that find this module before the real binding.

FAKE_NVML_BUSY names the index of one on which somebody computes.
"""

import os
from types import SimpleNamespace

NAMES = ["Imaginary 80 GB", "Imaginary 24 GB"]
UUIDS = ["GPU-00000000-0000-0000-0000-000000000000", "GPU-00000000-0000-0000-0000-000000000001"]


class NVMLError(Exception):
    """What the binding raises."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
    """For what a card cannot tell."""


def nvmlInit() -> None:
    """The driver answers."""


def nvmlShutdown() -> None:
    """It is let go."""


def nvmlDeviceGetCount() -> int:
    return len(NAMES)


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    if uuid not in UUIDS:
        message = "Not Found"
        raise NVMLError(message)
    return UUIDS.index(uuid)


def nvmlDeviceGetUUID(handle: int) -> str:
    return UUIDS[handle]


def nvmlDeviceGetName(handle: int) -> str:
    return NAMES[handle]


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    return SimpleNamespace(total=(80 if handle == 0 else 24) << 30, used=1 << 20)


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[SimpleNamespace]:
    if os.environ.get("FAKE_NVML_BUSY") == "unsupported":
        raise NVMLError_NotSupported
    busy = os.environ.get("FAKE_NVML_BUSY") == str(handle)
    return [SimpleNamespace(pid=4242, usedGpuMemory=300 << 20)] if busy else []


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: int) -> int:
    del handle
    return 0x4  # the normal limit of power
