"""One run: what its journal and its repository say, and the effects that a judged trial has on both.

Every effect (branch, note, checkpoints) is announced in the journal first and done again on the next start if
it may not have happened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from runner import evidence, verdicts
from runner.clock import Now, utc_now
from runner.codesize import smaller_by
from runner.durable import write_durably
from runner.errors import StateError, UsageError
from runner.inside_command import STDOUT
from runner.ledger import Event, Ledger, OpenTrial, record_to_json, trial_folder
from runner.measure import CHECKPOINT, Measurement
from runner.money import together
from runner.notes import Notes
from runner.phases import NLL, ROWS
from runner.records import measurement_to_json, measurements_of, record_of
from runner.task import Task
from runner.trial import REFUSED, Ending, Proposal, Record, Refusal, Seconds, Spent, Verdict
from runner.tried import Barred
from runner.verdicts import Step
from runner.workspace import CommitText, Workspace

KEPT_CHECKPOINTS = 3
"""Checkpoints of the newest kept trials stay on the disk; they are what `export-model` gives."""
SEEDS_PER_RUN, SEEDS_PER_TRIAL = 100_000, 4
"""A trial has one seed for each measurement that it may have, and no other trial of the run has them."""
BODY_LIMIT = 4000
PASSING = (ROWS, NLL, STDOUT, "question-*.bin", "audit-*/answer-*.bin", ".*.partial")
"""Files in a measurement's folder that are of no use once it is judged."""


