from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.coarse import told, told_one
from runner.trial import AuditFacts, Measured, Verdict
from tests.records import record


def measured(count: int) -> tuple[Measured, ...]:
    return tuple(Measured(seed=number, val_bpb=1.5) for number in range(count))


@given(st.floats(0.5, 3), st.floats(1e-5, 0.1), st.integers(1, 4))
def test_scores_are_told_to_half_a_standard_error(score: float, sigma: float, count: int) -> None:
    step = sigma / count**0.5 / 2
    seen = told_one(record(3, val_bpb=score, sigma=sigma, gain=0.01, threshold=0.02, measurements=measured(count)))

    assert seen.val_bpb is not None
    assert abs(seen.val_bpb - score) <= 0.51 * step
    # Scores that differ by less than that cannot be told apart.
    near = told_one(record(3, val_bpb=round(score / step) * step + 0.4 * step, sigma=sigma, measurements=measured(count)))
    assert near.val_bpb == told_one(record(3, val_bpb=round(score / step) * step, sigma=sigma, measurements=measured(count))).val_bpb


def test_neither_reason_nor_audit_nor_single_measurements_tell_more() -> None:
    audit = AuditFacts(
        rounds=4, k=9, correction=0.00012345, standard_error=0.0, detectable_blind=0.0, detectable_informed=0.0, worst=0.0
    )
    seen = told_one(
        record(3, val_bpb=1.51234567, sigma=0.01, gain=0.01234567, threshold=0.02345678, charge=0.0123456,
               measurements=measured(1), audit=audit, reason="gain +0.01234567 is not more than 0.02345678")
    )  # fmt: skip

    assert seen.reason == "gain +0.01 is not more than the 0.025 needed"
    assert (seen.gain, seen.threshold, seen.charge, seen.measurements, seen.audit) == (0.01, 0.025, 0.01, (), None)


def test_a_simplification_is_called_one() -> None:
    seen = told_one(record(3, Verdict.KEEP, 1.5, sigma=0.01, gain=-0.001, threshold=0.02))

    assert seen.reason.endswith("kept as a simplification")


@pytest.mark.parametrize("verdict", [Verdict.CRASH, Verdict.INVALID])
def test_why_a_trial_failed_is_told_in_full(verdict: Verdict) -> None:
    assert told([record(3, verdict, None, reason="train: exit code 1")])[0].reason == "train: exit code 1"
