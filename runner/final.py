"""The final report: the baseline and the kept commits of a run once more, on fresh seeds and on rows that selected nothing.

A search keeps what scored best, so part of what it reports is luck: of seeds, and of the validation rows.  Here each
commit on the branch's line is trained again with seeds that no trial had, and claimed and audited on the locked test
split.  Commits, repeats and seeds are in the journal before the first container starts; a measurement is made once, none
is discarded, and a report that was interrupted goes on where it was.

The split is spent by this: from then on its text was in containers of this run.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from runner import evidence, verdicts
from runner.compute import typical
from runner.durable import write_durably
from runner.errors import BaselineError, EngineFailedError, UsageError
from runner.judge import Rule, Sample
from runner.ledger import JOURNAL, Event
from runner.loop import ENGINE_FAILURES, Measures
from runner.measure import CHECKPOINT, Caps, Measurement, caps
from runner.noise import Z90, Noise, pooled, student
from runner.notes import Notes
from runner.prepare import Split
from runner.records import has_score, measurement_from_json, measurement_to_json
from runner.run import SEEDS_PER_RUN, Run
from runner.trial import Ending, Progress, Record, Seconds, Verdict

log = structlog.get_logger()

REPEATS = 3
SPLIT: Split = "test"
FIRST_SEED = 20_001 * SEEDS_PER_RUN
"""Beyond the seeds of every run's trials: `--seed` is at most 20,000, and a run has `SEEDS_PER_RUN` of them."""
FRESH_SEEDS_PER_RUN = 7_000
"""As many as leave every seed below 2^31."""
BY_ROW = "rows.npy"
"""What stays of a claim: float64 [2, R], the nats and the bytes of each row."""

ByRow = npt.NDArray[np.float64]
Which = tuple[str, int]
"""Commit, and number of its measurement from 0."""


class Role(StrEnum):
    """What a commit is to the run."""

    BASELINE = "baseline"
    KEPT = "kept"
    CHAMPION = "champion"


