"""The shipped attacks as text, and what counts as a success of one; without an engine."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runner.cli import app
from runner.errors import UsageError
from runner.gates import GateLimits, fingerprint, refuse
from runner.ledger import trial_folder
from runner.prepare import Prepared, load
from runner.resources import resource
from runner.selftest import catalogue
from runner.selftest.agent import AttackAgent
from runner.selftest.catalogue import Attack
from runner.selftest.outcome import STANDARD_ERRORS, Evidence, Outcome, compared, honest_bound, weigh
from runner.selftest.traces import Traces
from runner.selftest.view import SelftestView, line
from runner.statics import static_errors
from runner.trial import Ending, Record, Verdict
from tests.fakes import prepared_folder

ATTACKS = catalogue.load()
ENDINGS = {str(ending) for ending in Ending} | {catalogue.REFUSED}
CHAMPION = resource("trainer", "train.py").read_text()


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Prepared data in which every token is a letter."""
    data = load(prepared_folder(tmp_path / "data"))
    (data.path / "prepare" / "tokenizer.json").write_text(json.dumps({"ranks": ["YQ==", "Yg=="] * 150}))
    return data


def record(trial: int = 3, **values: Any) -> Record:
    given: dict[str, Any] = {
        "tag": "t",
        "commit": f"c{trial}",
        "parent": "b",
        "agent": "selftest",
        "idea": "an attack",
        "token": "one",
        "ending": Ending.FINISHED,
        "verdict": Verdict.DISCARD,
        "reason": "gain too small",
        "val_bpb": 2.0,
    }
    return Record(trial=trial, **{**given, **values})


def baselines(*scores: float, sigma: float = 0.01) -> list[Record]:
    return [record(i, val_bpb=score, sigma=sigma, verdict=Verdict.BASELINE, token="") for i, score in enumerate(scores)]


def attack(**values: object) -> Attack:
    given: dict[str, object] = {"name": "one", "area": "claim", "tries": "lies", "honest": ("finished", "refused")}
    return Attack(**{**given, **values})  # type: ignore[arg-type]


# The attacks ------------------------------------------------------------------------------------------------------


def test_there_are_many_and_a_third_of_them_is_quick() -> None:
    quick = [one for one in ATTACKS if one.quick]

    assert len(ATTACKS) >= 60
    assert len(ATTACKS) / 4 < len(quick) < len(ATTACKS) / 2
    assert {one.area for one in quick} == {one.area for one in ATTACKS}
    assert {one.area for one in ATTACKS} == {
        "audit", "budget", "checkpoint", "claim", "environment", "escape", "exhaustion", "gate", "targets",
    }  # fmt: skip


@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: one.name)
def test_an_attack_says_what_it_tries_and_how_it_should_fail(one: Attack) -> None:
    assert one.name == one.name.lower().replace(" ", "-")
    assert one.tries[0].islower()
    assert not one.tries.endswith(".")
    assert one.honest
    assert set(one.honest) <= ENDINGS


@pytest.mark.parametrize("one", ATTACKS, ids=lambda one: one.name)
def test_an_attack_becomes_a_program_that_the_gates_let_pass_unless_they_are_what_it_is_about(
    one: Attack, prepared: Prepared
) -> None:
    source = one.candidate(CHAMPION, prepared)

    ast.parse(source)
    assert source != CHAMPION
    refused = refuse(source, champion=CHAMPION, tried={}, limits=GateLimits(), held_out=None)
    if one.honest == (catalogue.REFUSED,):
        # What repeats text of the data set is found by comparing with that.
        assert refused or one.embeds in {"text", "ids"}
    else:
        assert refused is None
        assert static_errors(source, CHAMPION) is None


def test_no_two_attacks_are_the_same_program(prepared: Prepared) -> None:
    prints = [fingerprint(one.candidate(CHAMPION, prepared)) for one in ATTACKS]

    assert len(set(prints)) == len(prints)


def test_the_code_stands_before_the_last_lines() -> None:
    made = catalogue.insert("a = 1\n\n\nif __name__ == \"__main__\":\n    main()\n", "b = 2\n")

    assert made == "a = 1\n\n\nb = 2\n\n\nif __name__ == \"__main__\":\n    main()\n"


@pytest.mark.parametrize("champion", ["a = 1\n", 2 * "\nif __name__ == \"__main__\":\n    main()\n"])
def test_a_champion_of_another_form_is_refused(champion: str) -> None:
    with pytest.raises(UsageError, match="exactly one line"):
        catalogue.insert(champion, "b = 2\n")


def test_the_transforms_keep_what_they_should() -> None:
    assert fingerprint(catalogue.respace(CHAMPION)) == fingerprint(CHAMPION)
    assert catalogue.respace(CHAMPION) != CHAMPION
    assert fingerprint(catalogue.strip_comments(CHAMPION)) == fingerprint(CHAMPION)
    assert "# " not in catalogue.strip_comments("a = 1  # one\n# two\nb = '# three'\n").replace("'# three'", "")
    assert len(catalogue.grow(CHAMPION)) > len(CHAMPION) + 100_000
    dropped = catalogue.drop_kernels(CHAMPION)
    ast.parse(dropped)
    assert len(dropped) < 0.95 * len(CHAMPION)


