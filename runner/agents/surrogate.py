"""Pure: what a setting will probably score, from those that were measured.

A Gaussian process with a squared-exponential kernel (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 2.25,
2.26 and 5.8), whose length and height are the most likely of a small grid.  It is there to be shown to a model, and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

FEWEST, MOST = 5, 200
"""Points without which nothing is said; the newest so many are looked at."""
LENGTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""In units of a dimension's range."""
HEIGHTS = (0.5, 1.0, 2.0, 4.0)
"""In units of the standard deviation of the scores."""
LEAST_NOISE = 0.05
"""Of that standard deviation: smaller noise would make a fit of chance."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A score that was not measured."""

    mean: float
    standard_deviation: float
    """Of the score without its own noise."""
    points: int
    """What it rests on."""


def predict(known: Sequence[Sequence[float]], scores: Sequence[float], at: Sequence[float], *, noise: float) -> Prediction | None:
    """The score at `at` from `scores` at `known`, each a point with coordinates in units of the ranges.

    `noise` is the standard deviation of one score.  None if there are too few points, or all scores are the same.
    """
    points, measured = np.array(known[-MOST:], dtype=np.float64), np.array(scores[-MOST:], dtype=np.float64)
    if len(measured) < FEWEST or float(np.ptp(measured)) == 0:
        return None
    middle, spread = float(measured.mean()), float(measured.std())
    variance = max(noise, LEAST_NOISE * spread) ** 2
    apart, asked = _squares(points, points), _squares(np.array([at], dtype=np.float64), points)[0]
    best: tuple[float, float, float] | None = None
    for length, height in product(LENGTHS, HEIGHTS):
        top = (height * spread) ** 2
        covariance = top * np.exp(-apart / (2 * length**2)) + variance * np.eye(len(measured))
        root = np.linalg.cholesky(covariance)
        weights = np.linalg.solve(covariance, measured - middle)
        likely = -0.5 * float((measured - middle) @ weights) - float(np.log(np.diag(root)).sum())
        if best is None or likely > best[0]:
            near = top * np.exp(-asked / (2 * length**2))
            left = top - float(near @ np.linalg.solve(covariance, near))
            best = likely, middle + float(near @ weights), math.sqrt(max(left, 0.0))
    assert best is not None
    return Prediction(mean=best[1], standard_deviation=best[2], points=len(measured))


def _squares(one: Floats, other: Floats) -> Floats:
    """Squared distances [n, m] between points [n, d] and [m, d]."""
    found: Floats = ((one[:, None, :] - other[None, :, :]) ** 2).sum(axis=-1)
    return found
