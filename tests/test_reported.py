"""A reported metric is stated once, as one number, or there is no score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.reported import LARGEST, Metrics, RefusedMetricError, parse
from runner.settings import Guard, ScoreOptions

OPTIONS = ScoreOptions(level="reported", command=("x",), metric="acc", direction="maximise")
GUARDED = ScoreOptions(
    level="reported",
    command=("x",),
    metric="acc",
    direction="maximise",
    guards=(Guard(name="overlap", low=0.0, high=1e-9), Guard(name="seconds", high=5.0), Guard(name="found", low=3.0)),
)


def refusal(output: bytes, options: ScoreOptions = OPTIONS) -> str:
    with pytest.raises(RefusedMetricError) as caught:
        parse(output, options)
    text = str(caught.value)
    assert text.isascii()
    assert text.isprintable()
    return text


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"acc: 0.5", 0.5),
        (b"acc=0.5", 0.5),
        (b"acc = 0.5", 0.5),
        (b"acc\t:\t0.5 \t", 0.5),
        (b"acc:1", 1.0),
        (b"acc: -1.", -1.0),
        (b"acc: +.25", 0.25),
        (b"acc: 1e-3", 1e-3),
        (b"acc: 1.5E+06", 1.5e6),
        (b"acc: 007", 7.0),
        (b"acc: -0", 0.0),
        (b"acc: 0.5\r", 0.5),
        (b"acc: 1e-999", 0.0),
    ],
)
def test_one_line_with_one_number_is_the_metric(line: bytes, value: float) -> None:
    assert parse(line, OPTIONS).value == value
    assert parse(b"epoch 1\nloss: 3\n" + line + b"\nbye\n", OPTIONS).value == value


@pytest.mark.parametrize(
    "text",
    [b"", b"0.5 (best)", b"0.5 0.6", b"0,5", b"1_000", b"0x10", b"50%", b"half", b"0.5;", b"'0.5'", b"1e", b"e5", b".", b"+", b"- 1",
     b"1.2.3", b"True", b"None", b"[0.5]", b"= 0.5", b"0.5 # acc: 1", "\u0660.5".encode(), "0\uff0e5".encode(), b"\x1b[1m0.5\x1b[0m", b"0.5\x00",
     b"0.5\r0.7", b"0." + b"5" * 63, b"9" * 100_000, b"1e99999",
     b"5" + b" " * 300 + b"6", b" " * 300 + b"5"],
)  # fmt: skip
def test_anything_else_behind_the_name_is_refused(text: bytes) -> None:
    assert "not one plain number" in refusal(b"acc: " + text + b"\n")


@pytest.mark.parametrize("text", [b"nan", b"NaN", b"-nan", b"inf", b"-Infinity", b"+INF"])
def test_what_is_not_finite_is_refused(text: bytes) -> None:
    assert refusal(b"acc: " + text) == f"acc is {text.decode()}, which is not finite"


@pytest.mark.parametrize("text", [b"1e999", b"-1e16", b"1" + b"0" * 40])
def test_what_is_too_large_to_reckon_with_is_refused(text: bytes) -> None:
    assert refusal(b"acc: " + text) == f"acc is {text.decode()}, beyond 1e+15"


@pytest.mark.parametrize(
    "output",
    [b"", b"\n\n", b"0.5", b"Acc: 0.5", b" acc: 0.5", b"final acc: 0.5", b"acc 0.5", b"accuracy: 0.5", b"acc.mean: 0.5", b"\x1b[0macc: 0.5",
     b"progress 100%\racc: 0.5", b"'acc': 0.5", b"acc", b"{\"acc\": 0.5}", b"\x00acc: 0.5", "\ufeffacc: 0.5".encode()],
)  # fmt: skip
def test_a_line_that_does_not_begin_with_the_name_states_nothing(output: bytes) -> None:
    assert refusal(output) == "no line of the output states acc (`acc: NUMBER`, from the start of a line)"


@pytest.mark.parametrize("again", [b"acc: 0.5", b"acc = 0.7", b"acc: nan", b"acc: soon", b"acc:"])
def test_a_metric_that_is_stated_twice_is_refused_even_when_it_agrees(again: bytes) -> None:
    assert refusal(b"start\nacc: 0.5\n\n" + again + b"\n") == "2 lines of the output state acc, lines 2 and 4 first: it must be one"
    assert refusal(again + b"\nacc: 0.5").startswith("2 lines")
    assert refusal(b"acc: 1\n" * 1000).startswith("1000 lines of the output state acc, lines 1 and 2 first")


def test_a_name_is_text_and_no_pattern() -> None:
    options = ScoreOptions(level="reported", command=("x",), metric="a.b/c-d", direction="minimise", guards=(Guard(name="a", low=0.0),))

    assert parse(b"a.b/c-d: 2\na: 1\naxb/c-d: 3\n", options) == Metrics(value=2.0, guards=(("a", 1.0),), broken=None)
    assert "states a.b/c-d" in refusal(b"axb/c-d: 3\na: 1", options)


@pytest.mark.parametrize("overlap", ["0", "1e-9", "0.0000000005"])
@pytest.mark.parametrize(("seconds", "found"), [("5", "3"), ("-2", "1e6")])
def test_bounds_are_inclusive(overlap: str, seconds: str, found: str) -> None:
    output = f"acc: 1\noverlap: {overlap}\nseconds: {seconds}\nfound: {found}\n".encode()
    metrics = parse(output, GUARDED)

    assert metrics.broken is None
    assert metrics.guards == (("overlap", float(overlap)), ("seconds", float(seconds)), ("found", float(found)))


@pytest.mark.parametrize(
    ("overlap", "seconds", "found", "broken"),
    [
        ("1.0000000001e-9", "5", "3", "overlap is 1.0000000001e-09, above 1e-09"),
        ("-1e-300", "5", "3", "overlap is -1e-300, below 0.0"),
        ("0", "5.001", "2", "seconds is 5.001, above 5.0; found is 2.0, below 3.0"),
    ],
)
def test_a_value_outside_its_bounds_is_named(overlap: str, seconds: str, found: str, broken: str) -> None:
    output = f"found: {found}\nacc: 99\nseconds: {seconds}\noverlap: {overlap}\n".encode()

    assert parse(output, GUARDED).broken == f"outside its guard: {broken}"


@pytest.mark.parametrize("line", [b"", b"seconds: nan", b"seconds: 1\nseconds: 1", b"seconds: fast"])
def test_a_guard_that_is_not_stated_like_a_metric_gives_no_score(line: bytes) -> None:
    assert "seconds" in refusal(b"acc: 1\noverlap: 0\nfound: 3\n" + line + b"\n", GUARDED)


def test_the_metric_may_have_bounds_itself() -> None:
    options = ScoreOptions(level="reported", command=("x",), metric="acc", direction="maximise", guards=(Guard(name="acc", high=1.0),))

    assert parse(b"acc: 1", options).broken is None
    assert parse(b"acc: 1.5", options).broken == "outside its guard: acc is 1.5, above 1.0"


@given(st.floats(-LARGEST, LARGEST))
def test_what_python_prints_is_read_as_it_was(value: float) -> None:
    assert parse(f"acc: {value}\n".encode(), OPTIONS).value == value
    assert parse(f"acc={value:.17e}".encode(), OPTIONS).value == value


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_no_output_whatever_gives_two_readings(before: bytes, after: bytes) -> None:
    """Either the one line is taken, or there is a reason; never another value, never another exception."""
    try:
        value = parse(before + b"\nacc: 0.25\n" + after, OPTIONS).value
    except RefusedMetricError as error:
        assert "lines of the output state acc" in str(error)  # noqa: PT017
    else:
        assert value == 0.25


@given(st.text(alphabet="ac: =0123456789.e-+\n\r\t", max_size=60))
def test_whatever_is_read_is_finite(text: str) -> None:
    try:
        assert math.isfinite(parse(text.encode(), OPTIONS).value)
    except RefusedMetricError as error:
        assert str(error).isprintable()  # noqa: PT017
