"""A driver with two GPUs that do not exist, for processes that find this module before the real binding.

FAKE_NVML_DIVIDED adds a third that is divided: into as many parts as it says, with the number of the first left out.
FAKE_NVML_BUSY names the index of one on which somebody computes (`2`: on the third as a whole, `2:1`: on that part of it);
FAKE_NVML_SLOW of one that heat slows down.
"""

import os
from types import SimpleNamespace

NAMES = ["Imaginary 80 GB", "Imaginary 24 GB", "Imaginary 40 GB"]
UUIDS = [f"GPU-00000000-0000-0000-0000-00000000000{index}" for index in range(3)]
GIGABYTES = [80, 24, 40]
DIVIDED = 2
MOST_PARTS = 7

Handle = int | tuple[int, int]
"""Of a card, or of a card and a part of it."""


class NVMLError(Exception):
    """What the binding raises."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818
    """For what a card cannot tell."""


class NVMLError_NotFound(NVMLError):  # noqa: N801, N818
    """For what is not there."""


class NVMLError_NoPermission(NVMLError):  # noqa: N801, N818
    """For what root alone is told."""


class NVMLError_FunctionNotFound(NVMLError):  # noqa: N801, N818
    """For what an older driver does not have."""


def _parts() -> list[tuple[int, int]]:
    return [(DIVIDED, number) for number in range(1, 1 + int(os.environ.get("FAKE_NVML_DIVIDED") or 0))]


def _label(handle: Handle) -> str:
    return ":".join(map(str, handle)) if isinstance(handle, tuple) else str(handle)


def nvmlInit() -> None:
    """The driver answers."""


def nvmlShutdown() -> None:
    """It is let go."""


def nvmlDeviceGetCount() -> int:
    return 2 if os.environ.get("FAKE_NVML_DIVIDED") is None else 3


def nvmlDeviceGetHandleByIndex(index: int) -> Handle:
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> Handle:
    handles: list[Handle] = [*range(nvmlDeviceGetCount()), *_parts()]
    for handle in handles:
        if nvmlDeviceGetUUID(handle) == uuid:
            return handle
    raise NVMLError_NotFound


def nvmlDeviceGetMigMode(handle: Handle) -> list[int]:
    if handle == 0:  # as most cards
        raise NVMLError_NotSupported
    return [1, 1] if handle == DIVIDED else [0, 1]


def nvmlDeviceGetMaxMigDeviceCount(handle: Handle) -> int:
    return MOST_PARTS


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Handle, number: int) -> Handle:
    if (handle, number) not in _parts():
        raise NVMLError_NotFound
    assert isinstance(handle, int)
    return handle, number


def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle: Handle) -> Handle:
    assert isinstance(handle, tuple)
    return handle[0]


def nvmlDeviceGetUUID(handle: Handle) -> str:
    return f"MIG-00000000-0000-0000-0000-00000000000{handle[1]}" if isinstance(handle, tuple) else UUIDS[handle]


def nvmlDeviceGetName(handle: Handle) -> str:
    return "Imaginary 40 GB MIG 1g.5gb" if isinstance(handle, tuple) else NAMES[handle]


def nvmlDeviceGetMinorNumber(handle: Handle) -> int:
    assert isinstance(handle, int), "a part has no device file of its own"
    return handle


def nvmlDeviceGetMemoryInfo(handle: Handle) -> SimpleNamespace:
    if isinstance(handle, tuple):
        return SimpleNamespace(total=5 << 30, used=2 << 20)
    if handle == DIVIDED:  # as for everybody but root
        raise NVMLError_NoPermission
    return SimpleNamespace(total=GIGABYTES[handle] << 30, used=1 << 20)


def nvmlDeviceGetComputeRunningProcesses(handle: Handle) -> list[SimpleNamespace]:
    busy = os.environ.get("FAKE_NVML_BUSY")
    if busy == "unsupported":
        raise NVMLError_NotSupported
    if busy == "root alone" and handle == DIVIDED:
        raise NVMLError_NoPermission
    found = [SimpleNamespace(pid=4242, usedGpuMemory=300 << 20, gpuInstanceId=0xFFFFFFFF)] if busy == _label(handle) else []
    if handle == DIVIDED:  # which tells of what its parts do too
        for part in _parts():
            found += [SimpleNamespace(**{**vars(one), "gpuInstanceId": part[1]}) for one in nvmlDeviceGetComputeRunningProcesses(part)]
    return found


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: Handle) -> int:
    assert isinstance(handle, int), "a part has no clocks of its own"
    return 0x40 if os.environ.get("FAKE_NVML_SLOW") == str(handle) else 0x4  # heat; the normal limit of power
