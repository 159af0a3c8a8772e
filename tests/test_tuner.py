"""The tuner on real Optuna: reproducible, resumable, never the same twice, and better than chance."""

from __future__ import annotations

import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runner.agents.space import Dimension
from runner.agents.tuner import STARTUP, TunerAgent
from runner.constants import find_constants, set_constants
from runner.errors import AgentError, StateError
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


class Run:
    """What the loop does, without containers."""

    def __init__(self, journal: Path, seed: int = 1, *, maximise: bool = False) -> None:
        self.journal, self.seed, self.sign = journal, seed, -1 if maximise else 1
        self.champion, self.best = SOURCE, objective(SOURCE)
        self.records: list[Record] = [
            baseline(number, self.sign * (self.best + number / 1e4)) for number in range(3)
        ]
        self.proposals: list[Proposal] = []
        self.start()

    def start(self) -> None:
        """A new process takes up the study."""
        self.agent = TunerAgent(
            space=SPACE, journal=self.journal, seed=self.seed, sequence_length=128, maximise=self.sign < 0
        )
        for known in self.records:
            if known.agent == "tuner":
                self.agent.observe(known)

    def propose(self) -> Proposal:
        proposal = self.agent.propose(self.champion, self.records)
        assert proposal is not None
        return proposal

    def judge(self, proposal: Proposal) -> Record:
        score = objective(proposal.source)
        scored = None if math.isnan(score) else self.sign * score
        verdict = (
            Verdict.CRASH if scored is None else Verdict.KEEP if score < self.best - 1e-3 else Verdict.DISCARD
        )
        if verdict is Verdict.KEEP:
            self.champion, self.best = proposal.source, score
        judged = record(len(self.records), verdict, scored, token=proposal.token, idea=proposal.idea)
        self.proposals.append(proposal)
        self.records.append(judged)
        return judged

    def go(self, trials: int) -> Run:
        for _ in range(trials):
            self.agent.observe(self.judge(self.propose()))
        return self

    @property
    def sources(self) -> list[str]:
        return [proposal.source for proposal in self.proposals]


def states(journal: Path) -> list[tuple[int, float | None]]:
    """(state, value) of each trial as the study file tells it; 0 runs, 1 is complete, 3 failed."""
    trials: list[tuple[int, float | None]] = []
    for line in journal.read_text().splitlines():
        entry = json.loads(line)
        if entry["op_code"] == 4:
            trials.append((entry["state"], entry.get("value")))
        elif entry["op_code"] == 6:
            values = entry["values"]
            trials[entry["trial_id"]] = (entry["state"], values[0] if values else None)
    return trials


def test_a_metric_that_is_maximised_is_searched_like_its_negative(tmp_path: Path) -> None:
    low = Run(tmp_path / "low.jsonl").go(STARTUP + 6)
    high = Run(tmp_path / "high.jsonl", maximise=True).go(STARTUP + 6)

    assert high.sources == low.sources
    assert high.champion != SOURCE
    assert states(high.journal) == states(low.journal)


