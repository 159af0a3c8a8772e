"""What a run costs: sums of what is known, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from runner.ledger import State
from runner.money import Costs, Paid, Purse, TooDearError, account, costs, forecast, together
from runner.report.costs import ahead_of, costs_of, costs_text, costs_values, forecast_text, forecast_values
from runner.trial import Measured, Record, Seconds, Spent, Verdict
from tests.records import baseline, record

UNKNOWN = Spent()


def asked(trial: int, usd: float | None = 0.5, tokens: int | None = 100, **values: Any) -> Record:
    return record(trial, **{"agent": "llm", "cost_usd": usd, "prompt_tokens": tokens, "completion_tokens": tokens, **values})


def measured(trial: int, *seconds: float | None, **values: Any) -> Record:
    taken = tuple(Measured(seed=1, val_bpb=1.5, seconds=one) for one in seconds)
    return record(trial, **{"measurements": taken, "seconds": Seconds(total=seconds[0]), **values})


def test_a_sum_is_known_if_every_part_is() -> None:
    one = Spent(cost_usd=0.25, prompt_tokens=10, completion_tokens=1)
    assert together([one, one]) == Spent(cost_usd=0.5, prompt_tokens=20, completion_tokens=2)
    assert together([one, Spent(cost_usd=None, prompt_tokens=10, completion_tokens=1)]) == Spent(prompt_tokens=20, completion_tokens=2)
    assert together([]) == UNKNOWN


def test_who_asks_no_model_is_not_counted() -> None:
    free = [record(at, agent=agent) for at, agent in enumerate(("tuner", "replay", "hand", "runner", "baseline", "selftest"))]
    assert account(free).paid == Paid()
    assert account([*free, asked(9), asked(10, agent="command", usd=None)]).paid == Paid(
        proposals=2, usd=0.5, unpriced=1, prompt_tokens=200, completion_tokens=200
    )


def test_unknown_is_never_nothing() -> None:
    paid = costs(account([asked(1, None, None)]), [UNKNOWN], gpu=False, gpu_usd_per_hour=None).paid
    assert (paid.proposals, paid.unpriced, paid.uncounted) == (2, 2, 2)
    assert (paid.known_usd, paid.tokens()) == (None, None)
    assert Costs(paid=paid, gpu_hours=None, gpu_usd_per_hour=None).total_usd is None
    assert Costs(paid=Paid(), gpu_hours=None, gpu_usd_per_hour=None).total_usd == 0.0
    assert Costs(paid=Paid(), gpu_hours=2.0, gpu_usd_per_hour=None).total_usd is None
    assert Costs(paid=Paid(), gpu_hours=2.0, gpu_usd_per_hour=3.0).total_usd == 6.0


def test_the_gpus_hours_are_those_of_all_measurements() -> None:
    records = [measured(0, 300.0), measured(1, 300.0, 600.0, None), record(2, Verdict.INVALID, None), measured(3, 600.0)]
    assert costs(account(records), gpu=True, gpu_usd_per_hour=2.0).gpu_usd == pytest.approx(1.0)
    assert costs(account(records), gpu=False, gpu_usd_per_hour=2.0).gpu_hours is None


@pytest.mark.parametrize(
    ("trials", "hours", "number", "taken"), [(10, None, 10, 1.0), (None, 2.0, 20, 2.0), (10, 2.0, 10, 1.0), (100, 0.5, 5, 0.5)]
)
def test_a_forecast_is_of_trials_or_hours_whichever_ends_first(trials: int | None, hours: float | None, number: int, taken: float) -> None:
    records = [baseline(0), measured(1, 360.0, agent="llm", cost_usd=0.1)]
    found = forecast(account(records), trials=trials, hours=hours, gpu=True, gpu_usd_per_hour=3.0)
    assert found is not None
    assert found.trials == number
    assert found.hours == pytest.approx(taken)
    assert found.model_usd == pytest.approx(0.1 * number)
    assert found.gpu_usd == pytest.approx(3.0 * taken)
    assert found.total_usd == pytest.approx(0.1 * number + 3.0 * taken)


def test_what_a_forecast_does_not_know() -> None:
    assert forecast(account([]), trials=None, hours=None, gpu=True, gpu_usd_per_hour=1.0) is None
    assert forecast(account([]), trials=None, hours=3.0, gpu=True, gpu_usd_per_hour=1.0) is None
    fresh = forecast(account([]), trials=10, hours=None, gpu=True, gpu_usd_per_hour=1.0, asks=True)
    assert fresh is not None
    assert (fresh.hours, fresh.model_usd, fresh.gpu_usd, fresh.total_usd) == (None, None, None, None)
    timed = forecast(account([]), trials=9, hours=None, gpu=True, gpu_usd_per_hour=1.0, asks=False, baselines=3, at_least=300.0)
    assert timed is not None
    assert (timed.hours, timed.model_usd, timed.total_usd) == (1.0, 0.0, 1.0)
    unpriced = forecast(account([measured(1, 60.0)]), trials=10, hours=None, gpu=True, gpu_usd_per_hour=None)
    assert unpriced is not None
    assert (unpriced.gpu_usd, unpriced.total_usd) == (None, None)


def test_a_purse_without_a_limit_lets_everything_pass() -> None:
    purse = Purse(gpu_usd_per_hour=100.0)
    purse.pay("llm", Spent(cost_usd=1e6))
    purse.expect(1e6)
    purse.check(1e9)
    purse.check(None)
    assert (purse.empty(), purse.limited) == (None, False)


def test_a_purse_says_what_is_spent_and_what_the_next_could_cost() -> None:
    written: list[dict[str, Any]] = []
    purse = Purse(1.0, journal=lambda event, **fields: written.append({"event": event, **fields}))
    with pytest.raises(TooDearError, match=r"^\$0\.0000 of \$1 are spent, and one more proposal could cost \$1\.5000$"):
        purse.check(1.5)
    purse.check(1.0)
    purse.pay("llm", Spent(cost_usd=0.625, prompt_tokens=3, completion_tokens=4))
    purse.pay("llm", UNKNOWN)
    purse.check(0.375)
    with pytest.raises(TooDearError):
        purse.check(None)  # as dear as the dearest
    assert written == [
        {"event": "paid", "agent": "llm", "cost_usd": 0.625, "prompt_tokens": 3, "completion_tokens": 4},
        {"event": "paid", "agent": "llm", "cost_usd": None, "prompt_tokens": None, "completion_tokens": None},
    ]


def test_what_is_told_of_it() -> None:
    state = State(header={"gpu": "GPU-1"})
    state.records = [baseline(0), measured(1, 1800.0, agent="llm", cost_usd=0.25, prompt_tokens=12_000, completion_tokens=800)]
    assert costs_text(costs_of(state, account(state.records), 2.0)) == (
        "models $0.2500 (1 proposal, 12,000 tokens in, 800 out), GPU $1.00 (0.50 hours, at $2)"
    )
    ahead = ahead_of(state, account(state.records), 2.0)
    assert ahead is not None
    assert forecast_text(ahead) == "100 trials in about 50.0 hours: $125.00 (models $25.00, GPU $100.00)"

    state.apply({"event": "paid", "agent": "llm", "cost_usd": None})
    state.apply({"event": "paid", "agent": "llm", "cost_usd": 0.5, "prompt_tokens": 1000, "completion_tokens": 10})
    assert costs_text(costs_of(state, account(state.records), None)) == (
        "models $0.7500 (3 proposals, 13,000 tokens in, 810 out, and what 1 of them cost is unknown, the tokens of 1 are unknown), "
        "GPU of unknown cost (0.50 hours, its price is unknown: cost.gpu_usd_per_hour)"
    )
    values = costs_values(costs_of(state, account(state.records), None))
    assert (values["model_usd"], values["unknown_proposals"], values["gpu_usd"], values["total_usd"]) == (0.75, 1, None, None)


def test_a_run_without_models_and_gpu_costs_nothing_that_is_counted() -> None:
    state = State(header={"gpu": None})
    state.records = [measured(0, 36.0)]
    assert costs_text(costs_of(state, account(state.records), None)) == "no model was asked"
    assert costs_values(costs_of(state, account(state.records), None))["total_usd"] == 0.0
    ahead = ahead_of(state, account(state.records), None)
    assert ahead is not None
    assert forecast_text(ahead) == "100 trials in about 1.0 hours, at no cost that is counted"
    assert forecast_values(None) is None


def test_a_proposal_under_way_is_counted() -> None:
    state = State(header={"gpu": None})
    state.apply({"event": "paid", "agent": "llm", "cost_usd": 0.5, "prompt_tokens": 1, "completion_tokens": 1})
    state.apply({"event": "proposed", "trial": 0, "agent": "llm", "cost_usd": 0.5, "prompt_tokens": 1, "completion_tokens": 1})
    assert costs_of(state, account(state.records), None).paid == Paid(proposals=1, usd=0.5, prompt_tokens=1, completion_tokens=1)
