"""Pure: another run of the same task, as a line to hold this one against: what the keyless tuner finds, for instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from runner.report.summary import NO_IDEAS, summarise, tree_scores
from runner.report.text import plain
from runner.trial import Record, Verdict

Steps = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What of the other run is shown."""

    tag: str
    agents: tuple[str, ...]
    """Who proposed."""
    records: Sequence[Record]

    @property
    def trials(self) -> int:
        """Judged trials, baselines and champions measured again not counted."""
        return summarise(self.records).trials

    def best_after(self, trials: int | None = None) -> float | None:
        """Score of the champion after so many trials; None: after all."""
        return best_after(self.records, trials)


def reference_of(tag: str, records: Sequence[Record]) -> Reference:
    """The run `tag` as a reference."""
    agents = dict.fromkeys(record.agent for record in records if record.verdict not in NO_IDEAS)
    return Reference(tag=tag, agents=tuple(agents), records=records)


def best_after(records: Sequence[Record], trials: int | None = None) -> float | None:
    """Score of a run's champion after so many trials, by everything that was ever measured of it; None: after all."""
    wanted = summarise(records).trials if trials is None else trials
    best, seen = next((record for record in records if record.verdict is Verdict.BASELINE), None), 0
    for record in records:
        seen += record.verdict not in NO_IDEAS
        if seen > wanted:
            break
        best = record if record.verdict is Verdict.KEEP else best
    return None if best is None else tree_scores(records, [best])[0]


def champion_steps(records: Sequence[Record], last: float | None = None) -> Steps:
    """The champion's score over the trials, each champion's mean over everything that was measured of it, up to the trial `last`."""
    baseline = best_after(records, 0)
    if baseline is None:
        return []
    end = float(records[-1].trial) if last is None else min(last, float(records[-1].trial))
    champions = [record for record in records if record.verdict is Verdict.KEEP and record.trial <= end]
    scores = tree_scores(records, champions)
    kept = [(float(record.trial), score) for record, score in zip(champions, scores, strict=True) if score is not None]
    steps = [(float(records[0].trial), baseline), *kept]
    return [*steps, (end, steps[-1][1])]


def reference_text(reference: Reference, records: Sequence[Record]) -> str:
    """In a line: what the other run found, and what after as many trials as this one had."""
    number, own = summarise(records).trials, best_after(records)
    text = f"{plain(reference.tag, 40)} ({', '.join(plain(agent, 20) for agent in reference.agents) or 'no trials'}): {_score(reference.best_after())}"
    text += f" after {_trials(reference.trials)}, from {_score(reference.best_after(0))}"
    if number < reference.trials:
        text += f"; {_score(reference.best_after(number))} after {number}"
    return f"{text}; this run {_score(own)} after {_trials(number)}, from {_score(best_after(records, 0))}"


def reference_values(reference: Reference, records: Sequence[Record]) -> dict[str, Any]:
    """As JSON; `best_after_as_many` is after as many trials as this run had, null if the other had fewer."""
    number = summarise(records).trials
    return {
        "tag": reference.tag,
        "agents": list(reference.agents),
        "trials": reference.trials,
        "baseline": reference.best_after(0),
        "best": reference.best_after(),
        "best_after_as_many": reference.best_after(number) if number <= reference.trials else None,
    }


def _score(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.4f}"


def _trials(number: int) -> str:
    return f"{number} trial{'' if number == 1 else 's'}"
