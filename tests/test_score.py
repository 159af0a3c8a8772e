from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

from runner import score


def write_claim(path: Path, values: np.ndarray) -> Path:
    values.astype("<f4").tofile(path)
    return path


def test_rows_come_back_in_the_datas_own_order(tmp_path: Path) -> None:
    order = score.shuffled(50, 7)
    claim = np.arange(100, dtype=np.float32).reshape(50, 2) / 10
    path = write_claim(tmp_path / "nll.bin", claim[order.permutation])

    found = score.read_claim(path, rows=50, sequence_length=2, order=order)

    assert not np.array_equal(order.permutation, np.arange(50))
    assert np.array_equal(found, claim)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((2, 3)), "24 bytes instead of 16"),
        (np.zeros(3), "12 bytes instead of 16"),
        (np.array([[0.0, math.nan], [0, 0]]), "not finite"),
        (np.array([[0.0, math.inf], [0, 0]]), "not finite"),
        (np.array([[0.0, -0.5], [0, 0]]), "values from -0.5 to 0"),
        (np.array([[0.0, 101.0], [0, 0]]), "only -0.001 to 100"),
    ],
)
def test_what_is_not_a_claim_is_refused(tmp_path: Path, values: np.ndarray, said: str) -> None:
    path = write_claim(tmp_path / "nll.bin", values)

    with pytest.raises(score.RefusedClaimError, match=said):
        score.read_claim(path, rows=2, sequence_length=2, order=score.shuffled(2, 1))


def checkpoint(path: Path, header: object, data: bytes, *, length: int | None = None) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def tensor(shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


def test_parameters_are_counted_from_the_header(tmp_path: Path) -> None:
    header = {"__metadata__": {"a": "b"}, "w": tensor([2, 3], 0, 24), "b": tensor([3], 24, 36)}

    assert score.count_parameters(checkpoint(tmp_path / "c", header, bytes(36))) == 9


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"w": tensor([2], 0, 8)}, bytes(7), None),
        ({"w": tensor([2], 0, 8)}, bytes(9), None),
        ({"w": tensor([2], 0, 8), "v": tensor([2], 4, 12)}, bytes(12), None),
        ({"w": tensor([10**9, 10**9], 0, 8)}, bytes(8), None),
        ({"w": tensor([-1], 0, 8)}, bytes(8), None),
        ({"w": {"shape": [1]}}, bytes(8), None),
        ([1], b"", None),
        ({}, b"", 1 << 60),
        ({}, b"", 0),
    ],
)
def test_what_is_not_plain_safetensors_is_refused(
    tmp_path: Path, header: object, data: bytes, length: int | None
) -> None:
    with pytest.raises(score.RefusedCheckpointError):
        score.count_parameters(checkpoint(tmp_path / "c", header, data, length=length))


def test_a_deeply_nested_header_is_refused(tmp_path: Path) -> None:
    raw = b"[" * 100_000
    (tmp_path / "c").write_bytes(struct.pack("<Q", len(raw)) + raw)

    with pytest.raises(score.RefusedCheckpointError):
        score.count_parameters(tmp_path / "c")
