"""What a run costs, for a person and as JSON.  Unknown is unknown, never 0."""

from __future__ import annotations

from typing import Any

from runner.ledger import State, spent_in
from runner.money import FREE, Account, Costs, Forecast, Paid, costs, forecast

AHEAD = 100
"""So many more trials `status` says the cost of."""


def costs_of(state: State, spent: Account, gpu_usd_per_hour: float | None) -> Costs:
    """Of a run: all records, which have `spent`, the proposals under way, and the calls of one that came to nothing."""
    waiting = [spent_in(one.proposed) for one in state.opened.values() if one.proposed["agent"] not in FREE]
    waiting += [spent for calls in state.paid.values() for spent in calls]
    return costs(spent, waiting, gpu=_gpu(state), gpu_usd_per_hour=gpu_usd_per_hour)


def ahead_of(state: State, spent: Account, gpu_usd_per_hour: float | None) -> Forecast | None:
    """Of `AHEAD` more trials, if they are like those before."""
    return forecast(spent, trials=AHEAD, hours=None, gpu=_gpu(state), gpu_usd_per_hour=gpu_usd_per_hour)


def _gpu(state: State) -> bool:
    return bool((state.header or {}).get("gpu"))


def costs_text(found: Costs) -> str:
    """In a line."""
    return ", ".join(part for part in (_paid(found.paid), _gpu_part(found)) if part)


def _paid(paid: Paid) -> str:
    if not paid.proposals:
        return "no model was asked"
    usd, tokens = _usd(paid.known_usd), paid.tokens()
    counted = "tokens unknown" if tokens is None else f"{tokens[0]:,} tokens in, {tokens[1]:,} out"
    known = [f"{paid.proposals} proposal{'' if paid.proposals == 1 else 's'}", counted]
    if paid.known_usd is not None and paid.unpriced:
        known.append(f"and what {paid.unpriced} of them cost is unknown")
    if tokens is not None and paid.uncounted:
        known.append(f"the tokens of {paid.uncounted} are unknown")
    return f"models {usd} ({', '.join(known)})"


def _gpu_part(found: Costs) -> str:
    if found.gpu_hours is None:
        return ""
    price = "its price is unknown: cost.gpu_usd_per_hour" if found.gpu_usd_per_hour is None else f"at ${found.gpu_usd_per_hour:g}"
    return f"GPU {_usd(found.gpu_usd)} ({found.gpu_hours:.2f} hours, {price})"


def forecast_text(found: Forecast) -> str:
    """In a line."""
    trials = f"{found.trials} trial{'' if found.trials == 1 else 's'}"
    time = "in an unknown time" if found.hours is None else f"in about {found.hours:.1f} hours"
    parts = [f"models {_usd(found.model_usd)}"] if found.model_usd != 0 else []
    parts += [f"GPU {_usd(found.gpu_usd)}"] if found.gpu else []
    if not parts:
        return f"{trials} {time}, at no cost that is counted"
    return f"{trials} {time}: {_usd(found.total_usd)} ({', '.join(parts)})" if len(parts) > 1 else f"{trials} {time}: {parts[0]}"


def _usd(value: float | None) -> str:
    if value is None:
        return "of unknown cost"
    return f"${value:.2f}" if value >= 1 else f"${value:.4f}"


def costs_values(found: Costs) -> dict[str, Any]:
    """As JSON; `model_usd` is the sum of what is known of `proposals`, but for `unknown_proposals`."""
    tokens = found.paid.tokens()
    return {
        "proposals": found.paid.proposals,
        "unknown_proposals": found.paid.unpriced,
        "model_usd": found.paid.known_usd,
        "prompt_tokens": None if tokens is None else tokens[0],
        "completion_tokens": None if tokens is None else tokens[1],
        "unknown_tokens": found.paid.uncounted,
        "gpu_hours": found.gpu_hours,
        "gpu_usd_per_hour": found.gpu_usd_per_hour,
        "gpu_usd": found.gpu_usd,
        "total_usd": found.total_usd,
    }


def forecast_values(found: Forecast | None) -> dict[str, Any] | None:
    """As JSON."""
    if found is None:
        return None
    return {"trials": found.trials, "hours": found.hours, "model_usd": found.model_usd, "gpu_usd": found.gpu_usd, "total_usd": found.total_usd}
