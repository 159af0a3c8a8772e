"""The final report: fresh seeds, a locked split, and how much of the reported gain is there."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from runner import ledger
from runner.cli import app
from runner.durable import file_sha256
from runner.errors import BaselineError, DataError, EngineFailedError, UsageError
from runner.final import (
    FIRST_SEED,
    FRESH_SEEDS_PER_RUN,
    Final,
    Finals,
    Result,
    Role,
    Watch,
    clustered_error,
    finalists,
    finals_in,
    line_of,
    missing,
    plan,
)
from runner.judge import Rule
from runner.loop import Loop, Stops
from runner.measure import Caps, Measurement, Measurer
from runner.noise import Z90, student
from runner.notes import Notes
from runner.phases import Place
from runner.prepare import Prepared, load
from runner.records import measurement_to_json
from runner.report.final import FinalView, announcement, final_json, print_final, sentence
from runner.resources import resource
from runner.run import SEEDS_PER_RUN, SEEDS_PER_TRIAL, Run
from runner.settings import JudgeOptions
from runner.trial import Compute, Ending, Measured, PhaseImages, Progress, Record, Seconds, TrialSpec, Verdict
from runner.trial import Result as ContainerResult
from runner.tried import OPEN
from runner.verdicts import rule_of
from runner.workspace import Workspace
from tests.conftest import run_git
from tests.fakes import LENGTH, FakeMeasurer, RecordingView, ScriptedAgent, prepared_folder
from tests.records import baseline, record
from tests.test_loop import Bench as LoopBench
from tests.test_measure import ModelSandbox, nll_of, table

BASE, FIRST, SECOND = "b" * 40, "1" * 40, "2" * 40
TEST_ROWS = 7


# ---------------------------------------------------------------------------------------------- which, and which seeds


@given(seed=st.integers(0, 20_000), other=st.integers(0, 20_000), trial=st.integers(0, 24_999), count=st.integers(1, 100))
def test_a_fresh_seed_is_one_that_no_trial_can_have_had(seed: int, other: int, trial: int, count: int) -> None:
    (seeds,) = plan(Finals(), [BASE], count, run_seed=seed).values()
    of_trial = {other * SEEDS_PER_RUN + trial * SEEDS_PER_TRIAL + index for index in range(SEEDS_PER_TRIAL)}

    assert len(set(seeds)) == count
    assert not of_trial & set(seeds)
    assert 0 <= min(seeds) <= max(seeds) < 2**31
    if other != seed:
        assert not set(plan(Finals(), [BASE], count, run_seed=other)[BASE]) & set(seeds)


def test_commits_that_are_kept_later_get_further_seeds_and_the_others_keep_theirs() -> None:
    finals = Finals()
    first = plan(finals, [BASE, FIRST], 2, run_seed=1)
    finals.apply(planned(first, repeats=2, last_trial=4))
    second = plan(finals, [BASE, FIRST, SECOND], None, run_seed=1)
    finals.apply(planned(second, repeats=2, last_trial=9))

    assert list(second) == [SECOND]
    assert len({seed for seeds in finals.seeds.values() for seed in seeds}) == 6
    assert finals.seeds[FIRST] == tuple(first[FIRST])
    assert (finals.last_trial, finals.repeats) == (4, 2)


def test_whoever_has_seen_scores_cannot_ask_for_more_of_them() -> None:
    finals = Finals()
    finals.apply(planned(plan(finals, [BASE], 3, run_seed=1), repeats=3, last_trial=4))

    assert plan(finals, [BASE], 3, run_seed=1) == {}
    with pytest.raises(UsageError, match="begun with --repeats 3"):
        plan(finals, [BASE], 4, run_seed=1)


def test_seeds_run_out_before_they_meet_another_run() -> None:
    commits = [f"{number:040x}" for number in range(FRESH_SEEDS_PER_RUN // 100 + 1)]
    with pytest.raises(UsageError, match="fresh seeds"):
        plan(Finals(), commits, 100, run_seed=1)


def test_the_line_leads_from_the_baseline_to_the_champion() -> None:
    records = [
        baseline(0), baseline(1), kept(2, FIRST, BASE, 1.5), record(3), kept(4, SECOND, FIRST, 1.4),
        record(5, Verdict.REPEAT, 1.41, commit=SECOND, parent=SECOND),
    ]  # fmt: skip

    assert [one.trial for one in line_of(records, BASE)] == [0, 2, 4]


def test_without_a_keep_the_split_stays_locked() -> None:
    with pytest.raises(UsageError, match="stays locked"):
        line_of([baseline(0), record(1)], BASE)


def test_the_baseline_comes_first_and_the_champion_next() -> None:
    finals = Finals()
    finals.apply(planned({BASE: [1, 2], FIRST: [3, 4], SECOND: [5, 6]}, repeats=2, last_trial=4))

    order = missing(finals, [BASE, FIRST, SECOND])

    assert order == [(BASE, 0), (BASE, 1), (SECOND, 0), (SECOND, 1), (FIRST, 0), (FIRST, 1)]


# ------------------------------------------------------------------------------------------------------- what it means


def planned(seeds: dict[str, list[int]], *, repeats: int, last_trial: int, split: str | None = "test") -> dict[str, Any]:
    return {
        "event": "final-planned", "at": "2026-11-21T00:00:00+00:00", "seeds": seeds, "repeats": repeats,
        "last_trial": last_trial, "split": split,
    }  # fmt: skip


def kept(trial: int, commit: str, parent: str, score: float, **more: Any) -> Record:
    return record(
        trial, Verdict.KEEP, score, commit=commit, parent=parent, measurements=(Measured(seed=1, val_bpb=score),), **more
    )


def scored(score: float, **more: Any) -> Measurement:
    values: dict[str, Any] = {"ending": Ending.FINISHED, "reason": "scored", "val_bpb": score, "seconds": Seconds(), **more}
    return Measurement(**values)


def finals_of(scores: dict[str, Sequence[Measurement | float]], *, last_trial: int = 9) -> Finals:
    finals = Finals()
    seeds = {commit: [1000 * at + index for index in range(len(group))] for at, (commit, group) in enumerate(scores.items())}
    finals.apply(planned(seeds, repeats=2, last_trial=last_trial))
    for commit, group in scores.items():
        for index, one in enumerate(group):
            finals.measured[commit, index] = scored(one) if isinstance(one, float) else one
    return finals


def result_of(
    rule: Rule, records: Sequence[Record], finals: Finals, by_row: Any = None, **more: Any
) -> Result:
    noise, line = finalists(line_of(records, BASE), records, rule, finals, by_row or {})
    values: dict[str, Any] = {
        "tag": "t", "split": "test", "repeats": 2, "began": finals.began, "noise": noise, "level": "audited",
        "metric": None, "maximise": rule.maximise, "line": line, **more,
    }  # fmt: skip
    return Result(**values)


@pytest.fixture
def rule() -> Rule:
    return rule_of(JudgeOptions(baselines=2, sigma_prior=0.01, sigma_prior_weight=4, tau=0.005), maximise=False)


SEARCHED = [
    baseline(0, 1.60, measurements=(Measured(seed=1, val_bpb=1.60),)),
    baseline(1, 1.62, measurements=(Measured(seed=2, val_bpb=1.62),)),
    kept(2, FIRST, BASE, 1.55),
    kept(3, SECOND, FIRST, 1.51),
]


def test_half_of_what_was_reported_is_called_half(rule: Rule) -> None:
    finals = finals_of({BASE: [1.70, 1.72], FIRST: [1.66, 1.68], SECOND: [1.655, 1.665]})

    result = result_of(rule, SEARCHED, finals)
    base, first, champion = result.line

    assert [one.role for one in result.line] == [Role.BASELINE, Role.KEPT, Role.CHAMPION]
    assert [base.val_bpb, base.final_bpb] == pytest.approx([1.61, 1.71])
    assert (base.val_gain, base.gain, base.real) == (None, None, None)
    assert [first.val_gain, first.gain] == pytest.approx([0.06, 0.04])
    assert [champion.val_gain, champion.gain] == pytest.approx([0.10, 0.05])
    assert champion.real == pytest.approx(0.5)
    # Prior: 4 degrees of freedom; three commits measured twice: 3 more.
    squares = 4 * 0.01**2 + 0.0002 + 0.0002 + 0.00005
    assert result.noise.sigma == pytest.approx(math.sqrt(squares / 7))
    assert champion.gain_se_seeds == pytest.approx(result.noise.sigma)
    half = student(Z90, 7) * result.noise.sigma
    assert champion.gain_interval == pytest.approx((0.05 - half, 0.05 + half))
    assert champion.real_interval == pytest.approx((0.5 - 10 * half, 0.5 + 10 * half))
    assert "50 % of the reported gain is real" in sentence(result)


def test_what_is_charged_counts_here_too(rule: Rule) -> None:
    result = result_of(rule, SEARCHED, finals_of({BASE: [1.7], FIRST: [1.6], SECOND: [scored(1.6, charge=0.03)]}))

    assert result.line[-1].gain == pytest.approx(0.07)
    assert final_json(result.line[-1], result)["charge"] == 0.03


def test_the_error_of_the_rows_widens_the_interval(rule: Rule) -> None:
    random = np.random.default_rng(0)
    by_row = {
        (commit, index): np.stack([random.normal(100, 5, 50), np.full(50, 90.0)])
        for commit in (BASE, SECOND)
        for index in range(2)
    }
    finals = finals_of({BASE: [1.70, 1.70], FIRST: [1.6], SECOND: [1.65, 1.65]})

    plain, wide = (result_of(rule, SEARCHED, finals, rows).line[-1] for rows in ({}, by_row))

    assert plain.gain_se_rows is None
    assert wide.gain_se_rows is not None
    assert plain.gain_interval is not None
    assert wide.gain_interval is not None
    assert plain.gain_se_seeds == wide.gain_se_seeds
    ratio = math.hypot(wide.gain_se_seeds or 0, wide.gain_se_rows) / (plain.gain_se_seeds or 1)
    assert wide.gain_interval[1] - wide.gain_interval[0] == pytest.approx(ratio * (plain.gain_interval[1] - plain.gain_interval[0]))


def test_a_candidate_that_fails_on_fresh_seeds_is_shown_with_its_ending(rule: Rule) -> None:
    failed = Measurement(ending=Ending.TIMED_OUT, reason="train: still running", seconds=Seconds())
    some = result_of(rule, SEARCHED, finals_of({BASE: [1.7, 1.7], FIRST: [failed, failed], SECOND: [1.6, failed]}))
    none = result_of(rule, SEARCHED, finals_of({BASE: [1.7, 1.7], FIRST: [1.6], SECOND: [failed, failed]}))

    assert (some.line[1].final_bpb, some.line[1].gain, some.line[1].real) == (None, None, None)
    assert some.line[2].gain == pytest.approx(0.1)
    assert "1 of 2 gave none: seed 2 timed_out: train: still running" in sentence(some)
    assert "gave no score (seed 1 timed_out" in sentence(none)
    assert "nothing shows that this is real" in sentence(none)
    assert "timed_out" in printed(some)


def test_a_gain_within_the_noise_is_not_called_real(rule: Rule) -> None:
    assert "cannot be told from no gain" in sentence(result_of(rule, SEARCHED, finals_of({BASE: [1.7], SECOND: [1.695]})))
    assert "none of the reported gain is real" in sentence(
        result_of(rule, SEARCHED, finals_of({BASE: [1.7, 1.7], SECOND: [1.9, 1.9]}))
    )


def test_no_share_is_made_of_a_reported_gain_that_is_next_to_nothing(rule: Rule) -> None:
    records = [*SEARCHED[:2], kept(2, SECOND, BASE, 1.6099)]

    result = result_of(rule, records, finals_of({BASE: [1.7, 1.7], SECOND: [1.6, 1.6]}))

    assert result.line[-1].real is None
    assert sentence(result).endswith("(90 % interval +0.08414 to +0.11586).")


def test_more_is_better_where_it_is(rule: Rule) -> None:
    records = [baseline(0, 0.5, measurements=(Measured(seed=1, val_bpb=0.5),)), kept(1, SECOND, BASE, 0.7)]

    result = result_of(replace(rule, maximise=True), records, finals_of({BASE: [0.5, 0.5], SECOND: [0.6, 0.6]}), split=None)

    assert [result.line[-1].val_gain, result.line[-1].gain] == pytest.approx([0.2, 0.1])
    assert "50 % of the reported gain is real" in sentence(result)
    assert "own, unverified evaluation" in sentence(result)


def test_a_broken_guard_is_no_score_but_the_baselines_are_not_asked(rule: Rule) -> None:
    broken = scored(1.6, guards_broken="size 11 is above 10")
    result = result_of(rule, SEARCHED, finals_of({BASE: [broken], FIRST: [1.5], SECOND: [broken]}))

    assert [one.final_bpb for one in result.line] == [1.6, 1.5, None]
    assert "size 11 is above 10" in sentence(result)


def test_what_was_kept_after_the_split_was_spent_is_said(rule: Rule) -> None:
    finals = finals_of({BASE: [1.7], FIRST: [1.6], SECOND: [1.6]}, last_trial=2)
    result = result_of(rule, SEARCHED, finals)

    assert [final_json(one, result)["kept_after_spent"] for one in result.line] == [False, False, True]
    assert "kept after the split was spent" in " ".join(printed(result).split())


def test_the_json_has_the_documented_keys_and_no_nan(rule: Rule) -> None:
    result = result_of(rule, SEARCHED, finals_of({BASE: [1.7], FIRST: [], SECOND: [1.6]}))
    documented = re.findall(r"`(\w+)`", (final_json.__doc__ or "").split("- `tag`")[1])

    for one in result.line:
        value = final_json(one, result)
        assert set(value) <= {"tag", *documented}
        json.dumps(value, allow_nan=False)
    assert final_json(result.line[1], result)["final_bpb"] is None
    assert final_json(result.line[-1], result)["sentence"] == sentence(result)


def printed(result: Result) -> str:
    file = io.StringIO()
    print_final(result, file)
    return file.getvalue()


def test_the_table_has_both_gains_both_errors_and_the_sentence(rule: Rule) -> None:
    random = np.random.default_rng(0)
    by_row = {(commit, 0): np.stack([random.normal(100, 5, 50), np.full(50, 90.0)]) for commit in (BASE, SECOND)}
    result = result_of(rule, SEARCHED, finals_of({BASE: [1.7], FIRST: [1.68], SECOND: [1.65]}), by_row)
    text = printed(result)

    assert "+0.1000" in text
    assert "+0.0500" in text
    assert f"{result.line[-1].gain_se_rows:.4f}" in text
    assert text.rstrip().endswith(sentence(result))
    assert "charge for computation" in text
    assert "spent since 2026-11-21" in text


# ------------------------------------------------------------------------------------------------- errors over the rows


def test_two_files_that_say_the_same_differ_by_nothing() -> None:
    rows = np.stack([np.arange(1.0, 9.0), np.full(8, 3.0)])

    assert clustered_error([rows], [rows]) == 0
    assert clustered_error([rows], []) is None


def test_a_gain_in_proportion_to_the_bytes_has_no_error_over_rows() -> None:
    size = np.array([3.0, 9.0, 0.0, 4.0])
    assert clustered_error([np.stack([size * 2, size])], [np.stack([size, size])]) == pytest.approx(0, abs=1e-12)


def test_the_error_over_rows_is_what_other_draws_of_rows_show() -> None:
    """Rows of very different sizes, with a difference that is each row's own: the plain bootstrap agrees."""
    random = np.random.default_rng(3)
    size = random.integers(50, 500, 400).astype(float)
    base = [np.stack([size * random.normal(1.2, 0.1, 400), size]) for _ in range(3)]
    gain = random.normal(0.05, 0.1, 400) * size
    other = [np.stack([one[0] - gain, size]) for one in base]

    found = clustered_error(base, other)

    drawn = []
    for _ in range(2000):
        rows = random.integers(0, 400, 400)
        drawn.append(gain[rows].sum() / size[rows].sum() / math.log(2))
    assert found == pytest.approx(np.std(drawn), rel=0.07)