@dataclass(kw_only=True)
class Finals:
    """What the journal says of a run's final report, folded; every other event leaves it as it is."""

    began: str | None = None
    """UTC time when it was begun, ISO 8601: since then the split is spent."""
    last_trial: int | None = None
    """The last trial that was judged before that."""
    repeats: int | None = None
    split: Split | None = None
    """None: the task reports its score, so nothing was held back."""
    seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By commit."""
    measured: dict[Which, Measurement] = field(default_factory=dict)
    failures: Counter[Which] = field(default_factory=Counter)
    """How often the engine failed under a measurement."""

    def apply(self, event: Event) -> None:
        """Take in one event."""
        match event["event"]:
            case "final-planned":
                if self.began is None:
                    self.began, self.last_trial = event["at"], event["last_trial"]
                    self.repeats, self.split = event["repeats"], event["split"]
                self.seeds |= {commit: tuple(seeds) for commit, seeds in event["seeds"].items()}
            case "final-measured":
                self.measured[event["commit"], event["index"]] = measurement_from_json(event["measurement"])
            case "final-failed":
                self.failures[event["commit"], event["index"]] += 1


def finals_in(folder: Path) -> Finals:
    """What the journal of the run in `folder` says; it was read and found sound before."""
    data = (folder / JOURNAL).read_bytes()
    return folded(json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines())


def folded(events: Iterable[Event]) -> Finals:
    """All events, taken in."""
    finals = Finals()
    for event in events:
        finals.apply(event)
    return finals


def line_of(records: Sequence[Record], base: str) -> list[Record]:
    """The first baseline's record, then those of the kept commits from there to the champion.

    Raises `UsageError` if nothing was kept: then there is no gain that could be real or not.
    """
    kept = {record.commit: record for record in records if record.verdict is Verdict.KEEP}
    line: list[Record] = []
    commit: str | None = verdicts.champion_of(records, base)
    while commit in kept:
        line.append(kept.pop(commit))
        commit = line[-1].parent
    if not line:
        message = "nothing was kept in this run, so there is no gain to look at; the test split stays locked"
        raise UsageError(message)
    return [next(record for record in records if record.verdict is Verdict.BASELINE), *reversed(line)]


def plan(finals: Finals, commits: Sequence[str], repeats: int | None, *, run_seed: int) -> dict[str, list[int]]:
    """Seeds for those of `commits` that have none yet, `repeats` each (None: as before, at first `REPEATS`).

    Raises `UsageError` if the report was begun with another number: whoever has seen scores may not choose how many
    there will be.
    """
    if None not in (repeats, finals.repeats) and repeats != finals.repeats:
        message = (
            f"this run's final report was begun with --repeats {finals.repeats}, fixed before anything was seen: "
            "leave --repeats out"
        )
        raise UsageError(message)
    count = finals.repeats or repeats or REPEATS
    used = sum(map(len, finals.seeds.values()))
    new = [commit for commit in commits if commit not in finals.seeds]
    if used + count * len(new) > FRESH_SEEDS_PER_RUN:
        message = f"a run has {FRESH_SEEDS_PER_RUN} fresh seeds, and --repeats {count} of {len(commits)} commits needs more"
        raise UsageError(message)
    first = FIRST_SEED + run_seed * FRESH_SEEDS_PER_RUN + used
    return {commit: [first + at * count + index for index in range(count)] for at, commit in enumerate(new)}


def missing(finals: Finals, commits: Sequence[str]) -> list[Which]:
    """What is still to be measured of the line `commits`, in this order: the baseline, whose claims steer the audits of
    all others; the champion, which is what people ask for; the rest.

    If no measurement of the baseline has a score, they are made again: that is the machine's fault, or nothing is known.
    """
    base, *others, champion = commits
    scored = any(has_score(one) for (commit, _), one in finals.measured.items() if commit == base)
    wanted = [(commit, index) for commit in (base, champion, *others) for index in range(len(finals.seeds[commit]))]
    return [
        which for which in wanted if which not in finals.measured or (which[0] == base and not scored)
    ]


def expected_seconds(which: Sequence[Which], records: Sequence[Record]) -> float | None:
    """About how long measurements take, from those of the search; None if nothing is known."""
    known: dict[str | None, list[float]] = {}
    for record in records:
        known.setdefault(record.commit, []).extend(one.seconds for one in record.measurements if one.seconds is not None)
    every = [seconds for group in known.values() for seconds in group]
    if not every:
        return None
    return math.fsum(median(known.get(commit) or every) for commit, _ in which)


# ---------------------------------------------------------------------------------------------------- what came of it


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """One measurement on a fresh seed."""

    index: int
    """From 0; the folder's name is one more."""
    seed: int
    ending: Ending | None
    """None: the engine failed each time."""
    reason: str
    score: float | None
    """With its charge, as it is compared; None: it gave none, or broke a guard."""
    charge: float | None
    standard_error: float | None
    """Of the score, from the draw of the audited tokens alone."""


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """One commit: what the search reported, and what was found on fresh seeds.  Scores include charges."""

    commit: str
    trial: int
    idea: str
    role: Role
    val_bpb: float
    """Mean over everything that the search measured of it."""
    val_measurements: int
    val_gain: float | None
    """Against the baseline's mean, positive is better; None for the baseline."""
    fresh: tuple[Fresh, ...]
    final_bpb: float | None
    """Mean over the fresh seeds that gave a score; None if none did."""
    final_se: float | None
    """Its standard error over seeds and draws."""
    gain: float | None = None
    """Against the baseline on the same rows."""
    gain_se_seeds: float | None = None
    """Standard error of `gain` over seeds and draws."""
    gain_se_rows: float | None = None
    """Standard error of `gain` over the choice of rows, clustered by row; None where nothing is known by row."""
    gain_interval: tuple[float, float] | None = None
    """90 % interval of `gain`, of both errors together."""
    real: float | None = None
    """`gain` over `val_gain`; None where the reported gain is below the smallest worth keeping."""
    real_interval: tuple[float, float] | None = None
    kept_after: bool = False
    """True if it was kept when the split was spent already: then the split is no longer independent of it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run's final report."""

    tag: str
    split: Split | None
    repeats: int
    began: str | None
    noise: Noise
    """Of one measurement, from these repeats and the prior."""
    level: str
    metric: str | None
    maximise: bool
    line: tuple[Finalist, ...]
    """The baseline, then the kept commits in their order, the champion last."""


