"""Pure: from the claimed negative log-likelihoods to val_bpb, and what a checkpoint's header says.

The denominator is a constant of the prepared data: the raw bytes of all validation targets.  The candidate
chooses neither rows nor their order.  A claim was computed by the candidate's own model in a container that saw the
targets, so it is no score yet: `runner.audit` makes it one.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

SCORE_LEVEL = "audited"
LOWEST_NLL = -1e-3
"""Rounding may put a certain token a little below zero; nats."""
HIGHEST_NLL = 100.0
"""No honest float32 log-softmax of bounded logits gives more; nats."""
HEADER_LIMIT = 1 << 20
_MAX_RANK = 16


class RefusedClaimError(Exception):
    """The claim is not a score: wrong size, not finite, out of range."""


class RefusedCheckpointError(Exception):
    """The checkpoint is not a plain safetensors file."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which rows were handed out; drawn afresh for every container."""

    permutation: npt.NDArray[np.int64]
    """[rows]: position i of the container's file is row permutation[i]."""


def shuffled(rows: int, entropy: int) -> Order:
    """A random order of `rows` rows."""
    return Order(permutation=np.random.default_rng(entropy).permutation(rows))


def read_claim(path: Path, *, rows: int, sequence_length: int, order: Order) -> npt.NDArray[np.float32]:
    """The claimed nll, float32 [rows, sequence_length], nats, in the data's own row order.

    Raises `RefusedClaimError`.
    """
    expected = rows * sequence_length * 4
    size = path.stat().st_size
    if size != expected:
        message = f"nll.bin has {size} bytes instead of {expected}"
        raise RefusedClaimError(message)
    handed = np.fromfile(path, dtype="<f4").reshape(rows, sequence_length)
    if not np.isfinite(handed).all():
        message = "nll.bin holds values that are not finite"
        raise RefusedClaimError(message)
    low, high = float(handed.min()), float(handed.max())
    if low < LOWEST_NLL or high > HIGHEST_NLL:
        message = f"nll.bin holds values from {low:g} to {high:g}; only {LOWEST_NLL:g} to {HIGHEST_NLL:g} are possible"
        raise RefusedClaimError(message)
    claim = np.empty_like(handed)
    claim[order.permutation] = handed
    return claim


def count_parameters(path: Path) -> int:
    """Number of elements in a safetensors file, by its header alone; nothing is loaded.

    Format: 8 bytes little-endian header length, JSON header, then the tensors back to back
    (https://github.com/huggingface/safetensors#format).  Raises `RefusedCheckpointError`.
    """
    tensors, space = _tensors(path)
    total, end = 0, 0
    for start, stop, elements in sorted(tensors):
        if start != end or stop < start:
            message = "tensors overlap or leave gaps"
            raise RefusedCheckpointError(message)
        end = stop
        total += elements
    if end != space:
        message = f"tensors cover {end} of {space} bytes"
        raise RefusedCheckpointError(message)
    return total


def _tensors(path: Path) -> tuple[list[tuple[int, int, int]], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(HEADER_LIMIT, size - 8):
            message = f"header of {length} bytes in a file of {size}"
            raise RefusedCheckpointError(message)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        tensors = [(*_offsets(entry), _elements(entry)) for entry in entries]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        message = "unreadable header"
        raise RefusedCheckpointError(message) from error
    return tensors, size - 8 - length


def _offsets(entry: dict[str, list[int]]) -> tuple[int, int]:
    start, stop = entry["data_offsets"]
    if not (type(start) is int and type(stop) is int and start >= 0):
        raise ValueError
    return start, stop


def _elements(entry: dict[str, list[int]]) -> int:
    shape = entry["shape"]
    if len(shape) > _MAX_RANK or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError
    start, stop = _offsets(entry)
    elements = math.prod(shape)
    if elements > 8 * (stop - start):
        raise ValueError
    return elements