# ------------------------------------------------------------------------------------------------- measured and resumed


class Watcher:
    """Remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int, Ending | None]] = []

    def started(self, number: int, record: Record, index: int) -> None:
        assert number >= 1

    def progress(self, number: int, progress: Progress) -> None:
        assert progress.phase == "measure"

    def finished(self, number: int, record: Record, index: int, found: Measurement) -> None:
        self.seen.append((number, record.trial, index, found.ending))


_watch: Watch = Watcher()
_view: Watch = FinalView(Path(), total=1, quiet=True)


class Bench(LoopBench):
    """A run whose search is over."""

    def __init__(self, repository: Path, sources: Sequence[str]) -> None:
        super().__init__(repository)
        self.run(ScriptedAgent(list(sources)))
        self.measurer = FakeMeasurer()
        self.watch = Watcher()

    @contextmanager
    def final(self, repeats: int | None = 2) -> Iterator[Final]:
        with ledger.writing(self.folder) as held:
            run = Run(task=self.task, tag=self.tag, ledger=held, workspace=self.workspace)
            yield Final(run, repeats=repeats, run_seed=3)

    def measure(self, repeats: int | None = 2) -> Result:
        with self.final(repeats) as final:
            assert final.measure(self.measurer, self.watch)
            return final.result()

    @property
    def seeds(self) -> list[int]:
        return [seed for _, _, seed in self.measurer.calls]


@pytest.fixture
def make(repository: Path) -> Callable[..., Bench]:
    return lambda *sources: Bench(repository, sources)


def test_every_kept_commit_is_measured_on_fresh_seeds_and_the_run_is_as_it_was(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n", "SCORE = 1.9\n", "SCORE = 1.2\n")
    before, tip = bench.records, bench.tip()
    refs = run_git(bench.repository, "for-each-ref")

    result = bench.measure()

    assert [(number, trial, index) for number, trial, index, _ in bench.watch.seen] == [
        (1, 0, 0), (2, 0, 1), (3, 4, 0), (4, 4, 1), (5, 2, 0), (6, 2, 1),
    ]  # fmt: skip
    assert min(bench.seeds) >= FIRST_SEED
    assert len(set(bench.seeds)) == 6
    assert [one.final_bpb for one in result.line] == [2.0, 1.5, 1.2]
    assert (bench.records, bench.tip(), run_git(bench.repository, "for-each-ref")) == (before, tip, refs)
    assert ledger.read(bench.folder).opened == {}
    # The search goes on as if nothing had been.
    bench.measurer = FakeMeasurer()
    bench.run(ScriptedAgent(["", "", "", "SCORE = 1.0\n"]))
    assert bench.records[-1].trial == 5
    assert bench.records[-1].verdict is Verdict.KEEP


def test_a_finished_report_measures_nothing_more(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n")
    first, calls = bench.measure(), len(bench.measurer.calls)
    second = bench.measure(None)

    assert first == second
    assert len(bench.measurer.calls) == calls == 4


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), EngineFailedError("gone")])
def test_a_report_that_was_interrupted_goes_on_where_it_was(
    make: Callable[..., Bench], at: int, error: BaseException
) -> None:
    bench = make("SCORE = 1.5\n")
    bench.measurer.raises = [*[None] * at, error]
    with pytest.raises(type(error)):
        bench.measure()

    result = bench.measure(None)

    # The one that was under way is made again with its own seed, all others once.
    assert bench.seeds == [*bench.seeds[: at + 1], *bench.seeds[at : at + 1], *bench.seeds[at + 2 :]]
    assert len(set(bench.seeds)) == 4
    assert len(bench.seeds) == 5
    assert [number for number, *_ in bench.watch.seen] == [1, 2, 3, 4]
    assert [one.final_bpb for one in result.line] == [2.0, 1.5]
    assert result.repeats == 2


def test_a_torn_last_line_of_the_journal_costs_one_measurement(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n")
    bench.measure()
    journal = bench.folder / ledger.JOURNAL
    journal.write_bytes(journal.read_bytes()[:-20])

    bench.measure()

    assert bench.seeds[-1] == bench.seeds[-2]
    assert len(bench.seeds) == 5


def test_a_commit_under_which_the_engine_always_fails_is_given_up(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n")
    bench.measurer.raises = [None, None, *[EngineFailedError("no")] * 3]
    for _ in range(3):
        with pytest.raises(EngineFailedError):
            bench.measure()

    champion = bench.measure().line[-1]

    assert [(one.ending, one.score) for one in champion.fresh] == [(None, None), (Ending.FINISHED, 1.5)]
    assert "the engine failed 3 times" in champion.fresh[0].reason


def test_a_baseline_without_any_score_ends_it_and_is_tried_again(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n")

    class Broken(FakeMeasurer):
        def measure(self, trial: int, folder: Path, **words: Any) -> Measurement:
            super().measure(trial, folder, **words)
            return Measurement(ending=Ending.TIMED_OUT, reason="train: still running", seconds=Seconds())

    whole, bench.measurer = bench.measurer, Broken()
    with pytest.raises(BaselineError, match="still running"):
        bench.measure()
    assert len(bench.measurer.calls) == 2
    bench.measurer = whole

    assert bench.measure().line[-1].gain == pytest.approx(0.5)


def test_a_candidate_that_crashes_on_one_fresh_seed_is_scored_on_the_others(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\nCRASH 4\n")

    champion = bench.measure().line[-1]

    assert sorted((one.ending or "", one.score) for one in champion.fresh if one.score is None) == [(Ending.CRASHED, None)]
    assert champion.final_bpb == 1.5


def test_asked_to_stop_it_ends_after_the_measurement(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n")
    (bench.folder / "stop").touch()
    with bench.final() as final:
        assert not final.measure(bench.measurer, bench.watch)
        assert len(final.todo) == 4
    assert not (bench.folder / "stop").exists()


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_other_measurements_are_limited_and_charged_by_the_baselines_of_the_report(
    make: Callable[..., Bench], repeats: int
) -> None:
    bench = make("SCORE = 1.5\n")
    seen = []

    class Noting(FakeMeasurer):
        def measure(self, trial: int, folder: Path, **words: Any) -> Measurement:
            seen.append((words["caps"], len(words["references"])))
            found = super().measure(trial, folder, **words)
            used = Compute(train=3.0, claim=0.25, audit=1.0, startup=1.0)
            return replace(found, seconds=replace(found.seconds, claim=7.0), compute_seconds=used)

    with bench.final(repeats) as final:
        final.measure(Noting(), bench.watch, longer=3.0)

    # Of the search 1 s for a claim; three times the rows, and the usual room.
    assert [caps.claim for caps, _ in seen] == [4 * 3 + 10] * repeats + [4 * 7 + 10] * repeats
    assert [caps.reference is None for caps, _ in seen] == [True] * repeats + [False] * repeats
    assert [count for _, count in seen] == [*range(repeats), *[repeats] * repeats]
    # Training took 2 s in the search's two baselines and 3 s here; a claim 0.25 s here, whatever it took there.
    median = 2.0 if repeats == 1 else 2.5 if repeats == 2 else 3.0
    assert [(caps.reference.train, caps.reference.claim) for caps, _ in seen[repeats:]] == [(median, 0.25)] * repeats


def test_what_is_of_no_more_use_does_not_stay(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n")
    with bench.final() as final:
        final.measure(bench.measurer, bench.watch, by_row=lambda _: np.ones((2, 3)))
        champion = final.result().line[-1]

    left = sorted(path.relative_to(bench.folder / "final").as_posix() for path in (bench.folder / "final").rglob("*.*"))
    assert left == sorted(
        f"{commit}/{number}/{name}"
        for commit in (bench.records[0].commit, champion.commit)
        for number in (1, 2)
        for name in ("rows.npy", "train.py")
    )
    assert champion.gain_se_rows == 0


def test_it_is_said_beforehand_what_it_takes_and_that_the_split_is_spent(make: Callable[..., Bench]) -> None:
    bench = make("SCORE = 1.5\n")
    with bench.final() as final:
        first = announcement(final, "t", "test")
        assert finals_in(bench.folder).began is None  # nothing is spent by saying so
    bench.measurer.raises = [None, KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        bench.measure()
    with bench.final() as final:
        second = announcement(final, "t", "test")
    bench.measure()
    with bench.final() as final:
        third = announcement(final, "t", "test")

    assert first[0] == "run t: the baseline and 1 kept commit on fresh seeds, 4 trainings; about 20 seconds"
    assert "spent by this" in first[1]
    assert "4 trainings, 1 of them done; about 15 seconds" in second[0]
    assert "spent by this run's report before" in second[1]
    assert third == ["run t: the baseline and 1 kept commit on fresh seeds, 4 trainings, 4 of them done"]


# -------------------------------------------------------------------------------------- what containers see, and scores


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """With test rows of their own: other tokens than validation's first row, which has no bytes."""
    path = prepared_folder(tmp_path / "data")
    rows = np.random.default_rng(2).integers(60, 300, (TEST_ROWS, LENGTH + 1)).astype("<u2")
    rows[0, 1:3] = 5  # tokens without bytes
    rows.tofile(path / "test" / "rows.bin")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["counts"]["rows"]["test"] = TEST_ROWS
    manifest["files"]["test/rows.bin"] = {"bytes": rows.nbytes, "sha256": file_sha256(path / "test" / "rows.bin")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return load(path)


@dataclass
class SharpSandbox(ModelSandbox):
    """Models that are as sharp as `SHARP = x` in their file says; remembers every byte that it was handed."""

    handed: list[tuple[str, bytes]] = field(default_factory=list)

    def run(self, spec: TrialSpec, destination: Path, **words: Any) -> ContainerResult:
        files = {file.name: file.path for file in (*spec.files, *spec.gated_files)}
        inputs = [*files.values(), *(one.question.path for one in spec.rounds)]
        self.handed.append((spec.phase, b"".join(path.read_bytes() for path in inputs)))
        found = re.search(r"SHARP = ([\d.]+)", files["train.py"].read_text())
        sharp = np.float32(found[1] if found else 1)
        self.model = lambda ids: table()[ids] * sharp
        return super().run(spec, destination, **words)


def score_on(prepared: Prepared, rows: npt.NDArray[np.uint16], sharp: float) -> float:
    nll = nll_of(table()[rows[:, :-1]] * np.float32(sharp), rows[:, 1:])
    lengths = prepared.token_bytes()[rows[:, 1:]]
    return float(nll[lengths > 0].sum()) / math.log(2) / int(lengths.sum())


def measurer_of(bench: LoopBench, prepared: Prepared, sandbox: ModelSandbox) -> Measurer:
    place = Place(
        images=PhaseImages(train="sha256:t", claim="sha256:c", audit="sha256:a"),
        gpu=None,
        prepare_volumes=(("train", "t"), ("claim", "c"), ("audit", "a")),
        data_volume=None,
        labels=(),
    )
    task = replace(bench.task, budget=replace(bench.task.budget, tokens=4 * LENGTH))
    return Measurer(sandbox, task, prepared, place)


def test_a_whole_run_and_its_report_on_the_locked_rows(repository: Path, prepared: Prepared) -> None:
    bench, sandbox = LoopBench(repository), SharpSandbox()
    (repository / "trainer" / "train.py").write_text("SHARP = 3.0\n")
    run_git(repository, "commit", "-qam", "a base that is sure of itself")
    measurer = measurer_of(bench, prepared, sandbox)
    test_rows = np.asarray(prepared.rows("test"))
    with ledger.writing(bench.folder) as held:
        base = bench.workspace.head()
        held.write("run", format=ledger.FORMAT, tag="t", base=base, head=base, seed=3, image="sha256:i", gpu=None)
        bench.workspace.start_branch("t", base)
        run = Run(task=bench.task, tag="t", ledger=held, workspace=bench.workspace)
        agent = ScriptedAgent(["SHARP = 1.0\n", "SHARP = 0.0\n"])
        Loop(run, measurer, agent, RecordingView(), gate=OPEN).run(Stops())
        kept = [one for one in run.records if one.verdict is Verdict.KEEP]
        assert len(kept) == 2

        # The search hands the locked rows to nobody.
        assert sandbox.handed
        for _, seen in sandbox.handed:
            assert not any(row[:4].tobytes() in seen for row in test_rows)

        sandbox.handed.clear()
        sandbox.questions.clear()
        locked = measurer.on("test")
        final = Final(run, repeats=2, run_seed=3)
        assert final.measure(locked, FinalView(bench.folder, total=6, quiet=True), by_row=locked.by_row)
        result = final.result()

    phases = [phase for phase, _ in sandbox.handed]
    assert phases == ["train", "claim", "audit"] * 6
    for phase, seen in sandbox.handed:
        found = [row.tobytes() in seen for row in test_rows]
        assert all(found) if phase == "claim" else not any(found)
        assert not any(row.tobytes() in seen for row in np.asarray(prepared.rows("val")))
    shown = {row[:1].tobytes(): row for row in test_rows}
    for raw in sandbox.questions:
        count = len(raw) // (4 + 2 * LENGTH)
        cuts = np.frombuffer(raw, "<i4", count=count)
        for cut, ids in zip(cuts, np.frombuffer(raw, "<u2", offset=4 * count).reshape(count, LENGTH), strict=True):
            assert np.array_equal(ids[: cut + 1], shown[ids[:1].tobytes()][: cut + 1])
            assert (ids[cut + 1 :] == 1).all()  # training text

    expected = [score_on(prepared, test_rows, sharp) for sharp in (3.0, 1.0, 0.0)]
    assert [one.final_bpb for one in result.line] == [pytest.approx(value, abs=1e-5) for value in expected]
    assert all(one.ending is Ending.FINISHED for line in result.line for one in line.fresh)
    champion = result.line[-1]
    assert champion.gain == pytest.approx(expected[0] - expected[2], abs=1e-5)
    searched = [score_on(prepared, np.asarray(prepared.rows("val")), sharp) for sharp in (3.0, 0.0)]
    assert champion.val_gain == pytest.approx(searched[0] - searched[1], abs=1e-5)
    assert champion.gain_se_rows is not None
    assert 0 < champion.gain_se_rows < 1
    # Charged like any other: a test of its own shows how much.
    assert {one.charge for one in champion.fresh} == {0.0}


def test_a_split_without_a_byte_is_refused(repository: Path, tmp_path: Path) -> None:
    bench, bare = LoopBench(repository), load(prepared_folder(tmp_path / "bare"))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "train.py").write_text("")
    with pytest.raises(DataError, match="any text in its test split"):
        measurer_of(bench, bare, ModelSandbox()).on("test").measure(
            0,
            folder,
            seed=1,
            caps=Caps(train=60.0, claim=60.0, audit=60.0),
            references=(),
            notes=Notes(),
            progress=lambda _: None,
        )


