"""What a person and a machine see of the final report: before it, while it measures, and what came of it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import IO, Any

from runner.final import Final, Finalist, Fresh, Result, Role
from runner.measure import Measurement
from runner.records import has_score
from runner.report.live import IDEA_WIDTH, LiveView
from runner.report.table import PIPE_WIDTH
from runner.report.text import plain
from runner.trial import Progress, Record, Verdict

STYLES = {Role.BASELINE: "cyan", Role.KEPT: "", Role.CHAMPION: "bold green"}


def announcement(final: Final, tag: str, split: str | None) -> list[str]:
    """What is said before the first training."""
    todo = len(final.todo)
    count = final.commits - 1
    kept = f"{count} kept commit{'' if count == 1 else 's'}"
    lines = [f"run {plain(tag)}: the baseline and {kept} on fresh seeds, {final.total} trainings"]
    if todo < final.total:
        lines[0] += f", {final.total - todo} of them done"
    if todo and final.seconds is not None:
        lines[0] += f"; about {_duration(final.seconds)}"
    if split is not None and todo:
        lines.append(
            f"note: scored on the locked {split} split, which was spent by this run's report before"
            if final.spent
            else f"note: scored on the locked {split} split, which is spent by this: from now on its text was in containers of this run"
        )
    return lines


class FinalView:
    """Implements `runner.final.Watch`: a line for each measurement, or nothing."""

    def __init__(self, folder: Path, *, total: int, quiet: bool) -> None:
        """`folder` is the run's, `total` the number of measurements; `quiet`: standard output belongs to a machine."""
        self._live = None if quiet else LiveView(folder)
        self._total = total

    def started(self, number: int, record: Record, index: int) -> None:
        """See `Watch`."""
        if self._live is not None:
            self._live.started(number, _label(record, index))

    def progress(self, number: int, progress: Progress) -> None:
        """See `Watch`."""
        if self._live is not None:
            self._live.progress(number, progress)

    def finished(self, number: int, record: Record, index: int, found: Measurement) -> None:
        """See `Watch`."""
        self.close()
        if self._live is not None:
            print(_measured_line(number, self._total, _label(record, index), found), flush=True)  # noqa: T201 - a view

    def close(self) -> None:
        """Stop the live line, if there is one."""
        if self._live is not None:
            self._live.close()


def print_final(result: Result, file: IO[str] | None = None) -> None:
    """The table, how to read it, and what it says of the champion."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = file or sys.stdout
    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console = Console(file=out, highlight=False, width=PIPE_WIDTH)
    fresh = result.split or "fresh"
    table = Table(title=Text(_title(result)), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    for name in ("search", "gain", fresh, "±", "gain", "± seeds", "± rows", "real"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("idea", ratio=1, overflow="fold")
    for one in result.line:
        table.add_row(*(Text(cell, style=STYLES[one.role]) for cell in _cells(one)))
    console.print(table)
    for line in [*_legend(result), "", sentence(result)]:
        print(line, file=out)


def sentence(result: Result) -> str:
    """How much of the champion's reported gain is real, in plain words."""
    champion = result.line[-1]
    who = f"The champion (trial {champion.trial}, commit {champion.commit[:10]})"
    where = f"on the locked {result.split} split" if result.split else "on the task's own, unverified evaluation"
    reported = _reported(champion, result)
    if not champion.fresh:
        return f"{who} was reported {reported}; it was not measured on fresh seeds yet."
    scored = sum(one.score is not None for one in champion.fresh)
    if champion.gain is None:
        why = _failures(champion) or "the baseline gave none either"
        return f"{who} was reported {reported}. On fresh seeds it gave no score ({why}), so nothing shows that this is real."
    seeds = f"{scored} fresh seed{'' if scored == 1 else 's'}"
    found = f"{who} was reported {reported}. With {seeds} {where} it is {_better(champion.gain)}"
    found += _lost(champion, scored)
    if champion.gain_interval is None:
        return f"{found}: one measurement cannot tell how much of that is noise."
    low, high = champion.gain_interval
    found += f" (90 % interval {low:+.5f} to {high:+.5f})"
    if low <= 0 <= high:
        return f"{found}: that cannot be told from no gain at all."
    if champion.real is None or champion.real_interval is None:
        return f"{found}."
    if high < 0:
        return f"{found}: none of the reported gain is real."
    low, high = champion.real_interval
    return f"{found}: {_share(champion.real)} of the reported gain is real ({_share(low)} to {_share(high)})."


