"""Pure: apply a model's answer to the file, exactly and all or nothing.

Every edit is looked for in the file as the model was shown it, and in nothing that another edit put there.  Its lines
must stand there once: letter by letter, or but for spaces at the ends of lines, or but for one and the same
indentation of all of them.  Whole lines alone: a line that is quoted in part may go on in a way that matters.  No step
is fuzzy, so text that is not in the file changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from runner.agents.answer import quote
from runner.agents.edits import RefusedEditError
from runner.agents.grammar import Answer, Edit, Replace, Set
from runner.agents.nearest import nearest
from runner.constants import set_constants
from runner.errors import UsageError


class UnchangedError(RefusedEditError):
    """The answer leaves the file as it is."""


def apply(answer: Answer, champion: str) -> str:
    """`champion` after the answer's edits, or its whole file.

    Raises `RefusedEditError`, whose message tells the model which edits do not fit and what the file has instead;
    `UnchangedError` if nothing would change.
    """
    mark = champion[: champion.startswith("\ufeff")]
    ending = "\r\n" if champion.partition("\n")[0].endswith("\r") else "\n"
    if answer.whole is not None:
        result = mark + answer.whole.replace("\n", ending)
    else:
        result = mark + _edited(answer.edits, champion.removeprefix(mark), ending)
    if result == champion:
        raise UnchangedError(
            "The answer leaves the file as it is. Change something, or propose another idea; all of it anew."
        )
    return result


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the file under work."""

    text: str
    """With its ending."""
    origin: int | None = None
    """Its index in the file as it was; None: an edit put it there."""
    edit: int = 0
    """The number of that edit."""


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What an edit is to the file as it was."""

    start: int
    end: int
    """The lines that were searched for: they must all be there still."""
    head: int
    tail: int
    """How many of them, at both ends, stay."""
    new: Sequence[str]
    """What stands in place of the others, without endings."""


def _edited(edits: Sequence[Edit], source: str, ending: str) -> str:
    closed = source.endswith("\n")
    pieces = source.removesuffix("\n").split("\n")
    lines = [piece.removesuffix("\r") for piece in pieces]
    work = [_Line(text=f"{piece}\n", origin=index) for index, piece in enumerate(pieces)]
    if not closed:
        work[-1] = _Line(text=pieces[-1] + ending, origin=len(pieces) - 1)
    gone: dict[int, int] = {}
    problems = []
    for number, edit in enumerate(edits, 1):
        name = f"SET {edit.name}" if isinstance(edit, Set) else "block"
        try:
            change = _set(edit, source, lines) if isinstance(edit, Set) else _replace(edit, lines, work)
            work = _changed(work, gone, change, number, ending)
        except RefusedEditError as error:
            problems.append(f"Edit {number} of {len(edits)} ({name}): {error}")
    if problems:
        more = f"\n\n{len(problems) - 3} more edits do not fit." if len(problems) > 3 else ""
        raise RefusedEditError(
            "\n\n".join(problems[:3]) + more + "\n\nNothing was applied. Send all of the answer again, with every edit."
        )
    result = "".join(line.text for line in work)
    return result if closed else result.removesuffix(ending)


def _changed(
    work: list[_Line], gone: dict[int, int], change: _Change, number: int, ending: str
) -> list[_Line]:
    """The file after one more edit, which may not rest on lines that an earlier one changed."""
    wanted = range(change.start, change.end)
    for index in wanted:
        if index in gone:
            raise RefusedEditError(_overlap(index, gone[index]))
    if not wanted:
        return work
    at = next(place for place, line in enumerate(work) if line.origin == change.start)
    for index, line in zip(wanted, work[at:], strict=False):
        if line.origin != index:
            raise RefusedEditError(_overlap(index, line.edit))
    first, last = at + change.head, at + len(wanted) - change.tail
    gone.update((line.origin, number) for line in work[first:last] if line.origin is not None)
    new = [_Line(text=text + ending, edit=number) for text in change.new]
    return [*work[:first], *new, *work[last:]]


def _overlap(index: int, edit: int) -> str:
    return f"edit {edit} changes the file at line {index + 1}, which this one needs as it was. Make one block of both."


# A constant -------------------------------------------------------------------------------------


def _set(edit: Set, source: str, lines: list[str]) -> _Change:
    try:
        changed = set_constants(source, {edit.name: edit.value})
    except UsageError as error:
        raise RefusedEditError(str(error)) from None
    new = [piece.removesuffix("\r") for piece in changed.removesuffix("\n").split("\n")]
    head, tail = _common(lines, new, str)
    return _Change(start=head, end=len(lines) - tail, head=0, tail=0, new=new[head : len(new) - tail])


# A block ----------------------------------------------------------------------------------------


def _replace(edit: Replace, lines: list[str], work: list[_Line]) -> _Change:
    search, new = _lines(edit.search), _lines(edit.replace)
    if not any(map(str.strip, search)):
        raise RefusedEditError(
            "SEARCH is empty. To insert, put the lines beside the place into SEARCH and again into REPLACE."
        )
    key: Callable[[str], str] = str
    places = _exactly(lines, search)
    if not places:
        key, search, new = _bare, list(map(_bare, search)), list(map(_bare, new))
        places = _but_for_spaces(list(map(_bare, lines)), search)
    if len(places) != 1:
        raise RefusedEditError(_ambiguous(list(places)) if places else _absent(search, lines, work))
    [(start, shift)] = places.items()
    new = _shifted(search, new, *shift)
    end = start + len(search)
    head, tail = _common(lines[start:end], new, key)
    change = _Change(start=start, end=end, head=head, tail=tail, new=new[head : len(new) - tail])
    _refuse_doubled(change, lines)
    return change


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _bare(line: str) -> str:
    return line.rstrip(" \t")


def _exactly(lines: list[str], search: list[str]) -> dict[int, tuple[str, str]]:
    size = len(search)
    return {at: ("", "") for at in range(len(lines) - size + 1) if lines[at : at + size] == search}


def _but_for_spaces(lines: list[str], search: list[str]) -> dict[int, tuple[str, str]]:
    """Where lines without spaces at their ends stand as they are; else, where they stand indented otherwise."""
    size = len(search)
    shifts = {at: _shift(lines[at : at + size], search) for at in range(len(lines) - size + 1)}
    found = {at: shift for at, shift in shifts.items() if shift is not None}
    return {at: shift for at, shift in found.items() if shift == ("", "")} or found


def _shift(window: list[str], search: list[str]) -> tuple[str, str] | None:
    """The one indentation that all lines lack and the one that all have too much; None: they differ otherwise."""
    shift = None
    for line, wanted in zip(window, search, strict=True):
        if line and wanted:
            more = line.removesuffix(wanted) if line.endswith(wanted) else ""
            less = wanted.removesuffix(line) if wanted.endswith(line) else ""
            if (more + less).strip(" \t") or (line != more + wanted and wanted != less + line):
                return None
            if (more, less) != (shift or (more, less)):
                return None
            shift = (more, less)
        elif line or wanted:
            return None
    return shift


def _shifted(search: list[str], new: list[str], more: str, less: str) -> list[str]:
    """The new lines indented as the file is, if they were written beside those of SEARCH: else they may be right already."""
    filled = [line for line in new if line]
    begins = _indentation(next(filter(None, search)))
    if (more or less) and filled and _indentation(filled[0]) != begins:
        raise RefusedEditError(_indented_otherwise(filled[0]))
    for line in filled:
        if not line.startswith(less):
            raise RefusedEditError(_indented_otherwise(line))
    return [more + line.removeprefix(less) if line else line for line in new]


def _indentation(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def _common(old: Sequence[str], new: Sequence[str], key: Callable[[str], str]) -> tuple[int, int]:
    """How many lines both have in common at the head, and of the rest at the tail."""
    most = min(len(old), len(new))
    head = next((at for at in range(most) if key(old[at]) != key(new[at])), most)
    most -= head
    tail = next((at for at in range(most) if key(old[-1 - at]) != key(new[-1 - at])), most)
    return head, tail


def _refuse_doubled(change: _Change, lines: list[str]) -> None:
    """A block that lost its first or last line in SEARCH alone would write that line a second time."""
    first, last = change.start + change.head, change.end - change.tail
    before, after = lines[change.start : first], lines[last : change.end]
    if not change.new:
        return
    if not any(after):
        text = [*change.new, *after]
        most = min(len(text), len(lines) - change.end)
        _refuse_equal(((text[-n:], lines[change.end : change.end + n]) for n in range(1, most + 1)), "after")
    if not any(before):
        text = [*before, *change.new]
        most = min(len(text), change.start)
        _refuse_equal(((text[:n], lines[change.start - n : change.start]) for n in range(1, most + 1)), "before")


def _refuse_equal(pairs: Iterable[tuple[list[str], list[str]]], where: str) -> None:
    for text, beside in pairs:
        filled = next(filter(str.strip, text), None)
        if text == beside and filled:
            raise RefusedEditError(
                f"{quote(filled.strip())} stands right {where} the lines of SEARCH and is in REPLACE too, so it would "
                "stand there twice. Put it into SEARCH as well."
            )


# Messages ---------------------------------------------------------------------------------------

def _ambiguous(places: list[int]) -> str:
    numbers = [str(at + 1) for at in places[:6]] + ([f"{len(places) - 6} more"] if len(places) > 6 else [])
    return (
        f"SEARCH was found {len(places)} times, at lines {', '.join(numbers[:-1])} and {numbers[-1]}. "
        "Add lines before or after it, in both parts, until it stands in the file once."
    )


def _indented_otherwise(line: str) -> str:
    return (
        f"SEARCH is not indented as the file is, and REPLACE is neither as SEARCH: {quote(line)}. "
        "Indent both as the file is."
    )


def _absent(search: list[str], lines: list[str], work: list[_Line]) -> str:
    texts = [_bare(line.text.rstrip("\r\n")) for line in work]
    for at in range(len(texts) - len(search) + 1):
        if texts[at : at + len(search)] == search:
            edits = [line.edit for line in work[at : at + len(search)] if line.edit]
            if edits:
                return (
                    f"SEARCH is not in the file as you were shown it, only in what edit {edits[0]} makes of it. "
                    f"Write this change into edit {edits[0]}."
                )
    return f"SEARCH was not found. {nearest(search, lines)}"
