"""Constants of a Python file are found and set through the syntax tree."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.constants import find_constants, set_constants
from runner.errors import UsageError
from runner.literals import Value

SOURCE = '''"""A trainer."""
import os

DEPTH = 8  # transformer blocks
BATCH = 2**19  # tokens
SPACED = 2 ** 10
WIDE = 262_144
LR: float = 0.04  # rate
TINY = 3e-4
BETAS = (0.8, 0.95)  # moments
PATTERN = "SSSL"
QUOTED = 'it'
NEGATIVE = -1
PRODUCT = 8 * 128
CAUSAL = True
A = 1; B = 2
STEP = 1
for STEP in range(3):
    pass


def main():
    DEPTH = 3  # a local of the same name
    return DEPTH
'''


def changed(values: dict[str, Value], source: str = SOURCE) -> list[tuple[str, str]]:
    """The lines that differ, before and after."""
    before, after = source.split("\n"), set_constants(source, values).split("\n")
    assert len(before) == len(after)
    return [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]


def test_finds_every_literal_with_its_value() -> None:
    values = {name: constant.value for name, constant in find_constants(SOURCE).items()}
    assert values == {
        "DEPTH": 8, "BATCH": 2**19, "SPACED": 1024, "WIDE": 262144, "LR": 0.04, "TINY": 3e-4, "BETAS": (0.8, 0.95),
        "PATTERN": "SSSL", "QUOTED": "it", "NEGATIVE": -1, "PRODUCT": 1024, "CAUSAL": True, "A": 1, "B": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("DEPTH", 12, "DEPTH = 12  # transformer blocks"),
        ("BATCH", 2**18, "BATCH = 2**18  # tokens"),
        ("BATCH", 3 * 2**17, "BATCH = 393216  # tokens"),
        ("SPACED", 2048, "SPACED = 2 ** 11"),
        ("WIDE", 131072, "WIDE = 131_072"),
        ("LR", 0.1 * 0.2, "LR: float = 0.02  # rate"),
        ("LR", 1, "LR: float = 1.0  # rate"),
        ("TINY", 1e-5, "TINY = 1e-5"),
        ("BETAS", (0.8, 0.99), "BETAS = (0.8, 0.99)  # moments"),
        ("BETAS", (0.9,), "BETAS = (0.9,)  # moments"),
        ("PATTERN", "SL", 'PATTERN = "SL"'),
        ("PATTERN", 'a"b\\', "PATTERN = 'a\"b\\\\'"),
        ("QUOTED", "that", "QUOTED = 'that'"),
        ("NEGATIVE", -2, "NEGATIVE = -2"),
        ("PRODUCT", 2048, "PRODUCT = 2048"),
        ("CAUSAL", False, "CAUSAL = False"),
        ("B", 3, "A = 1; B = 3"),
    ],
)
def test_a_change_is_one_line_and_keeps_spelling_and_comment(name: str, value: Value, line: str) -> None:
    [(_, after)] = changed({name: value})
    assert after == line


def test_setting_the_value_that_is_there_changes_nothing() -> None:
    assert (
        set_constants(SOURCE, {name: found.value for name, found in find_constants(SOURCE).items()}) == SOURCE
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"DEPHT": 1}, "DEPHT: no constant of this name at the top level of the file (did you mean DEPTH?)"),
        ({"ABSENT": 1}, "ABSENT: no constant of this name at the top level of the file"),
        ({"STEP": 2}, "STEP: assigned more than once (lines 17 and 18)"),
        ({"DEPTH": 8.5}, "DEPTH: line 4 holds 8 (int), not 8.5"),
        ({"DEPTH": True}, "DEPTH: line 4 holds 8 (int), not True"),
        ({"PATTERN": 3}, 'PATTERN: line 11 holds "SSSL" (str), not 3'),
        ({"LR": math.nan}, "LR: line 8 holds 0.04 (float), not nan"),
        ({"LR": math.inf}, "LR: line 8 holds 0.04 (float), not inf"),
        ({"BETAS": 0.9}, "BETAS: line 10 holds (0.8, 0.95) (tuple), not 0.9"),
    ],
)
def test_what_cannot_be_set_is_named_with_the_reason(values: dict[str, Value], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        set_constants(SOURCE, values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "more",
    [
        "X = 2\n",
        "X += 1\n",
        "def f():\n    global X\n    X = 2\n",
        "if True:\n    X = 2\n",
        "for X in (): pass\n",
        "import X\n",
        "import os as X\n",
        "def X(): pass\n",
        "class X: pass\n",
        "X, Y = 1, 2\n",
        "Z = [(X := 1) for _ in ()]\n",
        "with open('f') as X: pass\n",
        "try: pass\nexcept OSError as X: pass\n",
        "match 1:\n    case X: pass\n",
        "del X\n",
    ],
)
def test_any_second_binding_makes_a_constant_repeated(more: str) -> None:
    assert "X" not in find_constants("X = 1\n" + more)
    with pytest.raises(UsageError, match=r"X: assigned more than once \(lines 1 and"):
        set_constants("X = 1\n" + more, {"X": 3})


@pytest.mark.parametrize(
    "value",
    [
        "os.environ",
        "f'{1}'",
        "[1]",
        "2**10**10",
        "1e999",
        "int('1')",
        "Y",
        "b'x'",
        "None",
        "Y = 3",
        "9" * 400,
    ],
)
def test_what_is_no_literal_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="X: line 1 does not assign a literal to this name alone"):
        set_constants(f"X = {value}\n", {"X": 3})


def test_locals_comprehensions_and_lower_case_names_do_not_count() -> None:
    source = "X = 1\nx = 2\nclass A:\n    X = 3\nB = [X for X in ()]\nf = lambda X: X\n"
    assert find_constants(source)["X"].value == 1
    assert set_constants(source, {"X": 5}) == source.replace("X = 1", "X = 5", 1)


@pytest.mark.parametrize(
    "source", ["X = (", "X = " + "(" * 300 + "1" + ")" * 300, "X = " + "-" * 100_000 + "1", "X = 1\0"]
)
def test_a_file_that_cannot_be_parsed_is_an_error_not_a_crash(source: str) -> None:
    with pytest.raises(UsageError):
        set_constants(source, {"X": 1})


def test_windows_line_ends_a_byte_order_mark_and_a_missing_last_newline_stay() -> None:
    assert set_constants("\ufeffX = 1  # a\r\nY = 2", {"Y": 3}) == "\ufeffX = 1  # a\r\nY = 3"


def test_the_shipped_trainer_survives_setting_all_its_constants() -> None:
    source = (Path(__file__).parents[1] / "trainer" / "train.py").read_text()
    found = find_constants(source)
    assert len(found) > 10
    assert set_constants(source, {name: constant.value for name, constant in found.items()}) == source


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60))
def test_numbers_come_back_as_they_were_set(value: int | float) -> None:  # noqa: PYI041 - they differ here
    kind = "1.5" if isinstance(value, float) else "1"
    found = find_constants(set_constants(f"X = {kind}\n", {"X": value}))["X"].value
    assert isinstance(found, int | float)
    assert math.isclose(found, value, rel_tol=1e-11, abs_tol=0)


@given(st.text())
def test_any_text_comes_back_as_it_was_set(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return
    assert find_constants(set_constants('X = "a"\n', {"X": value}))["X"].value == value
