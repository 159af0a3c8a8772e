"""Which toolkit is there, from what its program says, and which are refused."""

from __future__ import annotations

import pytest

from runner.errors import EngineError
from runner.toolkit import Toolkit, Version, parse, refuse_flawed

OLD = ["CVE-2024-0132", "CVE-2024-0133"]
LATER = ["CVE-2025-23266", "CVE-2025-23267"]


@pytest.mark.parametrize(
    ("said", "numbers", "before"),
    [
        ("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d\n", (1, 17, 8), False),
        ("NVIDIA Container Toolkit CLI version 1.17.0-rc.2\ncommit: 0\n", (1, 17, 0), True),
        ("nvidia-ctk version 1.20.0", (1, 20, 0), False),
        ("warning: x\nnvidia-ctk version v1.9.0\n", (1, 9, 0), False),
    ],
)
def test_the_version_is_read(said: str, numbers: tuple[int, int, int], *, before: bool) -> None:
    assert parse(said) == Version(numbers=numbers, before=before)


@pytest.mark.parametrize("said", ["", "version", "version unknown", "version 1.17", "version 1.17.8.1", "version 1.17.x", f"version 1.1.{'9' * 5000}"])
def test_what_is_no_version_is_none(said: str) -> None:
    assert parse(said) is None


@pytest.mark.parametrize(
    ("numbers", "before", "flaws"),
    [
        ((1, 9, 0), False, OLD + LATER),
        ((1, 16, 1), False, OLD + LATER),
        ((1, 16, 2), False, LATER),
        ((1, 17, 7), False, LATER),
        ((1, 17, 8), True, LATER),
        ((1, 17, 8), False, []),
        ((1, 18, 0), True, []),
        ((2, 0, 0), False, []),
    ],
)
def test_old_ones_are_refused_with_the_reason(numbers: tuple[int, int, int], flaws: list[str], *, before: bool) -> None:
    toolkit = Toolkit(version=Version(numbers=numbers, before=before))

    assert toolkit.version is not None
    assert toolkit.version.flaws() == flaws
    if not flaws:
        refuse_flawed(toolkit)
        return
    with pytest.raises(EngineError) as raised:
        refuse_flawed(toolkit)
    assert str(raised.value).endswith("so none is started: install 1.17.8 or later")
    assert f"({', '.join(flaws)})" in str(raised.value)


def test_one_that_is_not_known_is_not_refused() -> None:
    refuse_flawed(Toolkit(unknown="nvidia-ctk is not on the PATH"))
