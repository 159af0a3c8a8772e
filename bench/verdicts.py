"""How the verdict's rule does against "keep if lower" in simulated searches; docs/verdict.md has the figures.

    python bench/verdicts.py                   everything, about three minutes
    python bench/verdicts.py --part noop       one part: law, compare, frontier, champion, noop or simpler
    python bench/verdicts.py --searches 2000   more searches, less noise in the figures

Every decision is made by runner/judge.py itself; only scores are invented.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from runner.judge import Case, Next, Rule, Sample, judge
from runner.noise import Noise, pooled
from runner.settings import JudgeOptions
from runner.task import load_task
from runner.verdicts import rule_of

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 126
"""Measurements of a search, baselines and repeats included: the rows of the published session."""
SIGMAS = (3e-4, 7e-4, 1.5e-3)
SESSION_SIGMA = 5e-4
"""Two seeds of one file differed by 0.0007 in the published session; that is sqrt(2) sigma."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """What ideas are worth, in bits per byte, in the order in which they are tried; fitted to a published session.

    The session is karpathy/autoresearch, branch exp/H100/mar8 (discussion 43, pull request 44): 125 trials under "keep if
    lower".  Idea t is a good one with probability max(first * t^-fewer, some); then its gain is exponential with the mean
    largest * t^-dry + least.  Otherwise it is a loss, lognormal with the median `loss` and the spread `spread`.
    """

    first: float = 1.0
    fewer: float = 0.35
    some: float = 0.45
    largest: float = 0.0145
    dry: float = 1.7
    least: float = 2.3e-4
    loss: float = 4e-4
    spread: float = 1.6

    def ideas(self, chance: random.Random) -> list[float]:
        """True gains of as many ideas as a search can try."""
        return [self._idea(number, chance) for number in range(1, BUDGET + 1)]

    def _idea(self, number: int, chance: random.Random) -> float:
        if chance.random() < max(self.first * number**-self.fewer, self.some):
            return chance.expovariate(1 / (self.largest * number**-self.dry + self.least))
        return -self.loss * math.exp(self.spread * chance.gauss(0, 1))


PUBLISHED = {
    "keeps": 22,
    "reported gain": 0.0282,
    "part of it by trial 10": 0.82,
    "by trial 20": 0.88,
    "by trial 60": 0.89,
    "median kept gain": 4.6e-4,
    "keeps below 0.0005": 12 / 22,
    "keeps below 0.001": 17 / 22,
    "median excess of a discard": 7e-4,
    "discards worse by 0.003": 0.10,
}
"""Of the published session.  The last two are from the 20 discards whose scores are known, so they are rough."""


@dataclass(kw_only=True)
class Search:
    """One search and what came of it."""

    progress: float = 0.0
    """By how much the last champion is truly better than the baseline."""
    reported: float = 0.0
    """By how much its measurements say so."""
    keeps: int = 0
    false: int = 0
    """Keeps of ideas that make nothing better."""
    ideas: int = 0
    gains: list[tuple[int, float]] = field(default_factory=list)
    """Idea and the gain with which it was kept."""
    excess: list[float] = field(default_factory=list)
    """How far above the champion's score what was discarded lay."""


Trial = Callable[[random.Random, Sequence[float], float], Search]


def keep_if_lower(chance: random.Random, ideas: Sequence[float], sigma: float) -> Search:
    """The rule of the published session: one measurement each, and whatever is lower than the champion's stays."""
    found, best = Search(), chance.gauss(0, sigma)
    start, true = best, 0.0
    for number, idea in enumerate(ideas[: BUDGET - 1], 1):
        score = true - idea + chance.gauss(0, sigma)
        if score < best:
            found.gains.append((number, best - score))
            found.false += idea <= 0
            best, true = score, true - idea
        else:
            found.excess.append(score - best)
    found.keeps, found.ideas = len(found.gains), BUDGET - 1
    found.progress, found.reported = -true, start - best
    return found


