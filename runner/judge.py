"""Pure: what is done with a measured candidate.

The noise of one measurement, sigma, is a standard deviation pooled from a shipped prior for the preset
and the run's own baselines, because three baselines alone give less than half the true value in a fifth
of all runs.  A candidate is kept only if its gain over the champion's mean exceeds what noise explains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runner.trial import Verdict


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The constants of a decision; they come from the preset."""

    sigma_prior: float
    """Standard deviation of val_bpb over seeds, measured beforehand, bits per byte."""
    sigma_prior_weight: int
    """Degrees of freedom that the prior counts for."""
    tau: float
    """The smallest gain worth keeping, bits per byte."""
    k: float
    """How many standard errors of the difference a gain must exceed."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with everything that led to it."""

    verdict: Verdict
    reason: str
    gain: float
    sigma: float
    threshold: float


def pooled_sigma(rule: Rule, groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation of one measurement, bits per byte.

    `groups` are repeated measurements of the same tree each.  Variances are pooled by degrees of freedom
    (the prior counts for `sigma_prior_weight`).
    """
    squares = rule.sigma_prior_weight * rule.sigma_prior**2
    freedom = rule.sigma_prior_weight
    for group in groups:
        mean = math.fsum(group) / len(group)
        squares += math.fsum((value - mean) ** 2 for value in group)
        freedom += len(group) - 1
    return math.sqrt(squares / freedom) if freedom else 0.0


def judge(score: float, champion: Sequence[float], sigma: float, rule: Rule) -> Judgement:
    """Keep or discard one finite `score` against the champion's measurements (all bits per byte).

    Raises `ValueError` if a score is not finite: NaN never compares.
    """
    if not all(math.isfinite(value) for value in (score, *champion)):
        message = "a score that is not finite cannot be judged"
        raise ValueError(message)
    gain = math.fsum(champion) / len(champion) - score
    error = sigma * math.sqrt(1 + 1 / len(champion))
    threshold = max(rule.tau, rule.k * error)
    keep = gain > threshold
    verb = "exceeds" if keep else "does not exceed"
    reason = f"gain {gain:+.4f} {verb} {threshold:.4f} ({rule.k:g} standard errors of {error:.4f}, at least {rule.tau:g})"
    return Judgement(
        verdict=Verdict.KEEP if keep else Verdict.DISCARD, reason=reason, gain=gain, sigma=sigma, threshold=threshold
    )
