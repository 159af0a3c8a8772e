"""A record as the JSON object of `trial --json` and `log --json`.  Unknown is null, never 0, never NaN."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from runner.trial import AuditFacts, Measured, Record

PHASES = ("startup", "train", "claim", "audit", "total")


def record_json(record: Record) -> dict[str, Any]:
    """The documented keys, in their documented order, then a few more."""
    return {
        "trial": record.trial,
        "tag": record.tag,
        "commit": record.commit,
        "parent": record.parent,
        "agent": record.agent,
        "idea": record.idea,
        "why": record.why,
        "kind": str(record.kind),
        "ending": None if record.ending is None else str(record.ending),
        "verdict": str(record.verdict),
        "reason": record.reason,
        "val_bpb": _finite(record.val_bpb),
        "score_level": record.score_level,
        "gain": _finite(record.gain),
        "sigma": _finite(record.sigma),
        "seed": record.seed,
        "image": record.image,
        "gpu": record.gpu,
        "memory_gb": _finite(record.memory_gb),
        "steps": record.steps,
        "tokens": record.tokens,
        "params": record.params,
        "cost_usd": _finite(record.cost_usd),
        "seconds": {phase: _finite(getattr(record.seconds, phase)) for phase in PHASES},
        "audit": _audit(record.audit),
        "risk": record.risk,
        "threshold": _finite(record.threshold),
        "sigma_interval": None if record.sigma_interval is None else [_finite(end) for end in record.sigma_interval],
        "charge": _finite(record.charge),
        "slack": _finite(record.slack),
        "compute_seconds": None if record.compute_seconds is None else dataclasses.asdict(record.compute_seconds),
        "metric": record.metric,
        "maximise": record.maximise,
        "guards_broken": record.guards_broken,
        "measurements": [_measurement(one) for one in record.measurements],
        "proposed_at": record.proposed_at or None,
        "log_path": record.log_path,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "suggestion": None if record.suggestion is None else str(record.suggestion),
    }


def _audit(facts: AuditFacts | None) -> dict[str, Any]:
    """`detectable_gain` is what a liar who does not know the reference could hide."""
    return {
        "k": facts.k if facts else None,
        "correction": _finite(facts.correction) if facts else None,
        "detectable_gain": _finite(facts.detectable_blind) if facts else None,
        "detectable_gain_informed": _finite(facts.detectable_informed) if facts else None,
        "rounds": facts.rounds if facts else None,
        "standard_error": _finite(facts.standard_error) if facts else None,
        "worst": _finite(facts.worst) if facts else None,
    }


def _measurement(one: Measured) -> dict[str, Any]:
    return {
        "seed": one.seed,
        "val_bpb": _finite(one.val_bpb),
        "charge": _finite(one.charge),
        "seconds": _finite(one.seconds),
        "confirmed": one.confirmed,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
