"""The tuner on real Optuna: reproducible, resumable, never the same twice, and better than chance."""

from __future__ import annotations

import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from runner.agents.moves import region
from runner.agents.plateau import COMBINE
from runner.agents.space import Dimension
from runner.agents.study import Point, Study, fingerprint
from runner.agents.tuner import STARTUP, TunerAgent
from runner.coarse import told_one
from runner.constants import find_constants, set_constants
from runner.errors import AgentError
from runner.literals import Value
from runner.trial import Kind, Proposal, Record, Verdict
from tests.records import baseline, record

SPACE = {
    "LR": Dimension(low=0.001, high=1.0, log=True),
    "DECAY": Dimension(low=0.0, high=1.0),
    "WARMDOWN": Dimension(low=0.0, high=1.0),
    "DEPTH": Dimension(low=1, high=20, whole=True),
    "BATCH": Dimension(low=2**8, high=2**16, power_of_two=True, whole=True),
    "PATTERN": Dimension(choices=("L", "SL", "SSL")),
}
SOURCE = "LR = 0.01  # rate\nDECAY = 0.2\nWARMDOWN = 0.2\nDEPTH = 4\nBATCH = 2**10\nPATTERN = 'L'\n"


def objective(source: str) -> float:
    """A bowl with its floor away from the start; DEPTH above 17 runs out of memory."""
    value = {name: found.value for name, found in find_constants(source).items()}
    lr, decay, warmdown, depth, batch = (
        value[name] for name in ("LR", "DECAY", "WARMDOWN", "DEPTH", "BATCH")
    )
    assert isinstance(lr, float)
    assert isinstance(decay, float)
    assert isinstance(warmdown, float)
    assert isinstance(depth, int)
    assert isinstance(batch, int)
    if depth > 17:
        return math.nan
    bowl = (
        (math.log10(lr / 0.1) / 3) ** 2
        + (decay - 0.6) ** 2
        + (warmdown - 0.7) ** 2
        + ((depth - 9) / 20) ** 2
        + (math.log2(batch / 2**13) / 8) ** 2
    )
    return 1.0 + bowl + (0.0 if value["PATTERN"] == "SL" else 0.05)


def setting(source: str) -> dict[str, Value]:
    return {name: found.value for name, found in find_constants(source).items()}


class Run:
    """What the loop does, without containers."""

    def __init__(self, seed: int = 1, *, maximise: bool = False) -> None:
        self.seed, self.sign = seed, -1 if maximise else 1
        self.champion, self.best = SOURCE, objective(SOURCE)
        self.records: list[Record] = [baseline(number, self.sign * (self.best + number / 1e4)) for number in range(3)]
        self.files: dict[int, str] = dict.fromkeys(range(3), SOURCE)
        self.proposals: list[Proposal] = []
        self.start()

    def start(self) -> None:
        """A new process goes on with the run."""
        self.agent = TunerAgent(space=SPACE, source=self.files.get, seed=self.seed, sequence_length=128, maximise=self.sign < 0)

    def propose(self) -> Proposal:
        proposal = self.agent.propose(self.champion, self.records)
        assert proposal is not None
        return proposal

    def judge(self, proposal: Proposal) -> Record:
        self.proposals.append(proposal)
        return self.tried(proposal.source, agent="tuner", token=proposal.token, idea=proposal.idea)

    def tried(self, source: str, score: float | None = None, **values: Any) -> Record:
        """What became of a file of anybody's; `score` as measured, by default what the objective says."""
        found = objective(source) if score is None else self.sign * score
        scored = None if math.isnan(found) else self.sign * found
        verdict = Verdict.CRASH if scored is None else Verdict.KEEP if found < self.best - 1e-3 else Verdict.DISCARD
        if verdict is Verdict.KEEP:
            self.champion, self.best = source, found
        number = len(self.records)
        self.files[number] = source
        self.records.append(record(number, verdict, scored, **values))
        return self.records[-1]

    def refused(self, proposal: Proposal) -> None:
        self.records.append(record(len(self.records), Verdict.INVALID, None, commit=None, token=proposal.token))

    def go(self, trials: int) -> Run:
        for _ in range(trials):
            self.judge(self.propose())
        return self

    @property
    def sources(self) -> list[str]:
        return [proposal.source for proposal in self.proposals]

    def points(self) -> list[Point]:
        """What the study has for the champion as it stands."""
        where = region(SPACE, find_constants(self.champion), 128)
        return Study(SPACE, self.files.get).points(self.champion, where, self.records)


