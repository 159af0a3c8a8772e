"""Propose, make the candidate, measure, judge, record; and again.  It can be interrupted anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from runner.coarse import Teller
from runner.compute import step_seconds
from runner.errors import BaselineError, EngineFailedError, GpuError, StateError, Terminated
from runner.interrupts import name_of
from runner.ledger import OpenTrial
from runner.measure import Caps, Measurement, caps
from runner.money import Purse, TooDearError, account
from runner.notes import Notes
from runner.protocols import Agent, View
from runner.run import Run
from runner.trial import Ending, Progress, Proposal, Record, Refusal, Suggested, Verdict
from runner.tried import FINGERPRINTS, OPEN, Barred, Candidate, Fingerprints, Gate, tried_in
from runner.verdicts import Do, Step

log = structlog.get_logger()

ENGINE_FAILURES = 3
"""A candidate under which so many invocations ended because the engine failed is abandoned, or no run could ever get past it."""
DISTURBED_TRIES = 3
"""So often a measurement that something else disturbed is made again.  Then it is given up; and when so many trials in a row were
given up, the run ends: what disturbs them does not go away by itself."""
RUNNER = "runner"
"""Who proposes to measure the champion again."""


class Measures(Protocol):
    """What measures candidates; `runner.measure.Measurer` is one."""

    def measure(
        self,
        trial: int,
        folder: Path,
        *,
        seed: int,
        caps: Caps,
        references: Sequence[Path],
        notes: Notes,
        progress: Callable[[Progress], None],
    ) -> Measurement:
        """Measure the candidate in `folder`/train.py, which keeps what `confirm` needs."""
        ...

    def confirm(
        self,
        trial: int,
        folder: Path,
        measured: Measurement,
        *,
        caps: Caps,
        references: Sequence[Path],
        notes: Notes,
        progress: Callable[[Progress], None],
    ) -> Measurement:
        """Audit what was `measured` in `folder` once more; an ending other than `finished`: it does not hold."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stops:
    """When this invocation ends by itself."""

    trials: int | None = None
    """New trials after the baselines; the champion measured again is none."""
    hours: float | None = None

