"""`report --final`: the baseline and the kept commits once more, on fresh seeds and on the locked test split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from runner import ledger
from runner.cli import parts
from runner.cli.app import run_folder
from runner.cli.session import Session

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from runner.final import Final
    from runner.loop import Measures
    from runner.report.final import FinalView

    ByRow = Callable[[Path], npt.NDArray[np.float64] | None]


class FinalSession(Session):
    """A run that is held for its final report."""

    def final(self, repeats: int | None) -> None:
        """Measure what is missing, then print what is known.  Raises what `Final` and its parts raise."""
        from runner.final import SPLIT, Final
        from runner.report.final import FinalView, announcement, final_json, print_final
        from runner.run import Run

        run = Run(task=self.task, tag=self.folder.name, ledger=self.ledger, workspace=self.workspace)
        run.stop_file.unlink(missing_ok=True)  # of an earlier runner
        header = self.ledger.state.header
        assert header is not None
        final = Final(run, repeats=repeats, run_seed=header["seed"])
        split = None if self.task.score.reported else SPLIT
        for line in announcement(final, self.folder.name, split):
            typer.echo(line, err=self.as_json)
        view = FinalView(self.folder, total=final.total, quiet=self.as_json)
        with ExitStack() as stack:
            stack.callback(view.close)
            whole = not final.todo or self._measure(final, view)
        result = final.result()
        if self.as_json:
            for one in result.line:
                typer.echo(json.dumps(final_json(one, result)))
        else:
            print_final(result)
        if not whole:
            typer.echo("asked to stop: the same command goes on", err=self.as_json)

    def _measure(self, final: Final, view: FinalView) -> bool:
        with self._scoring() as (measurer, by_row, longer):
            return final.measure(measurer, view, by_row=by_row, longer=longer)

    @contextmanager
    def _scoring(self) -> Iterator[tuple[Measures, ByRow, float]]:
        """What scores on the locked split, what it says of each row, and how much longer that takes than validation."""
        from runner.final import SPLIT
        from runner.measure import Measurer

        with self._measuring() as (measurer, _):
            if isinstance(measurer, Measurer):
                locked = measurer.on(SPLIT)
                yield locked, locked.by_row, max(1.0, locked.row_count(SPLIT) / locked.row_count("val"))
            else:
                yield measurer, lambda _: None, 1.0


def final_report(task: Path, tag: str | None, *, repeats: int | None, as_json: bool) -> None:
    """Hold the run and make its final report; one that is finished is only printed.

    Raises `UsageError` if there is no such run or nothing was kept, `StateError` if a runner works on it.
    """
    from runner.log import events_to
    from runner.report.live import JsonView
    from runner.task import load_task

    workspace, folder, _ = parts.look(task, tag)
    checkout = load_task(task)
    with ledger.writing(folder) as held, events_to(folder / "events.jsonl"):
        run_folder.set(folder)
        header = held.state.header
        assert header is not None
        FinalSession(
            task=parts.load_frozen(folder, checkout.root, header["preset"], header["overrides"]),
            folder=folder,
            ledger=held,
            workspace=workspace,
            checkout=checkout,
            view=JsonView(folder),
            as_json=as_json,
        ).final(repeats)