class Run:
    """A run that this process holds."""

    def __init__(
        self, *, task: Task, tag: str, ledger: Ledger, workspace: Workspace, now: Now = utc_now
    ) -> None:
        """Raises `UsageError` if the run has scores of another level than the task's."""
        self.task, self.tag, self.ledger, self._workspace, self._now = task, tag, ledger, workspace, now
        self.rule = verdicts.rule_of(task.judge, maximise=task.score.maximise)
        self.check_level(task.score.level)

    # -- what there is -----------------------------------------------------------------------------

    @property
    def records(self) -> list[Record]:
        """Every judged trial, oldest first."""
        return self.ledger.state.records

    @property
    def under_way(self) -> OpenTrial | None:
        """The trial that was proposed last and not judged yet: before the candidate, the champion that it waits for."""
        opened = self.ledger.state.opened
        return opened[max(opened)] if opened else None

    @property
    def stop_file(self) -> Path:
        """`autoresearch stop` makes this file."""
        return self.ledger.folder / "stop"

    def base(self) -> str:
        """The baseline's commit."""
        return str(self._header()["base"])

    def champion(self) -> str:
        """The commit that the branch should be at."""
        return verdicts.champion_of(self.records, self.base())

    def champion_is_stale(self) -> bool:
        """True if it is time to measure the champion again."""
        return verdicts.champion_is_stale(self.records, self.base(), self.task.judge)

    def source(self, commit: str) -> str:
        """The editable file in `commit`."""
        return self._workspace.read(commit, self.task.editable).decode()

    def baselines(self) -> int:
        """How many measurements of the baseline there are."""
        return sum(record.verdict is Verdict.BASELINE for record in self.records)

    def folder(self, trial: int, index: int = 0) -> Path:
        """Where the files of a trial's measurement lie: those of the first, and in folders of it the repeats'."""
        folder = trial_folder(self.ledger.folder, trial)
        return folder if index == 0 else folder / str(index + 1)

    def references(self, trial: int) -> list[Path]:
        """Folders of the baselines' measurements, but for those of `trial` itself."""
        return [self.folder(one.trial) for one in self.records if one.verdict is Verdict.BASELINE and one.trial != trial]

    def check_level(self, level: str) -> None:
        """Raise `UsageError` if the run's scores are of another level: one branch has one."""
        known = next((record.score_level for record in self.records if record.score_level), level)
        if known != level:
            message = f"run {self.tag!r} has scores of level {known}, and the task's are {level}: scores of two levels are not comparable, use --new"
            raise UsageError(message)

    # -- a trial's way through the journal ---------------------------------------------------------

    def propose(self, proposal: Proposal, *, parent: str, baseline: bool = False, repeat: bool = False) -> OpenTrial:
        """Write down that this is tried next; `repeat`: the champion once more."""
        trial = self.ledger.state.next_trial()
        write_durably(self.folder(trial) / "train.py", proposal.source.encode())
        self.ledger.write(
            "proposed",
            trial=trial,
            at=self._now(),
            agent=proposal.agent,
            idea=proposal.idea,
            why=proposal.why,
            risk=proposal.risk,
            kind=str(proposal.kind),
            token=proposal.token,
            suggestion=proposal.suggestion,
            **asdict(self._spent(proposal)),
            parent=parent,
            baseline=baseline,
            repeat=repeat,
            seed=int(self._header()["seed"]) * SEEDS_PER_RUN + trial * SEEDS_PER_TRIAL,
        )
        return self.ledger.state.opened[trial]

    def make_candidate(self, opened: OpenTrial) -> str:
        """The candidate's commit, with a reference of its own; made again it has the same id."""
        event = opened.proposed
        same = event["baseline"] or event.get("repeat")
        commit = str(event["parent"]) if same else self._commit(event)
        if commit != opened.commit:
            self.ledger.write("candidate", trial=opened.trial, commit=commit)
        self._workspace.remember(self.tag, opened.trial, commit)
        return commit

    def ready(self, trial: int, index: int) -> Path:
        """The folder for a measurement, with the candidate's file in it."""
        folder = self.folder(trial, index)
        if index:
            write_durably(folder / "train.py", (self.folder(trial) / "train.py").read_bytes())
        return folder

    def seed(self, trial: int, index: int) -> int:
        """The seed of a measurement, fixed when the trial was proposed."""
        return int(self.ledger.state.opened[trial].proposed["seed"]) + index

    def notes(self, trial: int, step: Step) -> Notes:
        """What a measurement, or its confirmation, writes down, and what it wrote before the runner died."""
        return Notes(
            write=partial(self.ledger.write, trial=trial, index=step.index, do=step.do),
            steps=lambda: [one for one in self.ledger.state.opened[trial].steps if one["index"] == step.index],
        )

    def measured(self, trial: int, index: int, found: Measurement, *, confirmed: bool = False) -> None:
        """Write down what a measurement or its confirmation gave; it is never made again."""
        if found.val_bpb is not None and not math.isfinite(found.val_bpb):
            found = replace(found, ending=Ending.INVALID_OUTPUT, reason="the score is not a number", val_bpb=None)
        if found.score_level is not None:
            self.check_level(found.score_level)
        event = "confirmed" if confirmed else "measured"
        self.ledger.write(event, trial=trial, index=index, measurement=measurement_to_json(found))

    def measurement(self, trial: int, index: int) -> Measurement:
        """What a measurement gave."""
        return measurements_of(self.ledger.state.opened[trial])[index]

    def next_step(self, trial: int) -> Step:
        """What a trial needs next."""
        opened = self.ledger.state.opened[trial]
        smaller = 0.0
        if opened.measured:
            source = (self.folder(trial) / "train.py").read_bytes().decode()
            smaller = smaller_by(source, self.source(self.champion()))
        return verdicts.next_step(opened, self.records, self.base(), self.rule, smaller=smaller)

    def concluded(self, trial: int, commit: str, step: Step) -> Record:
        """The record of a trial whose last step this is; nothing is written yet."""
        opened = self.ledger.state.opened[trial]
        record = self._record(opened, commit, measurements_of(opened))
        # As if it was on record already, so that its own repeats count.
        noise = verdicts.noise([*self.records, replace(record, verdict=step.verdict or record.verdict)], self.rule)
        return verdicts.with_verdict(record, step, noise)

    def abandoned(self, opened: OpenTrial, commit: str) -> Record:
        """The record of a trial under which the engine failed again and again: no verdict on the candidate."""
        failed = Measurement(
            ending=None,
            reason=f"the engine failed under this trial each time that it was tried, in {len(opened.failures)} invocations, at last: {opened.failures[-1]}",
            seconds=Seconds(),
        )
        return replace(self._record(opened, commit, [*measurements_of(opened), failed]), verdict=Verdict.ABANDONED)

    def barred(self, opened: OpenTrial, commit: str, barred: Barred) -> Record:
        """The record of a proposal that a gate did not let through after it was written down."""
        found = Measurement(ending=barred.ending, reason=barred.reason, seconds=Seconds(total=barred.seconds), log_path=barred.log_path)
        return replace(self._record(opened, commit, [found]), verdict=Verdict.INVALID, measurements=())

    def refused(self, refusal: Refusal) -> Record:
        """The record of a proposal that costs no container; its file is kept if it may be mended."""
        path = self.folder(self.ledger.state.next_trial()) / REFUSED
        if refusal.source is not None:
            write_durably(path, refusal.source.encode(errors="replace"))
        else:
            path.unlink(missing_ok=True)  # of a refusal that was never recorded
        return Record(
            trial=self.ledger.state.next_trial(),
            tag=self.tag,
            commit=None,
            parent=self.champion(),
            agent=refusal.agent,
            idea=refusal.idea,
            token=refusal.token,
            suggestion=refusal.suggestion,
            verdict=Verdict.INVALID,
            reason=refusal.reason,
            **asdict(self._spent(refusal)),
            proposed_at=self._now(),
        )

    def record(self, record: Record) -> None:
        """Write the verdict down, then carry it out."""
        self.ledger.write("judged", trial=record.trial, record=record_to_json(record))
        self.settle()

    def settle(self) -> None:
        """Carry out the last verdict, again if that may not have happened, and check where the branch is.

        Raises `StateError` if the branch is not where this run left it.
        """
        unfinished = self.ledger.state.unfinished
        if unfinished is not None:
            record = self.ledger.state.record(unfinished)
            kept = record.verdict is Verdict.KEEP
            if record.commit is not None:
                if kept and record.parent is not None:
                    self._workspace.keep(self.tag, record.commit, record.parent)
                self._workspace.note(record.commit, self._note(record.commit))
            self._tidy(record)
            self._drop_files(record)
            self.ledger.write("done", trial=record.trial, kept=kept)
        expected, tip = self.champion(), self._workspace.tip(self.tag)
        if tip != expected:
            where = tip[:7] if tip else "gone"
            message = (
                f"the branch autoresearch/{self.tag} is {where}, but this run's champion is {expected[:7]}: put it back "
                f"(`git update-ref refs/heads/autoresearch/{self.tag} {expected}`) or start another --tag"
            )
            raise StateError(message)

    def _spent(self, proposal: Proposal | Refusal) -> Spent:
        """What the journal has of its agent's calls, those for one that came to nothing included; else the agent's own word."""
        calls = self.ledger.state.paid.get(proposal.agent)
        return together(calls) if calls else proposal.spent

    # -- pieces ------------------------------------------------------------------------------------

    def _commit(self, event: Event) -> str:
        trailers = (
            ("Autoresearch-Run", self.tag),
            ("Autoresearch-Trial", str(event["trial"])),
            ("Autoresearch-Agent", event["agent"]),
            ("Autoresearch-Kind", event["kind"]),
        )
        body = "\n\n".join(part for part in (event["why"], event["risk"] and f"Risk: {event['risk']}") if part)
        text = CommitText(
            subject=_one_line(event["idea"], 72), body=_printable(body), trailers=trailers, date=event["at"]
        )
        source = (self.folder(event["trial"]) / "train.py").read_bytes()
        return self._workspace.candidate(event["parent"], self.task.editable, source, text)

    def _record(self, opened: OpenTrial, commit: str, measured: Sequence[Measurement]) -> Record:
        score = self.task.score
        return record_of(self._header(), opened, commit, measured, metric=score.metric, maximise=score.maximise)

    def _note(self, commit: str) -> str:
        """Every trial of `commit`, a JSON object a line."""
        lines = [json.dumps(record_to_json(record), sort_keys=True) for record in self.records if record.commit == commit]
        return "".join(f"{line}\n" for line in lines)

    def _tidy(self, record: Record) -> None:
        """Drop what containers were given, or gave, and was still there when a runner died."""
        for index in range(len(record.measurements) + 1):
            folder = self.folder(record.trial, index)
            for path in (path for pattern in PASSING for path in folder.glob(pattern)):
                path.unlink()

    def _drop_files(self, judged: Record) -> None:
        """Leave the checkpoints of the first baseline and of the newest kept trials, and the claims of the baselines.

        Whatever was judged earlier was looked at then; of that only the trial that a keep pushes out has something to lose.
        """
        kept = [record for record in self.records if record.verdict is Verdict.KEEP]
        keep = {self.records[0].trial, *(record.trial for record in kept[-KEPT_CHECKPOINTS:])}
        for record in (judged, *kept[-KEPT_CHECKPOINTS - 1 : -KEPT_CHECKPOINTS]):
            for index in range(max(len(record.measurements), 1)):
                folder = self.folder(record.trial, index)
                if index or record.trial not in keep:
                    (folder / CHECKPOINT).unlink(missing_ok=True)
                if record.verdict is not Verdict.BASELINE:
                    evidence.discard(folder)

    def _header(self) -> Event:
        header = self.ledger.state.header
        assert header is not None
        return header


def _printable(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n")[:BODY_LIMIT]


def _one_line(text: str, limit: int) -> str:
    line = " ".join(_printable(text).split()) or "(no idea given)"
    return line if len(line) <= limit else line[: limit - 1] + "…"