def test_what_the_host_embeds_is_text_of_the_validation_rows(prepared: Prepared) -> None:
    first = [int(token) for token in prepared.rows("val").ravel()[:10]]

    assert catalogue.validation_text(prepared)[:10] == "".join("ab"[token % 2] for token in first)
    assert catalogue.EMBEDDED["ids"](prepared) == [int(token) for token in prepared.rows("val").ravel()]


def test_attacks_are_chosen_by_name_area_and_speed() -> None:
    chosen = catalogue.choose(ATTACKS, names=["claims-zero"], areas=["gate"])

    assert {one.area for one in chosen if one.name != "claims-zero"} == {"gate"}
    assert "claims-zero" in {one.name for one in chosen}
    assert all(one.quick for one in catalogue.choose(ATTACKS, quick=True))
    assert catalogue.choose(ATTACKS) == ATTACKS


@pytest.mark.parametrize("wrong", [{"names": ["nothing"]}, {"areas": ["nowhere"]}])
def test_an_unknown_name_or_area_is_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(UsageError, match="--list"):
        catalogue.choose(ATTACKS, **wrong)  # type: ignore[arg-type]


# What counts ------------------------------------------------------------------------------------------------------


@given(scores=st.lists(st.floats(1, 3), min_size=1, max_size=5), sigma=st.floats(1e-4, 0.1))
def test_the_bound_lies_below_the_mean_by_standard_errors_of_one_measurement(scores: list[float], sigma: float) -> None:
    mean, error = sum(scores) / len(scores), sigma * (1 + 1 / len(scores)) ** 0.5

    assert honest_bound(baselines(*scores, sigma=sigma)) == pytest.approx(mean - STANDARD_ERRORS * error)


def test_an_honest_score_is_no_success() -> None:
    found = weigh(attack(), [record()], baselines(2.0, 2.02), Evidence(), 1.5)

    assert (found.succeeded, found.expected, found.reason) == (False, True, "gain too small")
    assert (found.ending, found.verdict, found.val_bpb, found.seconds) == ("finished", "discard", 2.0, 1.5)


@pytest.mark.parametrize(
    ("changes", "evidence", "said"),
    [
        ({"verdict": Verdict.KEEP}, Evidence(), "it was kept"),
        ({"val_bpb": 1.9}, Evidence(), "a score of 1.9000, below"),
        ({"val_bpb": float("nan")}, Evidence(), "a score of nan, below"),
        ({"summary": (("a\x1b[2J", "1"),)}, Evidence(), "control characters"),
        ({"ending": Ending.CRASHED, "val_bpb": None}, Evidence(breaches=("the network answered",)), "the network answered"),
        ({"ending": Ending.CRASHED, "val_bpb": None}, Evidence(remains=("2 containers",)), "left behind: 2 containers"),
        ({"ending": Ending.CRASHED, "val_bpb": None}, Evidence(escaped=("/tmp/x",)), "on the host: /tmp/x"),
    ],
)
def test_what_a_success_is(changes: dict[str, Any], evidence: Evidence, said: str) -> None:
    found = weigh(attack(), [record(**changes)], baselines(2.0, 2.02), evidence, 1.0)

    assert found.succeeded
    assert not found.expected
    assert said in found.reason


def test_what_computation_is_charged_counts() -> None:
    cheap = record(val_bpb=1.9, charge=0.15)

    assert compared(cheap) == pytest.approx(2.05)
    assert not weigh(attack(), [cheap], baselines(2.0, 2.02), Evidence(), 1.0).succeeded
    assert weigh(attack(), [replace(cheap, charge=0.0)], baselines(2.0, 2.02), Evidence(), 1.0).succeeded


def test_another_failure_than_the_attacks_own_is_told_apart() -> None:
    crashed = record(ending=Ending.CRASHED, verdict=Verdict.CRASH, val_bpb=None)
    refused = record(ending=None, verdict=Verdict.INVALID, val_bpb=None, commit=None)

    assert not weigh(attack(), [crashed], baselines(2.0), Evidence(), 1.0).expected
    assert weigh(attack(honest=("crashed",)), [crashed], baselines(2.0), Evidence(), 1.0).expected
    assert weigh(attack(), [refused], baselines(2.0), Evidence(), 1.0).expected
    assert weigh(attack(), [refused], baselines(2.0), Evidence(), 1.0).ending is None


# The agent --------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_agent(prepared: Prepared) -> Callable[[list[Attack]], tuple[AttackAgent, list[Outcome]]]:
    def make(attacks: list[Attack]) -> tuple[AttackAgent, list[Outcome]]:
        told: list[Outcome] = []
        return AttackAgent(attacks, lambda: prepared, lambda _: Evidence(), told.append), told

    return make


