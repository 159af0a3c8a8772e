"""Near misses put together."""

from __future__ import annotations

import pytest

from runner.agents.combine import combine
from runner.constants import set_constants
from runner.literals import Value

CHAMPION = "LR = 0.01  # rate\nDEPTH = 4\nBETAS = (0.9, 0.95)\n\n\ndef main() -> None:\n    print(DEPTH)\n"


def changed(**values: Value) -> str:
    return set_constants(CHAMPION, values)


def test_what_each_changes_is_changed_together() -> None:
    found = combine(CHAMPION, [changed(LR=0.02), changed(DEPTH=5, BETAS=(0.8, 0.95))])
    assert found is not None
    assert (found.used, found.changes) == ((0, 1), {"LR": 0.02, "DEPTH": 5, "BETAS": (0.8, 0.95)})
    assert found.source == changed(LR=0.02, DEPTH=5, BETAS=(0.8, 0.95))
    assert "# rate" in found.source


def test_the_better_one_of_two_that_disagree_stays() -> None:
    found = combine(CHAMPION, [changed(LR=0.02), changed(LR=0.03, DEPTH=5), changed(DEPTH=6)])
    assert found is not None
    assert (found.used, found.changes) == ((0, 2), {"LR": 0.02, "DEPTH": 6})


@pytest.mark.parametrize(
    "sources",
    [
        [],
        [changed(LR=0.02)],
        [changed(LR=0.02), changed(LR=0.03)],
        [changed(LR=0.02), changed(LR=0.02)],
        [changed(LR=0.02), CHAMPION],
        [changed(LR=0.02), changed(DEPTH=5).replace("print(DEPTH)", "print(1)")],
        [changed(LR=0.02), changed(DEPTH=5).replace("5", "'five'")],
        [changed(LR=0.02), "DEPTH = ("],
    ],
)
def test_fewer_than_two_that_fit_are_no_combination(sources: list[str]) -> None:
    assert combine(CHAMPION, sources) is None


def test_a_champion_that_is_no_python_has_none() -> None:
    assert combine("LR = (", [changed(LR=0.02), changed(DEPTH=5)]) is None
