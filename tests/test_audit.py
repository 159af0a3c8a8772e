from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runner import audit

Floats = npt.NDArray[np.float32]
CPU, CUDA = audit.TOLERANCES["cpu"], audit.TOLERANCES["cuda"]


def simulated(rows: int, targets: int, seed: int, baselines: int = 3) -> tuple[Floats, Floats]:
    """An honest claim and a reference: two seeds differ by sd 0.95 nats with kurtosis 8 (docs/score.md)."""
    rng = np.random.default_rng(seed)
    truth = rng.gamma(1.6, 4.2 / 1.6, (rows, targets)) * rng.gamma(40, 1 / 40, (rows, 1))
    spread = 0.1 + np.sqrt(truth)
    spread *= 0.95 / math.sqrt(2 * 7 / 5 * float(np.square(spread).mean()))
    claim = truth + spread * rng.standard_t(7, truth.shape)
    others = [truth + spread * rng.standard_t(7, truth.shape) for _ in range(baselines)]
    return np.maximum(claim, 0).astype(np.float32), np.maximum(sum(others) / baselines, 0).astype(np.float32)


def everywhere(claim: Floats) -> npt.NDArray[np.bool_]:
    return np.ones(claim.shape, dtype=np.bool_)


def asked(truth: npt.NDArray[np.floating], draw: audit.Draw) -> npt.NDArray[np.float64]:
    """What a container answers whose model gives every target its `truth`."""
    answer = truth[np.arange(truth.shape[0]), draw.cuts].astype(np.float64)
    return np.where(draw.cuts >= 0, answer, np.nan)


# ----------------------------------------------------------------------------------------------------- the draw


@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    rounds=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_cuts_are_countable_and_ascend_and_carry_the_probability_of_the_law(
    data: st.DataObject, shape: tuple[int, int], rounds: int, seed: int
) -> None:
    nll = hnp.arrays(np.float32, shape, elements=st.floats(0, 100, width=32))
    claim, reference = data.draw(nll), data.draw(st.none() | nll)
    countable = data.draw(hnp.arrays(np.bool_, shape))

    draw = audit.draw(claim, countable, reference, rounds=rounds, rng=np.random.default_rng(seed))
    law = audit.law(claim, countable, reference)

    empty = ~countable.any(axis=1)
    assert draw.cuts.shape == draw.probability.shape == (rounds, shape[0])
    assert (draw.cuts[:, empty] == -1).all()
    assert (draw.probability[:, empty] == 1).all()
    assert (np.diff(draw.cuts, axis=0) >= 0).all()
    for row in np.flatnonzero(~empty):
        assert countable[row, draw.cuts[:, row]].all()
        assert np.allclose(draw.probability[:, row], law[row, draw.cuts[:, row]], rtol=1e-12)
    assert np.allclose(law.sum(axis=1), ~empty)
    assert (law[~countable] == 0).all()
    # The floor: nothing that counts is drawn less often than half of what a uniform draw gives it.
    seats = countable.sum(axis=1, keepdims=True)
    assert (np.where(countable, law * seats, 1) >= 0.5 * (1 - 1e-9)).all()


def test_the_law_is_half_uniform_and_half_squared_advantage() -> None:
    """A hand-computed row: advantages 1, 0 (claim worse), 3 and a target without bytes."""
    claim = np.array([[1.0, 5.0, 1.0, 9.0]], dtype=np.float32)
    reference = np.array([[2.0, 4.0, 4.0, 99.0]], dtype=np.float32)
    countable = np.array([[True, True, True, False]])
    stakes = np.array([1.02**2, 0.02**2, 3.02**2, 0])

    expected = 0.5 * np.array([1, 1, 1, 0]) / 3 + 0.5 * stakes / stakes.sum()

    assert np.allclose(audit.law(claim, countable, reference), expected, rtol=1e-6)
    assert np.allclose(audit.law(claim, countable, None), np.array([1, 1, 1, 0]) / 3)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
def test_a_target_is_drawn_as_often_as_its_probability_says(rounds: int) -> None:
    claim, reference = simulated(1, 8, 1)
    many = 40_000
    claims, references = np.repeat(claim, many, axis=0), np.repeat(reference, many, axis=0)

    draw = audit.draw(claims, everywhere(claims), references, rounds=rounds, rng=np.random.default_rng(5))
    often = np.bincount(draw.cuts.ravel(), minlength=8) / many

    expected = rounds * audit.law(claim, everywhere(claim), reference)[0]
    assert np.allclose(often, expected, atol=5 * math.sqrt(rounds / many))


