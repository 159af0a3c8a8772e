"""The JSON rows have the documented keys, and null for what is unknown."""

from __future__ import annotations

import json
import math

from runner.report.jsonrow import record_json
from runner.trial import AuditFacts, Compute, Ending, Measured, Seconds, Verdict
from tests.records import record

KEYS = [
    "trial",
    "tag",
    "commit",
    "parent",
    "agent",
    "idea",
    "why",
    "kind",
    "ending",
    "verdict",
    "reason",
    "val_bpb",
    "score_level",
    "gain",
    "sigma",
    "seed",
    "image",
    "gpu",
    "memory_gb",
    "steps",
    "tokens",
    "params",
    "cost_usd",
    "seconds",
    "audit",
    "risk",
    "threshold",
    "sigma_interval",
    "charge",
    "slack",
    "compute_seconds",
    "metric",
    "maximise",
    "guards_broken",
    "measurements",
    "proposed_at",
    "log_path",
    "prompt_tokens",
    "completion_tokens",
    "suggestion",
]


def test_keys_and_nulls() -> None:
    row = record_json(record(3, Verdict.INVALID, None, commit=None))
    assert list(row) == KEYS
    assert row["seconds"] == dict.fromkeys(("startup", "train", "claim", "audit", "total"))
    audit = ("k", "correction", "detectable_gain", "detectable_gain_informed", "rounds", "standard_error", "worst")
    assert row["audit"] == dict.fromkeys(audit)
    assert [
        row[key] for key in ("commit", "ending", "val_bpb", "gain", "memory_gb", "steps", "proposed_at")
    ] == [None] * 7


def test_values_are_plain_json() -> None:
    known = record(
        3, Verdict.KEEP, 1.5, ending=Ending.FINISHED, seconds=Seconds(train=2.5), steps=20, gain=0.1
    )
    row = json.loads(json.dumps(record_json(known), allow_nan=False))
    assert (row["verdict"], row["ending"], row["val_bpb"], row["seconds"]["train"], row["steps"]) == (
        "keep",
        "finished",
        1.5,
        2.5,
        20,
    )


def test_what_a_verdict_rests_on_is_all_there() -> None:
    facts = AuditFacts(
        rounds=4, k=1744, correction=1e-4, standard_error=2e-4, detectable_blind=7e-4, detectable_informed=8e-3, worst=0.01
    )
    measurements = (
        Measured(seed=8, val_bpb=1.5, charge=0.01, standard_error=2e-4, detectable=7e-4, seconds=20.0, confirmed=True),
        Measured(seed=9, val_bpb=None),
    )
    row = record_json(
        record(3, charge=0.01, slack=0.002, compute_seconds=Compute(train=3.0, claim=1.0, audit=0.5, startup=2.5), audit=facts,
               sigma=0.003, sigma_interval=(0.002, 0.006), measurements=measurements)
    )  # fmt: skip

    assert (row["charge"], row["slack"], row["sigma_interval"]) == (0.01, 0.002, [0.002, 0.006])
    assert row["compute_seconds"] == {"train": 3.0, "claim": 1.0, "audit": 0.5, "startup": 2.5}
    assert (row["audit"]["k"], row["audit"]["detectable_gain"], row["audit"]["detectable_gain_informed"]) == (1744, 7e-4, 8e-3)
    assert row["measurements"] == [
        {"seed": 8, "val_bpb": 1.5, "charge": 0.01, "seconds": 20.0, "confirmed": True},
        {"seed": 9, "val_bpb": None, "charge": None, "seconds": None, "confirmed": False},
    ]


def test_what_is_not_finite_is_unknown() -> None:
    odd = record(
        3,
        Verdict.CRASH,
        math.nan,
        gain=math.inf,
        sigma=-math.inf,
        memory_gb=math.nan,
        seconds=Seconds(total=math.inf),
    )
    text = json.dumps(record_json(odd), allow_nan=False)
    assert json.loads(text)["seconds"]["total"] is None
