"""Steps in the search space stay inside it and keep what must hold between constants."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.agents.moves import Region, describe, perturb, region, repair, tidy
from runner.agents.space import Dimension
from runner.constants import find_constants
from runner.errors import UsageError
from runner.literals import Value

SPACE = {
    "LR": Dimension(low=0.001, high=1.0, log=True),
    "DEPTH": Dimension(low=2, high=12, whole=True),
    "MODEL_DIM": Dimension(low=128, high=1024, whole=True, multiple_of="HEAD_DIM"),
    "HEAD_DIM": Dimension(choices=(32, 64, 96)),
    "WARMDOWN": Dimension(low=0.0, high=1.0, step=0.05),
    "TOTAL_BATCH_SIZE": Dimension(low=2**10, high=2**16, power_of_two=True, whole=True),
    "DEVICE_BATCH_SIZE": Dimension(low=4, high=64, power_of_two=True, whole=True),
    "PATTERN": Dimension(choices=("SL", "L")),
    "ABSENT": Dimension(low=0, high=1),
}
SOURCE = (
    "LR = 0.04\nDEPTH = 4\nMODEL_DIM = 256\nHEAD_DIM = 64\nWARMDOWN = 0.5\nTOTAL_BATCH_SIZE = 2**13\n"
    "DEVICE_BATCH_SIZE = 16\nPATTERN = 'SL'\nFIXED = 3\n"
)
LENGTH = 128


def here(source: str = SOURCE, space: dict[str, Dimension] | None = None) -> Region:
    return region(space or SPACE, find_constants(source), LENGTH)


def test_a_region_is_what_file_and_space_share() -> None:
    where = here()
    assert "ABSENT" not in where.dimensions
    assert where.current["TOTAL_BATCH_SIZE"] == 8192
    assert where.fixed == {"FIXED": 3}


def test_ranges_grow_to_hold_the_champion() -> None:
    where = here("LR = 2.0\nDEPTH = 1\nPATTERN = 'LLL'\n")
    assert where.dimensions["LR"].high == 2.0
    assert where.dimensions["DEPTH"].low == 1
    assert where.dimensions["PATTERN"].choices == ("SL", "L", "LLL")


@pytest.mark.parametrize("source", ["LR = 'fast'\n", "PATTERN = 3\n", "DEPTH = True\n", "DEPTH = (1, 2)\n"])
def test_a_range_for_another_type_names_the_constant(source: str) -> None:
    with pytest.raises(UsageError, match=source.split(maxsplit=1)[0]):
        here(source)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 9), reach=st.floats(1, 4))
def test_every_perturbation_is_inside_and_consistent(seed: int, count: int, reach: float) -> None:
    where = here()
    setting = perturb(where, random.Random(seed), count=count, reach=reach)
    total, device = setting["TOTAL_BATCH_SIZE"], setting["DEVICE_BATCH_SIZE"]
    dim, head, lr, warmdown = (setting[name] for name in ("MODEL_DIM", "HEAD_DIM", "LR", "WARMDOWN"))
    assert isinstance(total, int)
    assert isinstance(device, int)
    assert isinstance(dim, int)
    assert isinstance(head, int)
    assert isinstance(lr, float)
    assert isinstance(warmdown, float)
    assert total % (device * LENGTH) == 0
    assert total & (total - 1) == 0
    assert 4 <= device <= 64
    assert dim % head == 0
    assert 128 <= dim <= 1024
    assert 0.001 <= lr <= 1.0
    assert abs(warmdown * 20 - round(warmdown * 20)) < 1e-9
    assert setting["PATTERN"] in ("SL", "L")


def test_a_perturbation_moves_as_many_constants_as_asked() -> None:
    free = here(space={name: SPACE[name] for name in ("LR", "DEPTH", "WARMDOWN", "PATTERN")})
    for seed in range(50):
        setting = perturb(free, random.Random(seed), count=2)
        assert sum(setting[name] != value for name, value in free.current.items()) == 2


@pytest.mark.parametrize(
    ("dimension", "value", "expected"),
    [
        (Dimension(low=0.001, high=1.0), 0.0271828, 0.0272),
        (Dimension(low=0.0, high=1.0, step=0.05), 0.1 + 0.2, 0.3),
        (Dimension(low=2, high=9, whole=True), 4.4, 4),
        (Dimension(low=2, high=9, whole=True), 40.0, 9),
        (Dimension(low=16, high=64, power_of_two=True, whole=True), 40.0, 32),
    ],
)
def test_values_are_what_a_person_would_write(dimension: Dimension, value: float, expected: float) -> None:
    assert tidy(dimension, value) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"TOTAL_BATCH_SIZE": 1024, "DEVICE_BATCH_SIZE": 64}, {"TOTAL_BATCH_SIZE": 8192}),
        ({"MODEL_DIM": 300}, {"MODEL_DIM": 320}),
        ({"MODEL_DIM": 256, "HEAD_DIM": 96}, {"MODEL_DIM": 288}),
    ],
)
def test_repair_takes_the_nearest_setting_that_works(
    asked: dict[str, Value], expected: dict[str, Value]
) -> None:
    where = here()
    setting = {**where.current, **asked}
    assert repair(where, setting) == {**setting, **expected}


def test_a_fixed_total_binds_the_device_batch() -> None:
    space = {"DEVICE_BATCH_SIZE": Dimension(low=1, high=24, whole=True)}
    where = here("TOTAL_BATCH_SIZE = 1536\nDEVICE_BATCH_SIZE = 12\n", space)
    assert repair(where, {"DEVICE_BATCH_SIZE": 8}) == {"DEVICE_BATCH_SIZE": 6}


def test_a_description_fits_a_commit_subject_and_counts_what_it_leaves_out() -> None:
    before: dict[str, Value] = {
        "MATRIX_LR": 0.01,
        "WARMDOWN": 0.5,
        "PATTERN": "SL",
        "BETAS": (0.8, 0.95),
        "SAME": 1,
    }
    after: dict[str, Value] = {
        "MATRIX_LR": 0.027,
        "WARMDOWN": 0.6,
        "PATTERN": "L",
        "BETAS": (0.9, 0.95),
        "SAME": 1,
    }
    assert describe(before, after) == "MATRIX_LR 0.01 -> 0.027, WARMDOWN 0.5 -> 0.6 and 2 more"
    assert describe(before, {**before, "MATRIX_LR": 0.027}) == "MATRIX_LR 0.01 -> 0.027"
    long = "N" * 90
    assert len(describe({long: 1}, {long: 2})) <= 72
