"""Pure: from a trial's journal to its record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from runner.ledger import Event, OpenTrial
from runner.measure import Measurement
from runner.trial import AuditFacts, Compute, Ending, Measured, Record, Seconds, Suggested, Verdict


def measurement_to_json(measured: Measurement) -> Event:
    """A measurement as JSON values."""
    return {**dataclasses.asdict(measured), "log_path": str(measured.log_path) if measured.log_path else None}


def measurement_from_json(value: Event) -> Measurement:
    """The inverse of `measurement_to_json`."""
    return Measurement(
        **{
            **value,
            "ending": Ending(value["ending"]) if value["ending"] else None,
            "audit": AuditFacts(**value["audit"]) if value["audit"] else None,
            "compute_seconds": Compute(**value["compute_seconds"]) if value["compute_seconds"] else None,
            "seconds": Seconds(**value["seconds"]),
            "summary": tuple((name, word) for name, word in value["summary"]),
            "losses": tuple((step, loss) for step, loss in value["losses"]),
            "log_path": Path(value["log_path"]) if value["log_path"] else None,
        }
    )


def measurements_of(opened: OpenTrial) -> tuple[Measurement, ...]:
    """What was measured of a trial so far."""
    return tuple(measurement_from_json(value) for value in opened.measured)


def has_score(measured: Measurement) -> bool:
    """True if the measurement came to its end and its score is a number."""
    return measured.ending is Ending.FINISHED and measured.val_bpb is not None and math.isfinite(measured.val_bpb)


def brief(measured: Measurement, *, confirmed: bool) -> Measured:
    """A measurement as a verdict sees it."""
    audit = measured.audit
    return Measured(
        seed=measured.seed,
        val_bpb=measured.val_bpb if has_score(measured) else None,
        charge=measured.charge,
        standard_error=audit.standard_error if audit else None,
        detectable=audit.detectable_blind if audit else None,
        seconds=measured.seconds.total,
        confirmed=confirmed and audit is not None,
    )


def record_of(
    header: Event,
    opened: OpenTrial,
    commit: str,
    measured: Sequence[Measurement],
    *,
    metric: str | None = None,
    maximise: bool = False,
) -> Record:
    """The record of a trial, with everything but the verdict, which is `crash` until one is known.

    If a measurement has no score, neither has the trial, and what is told is that measurement's.
    """
    event = opened.proposed
    failed = next((one for one in measured if not has_score(one)), None)
    told = failed or measured[0]
    scores = [one.val_bpb for one in measured if one.val_bpb is not None]
    return Record(
        trial=opened.trial,
        tag=header["tag"],
        commit=commit,
        parent=None if event["baseline"] else event["parent"],
        agent=event["agent"],
        idea=event["idea"],
        why=event["why"],
        risk=event["risk"],
        kind=event["kind"],
        token=event["token"],
        suggestion=Suggested(event["suggestion"]) if event.get("suggestion") else None,
        ending=told.ending,
        verdict=Verdict.CRASH,
        reason=told.reason,
        val_bpb=None if failed else _mean(scores),
        score_level=None if failed else told.score_level,
        metric=metric,
        maximise=maximise,
        guards_broken=next((one.guards_broken for one in measured if one.guards_broken), None),
        charge=_mean(_known(measured, lambda one: one.charge)),
        slack=_most(_known(measured, lambda one: one.slack)),
        compute_seconds=told.compute_seconds,
        audit=_pooled([one.audit for one in measured if one.audit is not None]),
        measurements=tuple(brief(one, confirmed=index in opened.confirmed) for index, one in enumerate(measured)),
        seed=told.seed if told.seed is not None else event["seed"],
        image=header["image"],
        gpu=header["gpu"],
        memory_gb=_most(_known(measured, lambda one: one.memory_gb)),
        steps=told.steps,
        tokens=told.tokens,
        params=told.params,
        cost_usd=event["cost_usd"],
        prompt_tokens=event.get("prompt_tokens"),
        completion_tokens=event.get("completion_tokens"),
        seconds=told.seconds,
        summary=told.summary,
        losses=told.losses,
        proposed_at=event["at"],
        log_path=str(told.log_path) if told.log_path else None,
    )


def _pooled(audits: Sequence[AuditFacts]) -> AuditFacts | None:
    """Of the mean of several measurements' scores; what a liar could hide in one is not less in the mean."""
    if not audits:
        return None
    count = len(audits)
    return AuditFacts(
        rounds=min(one.rounds for one in audits),
        k=sum(one.k for one in audits),
        correction=math.fsum(one.correction for one in audits) / count,
        standard_error=math.sqrt(math.fsum(one.standard_error**2 for one in audits)) / count,
        detectable_blind=max(one.detectable_blind for one in audits),
        detectable_informed=max(one.detectable_informed for one in audits),
        worst=max(one.worst for one in audits),
    )


def _known(measured: Sequence[Measurement], get: Callable[[Measurement], float | None]) -> list[float]:
    return [value for value in map(get, measured) if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _most(values: Sequence[float]) -> float | None:
    return max(values, default=None)
