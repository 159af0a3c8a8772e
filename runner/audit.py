"""Pure: where the audit looks, what its answers say about the claim, and what they may miss.

A claim is one negative log-likelihood (nll) per target, from a container that saw the targets.  The audit
asks a second container, which never saw them, for the logits at drawn positions.  docs/score.md derives
everything here.  Nats throughout, except where a name says bpb (bits per byte).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNIFORM_SHARE = 0.5
"""Share of a row's draw that every position gets alike: no weight exceeds T / UNIFORM_SHARE."""
FLOOR = 0.02
"""Added to every advantage, so that a row without any has a law; nats."""
HIGHEST_LOGIT = 1e4
"""Beyond this a float32 softmax of any honest model is degenerate."""
FALSE_ALARM = 1e-6
"""Chance that an honest claim has more deviations above `soft` than allowed."""
MEAN_Z = 4.0
"""Standard errors, of fixed noise, that the mean correction may reach."""
SURVIVAL = 0.01
"""Chance of passing that defines a detectable gain."""

_CHUNK = 1 << 20
"""Targets worked on at once: bounds memory to a few float64 arrays of this size."""


class RefusedAnswerError(Exception):
    """What the audit container returned are not logits: wrong shape or type, not finite, out of range."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far claim and audit of an honest model may differ on one device class, in nats."""

    soft: float
    """A token may differ more than this only rarely (`rate`)."""
    hard: float
    """No token may differ more than this."""
    gross: float
    """A token that differs more than this is beyond any numerical cause: no second audit."""
    mean_sd: float
    """Standard deviation assumed for one token's difference; fixed, never the sample's own."""
    mean_bias: float
    """Mean difference that batch shape or precision may explain."""
    rate: float = 3e-4
    """Share of honest tokens assumed beyond `soft`."""


TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "cpu": Tolerance(soft=0.002, hard=0.02, gross=0.1, mean_sd=0.001, mean_bias=0.0003),
        "cuda": Tolerance(soft=0.1, hard=0.5, gross=2.0, mean_sd=0.03, mean_bias=0.003),
    }
)
"""By device class; measured noise and its margins are in docs/score.md."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Where one audit looks: one target of every row in every round, ascending over the rounds."""

    cuts: Ints
    """int64 [rounds, R]: index of the target; -1 for a row without countable targets."""
    probability: Float64s
    """float64 [rounds, R]: the chance that one round draws this position; 1 where the cut is -1."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The score, which is what the audit answers; the claim only lowers its variance."""

    val_bpb: float
    correction: float
    """`val_bpb` minus what the claim alone says, bits per byte; positive where the claim was too good."""
    standard_error: float
    """Of `val_bpb` over the draws, bits per byte."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Whether the answers agree with the claim within fixed limits."""

    ok: bool
    gross: bool
    """A difference beyond any numerical cause: final."""
    recheck: bool
    """Not ok, but one more audit with a fresh draw may decide."""
    reason: str
    worst: float
    """Largest absolute difference, nats."""
    over_soft: int
    allowed: int
    """How many differences beyond `soft` are allowed for this many answers."""
    mean_shift: float
    """Estimated mean of audit minus claim over all targets, nats."""


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """Gains, in bits per byte, that a false claim could hide and pass with the chance `SURVIVAL`."""

    blind: float
    """By a liar who knows the law of the draw and its own claim, not the reference."""
    informed: float
    """By a liar who knows the reference too."""


def law(claim: Float32s, countable: Bools, reference: Float32s | None) -> Float64s:
    """The chance of each position to be drawn in one round: float64 [R, T]; rows sum to 1, or to 0 if empty.

    `claim` and `reference` float32 [R, T], nats; `countable` bool [R, T].  The uniform half bounds every
    weight; the other half follows the advantage that is claimed over the reference.
    """
    seats = countable.sum(axis=1, keepdims=True)
    uniform: Float64s = countable / np.maximum(seats, 1)
    if reference is None:
        return uniform
    stake: Float64s = np.maximum(reference.astype(np.float64) - claim, 0) + FLOOR
    stake *= countable
    total = stake.sum(axis=1, keepdims=True)
    stake /= np.where(total > 0, total, 1)
    stake *= 1 - UNIFORM_SHARE
    stake += UNIFORM_SHARE * uniform
    return stake


