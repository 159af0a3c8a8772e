"""Which NVIDIA GPUs are here, by NVML.  The only module that imports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from runner.disturbance import Reading
from runner.errors import GpuError

SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}
"""Bits of the driver's reasons for low clocks (nvml.h) that no trial causes by itself on a sound machine.  The software's limit
of power (0x4) is not among them: it is the card's normal state under load."""


WHOLE_CARD = 0xFFFFFFFF
"""In place of a part's number: a process that was given to no part of a card that is divided (nvml.h)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a GPU that is a part of a card is a part of."""

    number: int
    """Which MIG device of the card it is, as the driver counts them."""
    card: str
    """UUID of the card."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One card, or one MIG device of a card that is divided; containers are given it by UUID, the label is for people."""

    index: int
    """Of the card."""
    uuid: str
    name: str
    memory_gb: float
    """Of a card that is divided: what its parts have together."""
    minor: int
    """The number in the name of the card's device file."""
    part: Part | None = None
    """None: it is a whole card."""
    parts: tuple[Gpu, ...] | None = None
    """The MIG devices of a card that is divided, on which nothing computes as a whole; None: it is not."""

    @property
    def device_file(self) -> str:
        """The name in /dev of the card that a container with this GPU finds."""
        return f"nvidia{self.minor}"

    @property
    def label(self) -> str:
        """What a person calls it: the card's index (`0`), or that and the number of the part (`0:1`)."""
        return str(self.index) if self.part is None else f"{self.index}:{self.part.number}"


def discover() -> list[Gpu]:
    """Every card that NVML lists, by index, with its parts.  Raises `GpuError` if NVML is not there."""
    with _nvml() as nvml:
        return [_card(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]


def usable(cards: Sequence[Gpu]) -> list[Gpu]:
    """Pure: what a run can have of these cards: each that is whole, and the parts of each that is divided."""
    return [one for card in cards for one in ((card,) if card.parts is None else card.parts)]


def pick(called: str) -> Gpu:
    """The GPU that is called so: by index, by card and part (`0:1`), or by UUID.

    Raises `GpuError`, naming what is there: a missing GPU is never a slower run, and a divided one none at all.
    """
    cards = discover()
    for gpu in (*cards, *usable(cards)):
        if called in (gpu.label, gpu.uuid):
            if gpu.parts is None:
                return gpu
            parts = f"name one of its parts: {_list(gpu.parts)}" if gpu.parts else "it has no parts yet: an admin makes them with `nvidia-smi mig -cgi`"
            message = f"GPU {gpu.label} ({gpu.name}) is divided, so nothing computes on the whole of it; {parts}"
            raise GpuError(message)
    message = f"there is no GPU {called}; this machine has: {_list(usable(cards)) or 'none'}"
    raise GpuError(message)


def find(uuid: str) -> Gpu:
    """The card or part with this UUID.  Raises `GpuError` if it is not there, or not any more as it was."""
    for gpu in usable(discover()):
        if gpu.uuid == uuid:
            return gpu
    message = f"GPU {uuid} is no longer in this machine, or it was divided anew"
    raise GpuError(message)


def reading(uuid: str) -> Reading | None:
    """What the driver says of the GPU with this UUID now, or None if it does not answer."""
    try:
        with _nvml() as nvml:
            handle, card = _handles(nvml, uuid)
            return Reading(
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
                processes=tuple(one.pid for one in _processes(nvml, handle, card)),
                slowed=_slowed(nvml, card),
            )
    except GpuError:
        return None


def foreign_processes(uuid: str) -> list[str]:
    """The processes that compute on the GPU with this UUID, as far as the driver tells; called when ours do not.

    Raises `GpuError` if the driver does not answer.
    """
    with _nvml() as nvml:
        found = _processes(nvml, *_handles(nvml, uuid))
        return [f"process {one.pid} with {(one.usedGpuMemory or 0) >> 20} MiB" for one in found]


def _handles(nvml: Any, uuid: str) -> tuple[Any, Any]:
    """Of the GPU, and of the card that it is or is a part of: clocks are the card's, memory and processes its parts' own."""
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    return handle, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if uuid.startswith("MIG-") else handle


def _processes(nvml: Any, handle: Any, card: Any) -> list[Any]:
    """Those that compute on the GPU, and, as far as the driver tells us, those that a divided card gave to none of its parts."""
    try:
        found = list(nvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except nvml.NVMLError_NotSupported:  # some virtual GPUs
        found = []
    if card is handle:
        return found
    try:
        of_card = nvml.nvmlDeviceGetComputeRunningProcesses(card)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):  # it tells root alone
        return found
    known = {one.pid for one in found}
    return found + [one for one in of_card if one.gpuInstanceId == WHOLE_CARD and one.pid not in known]


def _slowed(nvml: Any, card: Any) -> str | None:
    try:
        bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):
        return None
    return next((why for bit, why in SLOWDOWNS.items() if bits & bit), None)


def _card(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    minor = int(nvml.nvmlDeviceGetMinorNumber(handle))
    if not _is_divided(nvml, handle):
        return _describe(nvml, handle, index, minor, nvml.nvmlDeviceGetMemoryInfo(handle).total)
    # The memory of the whole is told to root alone.
    card = _describe(nvml, handle, index, minor, 0)
    parts = tuple(_parts(nvml, handle, card))
    return replace(card, parts=parts, memory_gb=sum(part.memory_gb for part in parts))


def _parts(nvml: Any, handle: Any, card: Gpu) -> Iterator[Gpu]:
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except nvml.NVMLError_NotFound:  # fewer parts than there could be, and numbers may be left out
            continue
        memory = nvml.nvmlDeviceGetMemoryInfo(part).total
        yield _describe(nvml, part, card.index, card.minor, memory, Part(number=number, card=card.uuid))


def _is_divided(nvml: Any, handle: Any) -> bool:
    try:
        now, _ = nvml.nvmlDeviceGetMigMode(handle)
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):  # most cards; old drivers
        return False
    return bool(now)


def _describe(nvml: Any, handle: Any, index: int, minor: int, memory: int, part: Part | None = None) -> Gpu:
    return Gpu(
        index=index,
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
        memory_gb=memory / (1 << 30),
        minor=minor,
        part=part,
    )


def _list(gpus: Sequence[Gpu]) -> str:
    return ", ".join(f"{gpu.label} ({gpu.name})" for gpu in gpus)


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
