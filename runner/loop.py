"""Propose, make the candidate, run the trial, judge, record; and again.

What a trial changes outside (branch, references, note) is announced in the journal first and done again on
the next start if it may not have happened, so everything here can be interrupted anywhere.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog

from runner.errors import BaselineError, StateError
from runner.judge import Judgement, Rule, judge, pooled_sigma
from runner.ledger import Event, Ledger, OpenTrial, record_to_json
from runner.measure import CHECKPOINT, Measurement, Measurer, caps
from runner.protocols import Agent, View
from runner.score import SCORE_LEVEL
from runner.task import Task
from runner.trial import Ending, Kind, Proposal, Record, Refusal, Verdict
from runner.workspace import CommitText, Workspace

log = structlog.get_logger()

KEPT_CHECKPOINTS = 3
"""Checkpoints of the newest kept trials stay on the disk; they are what `export-model` gives."""
SEEDS_PER_RUN = 100_000


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
        *,
        task: Task,
        tag: str,
        ledger: Ledger,
        workspace: Workspace,
        measurer: Measurer,
        agent: Agent,
        view: View,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._tag, self._ledger, self._workspace = task, tag, ledger, workspace
        self._measurer, self._agent, self._view, self._clock = measurer, agent, view, clock

    def run(self, stops: Stops) -> Outcome:
        """Continue the run that the ledger holds until a stop is reached or the agent has nothing more.

        Raises `BaselineError` if the unmodified file gives no score, and whatever the parts raise.
        """
        began, judged = self._clock(), 0
        self._stop_file().unlink(missing_ok=True)
        self._settle()
        self._measure_baselines()
        if self._ledger.state.open is not None:  # of an earlier invocation, and none of this one's trials
            self._resume_or(lambda: None)
        for record in self.records:
            self._tell_agent(record)
        while (reason := self._reached(stops, judged, self._clock() - began)) is None:
            proposed = self._propose_next()
            if proposed is None:
                return Outcome(reason="the agent has nothing more to propose", judged=judged)
            judged += 1
            self._tell_agent(proposed)
        self._stop_file().unlink(missing_ok=True)
        return Outcome(reason=reason, judged=judged)

    def _reached(self, stops: Stops, judged: int, seconds: float) -> str | None:
        if stops.trials is not None and judged >= stops.trials:
            return f"{judged} trials done"
        if stops.hours is not None and seconds >= stops.hours * 3600:
            return f"{stops.hours:g} hours are over"
        return "asked to stop" if self._stop_file().exists() else None

    def _tell_agent(self, record: Record) -> None:
        if record.agent == self._agent.name:
            self._agent.observe(record)

    def _stop_file(self) -> Path:
        return self._ledger.folder / "stop"

    @property
    def records(self) -> list[Record]:
        """Every judged trial of the run, oldest first."""
        return self._ledger.state.records

    # -- proposing ---------------------------------------------------------------------------------

    def _measure_baselines(self) -> None:
        while (done := sum(record.verdict is Verdict.BASELINE for record in self.records)) < self._task.judge.baselines:
            record = self._resume_or(partial(self._propose_baseline, done))
            if record is None or record.verdict is not Verdict.BASELINE:
                raise BaselineError(self._baseline_advice())

    def _propose_baseline(self, number: int) -> Record | None:
        again = f", measurement {number + 1}" if number else ""
        source = self._source(self._base())
        proposal = Proposal(
            agent="baseline", idea=f"baseline: the unmodified file{again}", kind=Kind.OTHER, source=source
        )
        return self._trial(self._announce(proposal, parent=self._base(), baseline=True), proposal)

    def _propose_next(self) -> Record | None:
        champion = self._champion()
        proposal = self._agent.propose(self._source(champion), tuple(self.records))
        if proposal is None:
            return None
        if isinstance(proposal, Refusal):
            return self._refused(proposal, champion)
        if proposal.source == self._source(champion):
            reason = "the proposed file is the champion's own"
            return self._refused(
                Refusal(agent=proposal.agent, idea=proposal.idea, reason=reason, token=proposal.token), champion
            )
        return self._trial(self._announce(proposal, parent=champion, baseline=False), proposal)

    def _resume_or(self, propose: Callable[[], Record | None]) -> Record | None:
        """The trial that was under way when an earlier invocation ended, else a new one."""
        under_way = self._ledger.state.open
        if under_way is None:
            return propose()
        event = under_way.proposed
        source = (self._folder(under_way.trial) / "train.py").read_text()
        words = {name: event[name] for name in ("agent", "idea", "why", "risk", "token", "cost_usd")}
        return self._trial(under_way, Proposal(**words, kind=Kind(event["kind"]), source=source))

    def _announce(self, proposal: Proposal, *, parent: str, baseline: bool) -> OpenTrial:
        trial = self._ledger.state.next_trial()
        folder = self._folder(trial)
        _write_durably(folder / "train.py", proposal.source.encode())
        self._ledger.write(
            "proposed",
            trial=trial,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            agent=proposal.agent,
            idea=proposal.idea,
            why=proposal.why,
            risk=proposal.risk,
            kind=str(proposal.kind),
            token=proposal.token,
            cost_usd=proposal.cost_usd,
            parent=parent,
            baseline=baseline,
            seed=self._seed(trial),
        )
        assert self._ledger.state.open is not None
        return self._ledger.state.open

    # -- one trial ---------------------------------------------------------------------------------

    def _trial(self, under_way: OpenTrial, proposal: Proposal) -> Record:
        event, trial = under_way.proposed, under_way.trial
        with structlog.contextvars.bound_contextvars(tag=self._tag, trial=trial):
            commit = self._commit(event, proposal)
            self._ledger.write("candidate", trial=trial, commit=commit)
            self._workspace.remember(self._tag, trial, commit)
            self._view.started(trial, proposal.idea)
            log.info("trial.started", commit=commit, idea=proposal.idea)
            measured = self._measurer.measure(
                trial,
                self._folder(trial),
                seed=event["seed"],
                caps=caps(self._task, self.records),
                created=lambda phase, name: self._created(trial, phase, name),
                progress=lambda progress: self._view.progress(trial, progress),
            )
            record = self._judge(event, proposal, commit, measured)
            return self._record(record)

    def _commit(self, event: Event, proposal: Proposal) -> str:
        """The candidate's commit; made again from the journal it has the same id."""
        if event["baseline"]:
            return str(event["parent"])
        trailers = (
            ("Autoresearch-Run", self._tag),
            ("Autoresearch-Trial", str(event["trial"])),
            ("Autoresearch-Agent", proposal.agent),
            ("Autoresearch-Kind", str(proposal.kind)),
        )
        body = "\n\n".join(part for part in (proposal.why, proposal.risk and f"Risk: {proposal.risk}") if part)
        text = CommitText(
            subject=_one_line(proposal.idea, 72), body=_printable(body), trailers=trailers, date=event["at"]
        )
        return self._workspace.candidate(
            event["parent"], self._task.editable, proposal.source.encode(), text
        )

    def _created(self, trial: int, phase: str, container: str) -> None:
        self._ledger.write("created", trial=trial, phase=phase, container=container)

    def _judge(self, event: Event, proposal: Proposal, commit: str, measured: Measurement) -> Record:
        base = Record(
            trial=event["trial"],
            tag=self._tag,
            commit=commit,
            parent=None if event["baseline"] else event["parent"],
            agent=proposal.agent,
            idea=proposal.idea,
            why=proposal.why,
            risk=proposal.risk,
            kind=proposal.kind,
            token=proposal.token,
            ending=measured.ending,
            verdict=Verdict.CRASH,
            reason=measured.reason,
            val_bpb=measured.val_bpb,
            score_level=SCORE_LEVEL if measured.val_bpb is not None else None,
            seed=event["seed"],
            image=self._header()["image"],
            gpu=self._header()["gpu"],
            memory_gb=measured.memory_gb,
            steps=measured.steps,
            tokens=measured.tokens,
            params=measured.params,
            cost_usd=proposal.cost_usd,
            seconds=measured.seconds,
            summary=measured.summary,
            losses=measured.losses,
            proposed_at=event["at"],
            log_path=str(measured.log_path) if measured.log_path else None,
        )
        if measured.val_bpb is None:
            return base
        if event["baseline"]:
            sigma = pooled_sigma(self._rule(), [[*self._scores_of(commit), measured.val_bpb]])
            return replace(base, verdict=Verdict.BASELINE, sigma=sigma)
        found = self._compare(measured.val_bpb)
        return replace(
            base,
            verdict=found.verdict,
            reason=found.reason,
            gain=found.gain,
            sigma=found.sigma,
            threshold=found.threshold,
        )

    def _compare(self, score: float) -> Judgement:
        baselines = self._scores_of(self._base())
        sigma = pooled_sigma(self._rule(), [baselines])
        return judge(score, self._scores_of(self._champion()), sigma, self._rule())

    def _refused(self, refusal: Refusal, champion: str) -> Record:
        record = Record(
            trial=self._ledger.state.next_trial(),
            tag=self._tag,
            commit=None,
            parent=champion,
            agent=refusal.agent,
            idea=refusal.idea,
            token=refusal.token,
            verdict=Verdict.INVALID,
            reason=refusal.reason,
            proposed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._view.started(record.trial, record.idea)
        return self._record(record)

    # -- recording ---------------------------------------------------------------------------------

    def _record(self, record: Record) -> Record:
        self._ledger.write("judged", trial=record.trial, record=record_to_json(record))
        self._settle()
        self._view.finished(record, self.records)
        log.info(
            "trial.judged",
            trial=record.trial,
            ending=record.ending,
            verdict=record.verdict,
            val_bpb=record.val_bpb,
            reason=record.reason,
        )
        return record

    def _settle(self) -> None:
        """Do what the last judged record announced; again, if an earlier invocation may not have."""
        index = self._ledger.state.unfinished
        if index is not None:
            record = self.records[index]
            if record.commit is not None:
                if record.verdict is Verdict.KEEP and record.parent is not None:
                    self._workspace.keep(self._tag, record.commit, record.parent)
                self._workspace.note(record.commit, self._note(record.commit))
            self._drop_checkpoints()
            self._ledger.write("done", trial=record.trial)
        expected, tip = self._champion(), self._workspace.tip(self._tag)
        if tip != expected:
            where = tip[:7] if tip else "gone"
            message = (
                f"the branch autoresearch/{self._tag} is {where}, but this run's champion is {expected[:7]}: put it back "
                f"(`git update-ref refs/heads/autoresearch/{self._tag} {expected}`) or start another --tag"
            )
            raise StateError(message)

    def _drop_checkpoints(self) -> None:
        kept = [record.trial for record in self.records if record.verdict is Verdict.KEEP]
        keep = {self.records[0].trial, *kept[-KEPT_CHECKPOINTS:]}
        for record in self.records:
            if record.trial not in keep:
                (self._folder(record.trial) / CHECKPOINT).unlink(missing_ok=True)

    def _note(self, commit: str) -> str:
        """Every measurement of `commit`, a JSON object a line."""
        lines = [json.dumps(record_to_json(record), sort_keys=True) for record in self.records if record.commit == commit]
        return "".join(f"{line}\n" for line in lines)

    # -- looking up --------------------------------------------------------------------------------

    def _header(self) -> Event:
        header = self._ledger.state.header
        assert header is not None
        return header

    def _base(self) -> str:
        return str(self._header()["base"])

    def _champion(self) -> str:
        kept = [record.commit for record in self.records if record.verdict is Verdict.KEEP and record.commit]
        return kept[-1] if kept else self._base()

    def _scores_of(self, commit: str) -> list[float]:
        return [
            record.val_bpb
            for record in self.records
            if record.commit == commit and record.val_bpb is not None
        ]

    def _source(self, commit: str) -> str:
        return self._workspace.read(commit, self._task.editable).decode()

    def _seed(self, trial: int) -> int:
        return int(self._header()["seed"]) * SEEDS_PER_RUN + trial

    def _rule(self) -> Rule:
        rule = self._task.judge
        return Rule(
            sigma_prior=rule.sigma_prior,
            sigma_prior_weight=rule.sigma_prior_weight,
            tau=rule.tau,
            k=rule.k,
        )

    def _folder(self, trial: int) -> Path:
        return trial_folder(self._ledger.folder, trial)

    def _baseline_advice(self) -> str:
        record = self.records[-1]
        where = f" Its log: {record.log_path}" if record.log_path else ""
        if record.ending is Ending.OUT_OF_MEMORY and self._task.next_smaller:
            return f"the baseline ran out of memory: try --preset {self._task.next_smaller}.{where}"
        return f"the unmodified baseline gave no score ({record.reason}), so nothing can be compared with it.{where}"


def trial_folder(run: Path, trial: int) -> Path:
    """Where one trial's files lie on the host."""
    return run / "trials" / f"{trial:04d}"


def _write_durably(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        message = f"cannot write {path}: {error.strerror}. Nothing recorded is lost; mend it and run the same command again"
        raise StateError(message) from error


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n")[:4000]


def _one_line(text: str, limit: int) -> str:
    line = " ".join(_printable(text).split()) or "(no idea given)"
    return line if len(line) <= limit else line[: limit - 1] + "…"