def finalists(
    line: Sequence[Record],
    records: Sequence[Record],
    rule: Rule,
    finals: Finals,
    by_row: Mapping[Which, ByRow],
) -> tuple[Noise, tuple[Finalist, ...]]:
    """The noise of one measurement, and every commit of `line` (baseline first, champion last) with what is known of it."""
    base = str(line[0].commit)
    # No guard is asked of the baseline, in the search or here.
    fresh = {str(record.commit): _fresh(finals, str(record.commit), guarded=record is not line[0]) for record in line}
    samples = {commit: sample for commit, group in fresh.items() if (sample := _sample(group)) is not None}
    noise = pooled(rule.sigma_prior, rule.sigma_prior_weight, [sample.scores for sample in samples.values()])
    better = 1 if rule.maximise else -1
    start = verdicts.sample_of(records, base).mean
    found = []
    for record in line:
        commit = str(record.commit)
        val = verdicts.sample_of(records, commit)
        sample = samples.get(commit)
        one = Finalist(
            commit=commit,
            trial=record.trial,
            idea=record.idea,
            role=Role.BASELINE if record is line[0] else Role.CHAMPION if record is line[-1] else Role.KEPT,
            val_bpb=val.mean,
            val_measurements=len(val.scores),
            val_gain=None if record is line[0] else better * (val.mean - start),
            fresh=fresh[commit],
            final_bpb=sample.mean if sample else None,
            final_se=math.sqrt(sample.variance(noise.sigma)) if sample else None,
            kept_after=finals.last_trial is not None and record.trial > finals.last_trial,
        )
        if record is not line[0] and sample is not None and base in samples:
            rows = clustered_error(_rows(by_row, fresh, base), _rows(by_row, fresh, commit))
            one = _with_gain(one, sample, samples[base], noise, rule, rows)
        found.append(one)
    return noise, tuple(found)


def clustered_error(base: Sequence[ByRow], other: Sequence[ByRow]) -> float | None:
    """Standard error of the difference of two scores over the choice of rows, bits per byte; None if nothing is known.

    `base` and `other` have one array float64 [2, R] (nats and bytes of each row) for each measurement, of the same rows.
    The difference is a ratio, nats saved to bytes; its error by linearisation, one residual for each row (Cochran,
    Sampling Techniques, 1977, 6.4), so that whatever the tokens of a row share counts once.  Rows of one document
    are taken as independent, which they are not quite: the true error is rather larger.
    """
    if not base or not other or base[0].shape[1] < 2:
        return None
    size = base[0][1]
    saved = np.mean([one[0] for one in base], axis=0) - np.mean([one[0] for one in other], axis=0)
    left = saved - saved.sum() / size.sum() * size
    count = len(size)
    return math.sqrt(count / (count - 1) * float(np.square(left).sum())) / (math.log(2) * float(size.sum()))


def _with_gain(
    one: Finalist, sample: Sample, base: Sample, noise: Noise, rule: Rule, rows: float | None
) -> Finalist:
    gain = sample.mean - base.mean if rule.maximise else base.mean - sample.mean
    seeds = math.sqrt(sample.variance(noise.sigma) + base.variance(noise.sigma))
    half = student(Z90, noise.freedom) * math.hypot(seeds, rows or 0.0)
    interval = (gain - half, gain + half) if math.isfinite(half) else None
    reported = one.val_gain
    told = reported is not None and reported > 0 and reported >= rule.tau
    return replace(
        one,
        gain=gain,
        gain_se_seeds=seeds,
        gain_se_rows=rows,
        gain_interval=interval,
        real=gain / reported if told and reported else None,
        real_interval=(interval[0] / reported, interval[1] / reported) if told and reported and interval else None,
    )


def _fresh(finals: Finals, commit: str, *, guarded: bool) -> tuple[Fresh, ...]:
    made = [(index, seed, finals.measured.get((commit, index))) for index, seed in enumerate(finals.seeds.get(commit, ()))]
    return tuple(_one_fresh(index, seed, one, guarded=guarded) for index, seed, one in made if one is not None)


def _one_fresh(index: int, seed: int, one: Measurement, *, guarded: bool) -> Fresh:
    broken = one.guards_broken if guarded else None
    return Fresh(
        index=index,
        seed=seed,
        ending=one.ending,
        reason=broken or one.reason,
        score=math.fsum((one.val_bpb or 0.0, one.charge or 0.0)) if has_score(one) and broken is None else None,
        charge=one.charge,
        standard_error=one.audit.standard_error if one.audit else None,
    )


def _sample(fresh: Sequence[Fresh]) -> Sample | None:
    known = [one for one in fresh if one.score is not None]
    if not known:
        return None
    return Sample(
        scores=tuple(one.score for one in known if one.score is not None),
        errors=tuple(one.standard_error for one in known if one.standard_error is not None),
    )


