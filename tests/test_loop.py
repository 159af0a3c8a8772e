"""The loop with real git and files, and a whole fake of the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runner import ledger
from runner.errors import BaselineError, EngineError, StateError
from runner.loop import Loop, Outcome, Stops
from runner.measure import CAP_FACTOR, CAP_SLACK_SECONDS, FIRST_CAP_SECONDS, Measurer, Place
from runner.prepare import load
from runner.run import Run
from runner.settings import Budget, DataOptions, JudgeOptions, ScoreOptions, TaskLimits
from runner.task import Task
from runner.trial import Proposal, Record, Refusal, Verdict
from runner.workspace import Workspace
from tests.conftest import run_git
from tests.fakes import LENGTH, VOCAB, FakeSandbox, RecordingView, ScriptedAgent, prepared_folder

PATH = "trainer/train.py"
BASE = "SCORE = 2.0\n"


class Bench:
    """One run that can be continued any number of times."""

    def __init__(self, repository: Path, tmp_path: Path) -> None:
        (repository / PATH).write_text(BASE)
        run_git(repository, "commit", "-qam", "base")
        self.repository = repository
        self.workspace = Workspace(repository)
        self.folder = self.workspace.state / "t"
        self.sandbox, self.view = FakeSandbox(), RecordingView()
        self.prepared = load(prepared_folder(tmp_path / "data"))
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
            judge=JudgeOptions(baselines=2, sigma_prior=0.01, sigma_prior_weight=4, tau=0.005, k=2.0),
            constants={},
        )

    def run(self, agent: ScriptedAgent, stops: Stops | None = None, clock: Callable[[], float] | None = None) -> Outcome:
        with self.loop(agent, clock) as loop:
            return loop.run(stops or Stops())

    @contextmanager
    def loop(self, agent: ScriptedAgent, clock: Callable[[], float] | None = None) -> Iterator[Loop]:
        place = Place(image="sha256:i", gpu=None, prepare_volume="p", data_volume="d", labels=())
        with ledger.writing(self.folder) as run:
            if run.state.header is None:
                base = self.workspace.head()
                run.write("run", format=1, tag="t", base=base, head=base, seed=3, image="sha256:i", gpu=None)
                self.workspace.start_branch("t", base)
            measurer = Measurer(self.sandbox, self.task, self.prepared, place)
            held = Run(task=self.task, tag="t", ledger=run, workspace=self.workspace)
            yield Loop(held, measurer, agent, self.view, **({"clock": clock} if clock else {}))

    @property
    def records(self) -> list[Record]:
        return ledger.read(self.folder).records

    def tip(self) -> str:
        return run_git(self.repository, "rev-parse", "autoresearch/t")


@pytest.fixture
def bench(repository: Path, tmp_path: Path) -> Bench:
    return Bench(repository, tmp_path)


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


def test_the_score_undoes_the_order_in_which_rows_were_handed_out(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert [record.val_bpb for record in bench.records] == pytest.approx([2.0, 2.0, 1.5], abs=1e-6)


def test_what_a_record_holds(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    record = bench.records[2]
    assert (record.trial, record.tag, record.agent, record.idea, record.why) == (2, "t", "scripted", "idea 0", "because")
    assert (record.commit, record.parent) == (bench.tip(), run_git(bench.repository, "rev-parse", "main"))
    assert record.gain == pytest.approx(0.5)
    assert record.sigma == pytest.approx(0.01 * (4 / 5) ** 0.5)
    assert (record.score_level, record.seed, record.image, record.gpu) == ("claimed", 300_002, "sha256:i", None)
    assert (record.steps, record.tokens, record.params, record.memory_gb) == (20, 500_000, 7, 0.5)
    assert (record.seconds.startup, record.seconds.train, record.seconds.claim, record.seconds.audit) == (0.5, 2.0, 1.0, None)
    assert record.seconds.total == 5.0
    assert dict(record.summary) == {"num_steps": "20", "total_tokens_M": "0.5"}
    assert record.losses == ((1, 3.5), (20, 2.5))


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


def test_the_train_container_never_gets_validation_rows(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    for spec in bench.sandbox.specs:
        names = {file.name for file in (*spec.files, *spec.gated_files)}
        assert names == ({"train.py", "trial.json"} if spec.phase == "train" else {"train.py", "trial.json", "rows.bin", "checkpoint.safetensors"})
        assert {mount.target for mount in spec.volumes} == ({"/prepare", "/data"} if spec.phase == "train" else {"/prepare"})


def test_phases_are_capped_by_the_baselines_own_times(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    train, claim = bench.sandbox.specs[0], bench.sandbox.specs[1]
    assert train.limits.seconds == claim.limits.seconds == FIRST_CAP_SECONDS
    train, claim = bench.sandbox.specs[4], bench.sandbox.specs[5]
    assert train.limits.seconds == CAP_FACTOR * 2.0 + CAP_SLACK_SECONDS
    assert claim.limits.seconds == CAP_FACTOR * 1.0 + CAP_SLACK_SECONDS


def test_a_timed_budget_caps_training_at_one_percent_more(bench: Bench) -> None:
    bench.task = replace(bench.task, budget=Budget(seconds=300))
    bench.run(ScriptedAgent([]))

    assert bench.sandbox.specs[0].limits.seconds == pytest.approx(303)
    assert bench.sandbox.budgets[0] == {"seconds": 300, "reserve_seconds": 3.0}


def test_seeds_belong_to_the_runner_and_differ(bench: Bench) -> None:
    bench.run(ScriptedAgent(["SCORE = 1.5\n"]))

    assert bench.sandbox.seeds == [300_000, 300_001, 300_002]


def test_limits_belong_to_one_invocation(bench: Bench) -> None:
    sources = [f"SCORE = {2.5 + number}\n" for number in range(5)]
    assert bench.run(ScriptedAgent(list(sources)), Stops(trials=2)).reason == "2 trials done"
    assert bench.run(ScriptedAgent(list(sources)), Stops(trials=2)).judged == 2

    assert [record.trial for record in bench.records] == list(range(6))


def test_no_new_trial_after_the_hours(bench: Bench) -> None:
    ticks = iter([0.0, 0.0, 0.0, 0.0, 1800.0, 3600.0])
    sources = [f"SCORE = {2.5 + number}\n" for number in range(5)]

    assert bench.run(ScriptedAgent(list(sources)), Stops(hours=1), clock=lambda: next(ticks)).judged == 2


def test_asked_to_stop_it_ends_after_the_trial(bench: Bench) -> None:
    class Stopper(ScriptedAgent):
        def observe(self, record: Record) -> None:
            (bench.folder / "stop").touch()

    outcome = bench.run(Stopper(["SCORE = 1.5\n", "SCORE = 1.4\n"]))

    assert outcome == Outcome(reason="asked to stop", judged=1)
    assert not (bench.folder / "stop").exists()


def test_a_failed_sandbox_judges_nothing_and_the_trial_is_run_again(bench: Bench) -> None:
    bench.sandbox.raises = [None] * 4 + [EngineError("the engine stopped answering")]
    agent = ScriptedAgent(["SCORE = 1.5\n", "SCORE = 1.4\n"])
    with pytest.raises(EngineError):
        bench.run(agent)
    assert len(bench.records) == 2
    before = bench.tip()

    bench.run(ScriptedAgent(["never asked for", "SCORE = 1.4\n"]))

    assert [(record.trial, record.verdict) for record in bench.records[2:]] == [(2, Verdict.KEEP), (3, Verdict.KEEP)]
    assert bench.records[2].parent == before
    assert bench.records[2].idea == "idea 0"
    assert bench.sandbox.seeds[2:] == [300_002, 300_003]


@pytest.mark.parametrize("point", range(6))
def test_an_interruption_anywhere_gives_the_same_branch_in_the_end(
    bench: Bench, tmp_path: Path, point: int
) -> None:
    sources = ["SCORE = 1.5\n", "SCORE = 1.9\n", "SCORE = 1.2\n"]
    bench.sandbox.raises = [None] * point + [KeyboardInterrupt()]
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


def test_a_trial_under_which_the_engine_always_fails_is_given_up(bench: Bench) -> None:
    """Or a trial that provokes the failure would stand in the way of the run for ever."""
    sources = ["SCORE = 1.5\n", "SCORE = 1.4\n"]
    bench.sandbox.raises = [None] * 4 + [EngineError("it stopped answering")] * 3
    for _ in range(3):
        with pytest.raises(EngineError):
            bench.run(ScriptedAgent(list(sources)))
    bench.run(ScriptedAgent(list(sources)))

    given_up, other = bench.records[2:]
    assert (given_up.verdict, given_up.ending, given_up.val_bpb) == (Verdict.CRASH, None, None)
    assert given_up.reason == "the engine failed 3 times under this trial, at last: it stopped answering"
    assert other.verdict is Verdict.KEEP


def test_an_interruption_is_no_failure_of_the_engine(bench: Bench) -> None:
    for _ in range(4):
        bench.sandbox.raises = [KeyboardInterrupt()]
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
    assert len(bench.sandbox.specs) == 2 * 3


def test_an_agent_learns_of_its_own_trials_also_after_a_restart(bench: Bench) -> None:
    sources = ["SCORE = 1.5\n", "SCORE = 1.4\n"]
    bench.run(ScriptedAgent(list(sources)), Stops(trials=1))
    agent = ScriptedAgent(list(sources))
    bench.run(agent)

    assert [record.trial for record in agent.observed] == [2, 3]


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

    assert bench.view.seen[-4:] == ["started 2", "2 train", "2 claim", "2 keep"]