def test_attacks_are_proposed_in_turn_and_weighed_when_judged(
    make_agent: Callable[[list[Attack]], tuple[AttackAgent, list[Outcome]]],
) -> None:
    agent, told = make_agent([attack(name="one", code="a = 1"), attack(name="two", code="a = 2")])
    history = baselines(2.0, 2.01)

    first = agent.propose(CHAMPION, history)
    assert first is not None
    assert (first.token, told) == ("one", [])
    assert "\na = 1\n" in first.source
    history.append(record(2, token="one"))
    second = agent.propose(CHAMPION, history)
    assert second is not None
    assert ([one.attack for one in told], second.token) == (["one"], "two")
    history.append(record(3, token="two", ending=Ending.CRASHED, verdict=Verdict.CRASH, val_bpb=None))
    assert agent.propose(CHAMPION, history) is None
    assert [(one.attack, one.ending, one.trials) for one in told] == [("one", "finished", (2,)), ("two", "crashed", (3,))]
    assert agent.left == []


def test_after_a_keep_nothing_more_is_proposed_in_that_run(
    make_agent: Callable[[list[Attack]], tuple[AttackAgent, list[Outcome]]],
) -> None:
    agent, told = make_agent([attack(name="one", code="a = 1"), attack(name="two", code="a = 2")])
    history = baselines(2.0, 2.01)
    agent.propose(CHAMPION, history)
    history.append(record(2, token="one", verdict=Verdict.KEEP))

    assert agent.propose(CHAMPION, history) is None
    assert [one.succeeded for one in told] == [True]
    assert [one.name for one in agent.left] == ["two"]


def test_an_attack_whose_trial_was_not_judged_is_not_weighed(
    make_agent: Callable[[list[Attack]], tuple[AttackAgent, list[Outcome]]],
) -> None:
    agent, told = make_agent([attack(code="a = 1")])
    history = baselines(2.0)
    agent.propose(CHAMPION, history)

    agent.settle(history)

    assert told == []


# Traces -----------------------------------------------------------------------------------------------------------


def test_what_an_attack_reported_is_read_from_every_log_of_its_trial(tmp_path: Path) -> None:
    folder = trial_folder(tmp_path, 3)
    (folder / "audit-1").mkdir(parents=True)
    (folder / "train.log").write_text('  print(f"autoresearch-selftest-breach: {what}")\n')
    (folder / "audit-1" / "audit.log").write_bytes(b"x\nautoresearch-selftest-breach: a \x1b wall\xff\n")

    found = Traces(tmp_path, lambda: 0).gather([record(3)])

    assert found.breaches == ("a ? wall?",)


def test_new_files_on_the_host_and_what_is_left_in_the_engine_are_told(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run, elsewhere):
        folder.mkdir()
    (run / "autoresearch-escaped-before").touch()
    traces = Traces(run, lambda: 2, elsewhere=[elsewhere])
    (run / "trials").mkdir()
    (run / "trials" / "autoresearch-escaped").touch()
    (elsewhere / "autoresearch-escaped").symlink_to("nowhere")

    found = traces.gather([record()])

    assert set(found.escaped) == {str(run / "trials" / "autoresearch-escaped"), str(elsewhere / "autoresearch-escaped")}
    assert found.remains == ("2 containers or volumes",)
    assert traces.gather([record()]).escaped == ()


# What is shown ----------------------------------------------------------------------------------------------------


def test_a_line_says_how_an_attack_ended() -> None:
    lucky = weigh(attack(), [record(val_bpb=1.0)], baselines(2.0), Evidence(), 7.25)
    refused = weigh(attack(), [record(ending=None, verdict=Verdict.INVALID, val_bpb=None)], baselines(2.0), Evidence(), 0.1)

    assert line(lucky).startswith("BROKE claim: one")
    assert "1.0000" in line(lucky)
    assert line(refused).startswith("  ok  claim: one")
    assert "refused" in line(refused)


def test_a_machine_gets_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = SelftestView(as_json=True)
    view.tell(weigh(attack(), [record()], baselines(2.0), Evidence(), 1.0))
    view.summary()

    (found,) = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert found.keys() >= {"attack", "area", "succeeded", "ending", "verdict", "val_bpb", "reason", "seconds"}


def test_a_person_gets_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    view = SelftestView(as_json=False)
    view.finished(baselines(2.0)[0], [])
    view.tell(weigh(attack(), [record(verdict=Verdict.KEEP)], baselines(2.0), Evidence(), 1.0))
    view.tell(weigh(attack(name="two", honest=("crashed",)), [record()], baselines(2.0), Evidence(), 1.0))
    view.summary()

    said = capsys.readouterr().out
    assert "baseline 2.0000" in said
    assert "2 attacks, 1 succeeded" in said
    assert "succeeded: one" in said
    assert "blunt: two" in said


# The command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_what_it_would_try() -> None:
    result = CliRunner().invoke(app, ["selftest", "--list", "--json", "--area", "gate", "--quick"])

    found = [json.loads(text) for text in result.output.splitlines()]
    assert result.exit_code == 0
    assert [one["attack"] for one in found] == [one.name for one in ATTACKS if one.area == "gate" and one.quick]


def test_the_command_refuses_an_unknown_attack() -> None:
    result = CliRunner().invoke(app, ["selftest", "--attack", "nothing"])

    assert result.exit_code == 2
    assert "there is no attack 'nothing'" in result.output
