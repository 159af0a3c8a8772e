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
SLACK = 1.15
"""What a bound allows for liars between the ways that it looks at (docs/score.md)."""
DEPTHS = (0.5, 1.0, 1.5, 2.0, 3.0, math.inf)
"""How far a claim may lie below the truth, nats."""
OVERSHOOTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""How far a lie of one who knows the reference may go below it, nats."""

_CHUNK = 1 << 20
"""Targets worked on at once: bounds memory to a few float64 arrays of this size."""
_SAMPLE = 1 << 20
"""About how many targets the expected stakes are averaged over."""
_WIDTH = 128
"""The most targets in a row that a liar aims at one by one; beyond these, lies by claim hide more."""
_WEIGHTS = (0.5, 0.9, 0.98, 1.0)
"""What a liar sorts targets by: how much of a lie's cost comes from the uniform law."""
_BUDGET = np.float32(-math.log(SURVIVAL))
_LOG_PRICES = (math.log(1e-2), math.log(1e6))
"""Nats per unit of cost: far below what one row gives, far above what all rows of a large set give."""
_CELLS_PER_NAT = 64
_CELLS = 100 * _CELLS_PER_NAT
_TINY = np.float32(1e-9)
_NEVER = np.float32(1e4)
"""A target that nobody lies about: nats below the reference."""


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
    """The chance q of each target to be drawn, per round: float64 [R, T]; a row sums to 1, or to 0 without targets.

    `claim` and `reference` float32 [R, T], nats; `countable` bool [R, T]: targets that have bytes.
    q is the mean of two laws: every target alike, which bounds the weights; and in proportion to the stake
    (max(reference - claim, 0) + FLOOR)^2, which finds lies that are deep or many.
    """
    uniform, stakes = _laws(claim, countable, reference)
    return (uniform + stakes) / 2


