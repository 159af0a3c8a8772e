"""A model's answer is read whatever stands around it, and refused, in words for the model, if it could mean two things."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.agents.answer import MalformedAnswerError, parse
from runner.agents.grammar import GRAMMAR, GRAMMAR_WHOLE, KINDS, Answer, Edit, Replace, Set, render
from runner.literals import Value
from runner.trial import Kind

BLOCK = Replace("    a = 1\n    b = 2\n", "    a = 1\n    b = 3\n")
ANSWER = Answer(
    idea="Raise b",
    why="It is low.\n\nThe tries say so.",
    risk="Too high.",
    kind=Kind.SCHEDULE,
    edits=(Set("DEPTH", 4), BLOCK),
)
TEXT = """\
IDEA: Raise b
WHY: It is low.

The tries say so.
RISK: Too high.
KIND: schedule
EDITS:
SET DEPTH = 4
<<<<<<< SEARCH
    a = 1
    b = 2
=======
    a = 1
    b = 3
>>>>>>> REPLACE
END
"""
WHOLE = Answer(idea="Raise b", whole='"""Doc.\n\n```\nx\n```\n"""\nB = 3\n')


def head(rest: str) -> str:
    return f"IDEA: x\nKIND: other\n{rest}"


def refusal(text: str) -> str:
    with pytest.raises(MalformedAnswerError) as caught:
        parse(text)
    return str(caught.value)


def test_an_answer_and_its_text() -> None:
    assert parse(TEXT) == ANSWER
    assert render(ANSWER) == TEXT


def test_the_grammar_names_every_kind_and_its_examples_are_read() -> None:
    for grammar in (GRAMMAR, GRAMMAR_WHOLE):
        assert f"KIND: one of {KINDS}\n" in grammar
    assert set(KINDS.split(", ")) == set(Kind)
    edits = parse(GRAMMAR.partition("An example")[2])
    whole = parse(GRAMMAR_WHOLE.partition("An example")[2])
    assert [type(edit) for edit in edits.edits] == [Set, Replace]
    assert whole.whole is not None
    assert whole.whole.startswith("MAX_RATIO = 4.0\n\n\ndef mean")
    assert edits.idea == whole.idea == "Clamp the ratio before it is averaged"


@pytest.mark.parametrize(
    "text",
    [
        f"Here is my answer.\n\n{TEXT}\nI hope that it helps!\n",
        f"```\n{TEXT}```\n",
        f"```text\n{TEXT}\n```",
        f"<think>\nIDEA: a draft\nEDITS:\nEND\n</think>\n\n{TEXT}",
        f"IDEA: a draft\nEDITS:\nEND\n</think>\n{TEXT}",
        f"<think>short</think>{TEXT}",
        f"\ufeff{TEXT}",
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("SEARCH\n", "SEARCH  \n").replace("=======\n", "======= \t\n").replace("END\n", "END "),
        TEXT.replace("<<<<<<< SEARCH", "```python\n<<<<<<< SEARCH").replace("E\nEND", "E\n```\n\nEND"),
        TEXT.replace("IDEA:", "**IDEA:**").replace("WHY:", "**WHY**:").replace("RISK:", "### RISK:"),
        TEXT.replace("IDEA: Raise b", "**IDEA: Raise b**").replace("END", "**END**"),
        TEXT.replace("IDEA: Raise b", "IDEA:\n  Raise\n  b\n"),
        TEXT.replace("KIND: schedule", "KIND: `Schedule`."),
        TEXT.replace("EDITS:\nSET", "EDITS: SET").replace("= 4", "=4  # blocks"),
    ],
)
def test_what_models_put_around_an_answer_is_let_pass(text: str) -> None:
    assert parse(text) == ANSWER


@pytest.mark.parametrize(
    "text",
    [
        render(WHOLE),
        f"IDEA: Raise b\nFILE: trainer/train.py\n```python\n{WHOLE.whole}```\nEND\n",
        f"IDEA: Raise b\nFILE:\n```python\n<<<<<<< FILE\n{WHOLE.whole}>>>>>>> FILE\n```\nEND\n",
        f"IDEA: Raise b\nFILE:\n<<<<<<< FILE\n```python\n{WHOLE.whole}```\n>>>>>>> FILE\nEND\n",
        f"```\nIDEA: Raise b\nFILE:\n```\n\n```python\n{WHOLE.whole}\n\n```\nEND\n",
    ],
)
def test_a_whole_file_between_sentinels_or_fences(text: str) -> None:
    assert parse(text) == WHOLE


def test_a_block_is_taken_letter_by_letter() -> None:
    search = "END\nIDEA: x\n```\nSET A = 1\n  trailing  \n\n"
    assert parse(head(f"EDITS:\n<<<<<<< SEARCH\n{search}=======\n>>>>>>> REPLACE\nEND\n")).edits == (
        Replace(search, ""),
    )


def test_values_of_constants() -> None:
    spelled: dict[str, Value] = {
        "1": 1, "-0.5": -0.5, "2**19": 2**19, "True": True, "'SSL'": "SSL", "(0.8, 0.95)": (0.8, 0.95), "1e-5 # low": 1e-5,
    }  # fmt: skip
    edits = "".join(f"SET A = {text}\n" for text in spelled)
    assert parse(head(f"EDITS:\n{edits}END\n")).edits == tuple(Set("A", value) for value in spelled.values())


@pytest.mark.parametrize(
    "value",
    ["", "[1]", "DEPTH", "f(1)", "1, 2, x", "1; 2", "= 3", "1e999", "10**10**10", "None", "'a", "(" * 900, "-" * 999 + "1",
     "1" * 2000, "__import__('os')", "\0"],
)  # fmt: skip
def test_what_is_no_literal_is_refused_unevaluated(value: str) -> None:
    assert "the value is not a number, text in quotes, True, False or a tuple of these." in refusal(
        head(f"EDITS:\nSET A = {value}\nEND\n")
    )


SEARCH, DIVIDER, REPLACE = "<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "There is no line END"),
        (TEXT.removesuffix("END\n"), "There is no line END, so the answer was cut off"),
        (TEXT.replace("IDEA: Raise b\n", ""), "The line IDEA: is missing or empty."),
        (TEXT.replace("Raise b", ""), "The line IDEA: is missing or empty."),
        (TEXT.replace("schedule", "magic"), f"KIND: `magic` is not known. Name one of {KINDS}."),
        (TEXT.replace("schedule", "schedule, init"), "KIND: `schedule, init` is not known."),
        (head("EDITS:\n\nEND\n"), "Nothing stands between EDITS: and END."),
        (head("END\n"), "Line 3 of the answer, `END`: this stands before EDITS:."),
        (head(f"{SEARCH}a\n{DIVIDER}b\n{REPLACE}END\n"), "Line 3 of the answer, `<<<<<<< SEARCH`: this stands before EDITS:."),
        (TEXT + TEXT, "this stands after END. Give one answer"),
        (TEXT.replace("RISK", "WHY"), "WHY: stands there a second time."),
        (TEXT + "SET DEPTH = 5\n", "Line 17 of the answer, `SET DEPTH = 5`: this stands after END."),
        (f"<think>\nx\n{TEXT}", "The answer ends inside <think>."),
        (head("EDITS:\nSET depth = 3\nEND\n"), "Line 4 of the answer, `SET depth = 3`: neither SET NAME = value (NAME in capitals)"),
        (head("EDITS:\nNow the depth:\nSET DEPTH = 3\nEND\n"), "Line 4 of the answer, `Now the depth:`: neither SET"),
        (head("EDITS:\nSET DEPTH: 3\nEND\n"), "neither SET NAME = value"),
        (head(f"EDITS:\n{SEARCH}a\n{SEARCH}b\n{DIVIDER}c\n{REPLACE}END\n"), "Line 6 of the answer, `<<<<<<< SEARCH`: this marker stands inside the block that begins at line 4."),
        (head(f"EDITS:\n{SEARCH}a\n{REPLACE}END\n"), "Line 6 of the answer, `>>>>>>> REPLACE`: this marker stands inside the block"),
        (head(f"EDITS:\n{SEARCH}a\n{DIVIDER}b\n{DIVIDER}c\n{REPLACE}END\n"), "Line 8 of the answer, `=======`: this marker stands inside"),
        (head(f"EDITS:\n{SEARCH}a\n{DIVIDER}b\n>>>>>>> REPL\nEND\n"), "Line 8 of the answer, `>>>>>>> REPL`: this marker stands inside"),
        (head(f"EDITS:\n{SEARCH}a\n{DIVIDER}b\n    >>>>>>> REPLACE\nEND\n"), "this marker stands inside"),
        (head(f"EDITS:\n{SEARCH}a\n======\nb\n{REPLACE}END\n"), "`>>>>>>> REPLACE`: this marker stands inside"),
        (head(f"EDITS:\n{SEARCH}a\n{DIVIDER}b\nEND\n"), "Line 4 of the answer, `<<<<<<< SEARCH`: the block that begins here does not end."),
        (head(f"EDITS:\n<<<<<< SEARCH\na\n{DIVIDER}b\n{REPLACE}END\n"), "Line 4 of the answer, `<<<<<< SEARCH`: this marker begins no block."),
        (head(f"EDITS:\n{DIVIDER}END\n"), "this marker begins no block."),
        (head(f"EDITS:\n{SEARCH}END\n{DIVIDER}{REPLACE}"), "There is no line END at the end"),
        (head("EDITS:\nSET A = 1\nFILE:\n<<<<<<< FILE\nx\n>>>>>>> FILE\nEND\n"), "a whole file after edits."),
        (head("FILE:\n<<<<<<< FILE\nx\n>>>>>>> FILE\nEDITS:\nSET A = 1\nEND\n"), "Give a whole file or edits, not both"),
        (head("FILE:\n```\nx\n```\nEDITS:\nSET A = 1\nEND\n"), "Give a whole file or edits, not both"),
        (head("FILE:\n<<<<<<< FILE\nx\n<<<<<<< SEARCH\n>>>>>>> FILE\nEND\n"), "this marker stands inside the file that begins at line 4."),
        (head("FILE:\n<<<<<<< FILE\nx\nEND\n"), "the file that begins here does not end."),
        (head("FILE:\n```python\nx\nEND\n"), "the fence that opens here is not closed before END."),
        (head("FILE:\n<<<<<<< FILE\n\n>>>>>>> FILE\nEND\n"), "the file is empty."),
        (head("FILE:\nx = 1\nEND\n"), "Line 4 of the answer, `x = 1`: After FILE: stand"),
        (head("FILE:\nEND\n"), "After FILE: stand <<<<<<< FILE, the whole file, >>>>>>> FILE, then END"),
    ],
)  # fmt: skip
def test_what_could_mean_two_things_is_refused(text: str, message: str) -> None:
    assert message in refusal(text)


def test_a_long_line_is_quoted_in_part() -> None:
    assert len(refusal(head(f"EDITS:\n{'x' * 10_000}\nEND\n"))) < 400


# Any answer -------------------------------------------------------------------------------------

LETTERS = st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])
LINE = st.one_of(
    st.sampled_from(["", "    x = 1  ", "END", "```", "IDEA: y", "SET A = 1", "====", "\t", "# <<<<<<<", "</think"]),
    st.text(LETTERS, max_size=20).filter(lambda line: not line.lstrip(" \t").startswith(("<<<<", ">>>>", "======="))),
)
LINES = st.lists(LINE, max_size=5).map(lambda lines: "".join(line + "\n" for line in lines))
SCALAR: st.SearchStrategy[int | float | str | bool] = st.one_of(
    st.integers(-(2**200), 2**200), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=20)
)  # fmt: skip
VALUE: st.SearchStrategy[Value] = st.one_of(SCALAR, st.lists(SCALAR, max_size=3).map(tuple))
EDIT: st.SearchStrategy[Edit] = st.one_of(
    st.builds(Replace, LINES, LINES), st.builds(Set, st.from_regex(r"[A-Z][A-Z0-9_]{0,9}", fullmatch=True), VALUE)
)
WORDS = st.lists(st.from_regex(r"[a-z][a-z0-9_()=<>.-]{0,8}", fullmatch=True), min_size=1, max_size=6).map(" ".join)
PROSE = st.lists(WORDS, max_size=3).map("\n\n".join)
FILES = LINES.filter(lambda text: bool(text.strip()) and not text.startswith("```") and not text.endswith("\n\n"))
ANSWERS = st.one_of(
    st.builds(Answer, idea=WORDS, why=PROSE, risk=PROSE, kind=st.sampled_from(Kind),
              edits=st.lists(EDIT, min_size=1, max_size=4).map(tuple)),
    st.builds(Answer, idea=WORDS, why=PROSE, risk=PROSE, kind=st.sampled_from(Kind), whole=FILES),
)  # fmt: skip


@given(ANSWERS)
def test_reading_undoes_writing(answer: Answer) -> None:
    text = render(answer)
    assert parse(text) == answer
    assert parse(f"Well.\n```\n{text}```\nDone.\n".replace("\n", "\r\n")) == answer


@given(ANSWERS, st.data())
def test_a_cut_answer_is_never_read_as_another(answer: Answer, data: st.DataObject) -> None:
    text = render(answer)
    cut = text[: data.draw(st.integers(0, len(text) - 2))]
    with pytest.raises(MalformedAnswerError):
        parse(cut)


@given(st.text() | st.lists(st.sampled_from([*TEXT.splitlines(), "FILE:", "<<<<<<< FILE", ">>>>>>> FILE", "```"])).map("\n".join))
def test_any_text_is_an_answer_or_refused(text: str) -> None:
    try:
        answer = parse(text)
    except MalformedAnswerError:
        return
    assert answer.idea
    assert bool(answer.edits) != (answer.whole is not None)