def final_json(one: Finalist, result: Result) -> dict[str, Any]:
    """One commit as the JSON object of `report --final --json`.  Unknown is null, never 0, never NaN.

    The keys, in their order; scores are means with the charge for computation included, gains are against the baseline and
    positive where better, errors are standard errors and intervals 90 % ones, `[low, high]`:

    - `tag`, `commit`, `trial`, `role` (`baseline`, `kept`, `champion`), `idea`
    - `score_level`, `metric` (null: bits per byte), `maximise`
    - `split`: the rows of `final_*` (`test`; null: the task reports its score), `spent_at`: since when they are spent,
      `kept_after_spent`: true if the commit was kept later than that
    - `val_bpb`, `val_measurements`, `val_gain`: what the search reported
    - `repeats`: fresh seeds planned, `measured`: made so far, `scored`: that gave a score
    - `final_bpb`, `final_se`, `final_gain`, `final_gain_se_seeds`, `final_gain_se_rows` (clustered by row),
      `final_gain_interval` (both errors together)
    - `real_share`, `real_share_interval`: `final_gain` over `val_gain`; null where that is less than is worth keeping
    - `sigma`, `sigma_interval`: of one measurement, from these repeats and the prior
    - `charge`: mean of what was added on fresh seeds
    - `measurements`: `[{seed, score, charge, ending, reason}]`, in the order of the seeds
    - `sentence`: the champion's, null for the others
    """
    charges = [fresh.charge for fresh in one.fresh if fresh.charge is not None and fresh.score is not None]
    return {
        "tag": result.tag,
        "commit": one.commit,
        "trial": one.trial,
        "role": str(one.role),
        "idea": one.idea,
        "score_level": result.level,
        "metric": result.metric,
        "maximise": result.maximise,
        "split": result.split,
        "spent_at": result.began if result.split else None,
        "kept_after_spent": one.kept_after,
        "val_bpb": one.val_bpb,
        "val_measurements": one.val_measurements,
        "val_gain": one.val_gain,
        "repeats": result.repeats,
        "measured": len(one.fresh),
        "scored": sum(fresh.score is not None for fresh in one.fresh),
        "final_bpb": one.final_bpb,
        "final_se": one.final_se,
        "final_gain": one.gain,
        "final_gain_se_seeds": one.gain_se_seeds,
        "final_gain_se_rows": one.gain_se_rows,
        "final_gain_interval": _pair(one.gain_interval),
        "real_share": one.real,
        "real_share_interval": _pair(one.real_interval),
        "sigma": result.noise.sigma,
        "sigma_interval": _pair(result.noise.interval),
        "charge": math.fsum(charges) / len(charges) if charges else None,
        "measurements": [_fresh_json(fresh) for fresh in one.fresh],
        "sentence": sentence(result) if one.role is Role.CHAMPION else None,
    }


def _fresh_json(fresh: Fresh) -> dict[str, Any]:
    return {
        "seed": fresh.seed,
        "score": fresh.score,
        "charge": fresh.charge,
        "ending": None if fresh.ending is None else str(fresh.ending),
        "reason": fresh.reason,
    }


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _label(record: Record, index: int) -> str:
    name = "the baseline" if record.verdict is Verdict.BASELINE else f"trial {record.trial}: {plain(record.idea, 30)}"
    return f"{name}, seed {index + 1}"


def _measured_line(number: int, total: int, label: str, found: Measurement) -> str:
    if has_score(found):
        said = f"{found.val_bpb:.5f}" + (f" + {found.charge:.5f} charged" if found.charge else "")
    else:
        said = f"{found.ending or 'no score'}: {plain(found.reason, 100)}"
    spent = "" if found.seconds.total is None else f"  {found.seconds.total:.1f} s"
    return f"{number:>4}/{total}  {label:<{IDEA_WIDTH}}  {said}{spent}"


def _title(result: Result) -> str:
    unit = "bits per byte" if result.metric is None else f"{plain(result.metric, 64)}, unverified"
    where = f"the {result.split} split" if result.split else "fresh seeds"
    return f"Search and {where} ({unit})"


def _cells(one: Finalist) -> list[str]:
    return [
        str(one.trial),
        f"{one.val_bpb:.4f}",
        _number(one.val_gain, "+.4f"),
        _number(one.final_bpb, ".4f"),
        _number(one.final_se, ".4f"),
        _number(one.gain, "+.4f"),
        _number(one.gain_se_seeds, ".4f"),
        _number(one.gain_se_rows, ".4f"),
        "" if one.real is None else _share(one.real),
        "; ".join(part for part in (plain(one.idea, 60), _failures(one), "kept after the split was spent" if one.kept_after else "") if part),
    ]


def _legend(result: Result) -> list[str]:
    interval = result.noise.interval
    between = "" if interval is None else f" (90 %: {interval[0]:.4f} to {interval[1]:.4f})"
    lines = [
        "Scores are means, in the search and on fresh seeds"
        + (", with the charge for computation beyond the baseline's added." if result.split else "."),
        f"± are standard errors. Seeds: one measurement is ± {result.noise.sigma:.4f}{between}, by these repeats and the prior.",
    ]
    if result.split:
        lines += [
            "Rows: what other text of this kind and amount would give, by the differences of single rows.",
            f"The {result.split} split is spent since {result.began}.",
        ]
    return lines


def _reported(champion: Finalist, result: Result) -> str:
    where = "on the validation rows" if result.split else "by the search"
    return f"{_better(champion.val_gain or 0.0)} {where}"


def _better(gain: float) -> str:
    return f"{abs(gain):.5f} {'better' if gain >= 0 else 'worse'} than the baseline"


def _lost(champion: Finalist, scored: int) -> str:
    lost = len(champion.fresh) - scored
    return f", on the seeds that gave a score ({lost} of {len(champion.fresh)} gave none: {_failures(champion)})" if lost else ""


def _failures(one: Finalist) -> str:
    failed = [f"seed {fresh.index + 1} {fresh.ending or 'no score'}: {plain(fresh.reason, 60)}" for fresh in one.fresh if fresh.score is None]
    return "; ".join(failed)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _share(part: float) -> str:
    return f"{100 * part:.0f} %"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} seconds"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