def draw(
    claim: Float32s, countable: Bools, reference: Float32s | None, *, rounds: int, rng: np.random.Generator
) -> Draw:
    """Draw one target per row and round by `law`, independently; the cuts of a row ascend over the rounds.

    Arguments as for `law`.  Without a reference the draw is uniform.  `rng` must come from the operating
    system's randomness, seeded after the claim is fixed.
    """
    _same_shape(claim, countable, reference)
    cuts = np.full((rounds, len(claim)), -1, dtype=np.int64)
    probability = np.ones((rounds, len(claim)))
    for rows in _chunks(*claim.shape):
        chances = law(claim[rows], countable[rows], None if reference is None else reference[rows])
        steps = np.cumsum(chances, axis=1)
        filled = np.flatnonzero(steps[:, -1] > 0)
        chances, steps = chances[filled], steps[filled]
        last = claim.shape[1] - 1 - np.argmax(countable[rows][filled][:, ::-1], axis=1)
        points = rng.random((rounds, len(filled))) * steps[:, -1]
        found = np.stack([np.minimum((steps <= point[:, None]).sum(axis=1), last) for point in points])
        found.sort(axis=0)
        cuts[:, rows.start + filled] = found
        probability[:, rows.start + filled] = chances[np.arange(len(filled)), found]
    return Draw(cuts=cuts, probability=probability)


def target_nll(logits: npt.NDArray[Any], targets: npt.NDArray[np.integer[Any]]) -> Float64s:
    """Negative log-likelihood of each target: float64 [n], nats.

    `logits` float32 [n, V], `targets` integers [n].  The host normalises, in float64, so an answer cannot
    claim more than one unit of probability.  Raises `RefusedAnswerError` for anything that is not such logits.
    """
    if logits.ndim != 2 or logits.dtype != np.float32 or len(logits) != len(targets):
        message = (
            f"logits are {logits.dtype} {list(logits.shape)} instead of float32 [{len(targets)}, vocabulary]"
        )
        raise RefusedAnswerError(message)
    nll = np.empty(len(logits))
    for rows in _chunks(*logits.shape):
        values = logits[rows].astype(np.float64)
        if not (np.abs(values) <= HIGHEST_LOGIT).all():  # false for NaN too
            message = f"logits hold values that are not finite or exceed {HIGHEST_LOGIT:g}"
            raise RefusedAnswerError(message)
        highest = values.max(axis=1, keepdims=True)
        values -= highest
        chosen = np.take_along_axis(values, targets[rows].astype(np.int64)[:, None], axis=1)[:, 0]
        nll[rows] = np.log(np.exp(values).sum(axis=1)) - chosen
    return nll


def estimate(
    claim: Float32s, countable: Bools, draws: Sequence[Draw], answers: Sequence[Float64s], *, val_bytes: int
) -> Estimate:
    """Horvitz-Thompson: the claimed nats plus the mean over rounds of sum over rows of (audit - claim) / q.

    `claim` float32 and `countable` bool [R, T]; `answers[i]` float64 [rounds, R]: the audit's nll at
    `draws[i].cuts`.  Rounds of all audits count alike.  `val_bytes`: bytes of all countable targets.
    """
    per_bpb = math.log(2) * val_bytes
    claimed = float(claim.sum(dtype=np.float64, where=countable))
    rounds = sum(len(one.cuts) for one in draws)
    _, weighted = _differences(claim, draws, answers)
    correction = math.fsum(weighted) / rounds
    # Centred: a difference that all tokens share is no variance.  Differences between rows stay in, although
    # every row is audited: conservative, and one round per row is enough.
    n = len(weighted)
    variance = (
        n / (n - 1) * float(np.square(weighted - weighted.mean()).sum()) / rounds**2 if n > 1 else math.inf
    )
    return Estimate(
        val_bpb=(claimed + correction) / per_bpb,
        correction=correction / per_bpb,
        standard_error=math.sqrt(variance) / per_bpb,
    )


