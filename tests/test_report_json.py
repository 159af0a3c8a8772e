"""The JSON rows have the documented keys, and null for what is unknown."""

from __future__ import annotations

import json
import math

from runner.report.jsonrow import record_json
from runner.trial import Ending, Seconds, Verdict
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
    "proposed_at",
    "log_path",
]


def test_keys_and_nulls() -> None:
    row = record_json(record(3, Verdict.INVALID, None, commit=None))
    assert list(row) == KEYS
    assert row["seconds"] == dict.fromkeys(("startup", "train", "claim", "audit", "total"))
    assert row["audit"] == dict.fromkeys(("k", "correction", "detectable_gain"))
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
