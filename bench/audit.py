"""The figures of docs/score.md, by simulation: what liars can hide, false alarms, detection, error bars.

    .venv/bin/python bench/audit.py [gains laws alarms detection errors lottery second_chance] [--large]

Claims are simulated with the per-token noise between two honest seeds that was measured on real models: standard
deviation 0.95 nats and kurtosis 8 on the King James text, 0.87 and 13 at full size.  `--large` adds the full
GPU size to `gains` (3 GB of memory, some minutes).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runner import audit

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Size:
    """The shape of a preset's validation set and of its claims."""

    name: str
    rows: int
    targets: int
    val_bytes: int
    mean: float
    """Nats per target."""
    noise: float
    """Standard deviation of one seed's nll minus another's, nats."""
    threshold: float
    """What a gain must exceed to be kept, bits per byte."""

    @property
    def bpb(self) -> float:
        """Bits per byte that one nat in the sum is worth."""
        return 1 / (math.log(2) * self.val_bytes)


TINY = Size(name="tiny", rows=128, targets=128, val_bytes=50_000, mean=4.2, noise=0.95, threshold=0.0173)
SMOKE = Size(name="smoke", rows=438, targets=128, val_bytes=207_002, mean=4.2, noise=0.95, threshold=0.0069)
LARGE = Size(
    name="full", rows=10240, targets=2048, val_bytes=90_000_000, mean=3.2, noise=0.87, threshold=0.0005
)
PART = Size(
    name="full, 1280 rows",
    rows=1280,
    targets=2048,
    val_bytes=90_000_000,
    mean=3.2,
    noise=0.87,
    threshold=0.0005,
)


def simulate(size: Size, seed: int, baselines: int = 3) -> tuple[Floats, Floats]:
    """An honest claim and the mean of `baselines` others: float32 [rows, targets] each, nats.

    Difficulty is gamma-distributed per target and row; the noise of a seed grows with its root and has the tails
    of Student's t with 7 degrees of freedom, which gives the measured kurtosis.
    """
    rng = np.random.default_rng(seed)
    claim = np.empty((size.rows, size.targets), dtype=np.float32)
    reference = np.empty_like(claim)
    for start in range(0, size.rows, 256):
        shape = (min(256, size.rows - start), size.targets)
        truth = rng.gamma(1.6, size.mean / 1.6, shape) * rng.gamma(40, 1 / 40, (shape[0], 1))
        # Variance of t(7) is 7/5; of the difference of two seeds twice that; E(0.1 + root)^2 by its terms.
        spread = 0.1 + np.sqrt(truth)
        scale = size.noise / math.sqrt(2 * 7 / 5 * float(np.square(spread).mean()))

        def seed_noise(shape: tuple[int, int] = shape, by: Floats = scale * spread) -> Floats:
            return by * rng.standard_t(7, shape)

        rows = slice(start, start + shape[0])
        claim[rows] = np.maximum(truth + seed_noise(), 0)
        reference[rows] = np.maximum(truth + sum(seed_noise() for _ in range(baselines)) / baselines, 0)
    return claim, reference


# --------------------------------------------------------------------------------------------------------- laws


@dataclass(frozen=True, kw_only=True)
class Law:
    """A law of the draw: how stakes follow the advantage, and whether rounds of a pair differ."""

    name: str
    power: float = 2.0
    pairs: bool = True
    uniform: float = 0.5

    def stake(self, advantage: Floats) -> Floats:
        """Of a target, from reference minus claim in nats."""
        return (np.maximum(advantage, 0) + audit.FLOOR) ** self.power

    def cost(self, by_number: Floats, by_stake: Floats, audits: Sequence[int]) -> Floats:
        """Minus the logarithm of a row's chance to pass with lies that hold these parts of the two laws."""
        total = np.zeros(np.broadcast(by_number, by_stake).shape)
        for rounds in audits:
            each = 0.0 if not self.pairs else rounds // 2
            total -= each * np.log(np.maximum((1 - by_number) * (1 - by_stake), 1e-12))
            mixed = 1 - self.uniform * by_number - (1 - self.uniform) * by_stake
            total -= (rounds - 2 * each) * np.log(np.maximum(mixed, 1e-12))
        return total

    def variance(self, claim: Floats, reference: Floats) -> float:
        """Of the correction for noise of one size on every target, as a multiple of a uniform draw's."""
        stake = self.stake(reference - claim)
        chance = self.uniform / claim.shape[1] + (1 - self.uniform) * stake / stake.sum(axis=1, keepdims=True)
        return float((1 / chance).mean()) / claim.shape[1]


