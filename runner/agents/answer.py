"""Pure: read a model's answer, in the form that `runner.agents.grammar` explains to it.

What models put around an answer is let pass; what could mean two things is refused, with a message for the model.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import NoReturn

from runner.agents.grammar import KINDS, Answer, Edit, Replace, Set
from runner.constants import NAME
from runner.literals import Value, literal
from runner.trial import Kind


class MalformedAnswerError(Exception):
    """The answer has not the form that was asked for; the message tells the model what, where and what to do."""


def parse(text: str) -> Answer:
    """The answer in what a model wrote.  Raises `MalformedAnswerError`."""
    return _Reader(text).read()


def quote(line: str, most: int = 120) -> str:
    """A line in a message to the model, cut off where it is too long."""
    return f"`{line if len(line) <= most else line[:most] + ' [...]'}`"


# Lines ------------------------------------------------------------------------------------------

_SEARCH, _DIVIDER, _REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
_FILE, _FILE_END = "<<<<<<< FILE", ">>>>>>> FILE"
_ARROWS = re.compile(r"[ \t]*(<{4}|>{4})")
"""Also a marker that was cut or miswritten: outside of a string no line of Python begins so."""
_HEAD = re.compile(
    r"[ \t]*(?:#{1,6}[ \t]+)?(?P<bold>\*\*|__)?(?P<word>IDEA|WHY|RISK|KIND|EDITS|FILE)"
    r"(?P<inner>(?(bold)(?:\*\*|__)?))[ \t]*:(?P<outer>(?(bold)(?:\*\*|__)?))[ \t]*(?P<value>.*)"
)
_FENCE = re.compile(r"[ \t]*(?:`{3,}|~{3,})[\w+-]*[ \t]*")
_END = re.compile(r"[ \t]*(\*\*|__)?END(?(1)\1)[ \t]*")
_SET = re.compile(rf"[ \t]*SET[ \t]+(?P<name>{NAME.pattern})[ \t]*=(?P<value>.*)")
_THOUGHTS = re.compile(
    r"\A(?:.*^[ \t]*</think(?:ing)?>|\s*<think(?:ing)?>.*?</think(?:ing)?>)", re.DOTALL | re.MULTILINE
)
"""Servers leave a model's thoughts in its answer, often without the tag that opens them.  Drafts stand in them."""
_MAX_VALUE = 1000
"""Characters of a constant's value; far longer ones overflow the parser's stack."""

_BLOCK_FORM = f"A block is {_SEARCH}, lines, {_DIVIDER}, lines, {_REPLACE}, each marker whole and alone on its line."
_FILE_FORM = f"After FILE: stand {_FILE}, the whole file, {_FILE_END}, then END, each alone on its line."


