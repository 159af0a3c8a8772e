"""The loop with real git and files, and a whole fake of what measures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runner import ledger
from runner.errors import (
    AgentError,
    BaselineError,
    EngineError,
    EngineFailedError,
    GpuError,
    StateError,
    UsageError,
)
from runner.loop import Loop, Outcome, Stops
from runner.money import Purse
from runner.protocols import Agent
from runner.run import Run
from runner.settings import Budget, DataOptions, GateOptions, JudgeOptions, ScoreOptions, TaskLimits
from runner.task import Task
from runner.trial import (
    REFUSED,
    Compute,
    Ending,
    Measured,
    Progress,
    Proposal,
    Record,
    Refusal,
    Spent,
    Verdict,
)
from runner.tried import OPEN, Barred, Candidate, Gate
from runner.workspace import Workspace
from tests.conftest import run_git
from tests.fakes import LENGTH, VOCAB, FakeMeasurer, RecordingView, ScriptedAgent

PATH = "trainer/train.py"
BASE = "SCORE = 2.0\n"


class Bench:
    """One run that can be continued any number of times."""

    def __init__(self, repository: Path) -> None:
        (repository / PATH).write_text(BASE)
        run_git(repository, "commit", "-qam", "base")
        self.repository = repository
        self.workspace = Workspace(repository)
        self.tag = "t"
        self.folder = self.workspace.state / self.tag
        self.measurer, self.view, self.gate = FakeMeasurer(), RecordingView(), OPEN
        self.task = Task(
            root=repository,
            editable=PATH,
            prepare="trainer",
            brief="program.md",
            space=None,
            presets=None,
            data=DataOptions(dataset="kjv", vocab_size=VOCAB, sequence_length=LENGTH),
            budget=Budget(steps=20),
            limits=TaskLimits(memory_gb=1, cpus=2, checkpoint_mb=1, output_mb=4),
            score=ScoreOptions(batch_rows=2),
            gates=GateOptions(),
            judge=JudgeOptions(
                baselines=2, sigma_prior=0.01, sigma_prior_weight=4, tau=0.005, champion_measurements=5, quarantine=0.9
            ),
            constants={},
        )

    def run(
        self, agent: Agent, stops: Stops | None = None, clock: Callable[[], float] | None = None, purse: Purse | None = None
    ) -> Outcome:
        with self.loop(agent, clock, purse) as loop:
            return loop.run(stops or Stops())

    @contextmanager
    def loop(self, agent: Agent, clock: Callable[[], float] | None = None, purse: Purse | None = None) -> Iterator[Loop]:
        with ledger.writing(self.folder) as run:
            if run.state.header is None:
                base = self.workspace.head()
                run.write("run", format=ledger.FORMAT, tag=self.tag, base=base, head=base, seed=3, image="sha256:i", gpu=None)
                self.workspace.start_branch(self.tag, base)
            held = Run(task=self.task, tag=self.tag, ledger=run, workspace=self.workspace)
            yield Loop(held, self.measurer, agent, self.view, gate=self.gate, purse=purse, **({"clock": clock} if clock else {}))

    @classmethod
    def again(cls, other: Bench) -> Bench:
        """The same run from the start, under another tag's folder."""
        fresh = cls.__new__(cls)
        fresh.__dict__.update(other.__dict__)
        fresh.tag, fresh.folder, fresh.measurer = "u", other.workspace.state / "u", FakeMeasurer()
        return fresh

    @property
    def records(self) -> list[Record]:
        return ledger.read(self.folder).records

    def tip(self) -> str:
        return run_git(self.repository, "rev-parse", "autoresearch/t")


@pytest.fixture
def bench(repository: Path) -> Bench:
    return Bench(repository)


def test_better_files_stay_and_the_others_do_not(bench: Bench) -> None:
    sources = ["SCORE = 1.5\n", "SCORE = 1.9\n", "CRASH\n", "MEMORY\n", "SCORE = 1.499\n", "SCORE = 1.2\n"]

    outcome = bench.run(ScriptedAgent(list(sources)))

    assert outcome == Outcome(reason="the agent has nothing more to propose", judged=6)
    assert [record.verdict for record in bench.records] == [
        Verdict.BASELINE,
        Verdict.BASELINE,
        Verdict.KEEP,
        Verdict.DISCARD,
        Verdict.CRASH,
        Verdict.CRASH,
        Verdict.DISCARD,
        Verdict.KEEP,
    ]
    assert run_git(bench.repository, "show", f"autoresearch/t:{PATH}") == "SCORE = 1.2"
    assert run_git(bench.repository, "rev-list", "--count", "main..autoresearch/t") == "2"
    assert (bench.repository / PATH).read_text() == BASE
    assert run_git(bench.repository, "status", "--porcelain") == ""