@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Why an invocation ended and what it did."""

    reason: str
    judged: int


class Loop:
    """One invocation of one run."""

    def __init__(
        self,
        run: Run,
        measurer: Measures,
        agent: Agent,
        view: View,
        *,
        gate: Gate = OPEN,
        purse: Purse | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._purse = purse or Purse()
        self._run, self._measurer, self._agent, self._view = run, measurer, agent, view
        self._gate, self._clock, self._teller = gate, clock, Teller()
        self._account = account(run.records)
        self._fingerprints = Fingerprints(run.ledger.folder / FINGERPRINTS, gate)
        self._tried: dict[str, int] | None = None

    def run(self, stops: Stops) -> Outcome:
        """Go on with the run until a stop is reached or the agent has nothing more.

        Raises `BaselineError` if the unmodified file gives no score, and whatever the parts raise.
        """
        began, judged = self._clock(), 0
        self._run.settle()
        self._finish()  # of an earlier invocation, and none of this one's trials
        while self._run.baselines() < self._run.task.judge.baselines:
            if (reason := self._reached(Stops(hours=stops.hours), 0, self._clock() - began)) is not None:
                return Outcome(reason=reason, judged=0)
            self._measure_baseline()
        earlier = len(self._run.records)
        while (reason := self._reached(stops, judged, self._clock() - began)) is None:
            self._refuse_disturbed(self._run.records[earlier:])
            if self._run.champion_is_stale():
                self._measure_champion()
                continue
            try:
                proposed = self._propose()
            except TooDearError as error:
                return Outcome(reason=str(error), judged=judged)
            if proposed is None:
                return Outcome(reason="the agent has nothing more to propose", judged=judged)
            judged += 1
        return Outcome(reason=reason, judged=judged)

    def _reached(self, stops: Stops, judged: int, seconds: float) -> str | None:
        if stops.trials is not None and judged >= stops.trials:
            return f"{judged} trials done"
        if stops.hours is not None and seconds >= stops.hours * 3600:
            return f"{stops.hours:g} hours are over"
        self._purse.expect(self._account.trial_seconds(self._run.task.budget.seconds))
        if (reason := self._purse.empty()) is not None:
            return reason
        if self._run.stop_file.exists():
            self._run.stop_file.unlink()
            return "asked to stop"
        return None

    # -- what is tried -----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Bring what an earlier invocation left under way to its end: a champion that is waited for, then who waits."""
        while (under_way := self._run.under_way) is not None:
            self._checked(self._trial(under_way))

    def _measure_baseline(self) -> None:
        number, base = self._run.baselines(), self._run.base()
        again = f", measurement {number + 1}" if number else ""
        proposal = Proposal(
            agent="baseline", idea=f"baseline: the unmodified file{again}", source=self._run.source(base)
        )
        self._checked(self._trial(self._run.propose(proposal, parent=base, baseline=True)))

    def _checked(self, record: Record) -> None:
        if record.agent == "baseline" and record.verdict is not Verdict.BASELINE:
            raise BaselineError(self._baseline_advice(record))

    def _measure_champion(self) -> None:
        champion = self._run.champion()
        idea = next((one.idea for one in reversed(self._run.records) if one.verdict is Verdict.KEEP), "the baseline")
        proposal = Proposal(agent=RUNNER, idea=f"the champion again: {idea}", source=self._run.source(champion))
        self._trial(self._run.propose(proposal, parent=champion, repeat=True))

    def _propose(self) -> Record | None:
        champion = self._run.champion()
        source = self._run.source(champion)
        proposal = self._agent.propose(source, self._teller.told(self._run.records))
        if isinstance(proposal, Proposal):
            proposal = self._gated(proposal, source)
        if proposal is None:
            return None
        if isinstance(proposal, Refusal):
            record = self._run.refused(proposal)
            self._view.started(record.trial, record.idea)
            return self._record(record)
        record = self._trial(self._run.propose(proposal, parent=champion))
        self._remember(proposal.source, record)
        return record

    def _gated(self, proposal: Proposal, champion: str) -> Proposal | Refusal:
        """The proposal, or why no trial is spent on it."""
        if self._tried is None:
            known = (record for record in self._run.records if record.verdict is not Verdict.ABANDONED)
            trials = ((record.trial, record.commit, self._run.folder(record.trial)) for record in known)
            self._tried = tried_in(trials, self._fingerprints)
        found = self._gate.refuse(proposal.source, champion, self._tried)
        if found is None:
            return proposal
        source = proposal.source if found.mendable else None
        return Refusal(
            agent=proposal.agent, idea=proposal.idea, reason=found.reason, token=proposal.token, spent=proposal.spent,
            suggestion=proposal.suggestion, source=source,
        )  # fmt: skip

    def _examined(self, opened: OpenTrial) -> Barred | None:
        """Why no trial is spent on what was proposed; asked again if this process died before the answer was used."""
        run, trial, proposed = self._run, opened.trial, opened.proposed
        if opened.examined or opened.measured or proposed["baseline"] or proposed.get("repeat"):
            return None
        folder = run.ready(trial, 0)
        candidate = Candidate(
            trial=trial,
            folder=folder,
            source=(folder / "train.py").read_bytes().decode(),
            champion=run.source(proposed["parent"]),
            agent=proposed["agent"],
            suggestion=Suggested(proposed["suggestion"]) if proposed.get("suggestion") else None,
            seed=run.seed(trial, 0),
            caps=caps(run.task, run.records),
            step_seconds=step_seconds(run.records),
            memory_gb=next((one.memory_gb for one in reversed(run.records) if one.commit == proposed["parent"] and one.memory_gb), None),
            created=lambda phase, name: run.ledger.write("created", trial=trial, phase=phase, container=name),
            progress=lambda progress: self._view.progress(trial, progress),
        )
        with self._noted(trial):
            found = self._gate.examine(candidate)
        if found is None:
            run.ledger.write("examined", trial=trial)
        return found

    def _remember(self, source: str, record: Record) -> None:
        mark = None if record.commit is None else self._fingerprints.of(record.commit, lambda: source)
        if mark is not None and self._tried is not None:
            self._tried.setdefault(mark, record.trial)

    # -- one trial ---------------------------------------------------------------------------------

    def _trial(self, opened: OpenTrial) -> Record:
        """Take a trial from where it is to its verdict."""
        run, trial = self._run, opened.trial
        with structlog.contextvars.bound_contextvars(tag=run.tag, trial=trial):
            commit = run.make_candidate(opened)
            self._view.started(trial, opened.proposed["idea"])
            log.info("trial.started", commit=commit, idea=opened.proposed["idea"])
            if len(opened.failures) >= ENGINE_FAILURES and not opened.proposed["baseline"]:
                return self._record(run.abandoned(opened, commit))
            if (barred := self._examined(opened)) is not None:
                return self._record(run.barred(opened, commit, barred))
            while (step := run.next_step(trial)).do is not Do.CONCLUDE:
                log.info("trial.step", do=step.do, index=step.index, reason=step.reason)
                if step.do is Do.MEASURE_CHAMPION:
                    self._measure_champion()
                else:
                    self._look(trial, step)
            return self._record(run.concluded(trial, commit, step))

    def _look(self, trial: int, step: Step) -> None:
        """Measure or confirm, and write down what came of it."""
        run, index = self._run, step.index
        folder = run.ready(trial, index)
        if step.do is Do.CONFIRM:
            work = partial(self._measurer.confirm, trial, folder, run.measurement(trial, index))
        else:
            work = partial(self._measurer.measure, trial, folder, seed=run.seed(trial, index))
        with self._noted(trial):
            found = self._undisturbed(trial, partial(
                work,
                caps=caps(run.task, run.records),
                references=run.references(trial),
                notes=run.notes(trial, step),
                progress=lambda progress: self._view.progress(trial, progress),
            ))  # fmt: skip
        run.measured(trial, index, replace(found, seed=run.seed(trial, index)), confirmed=step.do is Do.CONFIRM)

    @contextmanager
    def _noted(self, trial: int) -> Iterator[None]:
        """Write down what ends work on a trial from outside."""
        try:
            yield
        except EngineFailedError as error:
            self._run.ledger.write("failed", trial=trial, reason=str(error))
            raise
        except (KeyboardInterrupt, Terminated) as signalled:
            with suppress(StateError):
                self._run.ledger.write("interrupted", trial=trial, signal=name_of(signalled))
            raise

    def _undisturbed(self, trial: int, work: Callable[[], Measurement]) -> Measurement:
        """What comes of `work` when nothing disturbs it, or of the last try that there is."""
        for left in range(DISTURBED_TRIES - 1, 0, -1):
            found = work()
            if found.ending is not Ending.INVALID_ENVIRONMENT:
                return found
            log.warning("trial.disturbed", trial=trial, reason=found.reason, tries_left=left)
        return work()

    def _refuse_disturbed(self, records: Sequence[Record]) -> None:
        """Raises `GpuError` if something else had the GPU in the last of this invocation's `records`, and nothing was measured."""
        last = records[-DISTURBED_TRIES:]
        if len(last) == DISTURBED_TRIES and all(one.ending is Ending.INVALID_ENVIRONMENT for one in last):
            message = f"{DISTURBED_TRIES} trials in a row were disturbed, the last one because {last[-1].reason}: end that, and run the same command again"
            raise GpuError(message)

    def _record(self, record: Record) -> Record:
        if record.verdict is Verdict.ABANDONED:
            self._tried = None  # it may be tried again
        self._run.record(record)
        self._account.add(record)
        self._purse.used(record)
        self._view.finished(record, self._run.records)
        log.info(
            "trial.judged",
            trial=record.trial,
            ending=record.ending,
            verdict=record.verdict,
            val_bpb=record.val_bpb,
            reason=record.reason,
        )
        return record

    def _baseline_advice(self, record: Record) -> str:
        where = f" Its log: {record.log_path}" if record.log_path else ""
        smaller = self._run.task.next_smaller
        if record.ending is Ending.OUT_OF_MEMORY and smaller:
            return f"the baseline ran out of memory: try --preset {smaller}.{where}"
        return f"the unmodified baseline gave no score ({record.reason}), so nothing can be compared with it.{where}"