class _Reader:
    """Goes through the lines once; their numbers are those of the text as the model wrote it."""

    def __init__(self, text: str) -> None:
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        text = _THOUGHTS.sub(lambda thoughts: "\n" * thoughts[0].count("\n"), text)
        if re.match(r"\s*<think(ing)?>", text):
            raise MalformedAnswerError("The answer ends inside <think>. Think less, then answer.")
        self._lines = text.split("\n")
        self._at = 0

    def read(self) -> Answer:
        if not any(map(_END.fullmatch, self._lines)):
            raise MalformedAnswerError(
                "There is no line END, so the answer was cut off or is not finished. Send all of it again, with END "
                "alone on its last line; if it was too long, say less before the edits."
            )
        words, section = self._head()
        idea = " ".join(words.get("IDEA", "").split())
        if not idea:
            raise MalformedAnswerError("The line IDEA: is missing or empty. Say the change in one line there.")
        kind = _kind(words.get("KIND", ""))
        why, risk = words.get("WHY", ""), words.get("RISK", "")
        edits = self._edits() if section == "EDITS" else ()
        whole = self._whole() if section == "FILE" else None
        self._after_end()
        return Answer(idea=idea, why=why, risk=risk, kind=kind, edits=edits, whole=whole)

    def _line(self, at: int) -> str:
        return self._lines[at] if at < len(self._lines) else ""

    def _filled(self, at: int) -> int:
        """The first line from here on that is not empty."""
        while at < len(self._lines) and not self._lines[at].strip():
            at += 1
        return at

    def _fail(self, message: str, at: int | None = None) -> NoReturn:
        at = self._at if at is None else at
        raise MalformedAnswerError(f"Line {at + 1} of the answer, {quote(self._line(at))}: {message}")

    # The head -----------------------------------------------------------------------------------

    def _head(self) -> tuple[dict[str, str], str]:
        """The text of each head word, and whether EDITS or FILE follows."""
        words: dict[str, list[str]] = {}
        current: list[str] = []  # prose before the first word is not kept
        for self._at, line in enumerate(self._lines):  # noqa: B020 - not what is iterated
            head = _HEAD.fullmatch(line)
            if head and head["word"] in words:
                self._fail(f"{head['word']}: stands there a second time. Give one answer, with one idea.")
            if head and head["word"] in {"EDITS", "FILE"}:
                self._enter(head)
                return {word: "\n".join(lines).strip() for word, lines in words.items()}, head["word"]
            if head:
                current = words[head["word"]] = [_value(head)]
            elif _ARROWS.match(line) or _END.fullmatch(line):
                self._fail("this stands before EDITS:. First the head, then a line EDITS:, then the edits, then END.")
            elif not _FENCE.fullmatch(line):
                current.append(line.rstrip())
        raise AssertionError("there is a line END")

    def _enter(self, head: re.Match[str]) -> None:
        """What stands beside EDITS: is its first line; beside FILE: may stand the file's own name."""
        value = _value(head)
        named = head["word"] == "FILE" and re.fullmatch(r"[`\w./-]*\.py`?", value)
        self._lines[self._at] = "" if named else value

    # Edits --------------------------------------------------------------------------------------

    def _edits(self) -> tuple[Edit, ...]:
        edits: list[Edit] = []
        while (line := self._next()) is not None:
            if line.rstrip() == _SEARCH:
                edits.append(self._block())
            elif match := _SET.fullmatch(line):
                edits.append(self._set(match))
            else:
                self._fail(self._no_edit(line))
        if not edits:
            raise MalformedAnswerError("Nothing stands between EDITS: and END. Give a SET line or a block there.")
        return tuple(edits)

    def _next(self) -> str | None:
        """The next line with something on it, which is the place then, or None at END, which is passed."""
        while self._at < len(self._lines):
            line = self._lines[self._at]
            if _END.fullmatch(line):
                self._at += 1
                return None
            if line.strip() and not _FENCE.fullmatch(line):
                return line
            self._at += 1
        raise MalformedAnswerError(
            "There is no line END at the end, so the answer was cut off or is not finished. Send all of it again."
        )

    def _block(self) -> Replace:
        begin, parts = self._at, [""]
        for at in range(begin + 1, len(self._lines)):
            line = self._lines[at]
            marker = line.rstrip()
            if marker == _DIVIDER and len(parts) == 1:
                parts.append("")
            elif marker == _REPLACE and len(parts) == 2:
                self._at = at + 1
                return Replace(*parts)
            elif marker == _DIVIDER or _ARROWS.match(line):
                self._fail(f"this marker stands inside the block that begins at line {begin + 1}. {_BLOCK_FORM}", at)
            else:
                parts[-1] += line + "\n"
        return self._fail(f"the block that begins here does not end. {_BLOCK_FORM}")

    def _set(self, match: re.Match[str]) -> Set:
        value = _literal(match["value"].strip())
        if value is None:
            self._fail("the value is not a number, text in quotes, True, False or a tuple of these.")
        self._at += 1
        return Set(match["name"], value)

    def _no_edit(self, line: str) -> str:
        head = _HEAD.fullmatch(line)
        if head and head["word"] == "FILE":
            return "a whole file after edits. Give one or the other, not both."
        if line.rstrip() == _DIVIDER or _ARROWS.match(line):
            return f"this marker begins no block. {_BLOCK_FORM}"
        return "neither SET NAME = value (NAME in capitals) nor a block. Nothing else stands between EDITS: and END."

    # A whole file -------------------------------------------------------------------------------

    def _whole(self) -> str:
        at = self._filled(self._at)
        while _FENCE.fullmatch(self._line(at)):
            after = self._filled(at + 1)
            if self._line(after).rstrip() != _FILE and not _FENCE.fullmatch(self._line(after)):
                return self._file(at, self._closing_fence(at))
            at = after
        if self._line(at).rstrip() != _FILE:
            self._fail(_FILE_FORM, at)
        return self._file(at, self._closing_sentinel(at))

    def _closing_sentinel(self, begin: int) -> int:
        for at in range(begin + 1, len(self._lines)):
            if self._lines[at].rstrip() == _FILE_END:
                return at
            if _ARROWS.match(self._lines[at]):
                self._fail(f"this marker stands inside the file that begins at line {begin + 1}. {_FILE_FORM}", at)
        return self._fail(f"the file that begins here does not end. {_FILE_FORM}", begin)

    def _closing_fence(self, begin: int) -> int:
        """A docstring may hold fences: the one that closes the file has the end of the answer behind it."""
        for at in range(begin + 1, len(self._lines)):
            after = self._line(self._filled(at + 1))
            if _FENCE.fullmatch(self._lines[at]) and (_END.fullmatch(after) or _HEAD.fullmatch(after)):
                return at
        return self._fail(f"the fence that opens here is not closed before END. {_FILE_FORM}", begin)

    def _file(self, begin: int, end: int) -> str:
        lines = self._lines[begin + 1 : end]
        if len(lines) > 1 and _FENCE.fullmatch(lines[0]) and _FENCE.fullmatch(lines[-1]):
            lines = lines[1:-1]
        text = "\n".join(lines).rstrip("\n") + "\n"
        if not text.strip():
            self._fail(f"the file is empty. {_FILE_FORM}", begin)
        self._at = end + 1
        if self._next() is not None:
            self._fail("this stands between the file and END. Give a whole file or edits, not both, then END.")
        return text

    # The end ------------------------------------------------------------------------------------

    def _after_end(self) -> None:
        """Chat may follow; another part of an answer would be lost."""
        for at in range(self._at, len(self._lines)):
            line = self._lines[at]
            if _ARROWS.match(line) or _HEAD.fullmatch(line) or _SET.fullmatch(line):
                self._fail("this stands after END. Give one answer, and END once, after all of it.", at)


def _value(head: re.Match[str]) -> str:
    value = head["value"].rstrip()
    unclosed = head["bold"] and not head["inner"] and not head["outer"]
    return value.removesuffix(head["bold"]) if unclosed else value


def _kind(text: str) -> Kind:
    word = text.strip(" \n.`*_").lower()
    if word and word not in set(Kind):
        raise MalformedAnswerError(f"KIND: {quote(word)} is not known. Name one of {KINDS}.")
    return Kind(word or Kind.OTHER)


def _literal(text: str) -> Value | None:
    if not text or len(text) > _MAX_VALUE:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return literal(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