def draw(
    claim: Float32s, countable: Bools, reference: Float32s | None, *, rounds: int, rng: np.random.Generator
) -> Draw:
    """Draw one target per row and round; the cuts of a row ascend over the rounds.

    Arguments as for `law`.  Half of a row's rounds follow the first of its two laws and half the second (a coin
    decides on an odd one), so a target is drawn `rounds` * q times on average; whole rounds of each catch more
    than coins would.  `rng` must be seeded by the operating system's randomness, after the claim is fixed.
    """
    _same_shape(claim, countable, reference)
    cuts = np.full((rounds, len(claim)), -1, dtype=np.int64)
    probability = np.ones((rounds, len(claim)))
    for rows in _chunks(*claim.shape):
        filled = rows.start + np.flatnonzero(countable[rows].any(axis=1))
        some = countable[filled]
        uniform, stakes = _laws(claim[filled], some, None if reference is None else reference[filled])
        last = some.shape[1] - 1 - np.argmax(some[:, ::-1], axis=1)
        by_stakes = np.arange(rounds)[:, None] < rounds // 2
        coin = (np.arange(rounds)[:, None] == 2 * (rounds // 2)) & (rng.random(len(filled)) < 0.5)
        found = np.empty((rounds, len(filled)), dtype=np.int64)
        uniform_steps, stakes_steps = np.cumsum(uniform, axis=1), np.cumsum(stakes, axis=1)
        for number, follow in enumerate(by_stakes | coin):
            for law_steps, chosen in ((uniform_steps, ~follow), (stakes_steps, follow)):
                steps = law_steps[chosen]
                points = rng.random(len(steps)) * steps[:, -1]
                found[number, chosen] = np.minimum((steps <= points[:, None]).sum(axis=1), last[chosen])
        found.sort(axis=0)
        cuts[:, filled] = found
        here = np.arange(len(filled))
        probability[:, filled] = (uniform[here, found] + stakes[here, found]) / 2
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
    if targets.size and logits.shape[1] <= int(targets.max()):
        message = f"logits for {logits.shape[1]} tokens lack some targets"
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
    claim: Float32s,
    countable: Bools,
    reference: Float32s | None,
    *,
    rounds: int | Sequence[int],
    val_bytes: int,
) -> Detectable:
    """Gains that a false claim could hide from all audits before a keep with the chance `SURVIVAL`.

    Arguments as for `law`; `claim` stands for what an honest one would say.  `rounds`: of one audit, or of
    each.  Bounds from above over the liars of docs/score.md, by Lagrange's dual of the best choice of rows,
    targets and depths; the bounds' own slack is a few per cent.
    """
    _same_shape(claim, countable, reference)
    if not countable.any():
        return Detectable(blind=0.0, informed=0.0)
    audits = (rounds,) if isinstance(rounds, int) else tuple(rounds)
    seats = np.maximum(countable.sum(axis=1, dtype=np.float32), 1)
    expected, known = _lies_by_claim(claim, countable, reference, seats, audits)
    per_bpb = math.log(2) * val_bytes
    blind = SLACK * _most_hidden(expected) / per_bpb
    if reference is None:
        return Detectable(blind=blind, informed=blind)
    aimed = _lies_by_reference(claim, countable, reference, seats, audits)
    return Detectable(blind=blind, informed=max(blind, SLACK * _most_hidden(known + aimed) / per_bpb))


# ------------------------------------------------------------------------------------- the two laws of the draw


def _laws(claim: Float32s, countable: Bools, reference: Float32s | None) -> tuple[Float64s, Float64s]:
    seats = countable.sum(axis=1, keepdims=True)
    uniform: Float64s = countable / np.maximum(seats, 1)
    if reference is None:
        return uniform, uniform
    stakes = _stake(reference.astype(np.float64) - claim) * countable
    total = stakes.sum(axis=1, keepdims=True)
    return uniform, stakes / np.where(total > 0, total, 1)


def _stake(advantage: npt.NDArray[Any]) -> Float64s:
    stake: Float64s = np.square(np.maximum(advantage, 0) + FLOOR)
    return stake


def _whole_stakes(claim: Float32s, countable: Bools, reference: Float32s) -> Float64s:
    """The sum of each row's stakes, [R]."""
    whole = np.empty(len(claim))
    for rows in _chunks(*claim.shape):
        whole[rows] = (_stake(reference[rows] - claim[rows]) * countable[rows]).sum(axis=1)
    return whole


# ---------------------------------------------------------------------------------------- what a liar could hide


@dataclass(frozen=True)
class _Lies:
    """Ways to lie in each row, both float32 [ways, R]; a liar takes at most one of them per row."""

    gain: Float32s
    """Hidden nats."""
    cost: Float32s
    """Minus the logarithm of the chance that no round of no audit draws a lie; at most `_BUDGET`."""


def _more_and_more(gain: Float32s, uniform: Float32s, stakes: Float32s, audits: Sequence[int]) -> _Lies:
    """Ever more lies of one kind: what they hide and the parts of a row's two laws that they hold, [steps, R].

    Where a step costs more than there is to spend, it is cut between the one before and itself.
    """
    pairs = sum(rounds // 2 for rounds in audits)
    odd = sum(rounds % 2 for rounds in audits)
    cost = -pairs * np.log(np.maximum((1 - uniform) * (1 - stakes), _TINY))
    if odd:
        cost -= odd * np.log(np.maximum(1 - (uniform + stakes) / 2, _TINY))
    before = np.zeros_like(cost)
    before[1:] = cost[:-1]
    last = (cost > _BUDGET) & (before <= _BUDGET)
    part = (_BUDGET - before[last]) / (cost[last] - before[last])
    gain_before = np.zeros_like(gain)
    gain_before[1:] = gain[:-1]
    cut = gain_before[last] + part * (gain[last] - gain_before[last])
    gain = np.where(cost > _BUDGET, np.float32(0), gain)
    gain[last] = cut
    return _Lies(gain, np.minimum(cost, _BUDGET))


def _lies_by_claim(
    claim: Float32s, countable: Bools, reference: Float32s | None, seats: Float32s, audits: Sequence[int]
) -> tuple[list[_Lies], list[_Lies]]:
    """Lies of one depth, or down to zero, about the targets that are cheapest to lie about as far as a claim tells.

    Without the reference nothing but the claim tells targets apart: those in one bin of claims have one gain
    and one expected stake, the mean over all rows.  A row's other stakes spread around what is expected, by a
    factor x; the chance to pass is concave in x^n, n the rounds by stakes, so the mean of x^n bounds it (`_spread`).
    Second, the same lies with x known, for one who knows which rows have honest stakes to hide behind.
    """
    some = np.flatnonzero(countable.any(axis=1))[:: max(1, claim.size // _SAMPLE)]
    counted = countable[some]
    sample = claim[some][counted].astype(np.float64)
    bin_of_cell = _bins(sample)
    bins = int(bin_of_cell.max()) + 1
    counts = np.empty((bins, len(claim)), dtype=np.float32)
    for rows in _chunks(*claim.shape):
        place = bin_of_cell[_cells(claim[rows])]
        place += bins * np.arange(len(place))[:, None]
        counts[:, rows] = np.bincount(place[countable[rows]], minlength=len(place) * bins).reshape(-1, bins).T

    place = bin_of_cell[_cells(sample)]
    members = np.maximum(np.bincount(place, minlength=bins), 1)
    advantage = None if reference is None else reference[some][counted] - sample

    def mean(values: Float64s) -> Float32s:
        return (np.bincount(place, weights=values, minlength=bins) / members).astype(np.float32)

    def stake_if(shift: Float64s | float) -> Float32s:
        return np.ones(bins, dtype=np.float32) if advantage is None else mean(_stake(advantage + shift))

    honest = stake_if(0.0)
    typical = float(members @ honest) / sample.size
    total = honest @ counts
    whole = total if reference is None else _whole_stakes(claim, countable, reference)
    scale = (np.maximum(whole, _TINY) / np.maximum(total, _TINY)).astype(np.float32)
    spread = _spread(scale, mean(sample) @ counts / seats, sum((rounds + 1) // 2 for rounds in audits))
    expected, known = [], []
    for depth in DEPTHS:
        shift = np.minimum(sample, depth)
        gain, stake = mean(shift), stake_if(shift)
        gain[0] = min(depth, float(claim.max(initial=0, where=countable)))  # few, and far apart
        for weight in _WEIGHTS:
            order = np.argsort((weight + (1 - weight) * stake / typical) / np.maximum(gain, _TINY))
            held = counts[order]
            lied = (held.cumsum(axis=0) / seats).astype(np.float32, copy=False)
            hidden: Float32s = (held * gain[order, None]).cumsum(axis=0)
            stakes = (held * stake[order, None]).cumsum(axis=0)
            others = np.maximum(total - (held * honest[order, None]).cumsum(axis=0), _TINY)
            expected.append(_more_and_more(hidden, lied, stakes / (stakes + others * spread), audits))
            if reference is not None:
                known.append(_more_and_more(hidden, lied, stakes / (stakes + others * scale), audits))
    return expected, known


def _spread(factor: Float32s, difficulty: Float32s, power: int) -> Float32s:
    """The power mean of `factor` over rows of like difficulty, for each row; all [R]."""
    spread = np.empty_like(factor)
    for rows in np.array_split(np.argsort(difficulty), max(1, min(8, len(factor) // 16))):
        spread[rows] = np.mean(factor[rows].astype(np.float64) ** power) ** (1 / power)
    return spread


def _bins(sample: Float64s) -> Ints:
    """Bins of claimed nll, from the highest down: the bin of each cell.

    Of about like numbers of targets, but finer towards the highest claims, where lies are made.
    """
    smallest = min(1.0, 64 / sample.size)
    shares = np.concatenate([np.linspace(0, 1, 17), np.geomspace(smallest, 1, 17)])
    histogram = np.bincount(_cells(sample), minlength=_CELLS)
    above = histogram[::-1].cumsum()[::-1] / sample.size
    return np.unique(np.searchsorted(np.sort(shares), above), return_inverse=True)[1]


def _cells(nll: npt.NDArray[Any]) -> Ints:
    cells: Ints = np.clip(nll * _CELLS_PER_NAT, 0, _CELLS - 1).astype(np.int64)
    return cells


def _lies_by_reference(
    claim: Float32s, countable: Bools, reference: Float32s, seats: Float32s, audits: Sequence[int]
) -> list[_Lies]:
    """Lies where the honest claim is worst against the reference: down to it they add nothing to the stakes.

    And past it by an overshoot that is the same for all, because stakes are convex.  That a claim cannot fall
    below zero is left out, which bounds from above.
    """
    width = min(claim.shape[1], _WIDTH)
    worst = np.empty((width, len(claim)), dtype=np.float32)
    for rows in _chunks(*claim.shape):
        better = np.where(countable[rows], reference[rows] - claim[rows], _NEVER)
        worst[:, rows] = -np.sort(np.partition(better, width - 1, axis=1)[:, :width], axis=1).T
    ranks = np.unique(np.geomspace(1, width, 32).astype(np.int64)) - 1
    number = (ranks[:, None] + 1).astype(np.float32)
    whole = _whole_stakes(claim, countable, reference)
    others = np.maximum(whole - _stake(-worst).cumsum(axis=0)[ranks], _TINY).astype(np.float32)
    to_reference = worst.cumsum(axis=0)[ranks]
    lied = np.minimum(number / seats, 1)
    ways = []
    for overshoot in OVERSHOOTS:
        stakes = number * np.float32((overshoot + FLOOR) ** 2)
        ways.append(
            _more_and_more(to_reference + overshoot * number, lied, stakes / (stakes + others), audits)
        )
    return ways


def _most_hidden(ways: Sequence[_Lies]) -> float:
    """At least the most nats that one way per row hides at a total cost of `_BUDGET`.

    For any price of cost, price * budget + sum over rows of max(gain - price * cost, 0) is such a bound
    (Lagrange's dual).  It is convex in the price, so a golden-section search finds its least value.
    """
    gain = np.concatenate([lies.gain for lies in ways])
    cost = np.concatenate([lies.cost for lies in ways])
    surplus = np.empty_like(gain)

    def bound(log_price: float) -> float:
        price = np.float32(math.exp(log_price))
        np.multiply(cost, -price, out=surplus)
        np.add(surplus, gain, out=surplus)
        return float(price * _BUDGET) + float(np.maximum(surplus.max(axis=0), 0).sum(dtype=np.float64))

    golden = (math.sqrt(5) - 1) / 2
    low, high = _LOG_PRICES
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = bound(left), bound(right)
    for _ in range(14):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = bound(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = bound(right)
    return min(at_left, at_right)


# ------------------------------------------------------------------------------------------------------ answers


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