def test_a_pair_of_rounds_always_holds_one_by_stakes() -> None:
    """All stakes lie on one target: two rounds in a row never miss it, while a coin would in a quarter."""
    claim = np.zeros((2000, 100), dtype=np.float32)
    reference = np.zeros_like(claim)
    reference[:, 40] = 50

    draw = audit.draw(claim, everywhere(claim), reference, rounds=2, rng=np.random.default_rng(6))

    assert (draw.cuts == 40).any(axis=0).all()
    assert 0.9 < (draw.cuts != 40).any(axis=0).mean() < 1


def test_a_draw_is_fresh_for_every_state_of_the_generator() -> None:
    claim, reference = simulated(50, 64, 2)
    rng = np.random.default_rng(7)

    first, second = (audit.draw(claim, everywhere(claim), reference, rounds=1, rng=rng) for _ in range(2))

    assert (first.cuts != second.cuts).mean() > 0.5


def test_a_reference_of_another_shape_is_refused() -> None:
    claim, reference = simulated(3, 8, 2)

    with pytest.raises(ValueError, match="shape"):
        audit.draw(claim, everywhere(claim), reference[:2], rounds=1, rng=np.random.default_rng(0))


# -------------------------------------------------------------------------------------------------- the answers


def test_the_host_normalises_logits_in_float64() -> None:
    logits = np.array([[0, math.log(3), 100], [9999, -9999, 0]], dtype=np.float32)

    nll = audit.target_nll(logits, np.array([1, 1], dtype=np.uint16))

    assert nll.dtype == np.float64
    assert np.allclose(nll, [100 - math.log(3), 19998], rtol=1e-7)


@given(
    logits=hnp.arrays(np.float32, (3, 7), elements=st.floats(-1e4, 1e4, width=32)),
    shift=st.floats(-1e3, 1e3, width=32),
)
def test_the_probabilities_of_all_tokens_sum_to_one(logits: Floats, shift: float) -> None:
    every = np.stack([audit.target_nll(logits, np.full(3, token)) for token in range(7)])

    assert np.allclose(np.exp(-every).sum(axis=0), 1)


