"""`results.tsv`: the records as upstream's five columns, which its notebook opens unchanged.

That notebook takes the first row as the baseline, draws the running minimum of the rows with status `keep`,
counts keeps and discards, and ranks keeps by their distance to the keep before.  Hence:

- The first baseline is a `keep`, as upstream's own first row is.  Its repeats are `discard`: they are the
  same file with other seeds, and a lucky one would otherwise show as progress that nobody made.
- A champion that was measured again is `discard` too: nobody proposed it.
- Whatever has no score (crashed, out of time or memory, refused, abandoned) is a `crash` with 0.000000, as upstream has it.
- The reason of the verdict follows the description, after a bar; scores that nobody checked are called unverified.
- The column `val_bpb` holds a reported metric as it is, also one that should grow; the notebook would draw that falling.
- No description begins a quoted field or reads as a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from runner.report.files import replace_file
from runner.report.summary import unverified
from runner.report.text import plain
from runner.trial import Record, Verdict

HEADER = ("commit", "val_bpb", "memory_gb", "status", "description")
_MISSING = {
    "",
    "#n/a",
    "#na",
    "n/a",
    "na",
    "nan",
    "-nan",
    "null",
    "none",
    "<na>",
    "1.#ind",
    "-1.#ind",
    "1.#qnan",
    "-1.#qnan",
}


class Rows:
    """The rows of one run's table; none changes any more, so each is made once."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def text(self, records: Sequence[Record]) -> str:
        """The whole file."""
        first = next((record.trial for record in records if record.verdict is Verdict.BASELINE), None)
        for record in records:
            if record.trial not in self._known:
                self._known[record.trial] = _line(_row(record, first=record.trial == first))
        return _line(HEADER) + "".join([self._known[record.trial] for record in records])


def write_tsv(records: Sequence[Record], path: Path, rows: Rows | None = None) -> None:
    """Write all `records` to `path`, replacing the file at once; `rows` has those that were made before.  Raises `StateError`."""
    replace_file(path, (rows or Rows()).text(records).encode())


def tsv_text(records: Sequence[Record]) -> str:
    """The whole file."""
    return Rows().text(records)


def _line(cells: Sequence[str]) -> str:
    return "\t".join(cells) + "\n"


def _row(record: Record, *, first: bool) -> tuple[str, ...]:
    scored = record.val_bpb is not None and math.isfinite(record.val_bpb)
    kept = first or record.verdict is Verdict.KEEP
    status = "crash" if not scored else "keep" if kept else "discard"
    memory = record.memory_gb if scored and record.memory_gb is not None else 0.0
    return (
        (record.commit or "-" * 7)[:7],
        f"{record.val_bpb if scored else 0.0:.6f}",
        f"{memory:.1f}",
        status,
        _description(record),
    )


def _description(record: Record) -> str:
    parts = [plain(record.idea, 200), _unverified(record), plain(record.reason, 240)]
    text = " | ".join(part for part in parts if part).replace('"', "'")
    return f"idea: {text}" if text.lower() in _MISSING else text


def _unverified(record: Record) -> str:
    return f"{plain(record.metric or 'score', 64)}, unverified" if unverified(record) else ""
