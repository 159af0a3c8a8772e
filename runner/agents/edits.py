"""Pure: apply an agent's edits to a file, exactly and all or nothing.

Never fuzzy: a hunk whose text is not in the file belongs to another file, and the nearest look-alike is the
wrong place often enough to spoil a search.  A hunk may have moved, if its lines are found once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO


class RefusedEditError(Exception):
    """The edits do not fit the file; the message says which one and why."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Replace the one place where `search` stands."""

    search: str
    replace: str


def apply_edits(source: str, edits: Sequence[Edit]) -> str:
    """`source` after all `edits`, in order.  Raises `RefusedEditError`."""
    for number, edit in enumerate(edits, 1):
        places = source.count(edit.search) if edit.search else 0
        if places != 1:
            found = (
                "is empty"
                if not edit.search
                else "is not in the file"
                if not places
                else f"is there {places} times"
            )
            raise RefusedEditError(f"edit {number} of {len(edits)}: the text to search {found}")
        source = source.replace(edit.search, edit.replace)
    return source


def apply_patch(source: str, diff: str) -> str:
    """`source` after a unified diff of one file.  Raises `RefusedEditError`."""
    lines = list(StringIO(source))  # by newlines alone, as the diff has them
    hunks = _hunks(diff)
    shift, done = 0, 0
    for number, hunk in enumerate(hunks, 1):
        label = f"hunk {number} of {len(hunks)}"
        start = _place(lines, hunk, hunk.start + shift, done, label)
        lines[start : start + len(hunk.before)] = hunk.after
        shift = start - hunk.start + len(hunk.after) - len(hunk.before)
        done = start + len(hunk.after)
    return "".join(lines)


@dataclass(frozen=True, kw_only=True)
class _Hunk:
    start: int
    """Index of the first line, as the diff has it."""
    before: list[str]
    after: list[str]


def _hunks(diff: str) -> list[_Hunk]:
    from unidiff.errors import UnidiffParseError
    from unidiff.patch import PatchSet

    try:
        files = PatchSet(diff)
    except UnidiffParseError as error:
        raise RefusedEditError(f"not a unified diff: {error}") from None
    if len(files) != 1:
        raise RefusedEditError(f"the diff changes {len(files)} files, not one")
    if not files[0].is_modified_file or files[0].is_rename or not files[0]:
        raise RefusedEditError("the diff does not change the lines of a file that is there")
    return [
        _Hunk(
            start=max(0, hunk.source_start - 1),
            before=_text(hunk, " -"),
            after=_text(hunk, " +"),
        )
        for hunk in files[0]
    ]


def _text(hunk: Sequence[object], kinds: str) -> list[str]:
    """The lines of one side; a line that the diff says has no newline has none."""
    lines: list[str] = []
    ours = False
    for line in hunk:
        kind, text = line.line_type, line.value  # type: ignore[attr-defined]
        if kind == "\\" and ours:
            lines[-1] = lines[-1].removesuffix("\n").removesuffix("\r")
        elif kind != "\\":
            ours = kind in kinds
            lines += [text] if ours else []
    return lines


def _place(lines: list[str], hunk: _Hunk, wanted: int, done: int, label: str) -> int:
    """Where the hunk's lines stand: where the diff says, else the only place after the previous hunk."""
    size = len(hunk.before)
    if size == 0:
        raise RefusedEditError(f"{label}: it has no line of the file to be found by")
    if wanted >= done and lines[wanted : wanted + size] == hunk.before:
        return wanted
    places = [at for at in range(done, len(lines) - size + 1) if lines[at : at + size] == hunk.before]
    if len(places) != 1:
        found = "are not in the file" if not places else f"are there {len(places)} times"
        raise RefusedEditError(f"{label}: its lines {found} (line {hunk.start + 1} of the diff's own file)")
    return places[0]