def test_nothing_is_learnt_from_a_score_whose_guard_was_broken(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl")
    judged = run.judge(run.propose())
    run.agent.observe(replace(judged, val_bpb=0.001, guards_broken="outside its guard: overlap is 1.0, above 0.0"))

    assert states(run.journal)[int(judged.token)] == (3, None)


def test_a_proposal_says_what_changes_and_how_it_was_drawn(tmp_path: Path) -> None:
    proposal = Run(tmp_path / "tuner.jsonl").propose()
    assert (proposal.agent, proposal.kind, proposal.token) == ("tuner", Kind.HYPERPARAMETER, "1")
    assert " -> " in proposal.idea
    assert len(proposal.idea) <= 72
    assert proposal.why.startswith("A perturbation of the champion, drawn without looking at results: ")
    assert proposal.source != SOURCE
    assert "# rate" in proposal.source


def test_same_seed_same_proposals_other_seed_others(tmp_path: Path) -> None:
    first, second, other = (
        Run(tmp_path / f"{n}.jsonl", seed).go(10).sources for n, seed in enumerate((1, 1, 2))
    )
    assert first == second
    assert first != other


def test_the_first_proposals_do_not_depend_on_results(tmp_path: Path) -> None:
    good, bad = Run(tmp_path / "good.jsonl"), Run(tmp_path / "bad.jsonl")
    for number in range(STARTUP):
        pair = good.propose(), bad.propose()
        assert pair[0].source == pair[1].source
        for run, proposal, score in ((good, pair[0], 1.0 + number), (bad, pair[1], 9.0 - number)):
            run.records.append(record(number + 3, Verdict.DISCARD, score, token=proposal.token))
    assert "estimator" in good.propose().why


def test_a_run_killed_anywhere_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole.jsonl").go(14)
    broken = Run(tmp_path / "broken.jsonl")
    for number in range(14):
        proposal = broken.propose()
        if number % 3 == 0:  # killed after the proposal, before anything was written down about it
            broken.start()
            assert broken.propose() == proposal
        judged = broken.judge(proposal)
        if number % 2 == 0:  # killed after the judgement, before the study heard of it
            broken.start()
        broken.agent.observe(judged)
        broken.agent.observe(judged)
    assert broken.sources == whole.sources
    assert states(tmp_path / "broken.jsonl") == states(tmp_path / "whole.jsonl")


def test_a_line_torn_by_a_kill_is_dropped(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl").go(3)
    with (tmp_path / "tuner.jsonl").open("a") as file:
        file.write('{"op_code": 4, "wor')
    run.start()
    run.go(2)
    assert len(states(tmp_path / "tuner.jsonl")) == 1 + 5


def test_a_leftover_lock_of_a_killed_process_does_not_stall(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl").go(1)
    (tmp_path / "tuner.jsonl.lock").symlink_to(tmp_path / "tuner.jsonl")
    run.start()
    run.go(1)


def test_failures_are_told_as_failures(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl")
    proposal = run.propose()
    run.agent.observe(record(3, Verdict.CRASH, None, token=proposal.token))
    following = run.propose()
    run.agent.observe(record(4, Verdict.DISCARD, math.inf, token=following.token))
    assert [state for state, _ in states(tmp_path / "tuner.jsonl")] == [1, 3, 3]


def test_the_baseline_enters_the_study_with_its_mean(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl").go(1)
    state, value = states(tmp_path / "tuner.jsonl")[0]
    assert state == 1
    assert value == pytest.approx(statistics.fmean(r.val_bpb or 0 for r in run.records[:3]))


def test_a_champion_of_another_agent_enters_the_study_and_is_searched_from(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl").go(2)
    run.champion = set_constants(SOURCE, {"LR": 0.05}) + "EXTRA = 1\n"
    run.records.append(record(5, Verdict.KEEP, 1.05, agent="hand", commit="a" * 40))
    proposal = run.propose()
    assert "EXTRA = 1" in proposal.source
    assert (1, 1.05) in states(tmp_path / "tuner.jsonl")


def test_a_proposal_for_a_champion_that_is_gone_is_given_up(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl")
    lost = run.propose()
    run.start()
    run.champion = SOURCE + "EXTRA = 1\n"
    assert run.propose().token != lost.token
    assert states(tmp_path / "tuner.jsonl")[int(lost.token)][0] == 3


def test_constants_may_come_and_go_with_the_champion(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl").go(8)
    for champion in (
        SOURCE.replace("DECAY", "NO_DECAY") + "LATER = 1\n",
        "LR = 3.0\nPATTERN = 'LLLL'\n",
        SOURCE,
    ):
        run.champion = champion
        for _ in range(5):
            proposal = run.propose()
            assert find_constants(proposal.source).keys() == find_constants(champion).keys()
            run.records.append(record(len(run.records), Verdict.DISCARD, 1.2, token=proposal.token))


def test_nothing_is_proposed_twice_and_a_small_space_ends(tmp_path: Path) -> None:
    agent = TunerAgent(
        space={"A": Dimension(choices=(1, 2, 3)), "B": Dimension(low=0, high=1, whole=True)},
        journal=tmp_path / "tuner.jsonl", seed=1, sequence_length=128,
    )  # fmt: skip
    source, seen = "A = 1\nB = 0\n", []
    history = [baseline(0)]
    while (proposal := agent.propose(source, history)) is not None:
        seen.append(proposal.source)
        history.append(record(len(history), Verdict.DISCARD, 1.5, token=proposal.token))
    assert len(seen) == len(set(seen)) == 5
    assert source not in seen


def test_batch_sizes_always_divide(tmp_path: Path) -> None:
    space = {
        "TOTAL_BATCH_SIZE": Dimension(low=512, high=8192, whole=True),
        "DEVICE_BATCH_SIZE": Dimension(low=2, high=32, whole=True),
    }
    agent = TunerAgent(space=space, journal=tmp_path / "tuner.jsonl", seed=3, sequence_length=128)
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


def test_within_thirty_trials_it_beats_random_search(tmp_path: Path) -> None:
    seeds = range(5)
    tuned = [Run(tmp_path / f"{seed}.jsonl", seed).go(30).best for seed in seeds]
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
def test_what_it_cannot_work_on(
    tmp_path: Path, space: dict[str, Dimension], source: str, message: str
) -> None:
    with pytest.raises(AgentError) as caught:
        TunerAgent(space=space, journal=tmp_path / "t", seed=1, sequence_length=128).propose(
            source, [baseline(0)]
        )
    assert str(caught.value) == message


def test_a_study_that_was_removed_or_damaged_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "tuner.jsonl").go(3)
    (tmp_path / "tuner.jsonl").unlink()
    with pytest.raises(AgentError, match="the tuner's study does not know trial 3 of this run"):
        run.start()
    (tmp_path / "tuner.jsonl").write_text("nonsense\n")
    with pytest.raises(StateError, match=r"tuner\.jsonl is damaged"):
        run.start()


def test_the_agents_are_imported_without_optuna() -> None:
    code = "import sys, runner.agents.tuner, runner.agents.replay, runner.task; sys.exit('optuna' in sys.modules or 'libcst' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