def test_a_metric_that_is_maximised_is_searched_like_its_negative() -> None:
    low, high = Run().go(STARTUP + 6), Run(maximise=True).go(STARTUP + 6)

    assert high.sources == low.sources
    assert high.champion != SOURCE


def test_nothing_is_learnt_from_a_score_whose_guard_was_broken() -> None:
    run = Run()
    judged = run.judge(run.propose())
    run.records[-1] = told_one(replace(judged, val_bpb=0.001, guards_broken="outside its guard: overlap is 1.0, above 0.0"))

    assert [point.setting for point in run.points()] == [setting(SOURCE)]


def test_a_proposal_says_what_changes_and_how_it_was_drawn() -> None:
    proposal = Run().propose()
    assert (proposal.agent, proposal.kind, proposal.token) == ("tuner", Kind.HYPERPARAMETER, fingerprint(proposal.source))
    assert " -> " in proposal.idea
    assert len(proposal.idea) <= 72
    assert proposal.why.startswith("A perturbation of the champion, drawn without looking at results: ")
    assert proposal.source != SOURCE
    assert "# rate" in proposal.source


def test_same_seed_same_proposals_other_seed_others() -> None:
    first, second, other = (Run(seed).go(10).sources for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_the_first_proposals_do_not_depend_on_results() -> None:
    good, bad = Run(), Run()
    good.best = bad.best = 0.0  # nothing is kept
    for number in range(STARTUP):
        pair = good.propose(), bad.propose()
        assert pair[0].source == pair[1].source
        for run, proposal, score in ((good, pair[0], 1.0 + number), (bad, pair[1], 9.0 - number)):
            run.tried(proposal.source, score)
    assert "estimator over 7 scored trials" in good.propose().why
    assert good.propose().source != bad.propose().source


def test_a_run_killed_anywhere_goes_on_as_if_nothing_had_happened() -> None:
    whole, broken = Run().go(14), Run()
    for number in range(14):
        proposal = broken.propose()
        if number % 3 == 0:  # killed after the proposal, before anything was written down about it
            broken.start()
            assert broken.propose() == proposal
        broken.judge(proposal)
        if number % 2 == 0:
            broken.start()
    assert broken.sources == whole.sources


def test_failures_are_no_scores() -> None:
    run = Run()
    run.tried(SOURCE.replace("DEPTH = 4", "DEPTH = 18"))
    run.tried(SOURCE.replace("DEPTH = 4", "DEPTH = 5"), math.inf)
    assert run.records[-2].verdict is Verdict.CRASH
    assert [point.setting for point in run.points()] == [setting(SOURCE)]


def test_a_file_that_was_measured_more_than_once_is_one_point_with_the_mean() -> None:
    run = Run()
    run.records.append(record(3, Verdict.REPEAT, run.best + 0.0005, agent="runner", commit="b" * 40))
    (point,) = run.points()
    assert point.score == pytest.approx(statistics.fmean(one.val_bpb or 0 for one in run.records))
    assert len(run.records) == 4


@pytest.mark.parametrize("agent", ["llm", "hand", "replay", "command", "hybrid", "tuner"])
def test_the_study_has_all_trials_whoever_proposed_them(agent: str) -> None:
    run = Run()
    higher, deeper = set_constants(SOURCE, {"LR": 0.0101}), set_constants(SOURCE, {"DEPTH": 3, "PATTERN": "SSL"})
    run.tried(f"# a comment more\n{higher}", agent=agent)
    run.tried(deeper, agent=agent)

    assert [point.setting for point in run.points()] == [setting(SOURCE), setting(higher), setting(deeper)]
    assert [point.score for point in run.points()[1:]] == [objective(higher), objective(deeper)]


def test_what_others_tried_counts_towards_the_estimators_first_turn_and_is_not_proposed_again() -> None:
    alone, joined = Run(), Run()
    first = alone.propose()
    joined.best = 0.0  # nothing is kept
    joined.tried(first.source, agent="llm")
    assert joined.propose().source != first.source
    for depth in range(5, 5 + STARTUP - 1):
        joined.tried(set_constants(SOURCE, {"DEPTH": depth}), agent="llm")
    assert "estimator over 7 scored trials" in joined.propose().why


def test_scores_of_another_structure_say_nothing_until_the_champion_has_it_again() -> None:
    run = Run().go(STARTUP)
    settings, champion, best = len(run.points()), run.champion, run.best
    other = champion + "EXTRA = 1\n"
    run.tried(other, best - 0.5, agent="llm")
    assert run.champion == other
    assert [point.score for point in run.points()] == [best - 0.5]
    assert "EXTRA = 1" in run.propose().source
    assert run.propose().why.startswith("A perturbation of the champion")
    # The old structure once more: everything that was known of it is known again.
    run.champion = champion
    assert len(run.points()) == settings


@pytest.mark.parametrize(
    "odd",
    [
        "PATTERN = 'LLLL'",  # no choice of the space
        "DEPTH = 4.5",  # another type
        "BATCH = 1000",  # no power of two
        "LR = -0.01",  # no logarithm
        "LR = 1e999",
        "LR = max(1, 2)",
        "LR = (",
    ],
)
def test_what_the_space_cannot_express_is_left_out(odd: str) -> None:
    run = Run()
    name = odd.partition(" ")[0]
    run.files[3] = "".join(f"{odd}\n" if line.startswith(f"{name} ") else line for line in SOURCE.splitlines(keepends=True))
    run.records.append(record(3, Verdict.DISCARD, 1.4, agent="llm"))
    assert [point.setting for point in run.points()] == [setting(SOURCE)]
    assert run.propose().source


def test_values_beyond_the_ranges_are_learnt_from_too() -> None:
    run = Run()
    run.best = 0.0
    for lr in (2.0, 3.0, 4.0, 5.0, 6.0, 7.0):
        run.tried(set_constants(SOURCE, {"LR": lr}), agent="hand")
    proposal = run.propose()
    assert "estimator over 7 scored trials" in proposal.why
    rate = find_constants(proposal.source)["LR"].value
    assert isinstance(rate, float)
    assert 0.001 <= rate <= 1.0


def test_a_champion_of_another_agent_is_searched_from() -> None:
    run = Run().go(2)
    run.tried(set_constants(SOURCE, {"LR": 0.05}) + "EXTRA = 1\n", 1.05, agent="hand")
    assert "EXTRA = 1" in run.propose().source


def test_constants_may_come_and_go_with_the_champion() -> None:
    run = Run().go(8)
    for champion in (SOURCE.replace("DECAY", "NO_DECAY") + "LATER = 1\n", "LR = 3.0\nPATTERN = 'LLLL'\n", SOURCE):
        run.champion, run.best = champion, 0.0
        for _ in range(5):
            proposal = run.propose()
            assert find_constants(proposal.source).keys() == find_constants(champion).keys()
            run.tried(proposal.source, 1.2)


def test_what_was_refused_is_not_proposed_again() -> None:
    run = Run()
    first = run.propose()
    run.refused(first)
    assert run.propose().source != first.source


def test_nothing_is_proposed_twice_and_a_small_space_ends() -> None:
    source, seen = "A = 1\nB = 0\n", []
    files: dict[int, str] = {0: source}
    agent = TunerAgent(
        space={"A": Dimension(choices=(1, 2, 3)), "B": Dimension(low=0, high=1, whole=True)}, source=files.get, seed=1, sequence_length=128
    )
    history = [baseline(0)]
    while (proposal := agent.propose(source, history)) is not None:
        seen.append(proposal.source)
        files[len(history)] = proposal.source
        history.append(record(len(history), Verdict.DISCARD, 1.5))
    assert len(seen) == len(set(seen)) == 5
    assert source not in seen


def test_on_a_plateau_near_misses_are_put_together_once() -> None:
    run = Run()
    run.best = 0.0
    for at in range(COMBINE - 2):
        run.tried(set_constants(SOURCE, {"DEPTH": 5 + at}), gain=-0.5, threshold=0.01)
    run.tried(set_constants(SOURCE, {"LR": 0.02}), gain=0.004, threshold=0.01)
    assert "->" in run.propose().idea
    assert "together" not in run.propose().why
    run.tried(set_constants(SOURCE, {"DECAY": 0.3, "BATCH": 2**11}), gain=0.003, threshold=0.01, agent="llm")

    proposal = run.propose()
    assert proposal.why.startswith("Near misses put together")
    assert proposal.source == set_constants(SOURCE, {"LR": 0.02, "DECAY": 0.3, "BATCH": 2**11})
    run.tried(proposal.source, gain=-0.1, threshold=0.01)
    assert "together" not in run.propose().why


def test_a_suggestion_says_what_it_is_expected_to_score() -> None:
    run = Run()
    assert run.agent.suggest(run.champion, run.records).predicted is None  # type: ignore[union-attr]
    run.go(20)
    found = run.agent.suggest(run.champion, run.records)
    assert found is not None
    assert found.predicted is not None
    assert found.predicted.points == len(run.points())
    assert found.champion == pytest.approx(run.best)
    assert abs(found.predicted.mean - objective(found.source)) < 4 * found.predicted.standard_deviation + 0.1
    assert set_constants(run.champion, found.changes) == found.source


def test_batch_sizes_always_divide() -> None:
    space = {
        "TOTAL_BATCH_SIZE": Dimension(low=512, high=8192, whole=True),
        "DEVICE_BATCH_SIZE": Dimension(low=2, high=32, whole=True),
    }
    agent = TunerAgent(space=space, source=lambda _: None, seed=3, sequence_length=128)
    history = [baseline(0)]
    for number in range(1, 16):
        proposal = agent.propose("TOTAL_BATCH_SIZE = 1536\nDEVICE_BATCH_SIZE = 12\n", history)
        assert proposal is not None
        value = {name: found.value for name, found in find_constants(proposal.source).items()}
        assert value["TOTAL_BATCH_SIZE"] % (value["DEVICE_BATCH_SIZE"] * 128) == 0  # type: ignore[operator]
        history.append(record(number, Verdict.DISCARD, 1.5 + number / 100, token=proposal.token))


def chance(seed: int, trials: int) -> float:
    """The best of uniform draws from the same space."""
    draw = random.Random(seed)
    scores = [objective(SOURCE)]
    for _ in range(trials):
        setting = {
            "LR": 10 ** draw.uniform(-3, 0), "DECAY": draw.random(), "WARMDOWN": draw.random(),
            "DEPTH": draw.randint(1, 20), "BATCH": 1 << draw.randint(8, 16), "PATTERN": draw.choice(("L", "SL", "SSL")),
        }  # fmt: skip
        score = objective(set_constants(SOURCE, setting))
        scores += [] if math.isnan(score) else [score]
    return min(scores)


def test_within_thirty_trials_it_beats_random_search() -> None:
    seeds = range(5)
    tuned = [Run(seed).go(30).best for seed in seeds]
    assert statistics.median(tuned) < statistics.median(chance(seed, 30) for seed in seeds)
    assert statistics.median(tuned) < 1.0 + (objective(SOURCE) - 1.0) / 3


@pytest.mark.parametrize(
    ("space", "source", "message"),
    [
        ({}, SOURCE, "the tuner needs a space file with ranges: name it as `space` in autoresearch.yaml"),
        (SPACE, "x = 1\n", "the champion's file has none of the constants that the space file names"),
        (SPACE, "LR = (\n", "the tuner cannot work on the champion's file: line 1 is not valid Python: '(' was never closed"),
        (SPACE, "LR = 'a'\n", "the tuner cannot work on the champion's file: LR is 'a' in the champion's file, the space has a range of numbers for it"),
    ],
)  # fmt: skip
def test_what_it_cannot_work_on(space: dict[str, Dimension], source: str, message: str) -> None:
    with pytest.raises(AgentError) as caught:
        TunerAgent(space=space, source=lambda _: None, seed=1, sequence_length=128).propose(source, [baseline(0)])
    assert str(caught.value) == message


def test_the_agents_are_imported_without_optuna() -> None:
    code = "import sys, runner.agents.tuner, runner.agents.replay, runner.task; sys.exit('optuna' in sys.modules or 'libcst' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
