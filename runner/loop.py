"""Propose, make the candidate, run the trial, judge, record; and again.  It can be interrupted anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from runner.errors import BaselineError, EngineError
from runner.ledger import Event, OpenTrial
from runner.measure import Measurement, Measurer, caps
from runner.protocols import Agent, View
from runner.run import Run
from runner.trial import Ending, Kind, Proposal, Record, Refusal, Verdict

log = structlog.get_logger()

ENGINE_FAILURES = 3
"""A trial under which the engine failed so often is given up, or no run could ever get past it."""


@dataclass(frozen=True, kw_only=True)
class Stops:
    """When this invocation ends by itself."""

    trials: int | None = None
    """New trials after the baselines."""
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
        measurer: Measurer,
        agent: Agent,
        view: View,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._measurer, self._agent, self._view = run, measurer, agent, view
        self._clock = clock

    def run(self, stops: Stops) -> Outcome:
        """Go on with the run until a stop is reached or the agent has nothing more.

        Raises `BaselineError` if the unmodified file gives no score, and whatever the parts raise.
        """
        began, judged = self._clock(), 0
        self._run.settle()
        while self._run.baselines() < self._run.task.judge.baselines:
            if (reason := self._reached(Stops(hours=stops.hours), 0, self._clock() - began)) is not None:
                return Outcome(reason=reason, judged=0)
            self._measure_baseline()
        self._resume_or(lambda: None)  # of an earlier invocation, and none of this one's trials
        for record in self._run.records:
            self._tell_agent(record)
        while (reason := self._reached(stops, judged, self._clock() - began)) is None:
            proposed = self._propose()
            if proposed is None:
                return Outcome(reason="the agent has nothing more to propose", judged=judged)
            judged += 1
            self._tell_agent(proposed)
        return Outcome(reason=reason, judged=judged)

    def _reached(self, stops: Stops, judged: int, seconds: float) -> str | None:
        if stops.trials is not None and judged >= stops.trials:
            return f"{judged} trials done"
        if stops.hours is not None and seconds >= stops.hours * 3600:
            return f"{stops.hours:g} hours are over"
        if self._run.stop_file.exists():
            self._run.stop_file.unlink()
            return "asked to stop"
        return None

    def _tell_agent(self, record: Record) -> None:
        if record.agent == self._agent.name:
            self._agent.observe(record)

    def _measure_baseline(self) -> None:
        record = self._resume_or(partial(self._baseline, self._run.baselines()))
        if record is None or record.verdict is not Verdict.BASELINE:
            raise BaselineError(self._baseline_advice(self._run.records[-1]))

    def _baseline(self, number: int) -> Record:
        base = self._run.base()
        again = f", measurement {number + 1}" if number else ""
        proposal = Proposal(
            agent="baseline", idea=f"baseline: the unmodified file{again}", source=self._run.source(base)
        )
        return self._trial(self._run.propose(proposal, parent=base, baseline=True), proposal)

    def _propose(self) -> Record | None:
        champion = self._run.champion()
        source = self._run.source(champion)
        proposal = self._agent.propose(source, tuple(self._run.records))
        if proposal is None:
            return None
        if isinstance(proposal, Proposal) and proposal.source == source:
            reason = "the proposed file is the champion's own"
            proposal = Refusal(
                agent=proposal.agent, idea=proposal.idea, reason=reason, token=proposal.token
            )
        if isinstance(proposal, Refusal):
            record = self._run.refused(proposal)
            self._view.started(record.trial, record.idea)
            return self._record(record)
        return self._trial(self._run.propose(proposal, parent=champion), proposal)

    def _resume_or(self, propose: Callable[[], Record | None]) -> Record | None:
        """The trial that was under way when an earlier invocation ended, else a new one."""
        under_way = self._run.under_way
        if under_way is None:
            return propose()
        event = under_way.proposed
        source = (self._run.folder(under_way.trial) / "train.py").read_bytes().decode()
        words = {name: event[name] for name in ("agent", "idea", "why", "risk", "token", "cost_usd")}
        return self._trial(under_way, Proposal(**words, kind=Kind(event["kind"]), source=source))

    def _trial(self, under_way: OpenTrial, proposal: Proposal) -> Record:
        run, event, trial = self._run, under_way.proposed, under_way.trial
        with structlog.contextvars.bound_contextvars(tag=run.tag, trial=trial):
            commit = run.make_candidate(event, proposal)
            self._view.started(trial, proposal.idea)
            log.info("trial.started", commit=commit, idea=proposal.idea)
            if len(under_way.failures) >= ENGINE_FAILURES:
                return self._record(run.given_up(under_way, proposal, commit))
            try:
                measured = self._measure(event)
            except EngineError as error:
                run.ledger.write("failed", trial=trial, reason=str(error))
                raise
            return self._record(run.judged(event, proposal, commit, measured))

    def _measure(self, event: Event) -> Measurement:
        run, trial = self._run, int(event["trial"])
        return self._measurer.measure(
            trial,
            run.folder(trial),
            seed=event["seed"],
            caps=caps(run.task, run.records),
            created=lambda phase, name: run.ledger.write("created", trial=trial, phase=phase, container=name),
            progress=lambda progress: self._view.progress(trial, progress),
        )

    def _record(self, record: Record) -> Record:
        self._run.record(record)
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