def _rows(by_row: Mapping[Which, ByRow], fresh: Mapping[str, Sequence[Fresh]], commit: str) -> list[ByRow]:
    """Of the measurements that have a score."""
    scored = {one.index for one in fresh[commit] if one.score is not None}
    return [rows for (of, index), rows in by_row.items() if of == commit and index in scored]


# ---------------------------------------------------------------------------------------------------- the measurements


class Watch(Protocol):
    """Shows the measurements while they are made."""

    def started(self, number: int, record: Record, index: int) -> None:
        """Measurement `index` of the commit of `record` begins, the `number`-th of the whole report."""
        ...

    def progress(self, number: int, progress: Progress) -> None:
        """About once a second while a container runs."""
        ...

    def finished(self, number: int, record: Record, index: int, found: Measurement) -> None:
        """It was measured and written down."""
        ...


class Final:
    """The final report of a run that this process holds."""

    def __init__(self, run: Run, *, repeats: int | None, run_seed: int) -> None:
        """Raises `UsageError` if nothing was kept, or if it was begun with other `repeats`."""
        self._run = run
        self._line = line_of(run.records, run.base())
        self._commits = [str(record.commit) for record in self._line]
        self.finals = finals_in(run.ledger.folder)
        seeds = plan(self.finals, self._commits, repeats, run_seed=run_seed)
        self._planned: Event | None = None
        if seeds:
            self._planned = {
                "event": "final-planned",
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "repeats": self.finals.repeats or repeats or REPEATS,
                "split": None if run.task.score.reported else SPLIT,
                "last_trial": run.records[-1].trial,
                "seeds": seeds,
            }
        self._spent = self.finals.began is not None
        if self._planned is not None:
            self.finals.apply(self._planned)

    @property
    def todo(self) -> list[Which]:
        """What is still to be measured."""
        return missing(self.finals, self._commits)

    @property
    def total(self) -> int:
        """How many measurements the whole report has."""
        return sum(len(self.finals.seeds[commit]) for commit in self._commits)

    @property
    def commits(self) -> int:
        """How many commits it has, the baseline included."""
        return len(self._commits)

    @property
    def spent(self) -> bool:
        """True if the split was spent before."""
        return self._spent

    @property
    def seconds(self) -> float | None:
        """About how long the rest will take; None if nothing is known."""
        return expected_seconds(self.todo, self._run.records)

    def measure(
        self,
        measurer: Measures,
        watch: Watch,
        *,
        by_row: Callable[[Path], ByRow | None] = lambda _: None,
        longer: float = 1.0,
    ) -> bool:
        """Make every measurement that is missing; False if it was asked to stop before the end.

        Args:
            measurer: scores on the split of this report.
            watch: is shown everything.
            by_row: the nats and the bytes of each row, float64 [2, R], of the measurement in a folder; None if unknown.
            longer: how many rows the split has for one of validation, at least 1.

        Raises `BaselineError` if the baseline gives no score on any seed, and whatever the measurer raises; the same call
        then goes on where it was.
        """
        self._write_plan()
        for which in self.finals.measured:
            self._tidy(which)
        for which in self.todo:
            if self._run.stop_file.exists():
                self._run.stop_file.unlink()
                return False
            if which[0] != self._commits[0]:
                self._check_baseline()
            self._one(which, measurer, watch, by_row=by_row, longer=longer)
        self._check_baseline()
        return True

    def result(self) -> Result:
        """What is known so far."""
        run = self._run
        noise, line = finalists(self._line, run.records, run.rule, self.finals, self._by_row())
        return Result(
            tag=run.tag,
            split=self.finals.split,
            repeats=self.finals.repeats or REPEATS,
            began=self.finals.began,
            noise=noise,
            level=run.task.score.level,
            metric=run.task.score.metric,
            maximise=run.rule.maximise,
            line=line,
        )

    # -- pieces ------------------------------------------------------------------------------------

    def _one(
        self,
        which: Which,
        measurer: Measures,
        watch: Watch,
        *,
        by_row: Callable[[Path], ByRow | None],
        longer: float,
    ) -> None:
        commit, index = which
        record = self._line[self._commits.index(commit)]
        number = len(self.finals.measured.keys() - {which}) + 1
        folder, ledger = self._folder(which), self._run.ledger
        with structlog.contextvars.bound_contextvars(tag=self._run.tag, commit=commit, index=index):
            watch.started(number, record, index)
            if record is not self._line[0] and self.finals.failures[which] >= ENGINE_FAILURES:
                reason = f"the engine failed {self.finals.failures[which]} times under this measurement"
                found = Measurement(ending=None, reason=reason, seconds=Seconds())
            else:
                write_durably(folder / "train.py", self._run.source(commit).encode())
                try:
                    found = measurer.measure(
                        record.trial,
                        folder,
                        seed=self.finals.seeds[commit][index],
                        caps=self._caps(longer, of_baseline=record is self._line[0]),
                        references=self._references(which),
                        notes=Notes(write=lambda event, **facts: ledger.write(f"final-{event}", commit=commit, index=index, **facts)),
                        progress=lambda progress: watch.progress(number, progress),
                    )
                except EngineFailedError as error:
                    self._write("final-failed", commit=commit, index=index, reason=str(error))
                    raise
                _keep_rows(folder, by_row(folder))
            self._write("final-measured", commit=commit, index=index, measurement=measurement_to_json(_sound(found)))
            self._tidy(which)
            log.info("final.measured", ending=found.ending, score=found.val_bpb, reason=found.reason)
            watch.finished(number, record, index, self.finals.measured[which])

    def _write_plan(self) -> None:
        if self._planned is not None:
            event = dict(self._planned)
            self._run.ledger.write(event.pop("event"), **event)
            self._planned = None

    def _write(self, event: str, **fields: object) -> None:
        self._run.ledger.write(event, **fields)
        self.finals.apply({"event": event, **fields})

    def _caps(self, longer: float, *, of_baseline: bool) -> Caps:
        """For the others from the baseline's measurements here: the same rows.

        For those themselves from the search's, as far as time goes: they are what computation is compared with.  `longer`:
        how many rows there are for one of validation, if more.
        """
        searched = [record for record in self._run.records if record.verdict is Verdict.BASELINE]
        if of_baseline:
            return caps(self._run.task, [_longer(record, longer) for record in searched])
        task, known = self._run.task, list(self._baselines().values())
        # All baselines that there will be are there by now, however many the search had.
        task = replace(task, judge=replace(task.judge, baselines=len(known)))
        here = [replace(self._line[0], seconds=one.seconds, compute_seconds=one.compute_seconds) for one in known]
        found = caps(task, here)
        # Training is the same work in search and report, so the search's baselines speak too.
        every = typical([one.compute_seconds for one in (*here, *searched) if one.compute_seconds is not None])
        if found.reference is None or every is None:
            return found
        return replace(found, reference=replace(found.reference, train=every.train))

    def _baselines(self) -> dict[Which, Measurement]:
        """The baseline's measurements that have a score."""
        return {which: one for which, one in self.finals.measured.items() if which[0] == self._commits[0] and has_score(one)}

    def _check_baseline(self) -> None:
        if not self._baselines():
            reasons = {one.reason for (commit, _), one in self.finals.measured.items() if commit == self._commits[0]}
            message = (
                f"the unmodified baseline gave no score on fresh seeds ({'; '.join(sorted(reasons))}), so nothing can be "
                f"compared with it. Its logs: {self._folder((self._commits[0], 0)).parent}"
            )
            raise BaselineError(message)

    def _references(self, which: Which) -> list[Path]:
        return [self._folder(other) for other in self._baselines() if other != which]

    def _folder(self, which: Which) -> Path:
        return self._run.ledger.folder / "final" / which[0] / str(which[1] + 1)

    def _by_row(self) -> dict[Which, ByRow]:
        paths = {which: self._folder(which) / BY_ROW for which in self.finals.measured}
        return {which: np.load(path, allow_pickle=False) for which, path in paths.items() if path.exists()}

    def _tidy(self, which: Which) -> None:
        """Drop the checkpoint, and the claim too where no audit is steered by it."""
        folder = self._folder(which)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        if which[0] != self._commits[0]:
            evidence.discard(folder)


def _keep_rows(folder: Path, rows: ByRow | None) -> None:
    if rows is not None:
        buffer = io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        write_durably(folder / BY_ROW, buffer.getvalue())


def _sound(found: Measurement) -> Measurement:
    """Without a score that is no number."""
    if found.val_bpb is None or math.isfinite(found.val_bpb):
        return found
    return replace(found, ending=Ending.INVALID_OUTPUT, reason="the score is not a number", val_bpb=None)


def _longer(record: Record, times: float) -> Record:
    """The record with claim and audit as long as for so many times the rows; what it computed is no measure here."""
    claim, audit = (None if one is None else one * times for one in (record.seconds.claim, record.seconds.audit))
    return replace(record, seconds=replace(record.seconds, claim=claim, audit=audit), compute_seconds=None)