@dataclass(kw_only=True)
class Bench:
    """A search by the rule, measurement by measurement; `true` scores are known to nobody but the bench."""

    chance: random.Random
    sigma: float
    rule: Rule
    budget: int = BUDGET
    forget: bool = False
    """Leave out what a champion was kept on as soon as there is something newer."""
    repeated: list[list[float]] = field(default_factory=list)
    champions: list[list[float]] = field(default_factory=list)
    tries: int = 0
    fresh: int = 0
    """Measurements of the champion since it was kept."""

    def measure(self, true: float) -> float:
        """One measurement; `IndexError` when the budget is spent."""
        if self.budget == 0:
            raise IndexError
        self.budget -= 1
        return true + self.chance.gauss(0, self.sigma)

    def measure_champion(self, true: float) -> None:
        """Once more."""
        scores, score = self.champions[-1], self.measure(true)
        if self.forget and self.fresh == 0 and len(self.champions) > 1:
            scores.clear()
        scores.append(score)
        self.tries, self.fresh = self.tries + 1, self.fresh + 1

    def noise(self, more: Sequence[float]) -> Noise:
        """As the runner pools it."""
        groups = [*self.repeated, *self.champions, more]
        return pooled(self.rule.sigma_prior, self.rule.sigma_prior_weight, [group for group in groups if group])

    def decide(self, true: float, champion: float, smaller: float = 0.0) -> tuple[bool, list[float], float]:
        """Take one candidate to its verdict: kept or not, its scores, the gain that was seen."""
        scores = [self.measure(true)]
        while True:
            case = Case(
                candidate=Sample(tuple(scores)),
                champion=Sample(tuple(self.champions[-1])),
                best=Sample(tuple(min(self.champions, key=statistics.fmean))),
                noise=self.noise(scores),
                champion_tries=self.tries,
                smaller=smaller,
            )
            found = judge(case, self.rule)
            match found.next:
                case Next.REPEAT:
                    scores.append(self.measure(true))
                case Next.REPEAT_CHAMPION:
                    self.measure_champion(champion)
                case _:
                    return found.next is Next.KEEP, scores, found.gain


def by_rule(options: JudgeOptions, *, forget: bool = False) -> Trial:
    """A search with the rule that `options` make."""
    rule = replace(rule_of(options, maximise=False), quarantine=None)

    def search(chance: random.Random, ideas: Sequence[float], sigma: float) -> Search:
        bench, found = Bench(chance=chance, sigma=sigma, rule=rule, forget=forget), Search()
        bench.champions.append([bench.measure(0.0) for _ in range(options.baselines)])
        bench.tries, since, true = options.baselines, 0, 0.0
        start = statistics.fmean(bench.champions[0])
        try:
            for number, idea in enumerate(ideas, 1):
                if 0 < options.remeasure_champion_every <= since and bench.tries < options.champion_measurements:
                    bench.measure_champion(true)
                    since = 0
                before = bench.tries
                kept, scores, gain = bench.decide(true - idea, true)
                found.ideas, since = number, since + 1 if bench.tries == before else 0
                if kept:
                    found.gains.append((number, gain))
                    found.false += idea <= 0
                    true -= idea
                    bench.champions.append(scores)
                    bench.tries, bench.fresh, since = len(scores), 0, 0
                elif len(scores) > 1:
                    bench.repeated.append(scores)
        except IndexError:
            pass  # the budget ended amid a candidate, which is not kept
        found.keeps, found.progress = len(found.gains), -true
        found.reported = start - statistics.fmean(bench.champions[-1])
        return found

    return search


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Means over many searches."""

    progress: float
    reported: float
    keeps: float
    false: float
    ideas: float

    @property
    def true_part(self) -> float:
        """Of the gain that is reported, how much is true."""
        return self.progress / self.reported


def run(trial: Trial, sigma: float, searches: int, law: Law) -> Figures:
    """The same ideas for every rule, so that differences are the rule's."""
    found = []
    for number in range(searches):
        ideas = law.ideas(random.Random(f"ideas {number}"))
        found.append(trial(random.Random(f"luck {number}"), ideas, sigma))
    mean = statistics.fmean
    return Figures(
        progress=mean(one.progress for one in found),
        reported=mean(one.reported for one in found),
        keeps=mean(one.keeps for one in found),
        false=mean(one.false for one in found),
        ideas=mean(one.ideas for one in found),
    )


def options_of(preset: str | None) -> JudgeOptions:
    """The shipped options."""
    return load_task(ROOT, preset).judge


# Parts --------------------------------------------------------------------------------------------


