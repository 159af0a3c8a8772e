"""Pure: what is done with a measured candidate, and what has to be measured before that can be said.

Scores are what is compared: val_bpb with its charge.  A candidate is kept if its gain over the champion's mean exceeds
what noise explains.  One measurement is enough where that is clear; near the line candidate and champion are measured
again with other seeds, and the means of everything that was measured decide.  docs/verdict.md has the reasons and
what the thresholds cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from runner.noise import Noise, student


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The constants of a decision; they come from the task (`judge` in autoresearch.yaml, with reasons)."""

    sigma_prior: float
    """Standard deviation of a score over seeds, measured beforehand."""
    sigma_prior_weight: int
    """Degrees of freedom that the prior counts for."""
    tau: float
    """The smallest gain worth keeping."""
    k: float
    """How many standard errors of the difference a gain must exceed; more as long as sigma itself is poorly known."""
    k_at_once: float
    """The same as long as the candidate was measured only once."""
    near: float
    """A gain of fewer standard errors is not measured again."""
    repeats: int
    """How often a candidate is measured again at most."""
    champion_measurements: int
    """How often one champion is measured at most."""
    quarantine: float | None = None
    """A larger gain is not believed from one measurement; None: any is."""
    simpler_by: float
    """Part of the champion's code that a simplification does without."""
    simpler_k: float
    """By how many standard errors a simplification must be better than `tau` worse than the best so far."""
    maximise: bool = False
    """True if higher scores are better (a reported metric may be such)."""


class Next(StrEnum):
    """What follows from a look at the scores."""

    KEEP = "keep"
    DISCARD = "discard"
    REPEAT = "repeat"
    """Measure the candidate again."""
    REPEAT_CHAMPION = "repeat the champion"


@dataclass(frozen=True)
class Sample:
    """The scores of one file."""

    scores: tuple[float, ...]
    errors: tuple[float, ...] = ()
    """Standard error of each score from its audit alone; none for those that are missing."""

    @property
    def mean(self) -> float:
        """Of all measurements; none is left out, nor weighs less."""
        return math.fsum(self.scores) / len(self.scores)

    def variance(self, sigma: float) -> float:
        """Of the mean, if one measurement has the standard deviation `sigma`."""
        count = len(self.scores)
        return (sigma**2 + math.fsum(error**2 for error in self.errors) / count) / count


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything that a decision rests on."""

    candidate: Sample
    champion: Sample
    best: Sample
    """Of all champions so far the one with the best mean; simplifications are measured against it."""
    noise: Noise
    champion_tries: int = 0
    """How often the champion was measured, with or without a score."""
    detectable: float = 0.0
    """Gain that a blind liar could hide from the candidate's audits."""
    smaller: float = 0.0
    """Part of the champion's code that the candidate does without; negative if it has more."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What follows, with everything that led to it."""

    next: Next
    reason: str
    gain: float
    """Against the champion; positive is better."""
    threshold: float


def judge(case: Case, rule: Rule) -> Judgement:
    """Look at the scores once.

    Raises `ValueError` if a score is not finite: NaN never compares.
    """
    scores = (*case.candidate.scores, *case.champion.scores, *case.best.scores)
    if not all(math.isfinite(value) for value in scores):
        message = "a score that is not finite cannot be judged"
        raise ValueError(message)
    gain, error = _difference(case.candidate, case.champion, case, rule)
    count = len(case.candidate.scores)
    k = student(rule.k_at_once if count == 1 else rule.k, case.noise.freedom)
    threshold = max(rule.tau, k * error if error else 0.0, case.detectable)

    def found(what: Next, reason: str) -> Judgement:
        return Judgement(next=what, reason=reason, gain=gain, threshold=threshold)

    measured = f"{_times(count)} against {len(case.champion.scores)} of the champion"
    needed = f"the {_spell(threshold)} needed ({_which(threshold, rule, k, error, case.detectable)}); {measured}"
    if gain > threshold:
        kept = f"gain {_spell(gain, signed=True)} is more than {needed}"
        if rule.quarantine is None or gain <= rule.quarantine:
            return found(Next.KEEP, kept)
        if count == 1:
            return found(Next.REPEAT, f"gain {_spell(gain, signed=True)} is implausibly large: measured again before it is believed")
        return found(Next.KEEP, f"{kept}; quarantined as implausibly large, measured again, and there again")
    if case.smaller >= rule.simpler_by:
        simpler = _simpler(case, rule)
        if simpler is not None:
            return found(*simpler)
    worth = gain > max(rule.near * error, rule.tau - error)
    if worth and len(case.champion.scores) <= count and case.champion_tries < rule.champion_measurements:
        return found(Next.REPEAT_CHAMPION, f"gain {_spell(gain, signed=True)} is near {needed}")
    if worth and count <= rule.repeats:
        return found(Next.REPEAT, f"gain {_spell(gain, signed=True)} is near {needed}")
    return found(Next.DISCARD, f"gain {_spell(gain, signed=True)} is not more than {needed}")


def _difference(one: Sample, other: Sample, case: Case, rule: Rule) -> tuple[float, float]:
    """How much better the first sample's mean is, and the standard error of that."""
    gain = one.mean - other.mean if rule.maximise else other.mean - one.mean
    return gain, math.sqrt(one.variance(case.noise.sigma) + other.variance(case.noise.sigma))


def _simpler(case: Case, rule: Rule) -> tuple[Next, str] | None:
    """What follows from less code; None: nothing, the gain alone decides."""
    gain, error = _difference(case.candidate, case.best, case, rule)
    less = f"{case.smaller:.0%} less code"
    if gain + rule.tau > rule.simpler_k * error:
        return Next.KEEP, (
            f"simplification: {less}, and not worse than the best so far by {_spell(rule.tau)} or more "
            f"({_spell(gain, signed=True)} with a standard error of {_spell(error)}, on {_times(len(case.candidate.scores))})"
        )
    if gain + rule.tau > 0 and len(case.candidate.scores) <= rule.repeats:
        return Next.REPEAT, f"{less}: measured again, to see that it is not worse"
    return None


def _times(count: int) -> str:
    return "1 measurement" if count == 1 else f"{count} measurements"


def _which(threshold: float, rule: Rule, k: float, error: float, detectable: float) -> str:
    """Which of its parts sets the threshold."""
    if threshold == rule.tau:
        return "the smallest gain worth keeping"
    if threshold == detectable:
        return "what an audit might miss"
    return f"{k:.1f} standard errors of {_spell(error)}"


def _spell(value: float, *, signed: bool = False) -> str:
    return f"{value:+.5f}" if signed else f"{value:.5f}"