def agree(
    claim: Float32s, draws: Sequence[Draw], answers: Sequence[Float64s], tolerance: Tolerance
) -> Agreement:
    """Compare answers with the claim, token by token and in the mean, against limits that are fixed beforehand.

    Arguments as for `estimate`.  The sample's own spread plays no part: one rare lie would hide in it.
    """
    difference, weighted = _differences(claim, draws, answers)
    size = np.abs(difference)
    worst = float(size.max(initial=0))
    over_soft = int((size > tolerance.soft).sum())
    allowed = poisson_quantile(tolerance.rate * len(size))
    rounds = sum(len(one.cuts) for one in draws)
    shift = math.fsum(weighted) / rounds / claim.size
    weights = np.concatenate([1 / one.probability[one.cuts >= 0] for one in draws])
    limit = MEAN_Z * tolerance.mean_sd * math.sqrt(float(np.square(weights).sum())) / rounds / claim.size
    limit += tolerance.mean_bias
    causes = []
    if worst > tolerance.hard:
        causes.append(f"one token differs by {worst:.3g} nats, more than {tolerance.hard:g}")
    if over_soft > allowed:
        causes.append(
            f"{over_soft} of {len(size)} tokens differ by more than {tolerance.soft:g} nats, {allowed} may"
        )
    if abs(shift) > limit:
        causes.append(f"the mean differs by {shift:+.3g} nats, more than {limit:.3g}")
    gross = worst > tolerance.gross
    return Agreement(
        ok=not causes,
        gross=gross,
        recheck=bool(causes) and not gross,
        reason="; ".join(causes) or f"all {len(size)} answers agree with the claim",
        worst=worst,
        over_soft=over_soft,
        allowed=allowed,
        mean_shift=shift,
    )


def poisson_quantile(mean: float, exceeded: float = FALSE_ALARM) -> int:
    """The smallest count that a Poisson variable of this mean exceeds with at most this chance."""
    term = math.exp(-mean)
    below, count = term, 0
    while 1 - below > exceeded:
        count += 1
        term *= mean / count
        below += term
    return count


def detectable_gain(
    claim: Float32s, countable: Bools, reference: Float32s | None, *, rounds: int, val_bytes: int
) -> Detectable:
    """Gains that a false claim could hide from `rounds` rounds in all with the chance `SURVIVAL`.

    Arguments as for `law`; `rounds` over all audits before a keep.
    """
    budget = -math.log(SURVIVAL) / rounds
    chances = law(claim, countable, reference)
    lie = np.where(countable, claim, 0)
    order = np.argsort(-lie, axis=1)
    gains = np.take_along_axis(lie, order, axis=1).cumsum(axis=1)
    costs = -np.log1p(-np.minimum(np.take_along_axis(chances, order, axis=1).cumsum(axis=1), 1 - 1e-12))
    best = np.divide(gains, costs, where=(costs > 0) & (costs <= budget), out=np.zeros_like(costs)).max(
        initial=0
    )
    gain = float(best) * budget / (math.log(2) * val_bytes)
    return Detectable(blind=gain, informed=gain)


def _differences(
    claim: Float32s, draws: Sequence[Draw], answers: Sequence[Float64s]
) -> tuple[Float64s, Float64s]:
    """Audit minus claim at every drawn position, flat, plain and over its probability.

    Raises `ValueError` if shapes do not fit or an answer is not finite: NaN would agree with everything.
    """
    plain, weighted = [], []
    for one, answer in zip(draws, answers, strict=True):
        if answer.shape != one.cuts.shape or one.cuts.shape[1] != len(claim):
            message = f"{answer.shape} answers to {one.cuts.shape} cuts in {len(claim)} rows"
            raise ValueError(message)
        drawn = one.cuts >= 0
        rows = np.broadcast_to(np.arange(len(claim)), one.cuts.shape)[drawn]
        difference = answer[drawn] - claim[rows, one.cuts[drawn]]
        plain.append(difference)
        weighted.append(difference / one.probability[drawn])
    together = np.concatenate(plain)
    if not np.isfinite(together).all():
        message = "answers are not finite"
        raise ValueError(message)
    return together, np.concatenate(weighted)


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _same_shape(claim: Float32s, countable: Bools, reference: Float32s | None) -> None:
    if countable.shape != claim.shape or (reference is not None and reference.shape != claim.shape):
        message = "claim, countable and reference differ in shape"
        raise ValueError(message)