def law(searches: int) -> None:
    """How well the law describes the published session."""
    found = [
        keep_if_lower(random.Random(f"luck {number}"), Law().ideas(random.Random(f"ideas {number}")), SESSION_SIGMA)
        for number in range(searches)
    ]
    total = sum(one.reported for one in found)
    gains = sorted(gain for one in found for _, gain in one.gains)
    excess = sorted(value for one in found for value in one.excess)

    def until(trial: int) -> float:
        return sum(gain for one in found for number, gain in one.gains if number <= trial) / total

    def below(values: Sequence[float], edge: float) -> float:
        return sum(value < edge for value in values) / len(values)

    ours = (
        statistics.fmean(one.keeps for one in found), total / searches, until(10), until(20), until(60),
        statistics.median(gains), below(gains, 5e-4), below(gains, 1e-3), statistics.median(excess), 1 - below(excess, 3e-3),
    )  # fmt: skip
    print(f"law of the ideas' effects: {Law()}\n'keep if lower' with it at sigma {SESSION_SIGMA:g}, and the published session:")
    for (name, published), value in zip(PUBLISHED.items(), ours, strict=True):
        print(f"  {name:28} {value:10.4g} {published:10.4g}")


def _table(rows: Iterable[tuple[str, Figures]], lower: Figures) -> None:
    print(f"  {'':46} progress   of it  false keeps   of it   keeps   ideas   true part")
    for name, one in rows:
        print(
            f"  {name:46} {one.progress:8.4f} {one.progress / lower.progress:7.2f} {one.false:12.2f} "
            f"{one.false / lower.false:7.2f} {one.keeps:7.1f} {one.ideas:7.1f} {one.true_part:11.2f}"
        )


def _with_sigma(options: JudgeOptions, sigma: float) -> JudgeOptions:
    """The default options where the noise is another: what is in its unit grows with it."""
    return replace(options, sigma_prior=sigma, tau=options.tau * sigma / options.sigma_prior)


def compare(searches: int) -> None:
    """The rule and `keep if lower` on the same number of measurements."""
    print(f"\n{searches} searches of {BUDGET} measurements each, repeats and baselines included")
    for sigma in SIGMAS:
        lower = run(keep_if_lower, sigma, searches, Law())
        default = options_of(None)
        print(f"sigma {sigma:g}")
        rows = [("keep if lower", lower), ("the rule", run(by_rule(default), sigma, searches, Law()))]
        if sigma != default.sigma_prior:
            scaled = _with_sigma(default, sigma)
            rows.append(("the rule, prior and tau made for this sigma", run(by_rule(scaled), sigma, searches, Law())))
        _table(rows, lower)


def frontier(searches: int) -> None:
    """What other parameters would give at the sigma of the GPU preset."""
    sigma, default = 7e-4, options_of(None)
    lower = run(keep_if_lower, sigma, searches, Law())
    changes: list[dict[str, float]] = [
        {"repeats": 0, "k_at_once": 1.0},
        {"repeats": 0, "k_at_once": 2.0},
        {"tau": 1e-4},
        {"tau": 2.5e-4},
        {"tau": 1e-3},
        *({"k": k, "k_at_once": 2.5} for k in (0.5, 1.0, 1.5, 2.5, 3.0)),
        *({"k": k, "k_at_once": 2.5, "tau": 1e-4} for k in (0.5, 1.0, 1.5)),
        *({"k_at_once": k} for k in (2.0, 3.0, 4.0)),
        *({"near": near} for near in (-1.0, 0.0, 0.8, 1.2)),
        *({"repeats": repeats} for repeats in (1, 2)),
        *({"champion_measurements": most} for most in (3, 5, 20)),
        *({"remeasure_champion_every": every} for every in (0, 5, 30)),
        *({"baselines": count} for count in (1, 2, 5)),
    ]
    rows = [("keep if lower", lower), ("the rule", run(by_rule(default), sigma, searches, Law()))]
    for change in changes:
        name = ", ".join(f"{key} {value:g}" for key, value in change.items())
        rows.append((name, run(by_rule(replace(default, **change)), sigma, searches, Law())))  # type: ignore[arg-type]
    print(f"\nthe frontier at sigma {sigma:g}: the default with one thing changed, {searches} searches each")
    _table(rows, lower)


