"""Records for the tests of agents and reports."""

from __future__ import annotations

from typing import Any

from runner.trial import Record, Verdict


def record(
    trial: int, verdict: Verdict = Verdict.DISCARD, val_bpb: float | None = 1.5, **more: Any
) -> Record:
    """A record with everything that a test does not care about filled in."""
    values: dict[str, Any] = {
        "tag": "nov21",
        "commit": f"{trial:040x}",
        "parent": "f" * 40,
        "agent": "tuner",
        "idea": f"idea {trial}",
        **more,
    }
    return Record(trial=trial, verdict=verdict, val_bpb=val_bpb, **values)


def baseline(trial: int, val_bpb: float | None = 1.6, **more: Any) -> Record:
    """One measurement of the unmodified file."""
    values = {
        "agent": "baseline",
        "idea": "baseline: the unmodified file",
        "parent": None,
        "commit": "b" * 40,
        **more,
    }
    return record(trial, Verdict.BASELINE, val_bpb, **values)
