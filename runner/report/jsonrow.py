"""A record as the JSON object of `trial --json` and `log --json`.  Unknown is null, never 0, never NaN."""

from __future__ import annotations

import math
from typing import Any

from runner.trial import Record

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
        # Nothing is audited yet; the keys are there so that readers need not change when it is.
        "audit": {"k": None, "correction": None, "detectable_gain": None},
        "risk": record.risk,
        "threshold": _finite(record.threshold),
        "proposed_at": record.proposed_at or None,
        "log_path": record.log_path,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
