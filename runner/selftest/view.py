"""A selftest as it happens: a line per attack for a person, an object a line for a machine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from runner.report.text import plain
from runner.selftest.outcome import Outcome
from runner.trial import Progress, Record, Verdict

NAME_WIDTH, ENDING_WIDTH, REASON_WIDTH = 42, 16, 160


class SelftestView:
    """Implements `runner.protocols.View`, and tells what became of each attack."""

    def __init__(self, *, as_json: bool) -> None:
        self.outcomes: list[Outcome] = []
        self._as_json = as_json
        self._console = Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._idea = ""

    def started(self, trial: int, idea: str) -> None:  # noqa: ARG002 - the seam
        """See `View`."""
        self._idea = plain(idea, NAME_WIDTH + 20)
        if self._console.is_terminal and not self._as_json:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
            self._live.update(Text(f"  {self._idea}"))

    def progress(self, trial: int, progress: Progress) -> None:  # noqa: ARG002 - the seam
        """See `View`."""
        if self._live is not None:
            self._live.update(Text(f"  {self._idea}  {progress.phase} {progress.seconds:.0f} s"))

    def finished(self, record: Record, records: Sequence[Record]) -> None:  # noqa: ARG002 - the seam
        """See `View`."""
        self.close()
        if record.verdict is Verdict.BASELINE and not self._as_json:
            self._console.print(f"      baseline {record.val_bpb:.4f} bits per byte")

    def tell(self, outcome: Outcome) -> None:
        """What became of one attack."""
        self.outcomes.append(outcome)
        if self._as_json:
            print(json.dumps(dataclasses.asdict(outcome)), flush=True)  # noqa: T201 - a view
        else:
            style = "bold red" if outcome.succeeded else "" if outcome.expected else "yellow"
            self._console.print(Text(line(outcome), style=style))

    def summary(self) -> None:
        """How many succeeded, for a person."""
        if self._as_json:
            return
        succeeded = [outcome.attack for outcome in self.outcomes if outcome.succeeded]
        blunt = [outcome.attack for outcome in self.outcomes if not outcome.succeeded and not outcome.expected]
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        self._console.print(f"{len(self.outcomes)} attacks, {len(succeeded)} succeeded, {seconds / 60:.1f} min")
        if succeeded:
            self._console.print(f"succeeded: {', '.join(succeeded)}")
        if blunt:
            self._console.print(f"failed in a way of their own, so they may have become blunt: {', '.join(blunt)}")

    def close(self) -> None:
        """Stop the live line, if there is one."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def line(outcome: Outcome) -> str:
    """An outcome in one line."""
    mark = "BROKE" if outcome.succeeded else "  ok " if outcome.expected else "  ?  "
    name = f"{outcome.area}: {outcome.attack}"
    ending = outcome.ending or "refused"
    score = "      -" if outcome.val_bpb is None else f"{outcome.val_bpb:7.4f}"
    charge = f"+{outcome.charge:.3f}" if outcome.charge else ""
    reason = plain(outcome.reason, REASON_WIDTH)
    return f"{mark} {name:<{NAME_WIDTH}} {ending:<{ENDING_WIDTH}} {outcome.verdict:<9} {score} {charge:<6} {outcome.seconds:5.1f} s  {reason}"
