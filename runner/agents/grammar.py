"""Pure: the form in which a model answers: explained to it, as values, and written.

Plain text, because code inside JSON comes out worse.  `runner.agents.answer` reads it, `runner.agents.matching`
applies it to the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from runner.literals import Value
from runner.trial import Kind

KINDS = ", ".join(Kind)

_HEAD_FORM = f"""\
Answer in plain text, in this form and this order:

IDEA: the change in one line
WHY: what it does and why that should help; what in the results so far speaks for it
RISK: what may go wrong, and what would show that the idea is wrong
KIND: one of {KINDS}
"""

GRAMMAR = f"""\
{_HEAD_FORM}EDITS:
(then the edits)
END

There are two sorts of edits, and an answer has as many of either as its one idea needs.

A constant at the top level of the file is set by one line, SET NAME = value. The value is a number, text in quotes,
True, False or a tuple of these.

All else is a block: a line <<<<<<< SEARCH, lines of the file, a line =======, the lines that replace them, a line
>>>>>>> REPLACE. For these rules hold:
- Below SEARCH stand whole lines of the file as you were shown it, letter by letter, with their indentation and
  comments. Nothing is guessed: if a character differs, the answer is refused.
- They must stand in the file once. Three lines or more are nearly always enough.
- To insert, repeat the lines beside the place in both parts. To delete, leave the second part without lines.
- Write every line that is to stay; nothing is filled in for "..." or "rest as before".
- Changes close to each other go into one block: a block cannot search for what another one has changed.

All edits are applied or none. END stands alone on the last line and shows that nothing was cut off.

An example, for another file:

IDEA: Clamp the ratio before it is averaged
WHY: In three of the last five tries a single outlier moved the mean. Clamped, it cannot.
RISK: The mean is biased if large ratios are common; then the score is worse from the first steps on.
KIND: other
EDITS:
SET MAX_RATIO = 4.0
<<<<<<< SEARCH
    def update(self, ratio):
        self.count += 1
        self.total += ratio
=======
    def update(self, ratio):
        self.count += 1
        self.total += min(ratio, MAX_RATIO)
>>>>>>> REPLACE
END
"""
"""For a prompt: what `parse` reads, with edits."""

GRAMMAR_WHOLE = f"""\
{_HEAD_FORM}FILE:
<<<<<<< FILE
(then the whole file, changed; every line of it, since nothing is filled in for "..." or "rest as before")
>>>>>>> FILE
END

END stands alone on the last line and shows that nothing was cut off.

An example, for another, very short file:

IDEA: Clamp the ratio before it is averaged
WHY: In three of the last five tries a single outlier moved the mean. Clamped, it cannot.
RISK: The mean is biased if large ratios are common; then the score is worse from the first steps on.
KIND: other
FILE:
<<<<<<< FILE
MAX_RATIO = 4.0


def mean(ratios):
    return sum(min(ratio, MAX_RATIO) for ratio in ratios) / len(ratios)
>>>>>>> FILE
END
"""
"""For a prompt: what `parse` reads, with a whole file."""


@dataclass(frozen=True)
class Replace:
    """Lines of the file and what stands in their place; each line ends with a newline, so no lines are ''."""

    search: str
    replace: str


@dataclass(frozen=True)
class Set:
    """A constant at the top level of the file, and its new value."""

    name: str
    value: Value


Edit = Replace | Set


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An idea with either edits or a whole file."""

    idea: str
    why: str = ""
    risk: str = ""
    kind: Kind = Kind.OTHER
    edits: tuple[Edit, ...] = ()
    whole: str | None = None


def render(answer: Answer) -> str:
    """An answer in the form that `parse` reads."""
    head = f"IDEA: {answer.idea}\nWHY: {answer.why}\nRISK: {answer.risk}\nKIND: {answer.kind}\n"
    if answer.whole is not None:
        return f"{head}FILE:\n<<<<<<< FILE\n{answer.whole}>>>>>>> FILE\nEND\n"
    return f"{head}EDITS:\n{''.join(map(render_edit, answer.edits))}END\n"


def render_edit(edit: Edit) -> str:
    """One edit in the form that `parse` reads."""
    if isinstance(edit, Set):
        return f"SET {edit.name} = {edit.value!r}\n"
    return f"<<<<<<< SEARCH\n{edit.search}=======\n{edit.replace}>>>>>>> REPLACE\n"