# ---------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def task(repository: Path) -> Path:
    """The shipped task, with a run of two baselines and one kept trial that another process left."""
    for name in ("autoresearch.yaml", "program.md"):
        (repository / name).write_bytes(resource(name).read_bytes())
    for path in resource("trainer").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            target = repository / "trainer" / path.relative_to(resource("trainer"))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    run_git(repository, "add", "-A")
    run_git(repository, "commit", "-qm", "the shipped task")
    return repository


def leave_run(task: Path, *, keep: bool) -> Path:
    workspace = Workspace(task)
    head = workspace.head()
    folder = workspace.state / "old"
    with ledger.writing(folder) as run:
        run.write("run", format=ledger.FORMAT, id="x", tag="old", head=head, base=BASE, preset="tiny", overrides={}, seed=1, gpu=None, image="i", images={})
        for one in [*SEARCHED[:2], kept(2, FIRST, BASE, 1.5) if keep else record(2)]:
            run.write("judged", trial=one.trial, record=ledger.record_to_json(replace(one, tag="old")))
            run.write("done", trial=one.trial)
    for path in ("autoresearch.yaml", "trainer", "program.md"):
        workspace.export(head, path, folder / "task")
    return folder


def call(task: Path, *arguments: str, code: int) -> str:
    environment = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
    found = CliRunner().invoke(app, ["report", "--task", str(task), *arguments], env=environment)
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found.output