def champion(searches: int) -> None:
    """Whether the score that a champion was kept for should count as long as it is champion."""
    sigma, default = 7e-4, options_of(None)
    lower = run(keep_if_lower, sigma, searches, Law())
    print(f"\nwhat a champion is known by, at sigma {sigma:g}")
    rows = [
        ("the mean of all its measurements (the rule)", run(by_rule(default), sigma, searches, Law())),
        ("only what came after it was kept", run(by_rule(default, forget=True), sigma, searches, Law())),
    ]
    _table(rows, lower)


def noop(searches: int) -> None:
    """How often a file that changes nothing is kept, and a large gain is not, against three fresh baselines."""
    count = 10 * searches
    print(f"\nagainst fresh baselines, {count} times each; sigma as part of the preset's prior")
    print(f"  {'preset':8} {'sigma':>6} {'no-op kept':>11} {'measurements':>13} {'10 sigma kept':>14} {'measurements':>13} {'25 sigma':>9}")
    for preset in ("h100", "smoke", "tiny"):
        options = options_of(preset)
        rule = replace(rule_of(options, maximise=False), quarantine=None)
        for part in (0.5, 1.0, 2.0):
            sigma = part * options.sigma_prior
            cells = []
            for gain in (0.0, 10.0, 25.0):
                kept, spent = _once(rule, options.baselines, sigma, gain * sigma, count)
                cells += [kept, spent]
            print(
                f"  {preset:8} {part:6.1f} {cells[0]:11.3f} {cells[1]:13.2f} {cells[2]:14.3f} {cells[3]:13.2f} {cells[4]:9.3f}"
            )


def _once(rule: Rule, baselines: int, sigma: float, gain: float, count: int) -> tuple[float, float]:
    """Part of `count` candidates with a true `gain` that are kept, and measurements that each took."""
    kept = spent = 0
    for number in range(count):
        bench = Bench(chance=random.Random(f"{number}"), sigma=sigma, rule=rule, budget=1000)
        bench.champions.append([bench.measure(0.0) for _ in range(baselines)])
        bench.tries = baselines
        kept += bench.decide(-gain, 0.0)[0]
        spent += 1000 - baselines - bench.budget
    return kept / count, spent / count


def simpler(searches: int) -> None:
    """How often less code is kept that is truly a little worse, and how much fifty such proposals lose together."""
    print("\na simplification: how often it is kept if it is truly worse by so many tau, and the loss after 50 of half a tau each")
    print(f"  {'preset':8}" + "".join(f"{loss:>8.1f}" for loss in (-0.5, 0.0, 0.5, 1.0, 2.0)) + "   lost, in tau")
    for preset in ("h100", "smoke", "tiny"):
        options = options_of(preset)
        rule = replace(rule_of(options, maximise=False), quarantine=None)
        cells = [
            statistics.fmean(
                _simplified(rule, options, [loss * options.tau], f"{loss} {number}") != 0.0 for number in range(searches)
            )
            for loss in (-0.5, 1e-9, 0.5, 1.0, 2.0)
        ]
        lost = statistics.fmean(
            _simplified(rule, options, [options.tau / 2] * 50, f"{number}") for number in range(searches // 4)
        )
        print(f"  {preset:8}" + "".join(f"{cell:8.2f}" for cell in cells) + f"{lost / options.tau:15.2f}")


def _simplified(rule: Rule, options: JudgeOptions, losses: Sequence[float], seed: str) -> float:
    """By how much the champion is truly worse after proposals that have less code and these true losses."""
    bench = Bench(chance=random.Random(seed), sigma=options.sigma_prior, rule=rule, budget=10_000)
    bench.champions.append([bench.measure(0.0) for _ in range(options.baselines)])
    bench.tries, true = options.baselines, 0.0
    for loss in losses:
        kept, scores, _ = bench.decide(true + loss, true, smaller=1.0)
        if kept:
            true += loss
            bench.champions.append(scores)
            bench.tries = len(scores)
        elif len(scores) > 1:
            bench.repeated.append(scores)
    return true


PARTS = {"law": law, "compare": compare, "frontier": frontier, "champion": champion, "noop": noop, "simpler": simpler}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--searches", type=int, default=400)
    arguments = parser.parse_args()
    for name in arguments.part or PARTS:
        PARTS[name](arguments.searches)


if __name__ == "__main__":
    main()
