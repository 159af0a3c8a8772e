"""One run: what its journal and its repository say, and the effects that a judged trial has on both.

Every effect (branch, note, checkpoints) is announced in the journal first and done again on the next start if
it may not have happened.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from runner.errors import StateError
from runner.judge import Rule, judge, pooled_sigma
from runner.ledger import Event, Ledger, OpenTrial, record_to_json
from runner.measure import CHECKPOINT, Measurement
from runner.score import SCORE_LEVEL
from runner.task import Task
from runner.trial import Proposal, Record, Refusal, Seconds, Verdict
from runner.workspace import CommitText, Workspace

KEPT_CHECKPOINTS = 3
"""Checkpoints of the newest kept trials stay on the disk; they are what `export-model` gives."""
SEEDS_PER_RUN = 100_000
BODY_LIMIT = 4000


class Run:
    """A run that this process holds."""

    def __init__(self, *, task: Task, tag: str, ledger: Ledger, workspace: Workspace) -> None:
        self.task, self.tag, self.ledger, self._workspace = task, tag, ledger, workspace

    # -- what there is -----------------------------------------------------------------------------

    @property
    def records(self) -> list[Record]:
        """Every judged trial, oldest first."""
        return self.ledger.state.records

    @property
    def under_way(self) -> OpenTrial | None:
        """The trial that was proposed and not judged yet."""
        return self.ledger.state.open

    @property
    def stop_file(self) -> Path:
        """`autoresearch stop` makes this file."""
        return self.ledger.folder / "stop"

    def base(self) -> str:
        """The baseline's commit."""
        return str(self._header()["base"])

    def champion(self) -> str:
        """The commit that the branch should be at."""
        kept = [record.commit for record in self.records if record.verdict is Verdict.KEEP and record.commit]
        return kept[-1] if kept else self.base()

    def source(self, commit: str) -> str:
        """The editable file in `commit`."""
        return self._workspace.read(commit, self.task.editable).decode()

    def baselines(self) -> int:
        """How many measurements of the baseline there are."""
        return sum(record.verdict is Verdict.BASELINE for record in self.records)

    def folder(self, trial: int) -> Path:
        """Where a trial's files lie."""
        return trial_folder(self.ledger.folder, trial)

    # -- a trial's way through the journal ---------------------------------------------------------

    def propose(self, proposal: Proposal, *, parent: str, baseline: bool = False) -> OpenTrial:
        """Write down that this is tried next."""
        trial = self.ledger.state.next_trial()
        _write_durably(self.folder(trial) / "train.py", proposal.source.encode())
        self.ledger.write(
            "proposed",
            trial=trial,
            at=_now(),
            agent=proposal.agent,
            idea=proposal.idea,
            why=proposal.why,
            risk=proposal.risk,
            kind=str(proposal.kind),
            token=proposal.token,
            cost_usd=proposal.cost_usd,
            parent=parent,
            baseline=baseline,
            seed=int(self._header()["seed"]) * SEEDS_PER_RUN + trial,
        )
        assert self.under_way is not None
        return self.under_way

    def make_candidate(self, event: Event, proposal: Proposal) -> str:
        """The candidate's commit, with a reference of its own; made again it has the same id."""
        commit = str(event["parent"]) if event["baseline"] else self._commit(event, proposal)
        self.ledger.write("candidate", trial=event["trial"], commit=commit)
        self._workspace.remember(self.tag, event["trial"], commit)
        return commit

    def judged(self, event: Event, proposal: Proposal, commit: str, measured: Measurement) -> Record:
        """The verdict on what was measured; nothing is written yet."""
        record = self._record(event, proposal, commit, measured)
        if measured.val_bpb is None:
            return record
        if event["baseline"]:
            scores = [*self._scores_of(commit), measured.val_bpb]
            return replace(record, verdict=Verdict.BASELINE, sigma=pooled_sigma(self._rule(), [scores]))
        sigma = pooled_sigma(self._rule(), [self._scores_of(self.base())])
        found = judge(measured.val_bpb, self._scores_of(self.champion()), sigma, self._rule())
        return replace(
            record,
            verdict=found.verdict,
            reason=found.reason,
            gain=found.gain,
            sigma=found.sigma,
            threshold=found.threshold,
        )

    def given_up(self, under_way: OpenTrial, proposal: Proposal, commit: str) -> Record:
        """The record of a trial under which the engine failed again and again."""
        measured = Measurement(
            ending=None,
            reason=f"the engine failed {len(under_way.failures)} times under this trial, at last: {under_way.failures[-1]}",
            seconds=Seconds(),
        )
        return self._record(under_way.proposed, proposal, commit, measured)

    def refused(self, refusal: Refusal) -> Record:
        """The record of a proposal that costs no container."""
        return Record(
            trial=self.ledger.state.next_trial(),
            tag=self.tag,
            commit=None,
            parent=self.champion(),
            agent=refusal.agent,
            idea=refusal.idea,
            token=refusal.token,
            verdict=Verdict.INVALID,
            reason=refusal.reason,
            proposed_at=_now(),
        )

    def record(self, record: Record) -> None:
        """Write the verdict down, then carry it out."""
        self.ledger.write("judged", trial=record.trial, record=record_to_json(record))
        self.settle()

    def settle(self) -> None:
        """Carry out the last verdict, again if that may not have happened, and check where the branch is.

        Raises `StateError` if the branch is not where this run left it.
        """
        index = self.ledger.state.unfinished
        if index is not None:
            record = self.records[index]
            if record.commit is not None:
                if record.verdict is Verdict.KEEP and record.parent is not None:
                    self._workspace.keep(self.tag, record.commit, record.parent)
                self._workspace.note(record.commit, self._note(record.commit))
            self._drop_checkpoints()
            self.ledger.write("done", trial=record.trial)
        expected, tip = self.champion(), self._workspace.tip(self.tag)
        if tip != expected:
            where = tip[:7] if tip else "gone"
            message = (
                f"the branch autoresearch/{self.tag} is {where}, but this run's champion is {expected[:7]}: put it back "
                f"(`git update-ref refs/heads/autoresearch/{self.tag} {expected}`) or start another --tag"
            )
            raise StateError(message)

    # -- pieces ------------------------------------------------------------------------------------

    def _commit(self, event: Event, proposal: Proposal) -> str:
        trailers = (
            ("Autoresearch-Run", self.tag),
            ("Autoresearch-Trial", str(event["trial"])),
            ("Autoresearch-Agent", proposal.agent),
            ("Autoresearch-Kind", str(proposal.kind)),
        )
        body = "\n\n".join(part for part in (proposal.why, proposal.risk and f"Risk: {proposal.risk}") if part)
        text = CommitText(
            subject=_one_line(proposal.idea, 72), body=_printable(body), trailers=trailers, date=event["at"]
        )
        return self._workspace.candidate(event["parent"], self.task.editable, proposal.source.encode(), text)

    def _record(self, event: Event, proposal: Proposal, commit: str, measured: Measurement) -> Record:
        header = self._header()
        return Record(
            trial=event["trial"],
            tag=self.tag,
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
            image=header["image"],
            gpu=header["gpu"],
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

    def _note(self, commit: str) -> str:
        """Every measurement of `commit`, a JSON object a line."""
        lines = [json.dumps(record_to_json(record), sort_keys=True) for record in self.records if record.commit == commit]
        return "".join(f"{line}\n" for line in lines)

    def _drop_checkpoints(self) -> None:
        kept = [record.trial for record in self.records if record.verdict is Verdict.KEEP]
        keep = {self.records[0].trial, *kept[-KEPT_CHECKPOINTS:]}
        for record in self.records:
            if record.trial not in keep:
                (self.folder(record.trial) / CHECKPOINT).unlink(missing_ok=True)

    def _scores_of(self, commit: str) -> list[float]:
        return [
            record.val_bpb for record in self.records if record.commit == commit and record.val_bpb is not None
        ]

    def _header(self) -> Event:
        header = self.ledger.state.header
        assert header is not None
        return header

    def _rule(self) -> Rule:
        options = self.task.judge
        return Rule(
            sigma_prior=options.sigma_prior,
            sigma_prior_weight=options.sigma_prior_weight,
            tau=options.tau,
            k=options.k,
        )


def trial_folder(run: Path, trial: int) -> Path:
    """Where one trial's files lie on the host."""
    return run / "trials" / f"{trial:04d}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n")[:BODY_LIMIT]


def _one_line(text: str, limit: int) -> str:
    line = " ".join(_printable(text).split()) or "(no idea given)"
    return line if len(line) <= limit else line[: limit - 1] + "…"