def test_the_command_refuses_what_it_cannot_do(task: Path) -> None:
    assert "there is no run yet" in call(task, "--final", code=2)
    leave_run(task, keep=False)
    assert "--repeats goes with --final" in call(task, "--repeats", "2", code=2)
    assert "nothing was kept" in call(task, "--final", code=2)


def test_without_an_engine_nothing_is_spent(task: Path) -> None:
    folder = leave_run(task, keep=True)
    before = (folder / ledger.JOURNAL).read_bytes()

    said = call(task, "--final", "--repeats", "1", code=3)

    assert "the baseline and 1 kept commit on fresh seeds, 2 trainings" in said
    assert (folder / ledger.JOURNAL).read_bytes() == before


def test_a_run_that_a_runner_works_on_is_refused(task: Path) -> None:
    folder = leave_run(task, keep=True)
    with ledger.writing(folder):
        assert "held by another runner" in call(task, "--final", code=7)


def test_a_finished_report_is_printed_without_an_engine(task: Path) -> None:
    folder = leave_run(task, keep=True)
    with ledger.writing(folder) as held:
        held.write("final-planned", **{key: value for key, value in planned({BASE: [5], FIRST: [6]}, repeats=1, last_trial=2).items() if key != "event"})
        for commit, score in ((BASE, 1.6), (FIRST, 1.5)):
            held.write("final-measured", commit=commit, index=0, measurement=measurement_to_json(scored(score)))

    assert "of the reported gain is real" in call(task, "--final", code=0).replace("\n", " ")
    lines = [json.loads(line) for line in call(task, "--final", "--json", code=0).splitlines() if line.startswith("{")]
    assert [(line["role"], line["final_bpb"]) for line in lines] == [("baseline", 1.6), ("champion", 1.5)]

