"""What the agent makes of a model's answers; the model is a list of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.agents import plateau
from runner.agents.chat import ChatError, ErrorKind, Finish, Message, Reply, Role, Usage
from runner.agents.failures import FAILURES_IN_A_ROW
from runner.agents.llm import REPAIR, WHOLE_AFTER, Context, LlmAgent
from runner.agents.prompt import Facts, Try
from runner.errors import AgentError
from runner.money import Purse, TooDearError
from runner.trial import Ending, Proposal, Record, Refusal, Verdict

CHAMPION = "DEPTH = 2\nWIDTH = 64\n\n\ndef main() -> None:\n    print(DEPTH)\n"
GOOD = "IDEA: deeper\nWHY: more layers\nRISK: slower\nKIND: architecture\nEDITS:\nSET DEPTH = 3\nEND\n"
DEEPER = CHAMPION.replace("DEPTH = 2", "DEPTH = 3")


class FakeChat:
    """Answers what it was given, in turn."""

    name = "some/model"

    def __init__(self, *answers: str | Exception | Reply, most: float | None = None) -> None:
        self._answers, self._most = list(answers), most
        self.asked: list[tuple[Message, ...]] = []

    def complete(self, messages: Sequence[Message], *, seconds: float) -> Reply:
        assert seconds > 0
        self.asked.append(tuple(messages))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Reply) else reply(answer)

    def most_usd(self, prompt_tokens: int) -> float | None:
        assert prompt_tokens > 100
        return self._most


def reply(text: str, **values: Any) -> Reply:
    known: dict[str, Any] = {
        "text": text, "model": "some/model", "finish": Finish.STOP, "usage": Usage(prompt=100, completion=10, cached=None), "cost_usd": 0.01, "seconds": 1.0,
    }  # fmt: skip
    return Reply(**{**known, **values})


def record(trial: int, verdict: Verdict = Verdict.DISCARD, **values: Any) -> Record:
    known = {"trial": trial, "tag": "t", "commit": f"c{trial}", "parent": "c0", "agent": "llm", "idea": f"idea {trial}", "token": str(trial), "verdict": verdict}
    return Record(**{**known, **values})


def agent(folder: Path, chat: FakeChat, *, source: Callable[[int], str | None] | None = None, **values: Any) -> LlmAgent:
    def facts(champion: str, history: Sequence[Record]) -> Facts:
        return Facts(
            brief="The brief.", editable="train.py", champion=champion, hardware="CPU", budget="20 steps", metric="lower is better",
            tries=tuple(Try(record=one) for one in history),
        )  # fmt: skip

    context = Context(facts=facts, source=source or (lambda trial: f"# file of {trial}\n{CHAMPION}"), folder=folder)
    return LlmAgent(chat, context, **{"limit": 100_000, "count": len, **values})


def test_an_answer_becomes_a_proposal_with_what_it_cost(tmp_path: Path) -> None:
    found = agent(tmp_path, FakeChat(GOOD)).propose(CHAMPION, [])

    assert isinstance(found, Proposal)
    assert (found.idea, found.why, found.risk, found.kind, found.source) == ("deeper", "more layers", "slower", "architecture", DEEPER)
    assert (found.token, found.spent.cost_usd, found.spent.prompt_tokens, found.spent.completion_tokens) == ("0", 0.01, 100, 10)


def test_everything_that_was_said_is_kept(tmp_path: Path) -> None:
    chat = FakeChat("nonsense", GOOD)
    agent(tmp_path, chat).propose(CHAMPION, [record(4)])

    kept = json.loads((tmp_path / "llm" / "0005.json").read_text())
    assert [one["reply"]["text"] for one in kept["calls"]] == ["nonsense", GOOD]
    assert [[one["role"] for one in call["sent"]] for call in kept["calls"]] == [["system", "user"], ["system", "user", "assistant", "user"]]


def test_what_was_said_for_a_proposal_that_came_to_nothing_is_kept_beside_the_next_attempt(tmp_path: Path) -> None:
    with pytest.raises(ChatError):
        agent(tmp_path, FakeChat("nonsense", ChatError(ErrorKind.FATAL, "no credit"))).propose(CHAMPION, [])
    with pytest.raises(TooDearError):
        agent(tmp_path, FakeChat(most=2.0), purse=Purse(1.0)).propose(CHAMPION, [])
    agent(tmp_path, FakeChat(GOOD)).propose(CHAMPION, [])

    kept = json.loads((tmp_path / "llm" / "0000.json").read_text())
    assert [one["reply"] and one["reply"]["text"] for one in kept["calls"]] == ["nonsense", None, GOOD]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("I would make it deeper.", "END"),
        (GOOD.replace("SET DEPTH = 3", "<<<<<<< SEARCH\nHEIGHT = 1\n=======\nHEIGHT = 2\n>>>>>>> REPLACE"), "HEIGHT"),
        (GOOD.replace("SET DEPTH = 3", "SET DEPTH = 2"), ""),
        (reply("IDEA: x", finish=Finish.LENGTH), "cut at the model's limit"),
        (reply("", finish=Finish.NOTHING), "There was nothing in it"),
    ],
)
def test_an_answer_that_cannot_be_used_has_one_more_turn_in_which_the_model_is_told_why(tmp_path: Path, bad: str | Reply, said: str) -> None:
    chat = FakeChat(bad, GOOD)
    found = agent(tmp_path, chat).propose(CHAMPION, [])

    assert isinstance(found, Proposal)
    assert found.source == DEEPER
    assert found.spent.cost_usd == 0.02
    *_, answered, complaint = chat.asked[1]
    assert answered.role is Role.ASSISTANT
    assert said in complaint.text

    twice = FakeChat(bad, bad)
    refused = agent(tmp_path, twice).propose(CHAMPION, [])
    assert isinstance(refused, Refusal)
    assert said in refused.reason
    assert len(twice.asked) == 2
    assert refused.spent.prompt_tokens == 200


def test_a_crash_is_mended_once_on_its_own_file(tmp_path: Path) -> None:
    crash = record(1, Verdict.CRASH, ending=Ending.CRASHED, reason="exit code 1", token="0")
    chat = FakeChat(GOOD)
    found = agent(tmp_path, chat).propose(CHAMPION, [crash])

    assert isinstance(found, Proposal)
    assert found.token == f"1 {REPAIR}1"
    assert found.source == f"# file of 1\n{DEEPER}"
    assert "This is its only second chance." in chat.asked[0][1].text

    again = record(2, Verdict.CRASH, ending=Ending.CRASHED, token=found.token)
    after = FakeChat(GOOD)
    given_up = agent(tmp_path, after).propose(CHAMPION, [crash, again])
    assert isinstance(given_up, Proposal)
    assert (given_up.token, given_up.source) == ("2", DEEPER)


@pytest.mark.parametrize("ending", [None, Ending.CRASHED, Ending.OUT_OF_MEMORY, Ending.TIMED_OUT])
def test_what_a_gate_refused_is_mended_once_too(tmp_path: Path, ending: Ending | None) -> None:
    refused = record(1, Verdict.INVALID, ending=ending, reason="line 5: undefined name `scale` (F821)", token="0")
    chat = FakeChat(GOOD)
    found = agent(tmp_path, chat).propose(CHAMPION, [refused])

    assert isinstance(found, Proposal)
    assert (found.token, found.source) == (f"1 {REPAIR}1", f"# file of 1\n{DEEPER}")
    assert "line 5: undefined name `scale` (F821)" in chat.asked[0][1].text

    again = record(2, Verdict.INVALID, ending=ending, token=found.token)
    given_up = agent(tmp_path, FakeChat(GOOD)).propose(CHAMPION, [refused, again])
    assert isinstance(given_up, Proposal)
    assert given_up.token == "2"


def test_a_refusal_that_left_no_file_has_nothing_to_mend(tmp_path: Path) -> None:
    asking = agent(tmp_path, FakeChat(GOOD), source=lambda trial: None)
    found = asking.propose(CHAMPION, [record(1, Verdict.INVALID, commit=None, token="0")])

    assert isinstance(found, Proposal)
    assert found.token == "1"


def test_dry_runs_that_fail_do_not_end_a_run(tmp_path: Path) -> None:
    asking = agent(tmp_path, FakeChat(GOOD, GOOD))
    assert isinstance(asking.propose(CHAMPION, []), Proposal)
    failed = [record(at, Verdict.INVALID, ending=Ending.CRASHED, reason="dry run: why") for at in range(20)]
    assert isinstance(asking.propose(CHAMPION, failed), Proposal)


@pytest.mark.parametrize("ending", [Ending.TAMPERED, Ending.NOT_REPRODUCED, Ending.INVALID_ENVIRONMENT])
def test_what_a_model_cannot_mend_or_should_not_is_left(tmp_path: Path, ending: Ending) -> None:
    found = agent(tmp_path, FakeChat(GOOD)).propose(CHAMPION, [record(1, Verdict.CRASH, ending=ending, token="0")])

    assert isinstance(found, Proposal)
    assert found.token == "1"


def test_whole_files_are_asked_for_after_answers_that_did_not_fit_and_edits_again_once_they_do(tmp_path: Path) -> None:
    whole = f"IDEA: deeper\nKIND: architecture\nFILE:\n```python\n{DEEPER}```\nEND\n"
    chat = FakeChat(*["nonsense", GOOD] * WHOLE_AFTER, *[whole] * 3, GOOD)
    asking = agent(tmp_path, chat)
    for _ in range(WHOLE_AFTER + 4):
        assert isinstance(asking.propose(CHAMPION, []), Proposal)

    systems = [asked[0].text for asked in chat.asked if len(asked) == 2]
    assert ["FILE:" in text for text in systems] == [False] * WHOLE_AFTER + [True] * 3 + [False]


def test_a_provider_that_is_down_costs_a_proposal_and_one_that_refuses_ends_the_run(tmp_path: Path) -> None:
    down = agent(tmp_path, FakeChat(ChatError(ErrorKind.EXHAUSTED, "some/model is overloaded"))).propose(CHAMPION, [])
    assert isinstance(down, Refusal)
    assert down.reason == "some/model is overloaded"

    with pytest.raises(AgentError, match="wrong key"):
        agent(tmp_path, FakeChat(ChatError(ErrorKind.FATAL, "wrong key"))).propose(CHAMPION, [])


def test_a_prompt_that_the_model_finds_too_long_is_trimmed_and_asked_again_once(tmp_path: Path) -> None:
    long = ChatError(ErrorKind.TOO_LONG, "too long")
    history = [record(at, why="because " * 100) for at in range(20)]
    chat = FakeChat(long, GOOD)
    asking = agent(tmp_path, chat, limit=14_000)

    assert isinstance(asking.propose(CHAMPION, history), Proposal)
    assert len(chat.asked[1][1].text) < len(chat.asked[0][1].text)
    with pytest.raises(AgentError, match="too long"):
        agent(tmp_path, FakeChat(long, long), limit=14_000).propose(CHAMPION, history)
    with pytest.raises(AgentError, match="name a model with a larger context"):
        agent(tmp_path, FakeChat(GOOD), limit=100).propose(CHAMPION, history)


def test_a_run_of_useless_answers_ends_this_invocation_and_not_the_next(tmp_path: Path) -> None:
    asking = agent(tmp_path, FakeChat(GOOD, GOOD))
    before = [record(at, Verdict.INVALID, reason="no END") for at in range(20)]
    assert isinstance(asking.propose(CHAMPION, before), Proposal)

    more = [*before, *(record(20 + at, Verdict.INVALID, reason=f"no END {at}") for at in range(FAILURES_IN_A_ROW))]
    with pytest.raises(AgentError, match=f"the last {FAILURES_IN_A_ROW} proposals of some/model came to no trial, at last: no END"):
        asking.propose(CHAMPION, more)
    assert isinstance(agent(tmp_path, FakeChat(GOOD)).propose(CHAMPION, more), Proposal)


def test_an_answer_of_unknown_cost_ends_a_run_whose_cost_is_limited(tmp_path: Path) -> None:
    unknown = reply(GOOD, cost_usd=None)
    found = agent(tmp_path, FakeChat(unknown)).propose(CHAMPION, [])
    assert isinstance(found, Proposal)
    assert found.spent.cost_usd is None

    with pytest.raises(AgentError, match="--max-usd cannot be held to: what some/model costs is not known"):
        agent(tmp_path, FakeChat(unknown), purse=Purse(1.0)).propose(CHAMPION, [])


def test_the_very_first_call_is_bounded_by_what_it_could_cost(tmp_path: Path) -> None:
    chat = FakeChat(GOOD, most=0.6)
    with pytest.raises(TooDearError, match=r"\$0\.0000 of \$0\.5 are spent, and one more proposal could cost \$0\.6000"):
        agent(tmp_path, chat, purse=Purse(0.5)).propose(CHAMPION, [])
    assert chat.asked == []
    assert isinstance(agent(tmp_path, chat, purse=Purse(0.6)).propose(CHAMPION, []), Proposal)


def test_a_second_turn_that_is_too_dear_is_not_asked_for_and_the_first_is_on_record(tmp_path: Path) -> None:
    chat, purse = FakeChat(reply("nonsense", cost_usd=0.25), GOOD, most=0.3), Purse(0.5)
    found = agent(tmp_path, chat, purse=purse).propose(CHAMPION, [])

    assert isinstance(found, Refusal)
    assert found.reason.startswith("it was not mended: $0.2500 of $0.5 are spent")
    assert (found.spent.cost_usd, purse.spent, len(chat.asked)) == (0.25, 0.25, 1)


def test_every_call_is_journalled_at_once_whatever_comes_of_the_proposal(tmp_path: Path) -> None:
    written: list[dict[str, Any]] = []
    purse = Purse(journal=lambda event, **fields: written.append({"event": event, **fields}))
    with pytest.raises(ChatError, match="no credit"):
        agent(tmp_path, FakeChat("nonsense", ChatError(ErrorKind.FATAL, "no credit")), purse=purse, name="hybrid").propose(CHAMPION, [])

    assert written == [{"event": "paid", "agent": "hybrid", "cost_usd": 0.01, "prompt_tokens": 100, "completion_tokens": 10}]


def test_on_a_plateau_the_model_looks_back_and_its_notes_are_a_file(tmp_path: Path) -> None:
    history = [record(at) for at in range(plateau.REFLECT)]
    chat = FakeChat("Depth does not help.", GOOD)

    assert isinstance(agent(tmp_path, chat).propose(CHAMPION, history), Proposal)
    assert chat.asked[0][1].text.endswith("No proposal yet.")
    assert (tmp_path / "notes.md").read_text() == f"## After trial {plateau.REFLECT - 1}\n\nDepth does not help.\n\n"
    assert "Not kind other this time" in chat.asked[1][1].text

    # Once: a proposal that came to no trial does not bring it back.
    refused = [*history, record(50, Verdict.INVALID)]
    assert isinstance(agent(tmp_path, FakeChat(GOOD)).propose(CHAMPION, refused), Proposal)


def test_the_preview_is_what_is_sent(tmp_path: Path) -> None:
    chat = FakeChat(GOOD)
    asking = agent(tmp_path, chat)
    history = [record(at) for at in range(4)]

    seen = asking.preview(CHAMPION, history)
    asking.propose(CHAMPION, history)

    assert seen == tuple(one.text for one in chat.asked[0])