@pytest.mark.parametrize(
    ("logits", "said"),
    [
        (np.zeros((2, 4), dtype=np.float64), "float64"),
        (np.zeros((3, 4), dtype=np.float32), r"\[3, 4\] instead of float32 \[2, vocabulary\]"),
        (np.zeros(2, dtype=np.float32), r"\[2\] instead"),
        (np.zeros((2, 1), dtype=np.float32), "lack some targets"),
        (np.zeros((2, 0), dtype=np.float32), "lack some targets"),
        (np.full((2, 4), np.nan, dtype=np.float32), "not finite"),
        (np.array([[0, -np.inf], [0, 0]], dtype=np.float32), "not finite"),
        (np.array([[0, 0], [0, 10001]], dtype=np.float32), "exceed 10000"),
        (np.array([[0, 0], [0, -10001]], dtype=np.float32), "exceed 10000"),
    ],
)
def test_what_are_not_logits_is_refused(logits: npt.NDArray[np.floating], said: str) -> None:
    with pytest.raises(audit.RefusedAnswerError, match=said):
        audit.target_nll(logits, np.array([0, 1]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_never_agrees(bad: float) -> None:
    claim, reference = simulated(4, 8, 3)
    draw = audit.draw(claim, everywhere(claim), reference, rounds=1, rng=np.random.default_rng(0))
    answer = asked(claim, draw)
    answer[0, 2] = bad

    with pytest.raises(ValueError, match="not finite"):
        audit.agree(claim, [draw], [answer], CPU)
    with pytest.raises(ValueError, match="not finite"):
        audit.estimate(claim, everywhere(claim), [draw], [answer], val_bytes=100)


def test_answers_of_another_shape_than_the_draw_are_refused() -> None:
    claim, reference = simulated(4, 8, 3)
    draw = audit.draw(claim, everywhere(claim), reference, rounds=2, rng=np.random.default_rng(0))

    with pytest.raises(ValueError, match="answers"):
        audit.agree(claim, [draw], [asked(claim, draw)[:1]], CPU)


# ------------------------------------------------------------------------------------------------- the estimate


def rare(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    return np.where(rng.random(truth.shape) < 0.02, 0, truth)


def scaled(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    return 0.8 * truth


def hardest(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    return np.where(truth > np.quantile(truth, 0.97), truth / 4, truth)


def worse_than_reference(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    return np.minimum(truth, reference)


def whole_row(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    return np.where(np.arange(len(truth))[:, None] == 3, 0, truth)


def half_a_row(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    lie = truth.copy()
    lie[5, : truth.shape[1] // 2] = 0
    return lie


def one_token(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    lie = truth.copy()
    lie[np.unravel_index(truth.argmax(), truth.shape)] = 0
    return lie


def upward(truth: Floats, reference: Floats, rng: np.random.Generator) -> Floats:
    return np.where(rng.random(truth.shape) < 0.05, truth + 3, truth)


Shape = Callable[[Floats, Floats, np.random.Generator], npt.NDArray[np.floating]]
SHAPES: Sequence[Shape] = (
    rare, scaled, hardest, worse_than_reference, whole_row, half_a_row, one_token, upward,
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("audits", [(1,), (2, 3)])
def test_the_score_is_what_the_audit_answers_whatever_is_claimed(shape: Shape, audits: Sequence[int]) -> None:
    """Exactly: every target's expected weight is 1, so the mean over draws needs no luck.  And by drawing."""
    truth, reference = simulated(24, 32, 4)
    claim = shape(truth, reference, np.random.default_rng(1)).astype(np.float32)
    countable = np.random.default_rng(2).random(truth.shape) > 0.1
    countable[7] = False
    val_bytes = 1000
    whole = float(truth[countable].sum(dtype=np.float64)) / (math.log(2) * val_bytes)
    claimed = float(claim[countable].sum(dtype=np.float64)) / (math.log(2) * val_bytes)

    rng = np.random.default_rng(8)
    found = []
    for _ in range(400):
        draws = [audit.draw(claim, countable, reference, rounds=rounds, rng=rng) for rounds in audits]
        answers = [asked(truth, draw) for draw in draws]
        found.append(audit.estimate(claim, countable, draws, answers, val_bytes=val_bytes))

    scores = np.array([one.val_bpb for one in found])
    noise = scores.std() / math.sqrt(len(scores))
    assert abs(scores.mean() - whole) < 4.5 * noise + 1e-6
    # The test has teeth: what is claimed lies far outside.
    assert abs(claimed - whole) > 5 * noise
    assert all(math.isclose(one.val_bpb - one.correction, claimed, rel_tol=1e-6) for one in found)


def test_uncounted_targets_are_in_no_sum() -> None:
    claim, reference = simulated(6, 16, 4)
    countable = np.arange(16)[None, :] % 4 > np.zeros((6, 1))
    draw = audit.draw(claim, countable, reference, rounds=2, rng=np.random.default_rng(0))

    found = audit.estimate(claim, countable, [draw], [asked(claim, draw)], val_bytes=77)

    assert math.isclose(found.val_bpb, float(claim[countable].sum(dtype=np.float64)) / math.log(2) / 77)
    assert found.correction == 0
    assert found.standard_error == 0


@pytest.mark.parametrize("kind", ["noise", "shift", "rare"])
@pytest.mark.parametrize("audits", [(1,), (4,), (1, 2)])
def test_the_standard_error_is_never_too_small(kind: str, audits: Sequence[int]) -> None:
    claim, reference = simulated(60, 64, 5)
    rng = np.random.default_rng(9)
    truth = claim.astype(np.float64)
    if kind == "noise":
        truth += 0.012 * rng.standard_t(6, truth.shape)
    elif kind == "shift":
        truth += 0.05
    else:
        truth += np.where(rng.random(truth.shape) < 0.1, 0.3, 0)
    found = []
    for _ in range(600):
        draws = [audit.draw(claim, everywhere(claim), reference, rounds=rounds, rng=rng) for rounds in audits]
        found.append(
            audit.estimate(
                claim, everywhere(claim), draws, [asked(truth, one) for one in draws], val_bytes=5000
            )
        )

    true = np.std([one.val_bpb for one in found])
    said = math.sqrt(np.mean([one.standard_error**2 for one in found]))

    assert true > 0
    assert 0.92 < said / true < (1.15 if kind == "noise" else 2.2)


# ------------------------------------------------------------------------------------------------ the agreement


def verdict_on(
    claim: Floats,
    truth: npt.NDArray[np.floating],
    reference: Floats,
    rounds: int,
    seed: int,
    limits: audit.Tolerance,
) -> audit.Agreement:
    draw = audit.draw(claim, everywhere(claim), reference, rounds=rounds, rng=np.random.default_rng(seed))
    return audit.agree(claim, [draw], [asked(truth, draw)], limits)


@pytest.mark.parametrize(
    ("limits", "sd", "freedom", "bias"),
    [
        pytest.param(CUDA, 0.012, 6, 0.0006, id="bf16, eager against compiled"),
        pytest.param(CUDA, 0.010, 5, -0.001, id="bf16, heavier tails"),
        pytest.param(CPU, 2e-5, 3, 0, id="float32 on a CPU"),
    ],
)
def test_honest_noise_is_no_disagreement(
    limits: audit.Tolerance, sd: float, freedom: int, bias: float
) -> None:
    """Measured: sd 0.009 to 0.012, 99.99 % below 0.08, largest 0.26 of 4.2 million; none on a CPU."""
    claim, reference = simulated(440, 128, 6)
    rng = np.random.default_rng(10)
    failed = 0
    for seed in range(100):
        noise = bias + sd / math.sqrt(freedom / (freedom - 2)) * rng.standard_t(freedom, claim.shape)
        failed += not verdict_on(claim, claim + noise, reference, 4, seed, limits).ok

    assert failed == 0


def test_one_lie_that_is_seen_is_enough() -> None:
    claim, reference = simulated(40, 16, 7)
    draw = audit.draw(claim, everywhere(claim), reference, rounds=1, rng=np.random.default_rng(0))
    answer = asked(claim, draw)

    honest = audit.agree(claim, [draw], [answer], CPU)
    answer[0, 11] += 0.05
    lied = audit.agree(claim, [draw], [answer], CPU)
    answer[0, 11] += 0.1
    gross = audit.agree(claim, [draw], [answer], CPU)

    assert (honest.ok, honest.recheck, honest.worst) == (True, False, 0)
    assert (lied.ok, lied.gross, lied.recheck) == (False, False, True)
    assert (gross.ok, gross.gross, gross.recheck) == (False, True, False)
    assert "one token differs by 0.05 nats, more than 0.02" in lied.reason
    assert math.isclose(gross.worst, 0.15, rel_tol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_many_small_differences_disagree_where_few_do_not(sign: int) -> None:
    """436 answers: 4 may lie beyond `soft`."""
    claim, reference = simulated(436, 16, 7)
    draw = audit.draw(claim, everywhere(claim), reference, rounds=1, rng=np.random.default_rng(0))
    answer = asked(claim, draw)

    answer[0, :4] += sign * 0.2
    few = audit.agree(claim, [draw], [answer], CUDA)
    answer[0, 4] += sign * 0.2
    many = audit.agree(claim, [draw], [answer], CUDA)

    assert (few.ok, few.over_soft, few.allowed) == (True, 4, 4)
    assert (many.ok, many.over_soft, many.recheck) == (False, 5, True)
    assert "5 of 436 tokens differ" in many.reason


@pytest.mark.parametrize(("shift", "ok"), [(0.002, True), (-0.002, True), (0.0125, False), (-0.0125, False)])
def test_a_shift_of_every_token_disagrees_though_each_is_within_the_limits(shift: float, ok: bool) -> None:  # noqa: FBT001
    claim, reference = simulated(3000, 64, 8)

    found = verdict_on(claim, claim + shift, reference, 2, 1, CUDA)

    assert found.ok is ok
    assert math.isclose(found.mean_shift, shift, rel_tol=0.1)
    assert ok or "the mean differs" in found.reason


def test_an_audit_of_nothing_countable_says_so_little_that_it_agrees() -> None:
    claim, reference = simulated(3, 8, 3)
    draw = audit.draw(claim, ~everywhere(claim), reference, rounds=1, rng=np.random.default_rng(0))

    assert audit.agree(claim, [draw], [np.full((1, 3), np.nan)], CPU).ok


def test_the_allowed_counts_are_those_of_a_poisson_variable() -> None:
    """The values of the derivation, and the definition."""
    assert [audit.poisson_quantile(3e-4 * k) for k in (436, 2048, 10240, 30720)] == [4, 7, 14, 27]
    sample = np.random.default_rng(1).poisson(2.0, 200_000)
    quantile = audit.poisson_quantile(2.0, 0.01)
    assert (sample > quantile).mean() <= 0.011
    assert (sample > quantile - 1).mean() > 0.011


# ------------------------------------------------------------------------------------- what a liar could hide

SIZE = (300, 128)
VAL_BYTES = 140_000
BPB = 1 / (math.log(2) * VAL_BYTES)


def chance_to_pass(truth: Floats, lie: Floats, reference: Floats, audits: Sequence[int]) -> float:
    """By the definition of the draw, without the module's own bound: no round draws a target that is lied about."""
    rows = (lie != truth).any(axis=1)
    lied = (lie != truth)[rows]
    stakes = np.square(np.maximum(reference[rows].astype(np.float64) - lie[rows], 0) + 0.02)
    by_number = lied.mean(axis=1)
    by_stakes = (stakes * lied).sum(axis=1) / stakes.sum(axis=1)
    passed = 1.0
    for rounds in audits:
        pair = ((1 - by_number) * (1 - by_stakes)) ** (rounds // 2)
        passed *= float(np.prod(pair * (1 - (by_number + by_stakes) / 2) ** (rounds % 2)))
    return passed


def test_the_chance_to_pass_is_what_draws_show() -> None:
    truth, reference = simulated(20, 32, 9)
    lie = truth.copy()
    lie[4, :3] -= 1
    lie[9, 7] = 0
    rng = np.random.default_rng(11)
    passed = 0
    for _ in range(2000):
        draws = [audit.draw(lie, everywhere(lie), reference, rounds=rounds, rng=rng) for rounds in (1, 2)]
        passed += audit.agree(lie, draws, [asked(truth, one) for one in draws], CPU).ok

    expected = chance_to_pass(truth, lie, reference, (1, 2))
    assert 0.02 < expected < 0.9
    assert abs(passed / 2000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)


def row_liar(centre: float, depth: float, rows: int) -> Callable[[Floats, Floats, int], Floats]:
    """Lies about the targets nearest to a claim, in the rows with the highest claims; never looks at the reference."""

    def lie(truth: Floats, reference: Floats, count: int) -> Floats:
        claim = truth.copy()
        for row in np.argsort(-np.sort(truth, axis=1)[:, -25:].sum(axis=1))[:rows]:
            chosen = np.argsort(np.abs(truth[row] - centre))[:count]
            claim[row, chosen] = np.maximum(truth[row, chosen] - depth, 0)
        return claim

    return lie


def reference_liar(overshoot: float) -> Callable[[Floats, Floats, int], Floats]:
    """Lies a little below the reference where the truth is worst against it."""

    def lie(truth: Floats, reference: Floats, count: int) -> Floats:
        better = np.minimum(truth, np.maximum(reference - np.float32(overshoot), 0)).ravel()
        claim = truth.copy().ravel()
        chosen = np.argsort(better - claim)[:count]
        claim[chosen] = better[chosen]
        return claim.reshape(truth.shape)

    return lie


BLIND = [
    *(row_liar(99, depth, rows) for depth in (2.0, 3.0, 99.0) for rows in (1, 3)),
    *(row_liar(99, 99.0, rows) for rows in (5, 300)),
    *(row_liar(centre, depth, rows) for centre in (4.0, 8.0) for depth in (1.5, 2.5, 4.0) for rows in (1, 2)),
]
INFORMED = [*BLIND, *(reference_liar(overshoot) for overshoot in (0.0, 0.1, 0.2, 0.3, 0.5))]


def most_hidden(
    liar: Callable[[Floats, Floats, int], Floats],
    sets: Sequence[tuple[Floats, Floats]],
    audits: Sequence[int],
) -> float:
    """Mean bpb that a liar hides with as many lies as pass with 1 % on average over the sets."""

    def at(count: int) -> tuple[float, float]:
        lies = [liar(truth, reference, count) for truth, reference in sets]
        passed = [
            chance_to_pass(truth, lie, reference, audits)
            for (truth, reference), lie in zip(sets, lies, strict=True)
        ]
        hidden = [
            float((truth - lie).sum(dtype=np.float64)) for (truth, _), lie in zip(sets, lies, strict=True)
        ]
        return float(np.mean(passed)), float(np.mean(hidden)) * BPB

    low, high = 0, sets[0][0].size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle)[0] >= audit.SURVIVAL else (low, middle)
    return at(low)[1]


@pytest.mark.parametrize("audits", [(1,), (4,), (1, 2), (4, 4)])
def test_no_liar_hides_more_than_is_said_and_some_hide_nearly_as_much(audits: Sequence[int]) -> None:
    sets = [simulated(*SIZE, seed) for seed in range(20, 24)]
    said = [
        audit.detectable_gain(truth, everywhere(truth), reference, rounds=audits, val_bytes=VAL_BYTES)
        for truth, reference in sets
    ]
    blind, informed = np.mean([one.blind for one in said]), np.mean([one.informed for one in said[:2]])

    best_blind = max(most_hidden(liar, sets, audits) for liar in BLIND)
    best_informed = max(most_hidden(liar, sets[:2], audits) for liar in INFORMED)

    assert 0.7 * blind < best_blind <= blind
    assert 0.7 * informed < best_informed <= informed


@pytest.mark.parametrize("kind", ["blind", "informed"])
def test_half_of_the_detectable_gain_passes_seldom_and_all_of_it_almost_never(kind: str) -> None:
    """The detection curve, by drawing and comparing as a trial does."""
    truth, reference = simulated(*SIZE, 30)
    audits = (4, 4)
    found = audit.detectable_gain(truth, everywhere(truth), reference, rounds=audits, val_bytes=VAL_BYTES)
    liar = row_liar(8.0, 2.0, 2) if kind == "blind" else reference_liar(0.2)
    detectable = found.blind if kind == "blind" else found.informed
    rng = np.random.default_rng(12)

    def passing(part: float) -> float:
        low, count = 0, truth.size
        while count - low > 1:
            middle = (low + count) // 2
            hidden = float((truth - liar(truth, reference, middle)).sum(dtype=np.float64)) * BPB
            low, count = (middle, count) if hidden < part * detectable else (low, middle)
        lie = liar(truth, reference, count)
        passed = 0
        for _ in range(100):
            draws = [audit.draw(lie, everywhere(lie), reference, rounds=one, rng=rng) for one in audits]
            passed += audit.agree(lie, draws, [asked(truth, one) for one in draws], CPU).ok
        return passed / 100

    assert passing(0.05) > 0.4
    assert passing(0.5) < 0.35
    assert passing(1.0) < 0.05


def test_more_rounds_leave_less_to_hide_and_a_split_of_even_rounds_changes_nothing() -> None:
    claim, reference = simulated(*SIZE, 31)

    def said(rounds: int | tuple[int, ...]) -> audit.Detectable:
        return audit.detectable_gain(claim, everywhere(claim), reference, rounds=rounds, val_bytes=VAL_BYTES)

    blind = [said(rounds).blind for rounds in (1, 2, 4, 8)]
    informed = [said(rounds).informed for rounds in (1, 2, 4, 8)]

    assert blind == sorted(blind, reverse=True)
    assert informed == sorted(informed, reverse=True)
    assert all(one < other for one, other in zip(blind, informed, strict=True))
    assert said((4, 4)) == said(8)
    # Two single rounds toss a coin each, a pair does not.
    assert said((1, 1)).blind > said(2).blind


def test_the_blind_gain_lies_below_what_is_kept_at_the_cpu_presets() -> None:
    """The rule of the verdict: sigma and k of the presets tiny and smoke, one baseline's error included."""
    for rows, val_bytes, threshold in ((128, 50_000, 0.0139), (438, 207_000, 0.0069)):
        claim, reference = simulated(rows, 128, 32)
        for audits in ((4,), (4, 4)):
            found = audit.detectable_gain(
                claim, everywhere(claim), reference, rounds=audits, val_bytes=val_bytes
            )
            assert found.blind < threshold / 2


def test_without_a_reference_all_liars_are_alike() -> None:
    """The draw is uniform: whoever lies, lies about the highest claims, down to zero."""
    claim, _ = simulated(*SIZE, 33)
    found = audit.detectable_gain(claim, everywhere(claim), None, rounds=4, val_bytes=VAL_BYTES)

    highest = np.sort(claim.ravel())[::-1].cumsum()
    lies = round(-math.log(audit.SURVIVAL) / 4 * SIZE[1])
    assert found.blind == found.informed
    assert 1 <= found.blind / (highest[lies] * BPB) < 1.4


@given(
    claim=hnp.arrays(np.float32, (4, 6), elements=st.floats(0, 100, width=32)),
    reference=st.none() | hnp.arrays(np.float32, (4, 6), elements=st.floats(0, 100, width=32)),
    countable=hnp.arrays(np.bool_, (4, 6)),
    rounds=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_claimed_there_is_a_finite_answer(
    claim: Floats, reference: Floats | None, countable: npt.NDArray[np.bool_], rounds: int
) -> None:
    found = audit.detectable_gain(claim, countable, reference, rounds=rounds, val_bytes=100)

    assert 0 <= found.blind <= found.informed < math.inf