def test_what_a_record_holds(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    record = bench.records[2]
    assert (record.trial, record.tag, record.agent, record.idea, record.why) == (2, "t", "scripted", "idea 0", "because")
    assert (record.commit, record.parent) == (bench.tip(), run_git(bench.repository, "rev-parse", "main"))
    assert record.gain == pytest.approx(0.5)
    assert record.sigma == pytest.approx(0.01 * (4 / 5) ** 0.5)
    assert record.sigma_interval is not None
    assert record.sigma_interval[0] < 0.01 < record.sigma_interval[1]
    assert (record.score_level, record.seed, record.image, record.gpu) == ("audited", 300_008, "sha256:i", None)
    assert (record.steps, record.tokens, record.params, record.memory_gb) == (20, 500_000, 7, 0.5)
    assert (record.seconds.startup, record.seconds.audit, record.seconds.total, record.compute_seconds) == (0.5, 0.5, 5.0, Compute(train=2.0, claim=0.5, audit=1.0, startup=1.5))
    assert (record.summary, record.losses) == ((("num_steps", "20"),), ((1, 3.5), (20, 2.5)))
    assert record.measurements == (
        Measured(seed=300_008, val_bpb=1.5, standard_error=0.0, detectable=0.0, seconds=5.0, confirmed=True),
    )


def test_every_candidate_has_a_reference_and_a_note(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.9\n", "SCORE = 2.5\n", "CRASH\n"]))

    for record in bench.records:
        assert run_git(bench.repository, "rev-parse", f"refs/autoresearch/t/{record.trial}") == record.commit
    note = run_git(bench.repository, "notes", "--ref=autoresearch", "show", str(bench.records[3].commit))
    assert json.loads(note)["verdict"] == "discard"
    notes = run_git(bench.repository, "notes", "--ref=autoresearch", "show", str(bench.records[0].commit))
    assert [json.loads(line)["trial"] for line in notes.splitlines()] == [0, 1]


def test_the_validation_rows_and_a_dropped_checkpoint_do_not_stay(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n", "SCORE = 2.5\n"]))

    left = {path.relative_to(bench.folder / "trials").as_posix() for path in bench.folder.rglob("trials/*/*")}
    assert {name for name in left if "rows" in name or "nll" in name} == set()
    assert {name for name in left if "checkpoint" in name} == {"0000/checkpoint.safetensors", "0002/checkpoint.safetensors"}


def test_seeds_belong_to_the_runner_and_differ(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert bench.measurer.calls == [
        ("measure", 0, 300_000),
        ("measure", 1, 300_004),
        ("measure", 2, 300_008),
        ("confirm", 2, 300_008),
    ]


def test_limits_belong_to_one_invocation(bench: Bench) -> None:
    sources = [f"SCORE = {2.5 + number}\n" for number in range(5)]
    assert bench.run(ScriptedAgent(list(sources)), Stops(trials=2)).reason == "2 trials done"
    assert bench.run(ScriptedAgent(list(sources)), Stops(trials=2)).judged == 2

    assert [record.trial for record in bench.records] == list(range(6))


class Spender(ScriptedAgent):
    """Pays for each proposal what it is told to, if there is so much."""

    def __init__(self, purse: Purse, *costs: float, known: bool = True) -> None:
        super().__init__([f"SCORE = {3 + at}\n" for at in range(len(costs))])
        self._purse, self._costs, self._known = purse, list(costs), known

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
        if self._costs:
            cost = self._costs.pop(0)
            self._purse.check(cost if self._known else None)
            self._purse.pay(self.name, Spent(cost_usd=cost, prompt_tokens=100, completion_tokens=10))
        return super().propose(champion, history)


@pytest.mark.parametrize(
    ("costs", "most", "known", "judged"),
    [
        ([1.0, 1.0, 1.0, 1.0], 3.5, True, 3),
        ([0.1, 2.0, 0.1, 1.0], 3.0, True, 3),  # the fourth is known to be too dear
        ([0.1, 2.0, 0.1, 0.1], 3.0, False, 2),  # the third may be as dear as the dearest so far
        ([1.0, 1.0], 2.0, True, 2),
        ([1.0], 0.5, True, 0),  # also the very first
        ([1.0], 0.0, False, 0),
    ],
)
def test_no_proposal_is_asked_for_that_could_cost_more_than_is_left(
    bench: Bench, costs: list[float], most: float, *, known: bool, judged: int
) -> None:
    purse = Purse(most)
    outcome = bench.run(Spender(purse, *costs, known=known), purse=purse)

    assert outcome.judged == judged
    assert f"of ${most:g} are spent" in outcome.reason or judged == len(costs)


def test_what_an_earlier_invocation_spent_is_not_this_ones(bench: Bench) -> None:
    for _ in range(2):
        purse = Purse(1.0)
        assert bench.run(Spender(purse, 1.0, 1.0, 1.0), Stops(trials=1), purse=purse).judged == 1


def test_calls_for_a_proposal_that_came_to_nothing_are_on_the_record_of_the_next(bench: Bench) -> None:
    class Dies(Spender):
        def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
            super().propose(champion, history)
            raise AgentError("the second call failed")

    with bench.loop(ScriptedAgent([])) as loop:
        loop.run(Stops())
    for agent in (Dies, Dies, Spender):
        with ledger.writing(bench.folder) as run:
            held = Run(task=bench.task, tag=bench.tag, ledger=run, workspace=bench.workspace)
            spender = agent(Purse(journal=run.write), 0.25)
            with contextlib.suppress(AgentError):
                Loop(held, bench.measurer, spender, bench.view).run(Stops(trials=1))
        waiting = ledger.read(bench.folder).paid
        assert len(waiting.get("scripted", [])) == (0 if agent is Spender else len(waiting["scripted"]))
    assert (bench.records[-1].cost_usd, bench.records[-1].prompt_tokens, bench.records[-1].completion_tokens) == (0.75, 300, 30)
    assert ledger.read(bench.folder).paid == {}


def test_a_refused_proposal_takes_its_calls_with_it(bench: Bench) -> None:
    with ledger.writing(bench.folder) as run:
        run.write("run", format=ledger.FORMAT, tag=bench.tag, base=bench.workspace.head(), head="", seed=3, image="sha256:i", gpu=None)
        held = Run(task=bench.task, tag=bench.tag, ledger=run, workspace=bench.workspace)
        purse = Purse(journal=run.write)
        purse.pay("llm", Spent(cost_usd=0.25, prompt_tokens=1, completion_tokens=1))
        purse.pay("llm", Spent(cost_usd=None))
        other = held.refused(Refusal(agent="hand", idea="i", reason="r"))
        refused = held.refused(Refusal(agent="llm", idea="i", reason="r", spent=Spent(cost_usd=0.5)))
        assert (other.cost_usd, refused.cost_usd) == (None, None)
        run.write("judged", trial=0, record=ledger.record_to_json(refused))
        assert run.state.paid == {}


def test_the_gpus_hours_count_if_they_have_a_price(bench: Bench) -> None:
    # A measurement takes 5 s, and the budget is in steps: nothing is known before the first baseline.
    outcome = bench.run(ScriptedAgent([f"SCORE = {3 + at}\n" for at in range(9)]), purse=Purse(5.0, gpu_usd_per_hour=720.0))
    assert outcome.judged == 3
    assert outcome.reason == "$5.0000 of $5 are spent, and one more trial could cost $1.0000"
    # The trial that a proposal is for is counted before the model is asked.
    purse = Purse(2.15, gpu_usd_per_hour=720.0)
    outcome = bench.run(Spender(purse, *[0.1] * 9), purse=purse)
    assert outcome == Outcome(reason="$1.1000 of $2.15 are spent, and one more proposal could cost $1.1000", judged=1)


def test_no_new_trial_after_the_hours(bench: Bench) -> None:
    ticks = iter([0.0, 0.0, 0.0, 0.0, 1800.0, 3600.0])
    sources = [f"SCORE = {2.5 + number}\n" for number in range(5)]

    assert bench.run(ScriptedAgent(list(sources)), Stops(hours=1), clock=lambda: next(ticks)).judged == 2


def test_asked_to_stop_it_ends_after_the_trial(bench: Bench) -> None:
    class Stopper(ScriptedAgent):
        def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
            (bench.folder / "stop").touch()
            return super().propose(champion, history)

    outcome = bench.run(Stopper(["SCORE = 1.5\n", "SCORE = 1.4\n"]))

    assert outcome == Outcome(reason="asked to stop", judged=1)
    assert not (bench.folder / "stop").exists()


def test_a_failed_sandbox_judges_nothing_and_the_trial_is_run_again(bench: Bench) -> None:
    bench.measurer.raises = [None] * 2 + [EngineFailedError("the engine stopped answering")]
    agent = ScriptedAgent(["SCORE = 1.5\n", "SCORE = 1.4\n"])
    with pytest.raises(EngineError):
        bench.run(agent)
    assert len(bench.records) == 2
    before = bench.tip()

    bench.run(ScriptedAgent(["never asked for", "SCORE = 1.4\n"]))

    assert [(record.trial, record.verdict) for record in bench.records[2:]] == [(2, Verdict.KEEP), (3, Verdict.KEEP)]
    assert bench.records[2].parent == before
    assert bench.records[2].idea == "idea 0"
    assert [seed for what, _, seed in bench.measurer.calls if what == "measure"][2:] == [300_008, 300_008, 300_012]


@pytest.mark.parametrize("point", range(6))
def test_an_interruption_anywhere_gives_the_same_branch_in_the_end(
    bench: Bench, point: int
) -> None:
    sources = ["SCORE = 1.5\n", "SCORE = 1.9\n", "SCORE = 1.2\n"]
    bench.measurer.raises = [None] * point + [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        bench.run(ScriptedAgent(list(sources)))
    bench.run(ScriptedAgent(list(sources)))

    assert [record.val_bpb for record in bench.records] == pytest.approx([2, 2, 1.5, 1.9, 1.2])
    assert [record.trial for record in bench.records] == list(range(5))
    assert run_git(bench.repository, "show", f"autoresearch/t:{PATH}") == "SCORE = 1.2"


def test_a_keep_that_was_announced_is_completed(bench: Bench) -> None:
    """The runner died between the journal and the branch."""
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))
    kept, base = bench.tip(), run_git(bench.repository, "rev-parse", "main")
    path = bench.folder / ledger.JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "done"
    path.write_bytes(b"".join(lines[:-1]))
    run_git(bench.repository, "update-ref", "refs/heads/autoresearch/t", base)

    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert bench.tip() == kept
    assert len(bench.records) == 3


def test_a_branch_moved_by_hand_is_said_and_not_overwritten(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))
    run_git(bench.repository, "branch", "-f", "autoresearch/t", "main")

    with pytest.raises(StateError, match="put it back"):
        bench.run(ScriptedAgent(["SCORE = 1.5\n", "SCORE = 1.2\n"]))

    assert bench.tip() == run_git(bench.repository, "rev-parse", "main")


def test_a_baseline_without_a_score_ends_the_run(bench: Bench) -> None:
    (bench.repository / PATH).write_text("CRASH\n")
    run_git(bench.repository, "commit", "-qam", "broken")

    with pytest.raises(BaselineError, match="train: exit code 1"):
        bench.run(ScriptedAgent([]))


def test_a_baseline_out_of_memory_names_the_next_smaller_preset(bench: Bench) -> None:
    (bench.repository / PATH).write_text("MEMORY\n")
    run_git(bench.repository, "commit", "-qam", "large")
    bench.task = replace(bench.task, preset="24gb", next_smaller="12gb")

    with pytest.raises(BaselineError, match="out of memory: try --preset 12gb"):
        bench.run(ScriptedAgent([]))


def test_a_candidate_under_which_the_engine_always_fails_is_abandoned_without_a_verdict(bench: Bench) -> None:
    """Or one that provokes the failure would stand in the way of the run for ever."""
    sources = ["SCORE = 1.5\n", "SCORE = 1.4\n"]
    bench.measurer.raises = [None] * 2 + [EngineFailedError("it stopped answering")] * 3
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            bench.run(ScriptedAgent(list(sources)))
    bench.run(ScriptedAgent(list(sources)))

    abandoned, other = bench.records[2:]
    assert (abandoned.verdict, abandoned.ending, abandoned.val_bpb) == (Verdict.ABANDONED, None, None)
    assert abandoned.reason == "the engine failed under this trial each time that it was tried, in 3 invocations, at last: it stopped answering"
    assert other.verdict is Verdict.KEEP


def test_what_was_abandoned_may_be_tried_again(bench: Bench) -> None:
    """Nothing is known about it, so it is no repetition."""
    def refuse(source: str, champion: str, tried: Mapping[str, int]) -> Barred | None:
        return Barred(reason=f"the same as trial {tried[source]}") if source in tried else None

    bench.gate = Gate(fingerprint=lambda source: source, refuse=refuse)
    bench.measurer.raises = [None] * 2 + [EngineFailedError("it stopped answering")] * 3
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            bench.run(ScriptedAgent(["SCORE = 1.5\n"]))
    bench.run(ScriptedAgent(["SCORE = 1.5\n"] * 3))

    assert [record.verdict for record in bench.records[2:]] == [Verdict.ABANDONED, Verdict.KEEP, Verdict.INVALID]


def test_an_engine_that_is_not_fit_is_no_failure_under_a_candidate(bench: Bench) -> None:
    """A missing image or a full disk has nothing to do with it."""
    bench.measurer.raises = [None] * 2 + [EngineError("the engine has no image sha256:1")] * 4
    for _ in range(4):
        with pytest.raises(EngineError):
            bench.run(ScriptedAgent(["SCORE = 1.5\n"]))
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert [record.verdict for record in bench.records[2:]] == [Verdict.KEEP]


def test_a_baseline_is_never_abandoned(bench: Bench) -> None:
    bench.measurer.raises = [EngineFailedError("it stopped answering")] * 5
    for _ in range(5):
        with pytest.raises(EngineFailedError):
            bench.run(ScriptedAgent([]))
    bench.run(ScriptedAgent([]))

    assert [record.verdict for record in bench.records] == [Verdict.BASELINE] * 2


def test_an_interruption_is_no_failure_of_the_engine(bench: Bench) -> None:
    for _ in range(4):
        bench.measurer.raises = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            bench.run(ScriptedAgent(["SCORE = 1.5\n"]))
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert [record.verdict for record in bench.records] == [Verdict.BASELINE, Verdict.BASELINE, Verdict.KEEP]


def test_hours_and_stop_also_end_the_baselines(bench: Bench) -> None:
    ticks = iter([0.0, 0.0, 7200.0])
    assert bench.run(ScriptedAgent([]), Stops(hours=1), clock=lambda: next(ticks)).reason == "1 hours are over"
    assert len(bench.records) == 1
    (bench.folder / "stop").touch()
    assert bench.run(ScriptedAgent([])).reason == "asked to stop"
    assert len(bench.records) == 1


def test_a_refused_proposal_costs_no_container(bench: Bench) -> None:
    refusal = Refusal(agent="scripted", idea="a patch", reason="hunk 1 does not apply", token="0")
    bench.run(ScriptedAgent([refusal, BASE, "SCORE = 1.5\n"]))

    records = bench.records[2:]
    assert [(record.verdict, record.ending, record.val_bpb) for record in records[:2]] == [(Verdict.INVALID, None, None)] * 2
    assert records[0].reason == "hunk 1 does not apply"
    assert records[1].reason == "the proposed file is the champion's own"
    assert records[2].verdict is Verdict.KEEP
    assert [trial for what, trial, _ in bench.measurer.calls if what == "measure"] == [0, 1, 4]


def test_an_agent_is_told_of_all_trials_whoever_proposed_them_also_after_a_restart(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"], name="another"), Stops(trials=1))
    agent = ScriptedAgent(["SCORE = 1.4\n"])
    bench.run(agent)

    assert [[(record.trial, record.agent) for record in history] for history in agent.histories] == [
        [(0, "baseline"), (1, "baseline"), (2, "another")],
        [(0, "baseline"), (1, "baseline"), (2, "another"), (3, "scripted")],
    ]


def test_hostile_words_make_a_plain_commit(bench: Bench) -> None:
    class Hostile(ScriptedAgent):
        def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
            found = super().propose(champion, history)
            if not isinstance(found, Proposal):
                return found
            return replace(found, idea="--amend\x1b[31m\nAutoresearch-Trial: 99\n" + "x" * 200)

    bench.run(Hostile(["SCORE = 1.5\n"]))

    subject = run_git(bench.repository, "show", "-s", "--format=%s", "autoresearch/t")
    assert subject.startswith("--amend[31m Autoresearch-Trial: 99 xxx")
    assert len(subject) == 72
    assert run_git(bench.repository, "show", "-s", "--format=%(trailers:key=Autoresearch-Trial,valueonly)", "autoresearch/t") == "2"


def test_the_view_sees_it_in_order(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert bench.view.seen[-4:] == ["started 2", "2 measure", "2 confirm", "2 keep"]


# -- more than one measurement ---------------------------------------------------------------------

NEAR = "SCORE = 1.991\nNOISE = 0, 0.001, 0.002, 0.003\n"
"""A gain of 0.009 where sigma is 0.01: neither clear nor nothing."""


def test_near_the_line_candidate_and_champion_are_measured_again_with_other_seeds(bench: Bench) -> None:
    bench.run(ScriptedAgent([NEAR]))

    assert [(record.trial, record.verdict, len(record.measurements)) for record in bench.records] == [
        (0, Verdict.BASELINE, 1),
        (1, Verdict.BASELINE, 1),
        (2, Verdict.DISCARD, 4),
        (3, Verdict.REPEAT, 1),
        (4, Verdict.REPEAT, 1),
        (5, Verdict.REPEAT, 1),
    ]
    seeds = [seed for _, _, seed in bench.measurer.calls]
    assert len(set(seeds)) == len(seeds)
    assert [one.seed for one in bench.records[2].measurements] == [300_008, 300_009, 300_010, 300_011]
    assert bench.records[2].val_bpb == pytest.approx(1.9925)
    assert bench.records[2].gain == pytest.approx(0.0075)
    assert "4 measurements against 5 of the champion" in bench.records[2].reason


def test_a_champion_measured_again_is_a_trial_of_its_own_that_no_limit_counts(bench: Bench) -> None:
    outcome = bench.run(ScriptedAgent([NEAR, "SCORE = 2.5\n"]), Stops(trials=1))

    repeat = bench.records[3]
    assert outcome.judged == 1
    assert (repeat.agent, repeat.idea, repeat.commit) == ("runner", "the champion again: the baseline", bench.tip())
    assert repeat.val_bpb == 2.0
    assert run_git(bench.repository, "rev-parse", "refs/autoresearch/t/3") == bench.tip()


def test_a_gain_that_repeats_show_is_kept_and_every_measurement_confirmed(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.98\n"]))

    kept = bench.records[2]
    assert kept.verdict is Verdict.KEEP
    assert len(kept.measurements) > 1
    assert all(one.confirmed for one in kept.measurements)
    confirmed = [seed for what, _, seed in bench.measurer.calls if what == "confirm"]
    assert confirmed == [one.seed for one in kept.measurements]
    assert kept.reason.endswith("confirmed by a second audit")


def test_the_champion_is_known_by_all_its_measurements(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.9\nNOISE = 0, 0.3\n", "SCORE = 1.89\n"]))

    # The second candidate's gain is over the mean of what the first got before and since.
    again = [record for record in bench.records if record.verdict is Verdict.REPEAT]
    scores = [1.9, *(record.val_bpb or 0 for record in again)]
    last = next(record for record in bench.records if record.idea == "idea 1")
    assert last.gain == pytest.approx(sum(scores) / len(scores) - 1.89)


def test_who_lies_is_found_out_before_a_keep(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n# LIES\n"]))

    record = bench.records[2]
    assert (record.verdict, record.ending, record.val_bpb) == (Verdict.CRASH, Ending.TAMPERED, None)
    assert record.reason == "when it was confirmed: audit: it answers otherwise"
    assert bench.tip() == run_git(bench.repository, "rev-parse", "main")


def test_the_confirmed_score_decides(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\nCONFIRMED = 1.999\n"]))

    record = bench.records[2]
    assert (record.verdict, record.val_bpb) == (Verdict.DISCARD, 1.999)


def test_a_repeat_that_crashes_ends_the_candidate(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.98\n# CRASH 2\n"]))

    record = bench.records[2]
    assert (record.verdict, record.ending, record.val_bpb) == (Verdict.CRASH, Ending.CRASHED, None)
    assert record.reason == "measurement 2: train: exit code 1"
    assert [one.val_bpb for one in record.measurements] == [1.98, None]


def test_an_implausible_gain_is_measured_twice(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 0.5\n"]))

    record = bench.records[2]
    assert (record.verdict, len(record.measurements)) == (Verdict.KEEP, 2)
    assert "quarantined" in record.reason


def test_what_is_charged_counts(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\nCHARGE = 0.6\n"]))

    record = bench.records[2]
    assert record.verdict is Verdict.DISCARD
    assert (record.val_bpb, record.charge) == (1.5, 0.6)
    assert record.gain == pytest.approx(-0.1)


def test_a_broken_guard_is_never_kept(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n# GUARD\n"]))

    assert (bench.records[2].verdict, bench.records[2].reason) == (Verdict.DISCARD, "loss 3 is above 2")


def test_a_score_that_is_not_a_number_is_no_score(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = nan\n"]))

    record = bench.records[2]
    assert (record.verdict, record.ending, record.val_bpb) == (Verdict.CRASH, Ending.INVALID_OUTPUT, None)


def test_a_champion_is_measured_again_now_and_then_but_not_for_ever(bench: Bench) -> None:
    bench.task = replace(bench.task, judge=replace(bench.task.judge, remeasure_champion_every=2, champion_measurements=4))
    bench.run(ScriptedAgent([f"SCORE = {3 + number}\n" for number in range(8)]))

    repeats = [record.trial for record in bench.records if record.verdict is Verdict.REPEAT]
    assert repeats == [4, 7]


def test_less_code_that_is_no_worse_is_kept(bench: Bench) -> None:
    (bench.repository / PATH).write_text(BASE + "UNUSED = [1, 2, 3, 4, 5, 6]\n")
    run_git(bench.repository, "commit", "-qam", "longer")
    bench.task = replace(bench.task, judge=replace(bench.task.judge, sigma_prior=0.001))
    bench.run(ScriptedAgent(["SCORE = 2.001\n"]))

    assert bench.records[2].verdict is Verdict.KEEP
    assert bench.records[2].reason.startswith("simplification")
    assert run_git(bench.repository, "show", f"autoresearch/t:{PATH}") == "SCORE = 2.001"


def test_the_baselines_claims_steer_every_audit(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    names = [[path.name for path in paths] for paths in bench.measurer.references]
    assert names == [[], ["0000"], ["0000", "0001"]]


def test_files_of_repeats_do_not_stay(bench: Bench) -> None:
    bench.run(ScriptedAgent([NEAR, "SCORE = 1.5\n", "SCORE = 2.5\n"]))

    left = {path.relative_to(bench.folder / "trials").as_posix() for path in bench.folder.rglob("trials/**/checkpoint*")}
    kept = next(record.trial for record in bench.records if record.verdict is Verdict.KEEP)
    assert left == {"0000/checkpoint.safetensors", f"{kept:04d}/checkpoint.safetensors"}


@pytest.mark.parametrize("point", [2, 3, 4, 7, 10])
def test_what_was_measured_is_never_measured_again(bench: Bench, point: int) -> None:
    sources = [NEAR, "SCORE = 1.98\n"]
    bench.run(ScriptedAgent(list(sources)))
    undisturbed = [replace(record, proposed_at="") for record in bench.records]
    calls = bench.measurer.calls
    other = Bench.again(bench)
    other.measurer.raises = [None] * point + [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        other.run(ScriptedAgent(list(sources)))
    other.run(ScriptedAgent(list(sources)))

    done = [call for number, call in enumerate(other.measurer.calls) if number != point]
    assert done == calls
    assert [replace(record, proposed_at="", tag="t", commit=None, parent=None) for record in other.records] == [
        replace(record, commit=None, parent=None) for record in undisturbed
    ]


def test_an_engine_that_fails_under_the_champion_leaves_the_candidate_waiting(bench: Bench) -> None:
    bench.measurer.raises = [None] * 4 + [EngineFailedError("it stopped answering")] * 3
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            bench.run(ScriptedAgent([NEAR]))
    bench.run(ScriptedAgent([NEAR]))

    abandoned = bench.records[3]
    assert (abandoned.verdict, abandoned.ending, abandoned.val_bpb) == (Verdict.ABANDONED, None, None)
    assert bench.records[2].verdict in {Verdict.DISCARD, Verdict.KEEP}


def test_scores_of_two_levels_never_stand_on_one_branch(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))
    bench.task = replace(bench.task, score=replace(bench.task.score, level="reported"))

    with pytest.raises(UsageError, match="level audited"):
        bench.run(ScriptedAgent(["SCORE = 1.5\n", "SCORE = 1.4\n"]))


def test_a_metric_that_should_grow_is_kept_when_it_does(bench: Bench) -> None:
    bench.task = replace(bench.task, score=replace(bench.task.score, level="reported", direction="maximise"))
    bench.measurer.level = "reported"
    bench.run(ScriptedAgent(["SCORE = 1.5\n", "SCORE = 2.5\n"]))

    assert [record.verdict for record in bench.records[2:]] == [Verdict.DISCARD, Verdict.KEEP]


# -- gates and what an agent is told ---------------------------------------------------------------


def test_what_was_tried_is_refused_also_after_a_restart(bench: Bench) -> None:
    def refuse(source: str, champion: str, tried: Mapping[str, int]) -> Barred | None:
        return Barred(reason=f"the same as trial {tried[source.strip()]}", mendable=False) if source.strip() in tried else None

    bench.gate = Gate(fingerprint=str.strip, refuse=refuse)
    sources = ["SCORE = 2.5\n", "SCORE = 2.5\n\n", BASE + "\n", "SCORE = 2.5\n\n\n"]
    bench.run(ScriptedAgent(list(sources)), Stops(trials=3))
    bench.run(ScriptedAgent(list(sources)))

    assert [(record.verdict, record.reason) for record in bench.records[3:]] == [
        (Verdict.INVALID, "the same as trial 2"),
        (Verdict.INVALID, "the same as trial 0"),
        (Verdict.INVALID, "the same as trial 2"),
    ]


def test_a_refused_file_is_kept_only_if_it_may_be_mended(bench: Bench) -> None:
    def refuse(source: str, champion: str, tried: Mapping[str, int]) -> Barred | None:
        return Barred(reason="no", mendable="BROKEN" in source)

    bench.gate = Gate(fingerprint=str.strip, refuse=refuse)
    stale = bench.folder / "trials" / "0003" / REFUSED
    stale.parent.mkdir(parents=True)
    stale.write_text("of a refusal that was never recorded")
    bench.run(ScriptedAgent(["BROKEN\n", "SCORE = 2.5\n"]))

    assert [record.verdict for record in bench.records[2:]] == [Verdict.INVALID] * 2
    assert (bench.folder / "trials" / "0002" / REFUSED).read_text() == "BROKEN\n"
    assert not stale.exists()


class Examiner:
    """Refuses files with BAD in them, after a container; fails as it is told to."""

    def __init__(self, *raises: BaseException | None) -> None:
        self.raises, self.looked = list(raises), list[Candidate]()

    def __call__(self, candidate: Candidate) -> Barred | None:
        self.looked.append(candidate)
        candidate.created("dry", f"dry-{len(self.looked)}")
        candidate.progress(Progress(phase="dry"))
        error = self.raises.pop(0) if self.raises else None
        if error is not None:
            raise error
        if "BAD" not in candidate.source:
            return None
        return Barred(reason="dry run: why", ending=Ending.CRASHED, seconds=4.0, log_path=candidate.folder / "dry.log")


def examined(bench: Bench, *raises: BaseException | None) -> Examiner:
    examiner = Examiner(*raises)
    bench.gate = Gate(fingerprint=str.strip, refuse=OPEN.refuse, examine=examiner)
    return examiner


def test_what_a_gate_refuses_after_looking_costs_no_measurement_and_is_a_try(bench: Bench) -> None:
    examiner = examined(bench)
    bench.run(ScriptedAgent(["SCORE = 1.5\n", "BAD\n", "SCORE = 1.2\n"]))

    kept, refused, last = bench.records[2:]
    assert (refused.verdict, refused.ending, refused.reason) == (Verdict.INVALID, Ending.CRASHED, "dry run: why")
    assert (refused.seconds.total, refused.log_path) == (4.0, str(bench.folder / "trials" / "0003" / "dry.log"))
    assert (refused.val_bpb, refused.measurements, refused.parent) == (None, (), kept.commit)
    assert run_git(bench.repository, "show", f"{refused.commit}:{PATH}") == "BAD"
    assert [trial for _, trial, _ in bench.measurer.calls if trial == 3] == []
    assert last.verdict is Verdict.KEEP
    # Baselines are looked at by nobody, and a candidate is looked at once.
    assert [one.trial for one in examiner.looked] == [2, 3, 4]
    second = examiner.looked[1]
    assert (second.source, second.champion, second.agent, second.memory_gb, second.step_seconds) == ("BAD\n", "SCORE = 1.5\n", "scripted", 0.5, 0.1)
    assert "3 dry" in bench.view.seen
    created = [json.loads(line) for line in (bench.folder / ledger.JOURNAL).read_text().splitlines() if '"created"' in line]
    assert (3, "dry", "dry-2") in [(one["trial"], one["phase"], one["container"]) for one in created]


def test_the_same_file_is_not_looked_at_twice(bench: Bench) -> None:
    def refuse(source: str, champion: str, tried: Mapping[str, int]) -> Barred | None:
        return Barred(reason=f"as trial {tried[source.strip()]}", mendable=False) if source.strip() in tried else None

    examiner = Examiner()
    bench.gate = Gate(fingerprint=str.strip, refuse=refuse, examine=examiner)
    bench.run(ScriptedAgent(["BAD\n", "BAD\n\n"]))

    assert [record.reason for record in bench.records[2:]] == ["dry run: why", "as trial 2"]
    assert len(examiner.looked) == 1


@pytest.mark.parametrize("died", [KeyboardInterrupt(), EngineError("the daemon is gone")])
def test_a_look_that_was_cut_short_is_taken_again_and_counts_once(bench: Bench, died: BaseException) -> None:
    examiner = examined(bench, died)
    agent = ScriptedAgent(["BAD\n", "SCORE = 1.5\n"])
    with pytest.raises(type(died)):
        bench.run(agent)
    assert len(bench.records) == 2
    bench.run(agent)

    assert [(record.trial, record.verdict) for record in bench.records[2:]] == [(2, Verdict.INVALID), (3, Verdict.KEEP)]
    assert [one.trial for one in examiner.looked] == [2, 2, 3]


@pytest.mark.parametrize("passed", [2, 3], ids=["while it is measured", "while it is confirmed"])
def test_what_passed_the_look_is_not_looked_at_again(bench: Bench, passed: int) -> None:
    examiner = examined(bench)
    bench.measurer.raises = [*[None] * passed, KeyboardInterrupt()]
    agent = ScriptedAgent(["SCORE = 1.5\n"])
    with pytest.raises(KeyboardInterrupt):
        bench.run(agent)
    bench.run(agent)

    assert bench.records[2].verdict is Verdict.KEEP
    assert len(examiner.looked) == 1


def test_a_look_under_which_the_engine_fails_again_and_again_is_abandoned(bench: Bench) -> None:
    examined(bench, *[EngineFailedError("the daemon is gone")] * 3)
    agent = ScriptedAgent(["BAD\n"])
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            bench.run(agent)
    bench.run(agent)

    assert (bench.records[2].verdict, bench.records[2].ending) == (Verdict.ABANDONED, None)
    assert "in 3 invocations, at last: the daemon is gone" in bench.records[2].reason


def test_an_agent_is_told_no_more_digits_than_are_known(bench: Bench) -> None:
    agent = ScriptedAgent(["SCORE = 1.51234567\n", "SCORE = 1.4\n"])
    bench.run(agent)

    seen = agent.histories[-1][2]
    assert seen.val_bpb is not None
    assert seen.val_bpb != bench.records[2].val_bpb
    assert seen.val_bpb == pytest.approx(1.51234567, abs=0.0025)
    assert (seen.measurements, seen.audit) == ((), None)


def test_what_something_else_disturbed_is_measured_again_and_counts_for_nothing(bench: Bench) -> None:
    bench.measurer.disturbed = 2

    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert [record.verdict for record in bench.records] == [Verdict.BASELINE, Verdict.BASELINE, Verdict.KEEP]
    seeds = [seed for what, trial, seed in bench.measurer.calls if (what, trial) == ("measure", 0)]
    assert len(seeds) == 3
    assert len(set(seeds)) == 1


def test_a_trial_that_is_disturbed_every_time_is_never_kept_and_three_of_them_end_the_run(bench: Bench) -> None:
    bench.run(ScriptedAgent([]))
    bench.measurer.disturbed = 3
    bench.run(ScriptedAgent(["SCORE = 1.5\n", "SCORE = 1.9\n"]))
    given_up, next_one = bench.records[2:]
    assert (given_up.ending, given_up.verdict, given_up.val_bpb) == (Ending.INVALID_ENVIRONMENT, Verdict.ABANDONED, None)
    assert given_up.reason == "train: process 7 computed on its GPU too"
    assert next_one.ending is Ending.FINISHED

    bench.measurer.disturbed = 9
    with pytest.raises(GpuError, match=r"3 trials in a row were disturbed, .*process 7.*run the same command again"):
        bench.run(ScriptedAgent([f"SCORE = 1.{number}\n" for number in range(1, 6)]))
    assert len(bench.records) == 4 + 3

    # What disturbed them is gone: the same command goes on.
    bench.run(ScriptedAgent([*["never asked for"] * 5, "SCORE = 1.31\n"]))
    assert bench.records[-1].ending is Ending.FINISHED


def test_a_baseline_that_is_disturbed_every_time_ends_the_run(bench: Bench) -> None:
    bench.measurer.disturbed = 3

    with pytest.raises(BaselineError, match="process 7 computed on its GPU too"):
        bench.run(ScriptedAgent([]))
