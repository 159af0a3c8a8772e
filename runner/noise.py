"""Pure: how far one measurement of a file lies from another one of the same file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z90 = 1.6448536269514722
"""Standard normal quantile of 0.95: both ends of a 90 % interval."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The standard deviation of one measurement, as known so far."""

    sigma: float
    """Bits per byte (or the unit of a reported metric)."""
    freedom: int
    """Degrees of freedom that it rests on, the prior's included."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 90 % interval of sigma from the chi-square law; None without a degree of freedom."""
        if self.freedom == 0:
            return None
        low, high = (
            self.sigma * math.sqrt(self.freedom / chi_square(z, self.freedom)) for z in (Z90, -Z90)
        )
        return low, high


def student(z: float, freedom: int) -> float:
    """How many estimated standard errors are as rare as `z` true ones: Student's t at the same probability.

    By the expansion in 1/freedom of Hill (Comm. ACM 13, 1970, algorithm 396; Abramowitz and Stegun 26.7.5): for z up to
    2.6 within 1.5 % of the table at four degrees of freedom and within 0.4 % at six.  Infinite without a degree of freedom, unless z is 0.
    """
    if freedom == 0:
        return math.inf if z else 0.0
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))


def pooled(prior: float, weight: int, groups: Sequence[Sequence[float]]) -> Noise:
    """Pool variances by their degrees of freedom.

    Args:
        prior: standard deviation of one measurement, known beforehand.
        weight: degrees of freedom that it counts for.
        groups: repeated measurements, each group of one file.

    Three measurements alone give less than half of the true sigma in 22 % of all cases, which is what the prior is for.
    """
    squares, freedom = weight * prior**2, weight
    for group in groups:
        if len(group) < 2:  # says nothing about the noise
            continue
        mean = math.fsum(group) / len(group)
        squares += math.fsum((value - mean) ** 2 for value in group)
        freedom += len(group) - 1
    return Noise(sigma=math.sqrt(squares / freedom) if freedom else 0.0, freedom=freedom)


def chi_square(z: float, freedom: int) -> float:
    """The chi-square quantile at the probability of the standard normal quantile `z`.

    By the cube root (Wilson and Hilferty, Proc. Natl. Acad. Sci. 17, 1931, 684-688): at 5 and 95 % within 4 % of the
    table at four degrees of freedom and within 2 % at six; not below a thousandth of the mean, where few degrees of
    freedom would turn the cube root negative.
    """
    part = 2 / (9 * freedom)
    return freedom * max(1 - part + z * math.sqrt(part), 0.1) ** 3
