"""Make text from trials and agents safe to show: no control sequences, no tricks with direction or width.

Everything that a person sees and that a trial, an agent or a task's file may have written goes through here.
"""

from __future__ import annotations

import re

_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS and their like
    r"|\x1b[ -/]*[0-~]?"  # everything else that starts with escape
)


def plain(text: str, limit: int | None = None) -> str:
    """`text` as one printable line of at most `limit` characters."""
    if not text.isprintable():  # no sequence is; most text is, and a long run has many thousands of ideas
        text = _printable(_SEQUENCES.sub("", text), " ")
    line = " ".join(text.split())
    return line if limit is None or len(line) <= limit else line[: max(0, limit - 1)].rstrip() + "…"


def block(text: str) -> str:
    """`text` with its lines and tabs, and nothing else that is not printable."""
    lines = _SEQUENCES.sub("", text.replace("\r\n", "\n")).split("\n")
    return "\n".join(_printable(line.expandtabs(8), "") for line in lines)


def _printable(text: str, instead: str) -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else instead if letter.isspace() else "" for letter in text)
