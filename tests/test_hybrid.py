"""The tuner suggests, and a model sees it now and then; real tuner, real prompts, and a list of answers in the model's place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runner.agents.chat import ChatError, ErrorKind
from runner.agents.hybrid import HybridAgent, became, told
from runner.agents.llm import REPAIR, Context, LlmAgent
from runner.agents.plateau import OTHER_KINDS
from runner.agents.prompt import Facts, Try
from runner.agents.space import Dimension
from runner.agents.surrogate import Prediction
from runner.agents.tuner import Suggestion, TunerAgent
from runner.constants import set_constants
from runner.errors import AgentError
from runner.literals import Value
from runner.money import Purse, TooDearError
from runner.trial import Ending, Proposal, Record, Refusal, Suggested, Verdict
from tests.records import baseline, record
from tests.test_llm import FakeChat, reply

SOURCE = "LR = 0.01\nDECAY = 0.2\nDEPTH = 4\n\n\ndef main() -> None:\n    print(DEPTH)\n"
SPACE = {
    "LR": Dimension(low=0.001, high=1.0, log=True), "DECAY": Dimension(low=0.0, high=1.0), "DEPTH": Dimension(low=1, high=20, whole=True),
}  # fmt: skip
OWN = "IDEA: say it twice\nWHY: louder\nKIND: systems\nEDITS:\n<<<<<<< SEARCH\n    print(DEPTH)\n=======\n    print(DEPTH)\n    print(DEPTH)\n>>>>>>> REPLACE\nEND\n"


class Night:
    """What the loop does, without containers."""

    def __init__(self, folder: Path, *answers: Any, share: float = 1.0, most: float | None = None, purse: Purse | None = None, seed: int = 1) -> None:
        self.folder, self.files = folder, {0: SOURCE}
        self.records: list[Record] = [baseline(0, 1.5, sigma=0.001)]
        self.chat, self.purse, self.share, self.seed = FakeChat(*answers, most=most), purse or Purse(), share, seed
        self.champion = SOURCE
        self.start()

    def start(self) -> None:
        def facts(champion: str, history: Sequence[Record]) -> Facts:
            return Facts(
                brief="The brief.", editable="train.py", champion=champion, hardware="CPU", budget="20 steps", metric="lower is better",
                tries=tuple(Try(record=one) for one in history),
            )  # fmt: skip

        context = Context(facts=facts, source=self.files.__getitem__, folder=self.folder)
        tuner = TunerAgent(space=SPACE, source=self.files.get, seed=self.seed, sequence_length=1)
        model = LlmAgent(self.chat, context, limit=100_000, count=len, purse=self.purse, name="hybrid")
        self.agent = HybridAgent(tuner, model, share=self.share, seed=self.seed)

    def propose(self) -> Proposal:
        found = self.agent.propose(self.champion, self.records)
        assert isinstance(found, Proposal)
        return found

    def judge(self, proposal: Proposal, verdict: Verdict = Verdict.DISCARD, score: float | None = 1.6, **values: Any) -> None:
        number = len(self.records)
        self.files[number] = proposal.source
        self.records.append(
            record(number, verdict, score, agent="hybrid", token=proposal.token, kind=proposal.kind, suggestion=proposal.suggestion, **values)
        )

    def go(self, trials: int) -> list[Proposal]:
        proposals = []
        for _ in range(trials):
            proposals.append(self.propose())
            self.judge(proposals[-1])
        return proposals


def suggested(night: Night) -> Suggestion:
    tuner = TunerAgent(space=SPACE, source=night.files.get, seed=night.seed, sequence_length=1)
    found = tuner.suggest(night.champion, night.records)
    assert found is not None
    return found


def sets(suggestion: Suggestion, **more: Any) -> str:
    lines = [f"SET {name} = {value!r}" for name, value in {**suggestion.changes, **more}.items()]
    return f"IDEA: as the tuner says\nWHY: it has seen more\nKIND: hyperparameter\nEDITS:\n{chr(10).join(lines)}\nEND\n"


def test_on_its_share_the_model_is_asked_and_on_the_others_the_tuners_goes_ahead(tmp_path: Path) -> None:
    night = Night(tmp_path, *[OWN.replace("twice", f"{at} times").replace("    print(DEPTH)\n>", f"    print({at})\n>") for at in range(40)], share=0.3)
    proposals = night.go(40)
    unseen = [one for one in proposals if one.suggestion is Suggested.UNSEEN]

    assert {one.suggestion for one in proposals} == {Suggested.UNSEEN, Suggested.OVERRIDDEN}
    assert 5 <= 40 - len(unseen) <= 20
    asked = [one for one in night.chat.asked if not one[1].text.endswith("No proposal yet.")]
    assert len(asked) == 40 - len(unseen)
    assert all((one.spent.cost_usd, one.spent.prompt_tokens) == (0.0, 0) for one in unseen)
    assert len({one.source for one in proposals}) == 40
    assert [int(one.token.split(" ")[0]) for one in proposals] == list(range(40))


def test_the_same_seed_asks_on_the_same_tries_also_after_a_restart(tmp_path: Path) -> None:
    def whole(*, restarts: bool, seed: int = 1) -> list[tuple[Suggested | None, str]]:
        night = Night(tmp_path, *[OWN] * 20, share=0.4, seed=seed)
        found = []
        for _ in range(12):
            proposal = night.propose()
            if restarts:
                night.start()
            night.judge(proposal)
            found.append((proposal.suggestion, proposal.source))
        return found

    assert whole(restarts=True) == whole(restarts=False)
    assert whole(restarts=False) != whole(restarts=False, seed=2)


def test_the_model_is_told_the_suggestion_in_its_own_form_with_what_it_is_expected_to_score(tmp_path: Path) -> None:
    night = Night(tmp_path, *[OWN] * 30, share=1.0)
    suggestion = suggested(night)
    night.propose()
    request = night.chat.asked[0][1].text
    for name, value in suggestion.changes.items():
        assert f"SET {name} = {value!r}" in request
    assert "cannot be predicted yet" in request
    assert request.index("What the tuner suggests") < request.index("# Your turn")

    for at in range(8):
        night.files[len(night.records)] = set_constants(SOURCE, {"DECAY": 0.1 + at / 20})
        night.records.append(record(len(night.records), Verdict.DISCARD, 1.5 + at / 100, agent="tuner"))
    night.propose()
    assert "Predicted score: 1.5" in night.chat.asked[-1][1].text
    assert "settings of this file that were measured); the champion has 1.5000." in night.chat.asked[-1][1].text


def test_what_is_told_of_a_suggestion() -> None:
    suggestion = Suggestion(
        changes={"LR": 0.02, "PATTERN": "SL"}, source="", idea="i", why="Drawn.", predicted=Prediction(mean=1.23456, standard_deviation=0.0031, points=9), champion=1.24
    )
    text = told(suggestion)
    assert "\nSET LR = 0.02\nSET PATTERN = 'SL'\n" in text
    assert "Predicted score: 1.2346, give or take 0.0031 (a smooth fit through the 9 settings of this file that were measured); the champion has 1.2400." in text


def test_taken_changed_or_overridden() -> None:
    changes: dict[str, Value] = {"LR": 0.02, "DEPTH": 6}
    source = set_constants(SOURCE, changes)
    suggestion = Suggestion(changes=changes, source=source, idea="i", why="w", predicted=None, champion=None)

    def of(source: str) -> Suggested:
        return became(SOURCE, suggestion, source)

    assert of(source) is Suggested.TAKEN
    assert of(f"# a comment\n{source.replace('0.02', '2e-2')}") is Suggested.TAKEN
    assert of(set_constants(SOURCE, {"LR": 0.02})) is Suggested.CHANGED
    assert of(set_constants(SOURCE, {"LR": 0.5})) is Suggested.CHANGED
    assert of(set_constants(source, {"DECAY": 0.5})) is Suggested.CHANGED
    assert of(source.replace("print(DEPTH)", "print(1)")) is Suggested.CHANGED
    assert of(SOURCE.replace("print(DEPTH)", "print(1)")) is Suggested.OVERRIDDEN
    assert of(set_constants(SOURCE, {"DECAY": 0.5})) is Suggested.OVERRIDDEN
    assert of(SOURCE.replace("LR =", "GONE =")) is Suggested.OVERRIDDEN
    assert of("x = (") is Suggested.OVERRIDDEN


def test_a_suggestion_that_is_taken_is_the_models_proposal_and_a_point_of_the_study(tmp_path: Path) -> None:
    night = Night(tmp_path)
    night.chat._answers.append(sets(suggested(night)))
    suggestion, found = suggested(night), night.propose()

    assert (found.suggestion, found.idea, found.source, found.agent) == (Suggested.TAKEN, "as the tuner says", suggestion.source, "hybrid")
    assert found.spent.cost_usd == 0.01
    night.judge(found)
    assert suggested(night).source != suggestion.source
    kept = json.loads((tmp_path / "llm" / "0000.json").read_text())
    assert "What the tuner suggests" in kept["calls"][0]["sent"][1]["text"]


@pytest.mark.parametrize("answers", [("nonsense", "nonsense"), (ChatError(ErrorKind.EXHAUSTED, "The provider is down"),)])
def test_a_model_that_fails_costs_no_try(tmp_path: Path, answers: tuple[Any, ...]) -> None:
    night = Night(tmp_path, *answers)
    suggestion, found = suggested(night), night.propose()

    assert (found.suggestion, found.source, found.idea) == (Suggested.FALLBACK, suggestion.source, suggestion.idea)
    assert "The model was to be asked, and " in found.why
    assert found.spent.cost_usd == (0.02 if len(answers) == 2 else None)


def test_a_wrong_key_ends_the_run_at_once_and_an_account_that_runs_dry_does_not(tmp_path: Path) -> None:
    refused = ChatError(ErrorKind.FATAL, "the account has no credit left")
    with pytest.raises(ChatError, match="no credit"):
        Night(tmp_path, refused).propose()

    night = Night(tmp_path, OWN, refused)
    night.judge(night.propose())
    found = night.propose()
    assert found.suggestion is Suggested.FALLBACK
    assert found.why.endswith("The model was to be asked, and the account has no credit left")


def test_without_money_the_tuner_goes_on_alone(tmp_path: Path) -> None:
    night = Night(tmp_path, OWN, most=0.02, purse=Purse(0.025))
    first, second, third = night.go(3)

    assert [one.suggestion for one in (first, second, third)] == [Suggested.OVERRIDDEN, Suggested.FALLBACK, Suggested.FALLBACK]
    assert second.spent.cost_usd == 0.0
    assert "could cost $0.0200" in second.why
    assert len(night.chat.asked) == 1


def test_a_cost_that_is_not_known_ends_a_run_whose_cost_is_limited(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="--max-usd cannot be held to"):
        Night(tmp_path, reply(OWN, cost_usd=None), purse=Purse(1.0)).propose()


def test_where_there_is_nothing_to_tune_the_model_goes_on_alone(tmp_path: Path) -> None:
    bare = "def main() -> None:\n    print(DEPTH)\n"
    night = Night(tmp_path, OWN, share=0.01)
    night.champion = bare
    found = night.propose()
    assert found.suggestion is None
    assert "What the tuner suggests" not in night.chat.asked[0][1].text

    broke = Night(tmp_path, OWN, most=2.0, purse=Purse(1.0))
    broke.champion = bare
    with pytest.raises(TooDearError):
        broke.propose()
    failing = Night(tmp_path, "nonsense", "nonsense")
    assert isinstance(failing.agent.propose(bare, failing.records), Refusal)


def test_a_models_own_crash_is_mended_next_and_the_tuners_is_not(tmp_path: Path) -> None:
    mends = "IDEA: mended\nKIND: systems\nEDITS:\n<<<<<<< SEARCH\n    print(DEPTH)\n    print(DEPTH)\n=======\n    print(1)\n>>>>>>> REPLACE\nEND\n"
    night = Night(tmp_path, OWN, mends, share=1.0)
    night.judge(night.propose(), Verdict.CRASH, None, ending=Ending.CRASHED, reason="exit code 1")
    night.share = 1e-9
    night.start()
    mended = night.propose()
    assert mended.token.endswith(f"{REPAIR}1")
    assert mended.suggestion is None
    assert "This is its only second chance." in night.chat.asked[-1][1].text
    assert "What the tuner suggests" not in night.chat.asked[-1][1].text

    alone = Night(tmp_path, share=1e-9)
    alone.judge(alone.propose(), Verdict.CRASH, None, ending=Ending.OUT_OF_MEMORY)
    assert alone.propose().suggestion is Suggested.UNSEEN


def test_the_tuners_tries_are_no_plateau_of_the_models(tmp_path: Path) -> None:
    night = Night(tmp_path, OWN, share=1e-9)
    night.go(OTHER_KINDS + 3)
    night.share = 1.0
    night.start()
    night.propose()
    assert "Not kind" not in night.chat.asked[0][1].text


def test_the_preview_is_what_is_sent(tmp_path: Path) -> None:
    night = Night(tmp_path, OWN)
    seen = night.agent.preview(night.champion, night.records)
    night.propose()
    assert seen == tuple(one.text for one in night.chat.asked[0])
