"""What an attack left: its own reports in the logs, files on the host, containers in the engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from runner.ledger import trial_folder
from runner.selftest.outcome import Evidence
from runner.trial import Record

CANARY = "autoresearch-escaped"
"""What attacks call a file that they try to make on the host."""
_BREACH = re.compile(rb"^autoresearch-selftest-breach: (.*)$", re.MULTILINE)
_SENTENCE = 200


class Traces:
    """Looks for them after each attack; what was there before does not count."""

    def __init__(self, run: Path, reap: Callable[[], int], elsewhere: Iterable[Path] = ()) -> None:
        """`run` is the folder of the run, `reap` removes what is left in the engine and says how much there was.

        `elsewhere` are folders of the host in which nothing may appear.
        """
        self._run, self._reap, self._elsewhere = run, reap, tuple(elsewhere)
        self._known = set(self._files())

    def gather(self, records: Sequence[Record]) -> Evidence:
        """What the trials `records` left."""
        breaches = [line for record in records for line in breaches_in(trial_folder(self._run, record.trial))]
        new = [path for path in self._files() if path not in self._known]
        self._known.update(new)
        left = self._reap()
        return Evidence(
            breaches=tuple(dict.fromkeys(breaches)),
            remains=(f"{left} containers or volumes",) if left else (),
            escaped=tuple(str(path) for path in new),
        )

    def _files(self) -> list[Path]:
        found = [path for path in self._run.rglob("*") if path.name.startswith(CANARY)]
        return found + [folder / CANARY for folder in self._elsewhere if (folder / CANARY).is_symlink() or (folder / CANARY).exists()]


def breaches_in(folder: Path) -> list[str]:
    """What the attack in a trial's folder reported to have reached."""
    return [
        re.sub(r"[^ -~]", "?", line.decode(errors="replace"))[:_SENTENCE]
        for path in sorted(folder.rglob("*.log"))
        for line in _BREACH.findall(path.read_bytes())
    ]