SHIPPED = Law(name="squared stakes, whole rounds of each law")
LAWS = (
    Law(name="linear stakes, a coin every round", power=1, pairs=False),
    Law(name="squared stakes, a coin every round", pairs=False),
    Law(name="linear stakes, whole rounds of each law", power=1),
    SHIPPED,
    Law(name="cubed stakes, whole rounds of each law", power=3),
    Law(name="squared stakes, a coin, 3/4 uniform", pairs=False, uniform=0.75),
    Law(name="uniform", pairs=False, uniform=1.0),
)


# -------------------------------------------------------------------------------------------------------- liars


def blind_liars(
    law: Law, data: Sequence[tuple[Floats, Floats]], audits: Sequence[int]
) -> Iterator[tuple[float, str]]:
    """Hidden nats of liars who see the claim alone, each at the most lies that pass with 1 % on average.

    One lies about the `steps` targets nearest to some claim, in the rows with the highest claims, all to one depth.
    """
    ranked = [np.argsort(-np.sort(claim, axis=1)[:, -claim.shape[1] // 5 :].sum(axis=1)) for claim, _ in data]
    for centre in (math.inf, 3.0, 4.0, 5.0, 6.0, 8.0):
        for depth in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, math.inf):
            for count in (1, 2, 3, 5, 20, 100):
                gains, passed = [], []
                for (claim, reference), order_of_rows in zip(data, ranked, strict=True):
                    rows = order_of_rows[:count]
                    truth, known = claim[rows].astype(float), reference[rows].astype(float)
                    order = np.argsort(-truth if centre == math.inf else np.abs(truth - centre), axis=1)
                    gain, cost = ever_more(law, truth, known, np.maximum(truth - depth, 0), order, audits)
                    gains.append(gain)
                    passed.append(np.exp(-cost))
                yield at_one_percent(gains, passed), f"{count} rows, near {centre:g}, depth {depth:g}"


def informed_liars(
    law: Law, data: Sequence[tuple[Floats, Floats]], audits: Sequence[int]
) -> Iterator[tuple[float, str]]:
    """Hidden nats of liars who see the reference, and lie a little below it where their claim is worst."""
    for overshoot in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0):
        gains, passed = [], []
        for claim, reference in data:
            gain, cost = worst_first(law, claim, reference, overshoot, audits)
            gains.append(gain)
            passed.append(np.exp(-cost))
        yield at_one_percent(gains, passed), f"overshoot {overshoot:g}"


def ever_more(
    law: Law,
    truth: Floats,
    reference: Floats,
    lie: Floats,
    order: npt.NDArray[np.int64],
    audits: Sequence[int],
) -> tuple[Floats, Floats]:
    """Hidden nats and cost, summed over the rows, of lying about the first 1, 2, ... targets of `order`."""
    truth, reference, lie = (np.take_along_axis(one, order, axis=1) for one in (truth, reference, lie))
    honest, lied = law.stake(reference - truth), law.stake(reference - lie).cumsum(axis=1)
    others = honest.sum(axis=1, keepdims=True) - honest.cumsum(axis=1)
    numbers = np.arange(1, truth.shape[1] + 1) / truth.shape[1]
    cost = law.cost(numbers, lied / (lied + np.maximum(others, 0)), audits)
    return (truth - lie).cumsum(axis=1).sum(axis=0), cost.sum(axis=0)


def worst_first(
    law: Law, truth: Floats, reference: Floats, overshoot: float, audits: Sequence[int]
) -> tuple[Floats, Floats]:
    """The same over the whole set, 256 ever longer lists of the targets that are worst against the reference."""
    lie = np.minimum(truth, np.maximum(reference - overshoot, 0))
    worst = np.argsort((lie - truth).ravel())[: truth.size // 10]
    whole = law.stake(reference - truth).sum(axis=1, dtype=float)
    row = worst // truth.shape[1]
    gain = (truth - lie).ravel()[worst].astype(float)
    lied = law.stake((reference - lie).ravel()[worst]).astype(float)
    honest = law.stake((reference - truth).ravel()[worst]).astype(float)
    gains, costs = [], []
    for upto in np.unique(np.geomspace(1, len(worst), 256).astype(int)):
        number, by_lies, gone = (
            np.bincount(row[:upto], weights=one[:upto], minlength=len(truth))
            for one in (np.ones(len(worst)), lied, honest)
        )
        by_stake = by_lies / np.maximum(by_lies + whole - gone, 1e-12)
        gains.append(gain[:upto].sum())
        costs.append(law.cost(number / truth.shape[1], by_stake, audits).sum())
    return np.array(gains), np.array(costs)


def at_one_percent(gains: Sequence[Floats], passed: Sequence[Floats]) -> float:
    """What is hidden where the mean chance to pass is 1 %, between the two nearest numbers of lies."""
    gain, log_passed = np.mean(gains, axis=0), np.log(np.maximum(np.mean(passed, axis=0), 1e-300))
    return float(np.interp(math.log(1 / audit.SURVIVAL), -log_passed, gain, left=0.0))


# ------------------------------------------------------------------------------------------------------- tables


def gains(*, large: bool) -> None:
    """Detectable gains by preset and rounds, and the best liars found."""
    print("detectable gain in bpb: the bound, and the best liar found in simulation")
    print(
        f"{'size':16s} {'audits':8s} {'keep at':>8s} {'blind':>9s} {'liar':>9s} {'informed':>9s} {'liar':>9s}"
    )
    for size, plans, sets in (
        (TINY, ((4,), (4, 4)), 12),
        (SMOKE, ((1,), (4,), (4, 2), (4, 4)), 12),
        (PART, ((1,), (1, 2)), 2),
        *(((LARGE, ((1,), (1, 2), (2, 2)), 1),) if large else ()),
    ):
        data = [simulate(size, seed) for seed in range(sets)]
        for audits in plans:
            found = [
                audit.detectable_gain(
                    claim,
                    np.ones(claim.shape, dtype=bool),
                    reference,
                    rounds=audits,
                    val_bytes=size.val_bytes,
                )
                for claim, reference in data[:4]
            ]
            blind, how = max(blind_liars(SHIPPED, data, audits))
            informed = max(blind, max(informed_liars(SHIPPED, data[:4], audits))[0])
            print(
                f"{size.name:16s} {'+'.join(map(str, audits)):8s} {size.threshold:8.4f}"
                f" {np.mean([one.blind for one in found]):9.6f} {blind * size.bpb:9.6f}"
                f" {np.mean([one.informed for one in found]):9.6f} {informed * size.bpb:9.6f}  ({how})",
                flush=True,
            )


def laws(*, large: bool) -> None:
    """The best liars found against other laws of the draw."""
    del large
    print("smoke: gain in bpb of the best liar found, and variance against a uniform draw, for each law")
    data = [simulate(SMOKE, seed) for seed in range(8)]
    for law in LAWS:
        cells = []
        for audits in ((4,), (4, 4)):
            blind = max(blind_liars(law, data, audits))[0] * SMOKE.bpb
            informed = max(blind, max(informed_liars(law, data, audits))[0] * SMOKE.bpb)
            cells.append(f"{'+'.join(map(str, audits))}: blind {blind:.5f} informed {informed:.5f}")
        print(f"{law.name:42s} {'   '.join(cells)}   variance {law.variance(*data[0]):.2f}", flush=True)


def bf16_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Audit minus claim of an honest bf16 model: Student's t with 6 degrees of freedom, sd 0.012, mean 0.0006.

    Measured: sd 0.009 to 0.012 over batch shapes, compilers and precisions, largest 0.17 in 4.2 M targets.
    """
    return 0.0006 + 0.012 / math.sqrt(6 / 4) * rng.standard_t(6, shape)


def cpu_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """The same of float32 on a CPU, pessimistic: measured differences were 0."""
    return 2e-5 * rng.standard_t(3, shape)


def alarms(*, large: bool) -> None:
    """How often honest claims fail."""
    del large
    print("false alarms of honest claims")
    for size, device, noise, rounds, repeats in (
        (SMOKE, "cpu", cpu_noise, 4, 4000),
        (TINY, "cpu", cpu_noise, 4, 4000),
        (SMOKE, "cuda", bf16_noise, 4, 4000),
        (PART, "cuda", bf16_noise, 1, 4000),
        (LARGE, "cuda", bf16_noise, 1, 2000),
        (LARGE, "cuda", bf16_noise, 3, 1000),
    ):
        # The draw matters only through the weights, so one block of rows stands for all.
        block = Size(**{**vars(size), "rows": min(size.rows, 512)})
        claim, reference = simulate(block, 1)
        countable = np.ones(claim.shape, dtype=bool)
        rng = np.random.default_rng(2)
        one = audit.draw(claim, countable, reference, rounds=rounds, rng=rng)
        rows = rng.integers(0, block.rows, size.rows)
        zero = np.broadcast_to(np.zeros(1, dtype=np.float32), (size.rows, size.targets))
        many = audit.Draw(cuts=one.cuts[:, rows], probability=one.probability[:, rows])
        failed = [
            verdict.reason
            for _ in range(repeats)
            if not (
                verdict := audit.agree(zero, [many], [noise(rng, many.cuts.shape)], audit.TOLERANCES[device])
            ).ok
        ]
        print(
            f"{size.name:16s} {device:5s} {many.cuts.size:6d} answers: {len(failed)} of {repeats}", failed[:2]
        )


def detection(*, large: bool) -> None:
    """How often drawn audits catch liars of several sizes, at smoke with 4 rounds and with 4 + 4."""
    del large
    print("smoke: share of liars that pass every audit, by drawing; gain in parts of the detectable one")
    limits = audit.TOLERANCES["cpu"]
    for audits in ((4,), (4, 4)):
        for kind in ("blind", "informed"):
            for part in (0.1, 0.25, 0.5, 1.0):
                hidden, passed, repeats = [], 0, 400
                for seed in range(4):
                    claim, reference = simulate(SMOKE, seed)
                    countable = np.ones(claim.shape, dtype=bool)
                    bound = audit.detectable_gain(
                        claim, countable, reference, rounds=audits, val_bytes=SMOKE.val_bytes
                    )
                    aim = part * (bound.blind if kind == "blind" else bound.informed) / SMOKE.bpb
                    lie = (near_four if kind == "blind" else below_reference)(claim, reference, aim)
                    hidden.append(float((claim - lie).sum(dtype=float)) * SMOKE.bpb)
                    rng = np.random.default_rng(seed)
                    for _ in range(repeats // 4):
                        draws = [
                            audit.draw(lie, countable, reference, rounds=rounds, rng=rng) for rounds in audits
                        ]
                        answers = [claim[np.arange(SMOKE.rows), one.cuts].astype(float) for one in draws]
                        passed += audit.agree(lie, draws, answers, limits).ok
                name = "+".join(map(str, audits))
                print(
                    f"{name:4s} {kind:9s} {part:5.2f} = {np.mean(hidden):.5f} bpb: {passed / repeats:6.1%} pass"
                )


def near_four(claim: Floats, reference: Floats, aim: float) -> Floats:
    """The blind liar's best shape at 4 rounds: one row, 3 nats off the targets nearest to 4."""
    del reference
    lie = claim.copy()
    row = int(np.sort(claim, axis=1)[:, -claim.shape[1] // 5 :].sum(axis=1).argmax())
    order = np.argsort(np.abs(claim[row] - 4))
    depths = np.minimum(claim[row][order], 3)
    chosen = order[: int(np.searchsorted(depths.cumsum(), aim)) + 1]
    lie[row, chosen] = np.maximum(claim[row, chosen] - 3, 0)
    return lie


def below_reference(claim: Floats, reference: Floats, aim: float) -> Floats:
    """The informed liar's: 0.2 nats below the reference wherever the claim is worst against it."""
    lie = claim.copy().ravel()
    better = np.minimum(claim, np.maximum(reference - 0.2, 0)).ravel()
    order = np.argsort(better - lie)
    chosen = order[: int(np.searchsorted((lie - better)[order].cumsum(dtype=float), aim)) + 1]
    lie[chosen] = better[chosen]
    return lie.reshape(claim.shape)


def errors(*, large: bool) -> None:
    """Whether the standard error says what the score does over draws."""
    del large
    print("standard error of the score over draws, bpb: true, and as reported (mean)")
    for size, rounds, noise, name in (
        (SMOKE, 4, bf16_noise, "bf16 noise"),
        (SMOKE, 4, lambda _, shape: np.full(shape, 0.05), "every target 0.05 off"),
        (PART, 1, bf16_noise, "bf16 noise"),
        (PART, 3, bf16_noise, "bf16 noise"),
    ):
        claim, reference = simulate(size, 1)
        countable = np.ones(claim.shape, dtype=bool)
        rng = np.random.default_rng(3)
        truth = claim + noise(rng, claim.shape)
        found = []
        for _ in range(200 if size is SMOKE else 40):
            one = audit.draw(claim, countable, reference, rounds=rounds, rng=rng)
            answers = [truth[np.arange(size.rows), one.cuts]]
            found.append(audit.estimate(claim, countable, [one], answers, val_bytes=size.val_bytes))
        true = float(np.std([one.val_bpb for one in found]))
        said = float(np.sqrt(np.mean([one.standard_error**2 for one in found])))
        whole = truth.sum(dtype=float) * size.bpb
        off = np.mean([one.val_bpb for one in found]) - whole
        print(
            f"{size.name:16s} {rounds} rounds, {name:22s} true {true:.2e}, reported {said:.2e}, bias {off:+.1e};"
            f" at 10240 rows {said * math.sqrt(10240 / size.rows):.1e}"
        )


def lottery(*, large: bool) -> None:
    """What lies inside the limits may win: the answer corrects each in the mean, and the rest is luck."""
    del large
    print(
        "lies of the size of `hard`, seen n times where m are expected: luck at 1 %, less 2 standard errors"
    )
    for size, device, audits in ((SMOKE, "cpu", (4, 4)), (LARGE, "cuda", (1, 2))):
        rounds, tolerance = sum(audits), audit.TOLERANCES[device]
        allowed = audit.poisson_quantile(tolerance.rate * rounds * size.rows)
        unit = tolerance.hard * 2 * size.targets / rounds * size.bpb
        best = [
            max(((mean - low) - 2 * math.sqrt(low), mean, low) for mean, low in few(allowed)),
            max(((high - mean) - 2 * math.sqrt(high), mean, high) for mean, high in many(allowed)),
        ]
        print(
            f"{size.name}: one lie is worth {unit:.1e} bpb, {allowed} may be seen; too good by luck beyond the error"
            f" bar: {max(0, best[0][0]) * unit:.1e} (claims too low), {max(0, best[1][0]) * unit:.1e} (too high)"
        )


def few(allowed: int) -> Iterator[tuple[float, int]]:
    """Expected numbers of seen lies, with the number that is undercut with 1 %."""
    for mean in np.arange(0.5, 60, 0.5):
        low = poisson_inverse(float(mean), 0.01)
        if low is not None and low <= allowed:
            yield float(mean), low


def many(allowed: int) -> Iterator[tuple[float, int]]:
    """The same with the number that is reached with 1 %."""
    for mean in np.arange(0.01, 60, 0.05):
        high = audit.poisson_quantile(float(mean), 0.01)
        if high <= allowed:
            yield float(mean), high


def poisson_inverse(mean: float, chance: float) -> int | None:
    """The largest n with P(X <= n) <= chance, if any."""
    term = below = math.exp(-mean)
    if below > chance:
        return None
    count = 0
    while True:
        term *= mean / (count + 1)
        if below + term > chance:
            return count
        below += term
        count += 1


def second_chance(*, large: bool) -> None:
    """What liars gain who stay below `gross`, so that a seen lie is audited again: every answer counts."""
    del large
    print(
        "blind liars below `gross`, with the second audit that a failure gets; hidden at 1 %, after corrections"
    )
    for size, device, audits in ((SMOKE, "cpu", (4, 4)), (PART, "cuda", (1, 2)), (PART, "cuda", (2, 2))):
        claim, reference = simulate(size, 1)
        bound = audit.detectable_gain(
            claim, np.ones(claim.shape, dtype=bool), reference, rounds=audits, val_bytes=size.val_bytes
        )
        limits = audit.TOLERANCES[device]
        best = (0.0, 0.0, 0, 0)
        rng = np.random.default_rng(5)
        ranked = np.argsort(-np.sort(claim, axis=1)[:, -size.targets // 5 :].sum(axis=1))
        for count in (1, 2, 4):
            rows = ranked[:count]
            for share in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5):
                lie = claim[rows].copy()
                order = np.argsort(np.abs(lie - 5), axis=1)[:, : max(1, int(share * size.targets))]
                deep = np.maximum(np.take_along_axis(lie, order, axis=1) - np.float32(0.95 * limits.gross), 0)
                np.put_along_axis(lie, order, deep, axis=1)
                won = [
                    one_liar(claim[rows], lie, reference[rows], audits, limits, size, rng) for _ in range(400)
                ]
                plain, beyond = (float(np.quantile(each, 0.99)) for each in zip(*won, strict=True))
                best = max(best, (plain, beyond, count, order.shape[1]))
        print(
            f"{size.name:16s} {device:5s} {'+'.join(map(str, audits))}: {best[0]:.6f} bpb ({best[2]} rows, {best[3]}"
            f" targets each), {best[1]:.6f} beyond two standard errors; bound {bound.blind:.6f}",
            flush=True,
        )


def one_liar(
    truth: Floats,
    lie: Floats,
    reference: Floats,
    audits: Sequence[int],
    limits: audit.Tolerance,
    size: Size,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Bits per byte that one trial of a liar hides, 0 if it fails; and what of it exceeds two standard errors."""
    everywhere = np.ones(lie.shape, dtype=bool)
    draws: list[audit.Draw] = []
    answers: list[npt.NDArray[np.float64]] = []

    def agrees(rounds: int) -> audit.Agreement:
        draws.append(audit.draw(lie, everywhere, reference, rounds=rounds, rng=rng))
        answers.append(truth[np.arange(len(truth)), draws[-1].cuts].astype(float))
        return audit.agree(lie, draws[-1:], answers[-1:], limits)

    for rounds in audits:
        first = agrees(rounds)
        if not first.ok and not (first.recheck and agrees(2).ok):
            return 0.0, 0.0
    found = audit.estimate(lie, everywhere, draws, answers, val_bytes=size.val_bytes)
    hidden = float(truth.sum(dtype=float)) * size.bpb - found.val_bpb
    return hidden, hidden - 2 * found.standard_error


TABLES: dict[str, Callable[..., None]] = {
    one.__name__: one for one in (gains, laws, alarms, detection, errors, lottery, second_chance)
}


def main() -> int:
    """Print the tables that are asked for; all of them without a name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which (default: all)")
    parser.add_argument("--large", action="store_true", help="with the full GPU size")
    asked = parser.parse_args()
    for name in asked.tables or TABLES:
        TABLES[name](large=asked.large)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
