"""What a search without keeps is asked to do differently."""

from __future__ import annotations

from typing import Any

import pytest

from runner.agents.plateau import COMBINE, LARGER, OTHER_KINDS, REFLECT, REFLECT_EVERY, advise, near_misses
from runner.trial import Kind, Record, Suggested, Verdict


def record(trial: int, verdict: Verdict = Verdict.DISCARD, **values: Any) -> Record:
    return Record(**{"trial": trial, "tag": "t", "commit": f"c{trial}", "parent": "p", "agent": "llm", "idea": f"idea {trial}", "verdict": verdict, **values})


def tries(number: int, **values: Any) -> list[Record]:
    kept = [record(0, Verdict.BASELINE), record(1, Verdict.KEEP, kind=Kind.OPTIMIZER)]
    return [*kept, *(record(2 + at, **{"kind": Kind.SCHEDULE, **values}) for at in range(number))]


def test_nothing_is_asked_while_it_goes_well() -> None:
    assert advise([]).wishes == ()
    assert advise(tries(OTHER_KINDS - 1)).wishes == ()
    assert advise(tries(40)[:2]).without_keep == 0


def test_other_kinds_are_asked_for_then_larger_steps() -> None:
    (wish,) = advise(tries(OTHER_KINDS)).wishes
    assert wish.startswith("Not kind schedule this time; nobody tried hyperparameter, architecture, init, systems, simplification yet.")
    assert len(advise(tries(LARGER - 1)).wishes) == 1
    assert f"The last {LARGER} tries were not kept" in advise(tries(LARGER)).wishes[1]


def test_a_keep_starts_the_ladder_again_and_measurements_of_the_champion_do_not() -> None:
    assert advise([*tries(9), record(20, Verdict.KEEP)]).wishes == ()
    assert advise([*tries(OTHER_KINDS), record(20, Verdict.REPEAT)]).without_keep == OTHER_KINDS


@pytest.mark.parametrize(("number", "reflects"), [(REFLECT - 1, False), (REFLECT, True), (REFLECT + 1, False), (REFLECT + REFLECT_EVERY, True)])
def test_a_look_back_now_and_then(number: int, *, reflects: bool) -> None:
    assert advise(tries(number)).look_back == (number + 1 if reflects else None)


def test_proposals_that_came_to_no_trial_are_no_tries() -> None:
    refused = [record(60 + at, Verdict.INVALID) for at in range(20)]
    assert advise([*tries(2), *refused]).without_keep == 2


def test_near_misses_are_named_the_best_first_and_clear_losses_are_not() -> None:
    far = tries(COMBINE, gain=-0.5, threshold=0.01)
    assert not any("near misses" in wish for wish in advise(far).wishes)

    near = [*far, record(50, gain=0.004, threshold=0.01, idea="wider"), record(51, gain=0.008, threshold=0.01, idea="deeper")]
    (wish,) = [one for one in advise(near).wishes if "near misses" in one]
    assert wish == "Or put near misses together: try 51 (deeper); try 50 (wider)."


def test_near_misses_are_since_the_last_keep_and_whoevers() -> None:
    near = [record(50, gain=0.004, threshold=0.01, suggestion=Suggested.UNSEEN), record(51, gain=0.008, threshold=0.01, agent="tuner")]
    assert near_misses([*tries(COMBINE - 3), *near]) == ()
    assert [one.trial for one in near_misses([*tries(COMBINE - 2), *near])] == [51, 50]
    assert near_misses([*tries(COMBINE), *near, record(60, Verdict.KEEP)]) == ()
    assert near_misses([*tries(COMBINE), near[0], record(52, gain=0.5)]) == ()


def test_in_a_hybrid_the_ladder_counts_what_the_model_was_asked_for() -> None:
    alone = [record(40 + at, suggestion=Suggested.UNSEEN) for at in range(9)]
    assert advise([*tries(1), *alone]).without_keep == 1
    assert advise([*tries(OTHER_KINDS), record(60, Verdict.KEEP, suggestion=Suggested.UNSEEN)]).without_keep == 0
    assert advise([*tries(1), record(60, suggestion=Suggested.TAKEN), record(61, suggestion=Suggested.OVERRIDDEN)]).without_keep == 3
