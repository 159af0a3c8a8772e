"""One measurement: train, claim, audit, each in a container of its own; then the score.

Training sees no held-out text.  The claim's container sees all rows of the split that is scored, and what it says is
checked by the audit's, which sees each row up to a cut.  docs/score.md has the reasons.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runner import audit, evidence, score
from runner.asking import Asked, Auditor, Claim, Work
from runner.compute import Caps, caps, charge, computed, slack
from runner.errors import EngineError, StateError
from runner.notes import Notes
from runner.phases import CHECKPOINT, NLL, ROWS, Cap, Phases, Place
from runner.prepare import Prepared, Split
from runner.protocols import Sandbox
from runner.room import refuse_full
from runner.task import Task
from runner.told import told_by
from runner.trial import AuditFacts, Compute, Ending, Progress, Result, Seconds

__all__ = ["CHECKPOINT", "Caps", "Measurement", "Measurer", "Place", "caps"]

SECOND_LOOK_ROUNDS = 2
"""Rounds at least of the audit that decides after one that an honest model may have failed by its arithmetic."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is known about a candidate after its containers are gone."""

    ending: Ending | None
    """None: no container of this trial ever came to an end."""
    reason: str
    seed: int | None = None
    val_bpb: float | None = None
    score_level: str | None = None
    charge: float | None = None
    """Bits per byte for computation beyond the baselines'; added before the score is compared."""
    slack: float | None = None
    compute_seconds: Compute | None = None
    audit: AuditFacts | None = None
    memory_gb: float | None = None
    params: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: Seconds
    summary: tuple[tuple[str, str], ...] = ()
    losses: tuple[tuple[int, float], ...] = ()
    log_path: Path | None = None
    guards_broken: str | None = None
    """Which guard metrics are outside their bounds, in words: such a candidate is never kept."""


class Measurer:
    """Measures candidates of one task on one place."""

    def __init__(
        self,
        sandbox: Sandbox,
        task: Task,
        prepared: Prepared,
        place: Place,
        *,
        split: Split = "val",
        randbits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """`split` has the rows that are claimed and audited; training has the training rows whatever it is.

        `randbits` is where the order of the rows and the draws come from: what no candidate may foresee.
        """
        self._sandbox, self._task, self._prepared, self._place = sandbox, task, prepared, place
        self._split: Split = split
        self._randbits = randbits
        self._phases = Phases(task, prepared, place)
        self._auditor = Auditor(
            self._phases, prepared, split, first_rounds=task.score.audit_rounds, randbits=randbits
        )
        self._tolerance = audit.TOLERANCES["cuda" if place.gpu else "cpu"]

    def on(self, split: Split) -> Measurer:
        """The same, with the rows of another split claimed and audited."""
        return Measurer(
            self._sandbox, self._task, self._prepared, self._place, split=split, randbits=self._randbits
        )

    def row_count(self, split: Split) -> int:
        """How many rows a split has."""
        return len(self._prepared.rows(split))

    def by_row(self, folder: Path) -> Floats | None:
        """What the measurement in `folder` claims, float64 [2, R]: the nats and the bytes of each row; None without a claim."""
        claim = evidence.load_claim(folder)
        if claim is None:
            return None
        lengths = self._auditor.lengths
        nats = claim.sum(axis=1, dtype=np.float64, where=lengths > 0)
        return np.stack([nats, lengths.sum(axis=1, dtype=np.float64)])

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
        """Measure the candidate in `folder`/train.py; its checkpoint, claim and audits stay in `folder`.

        `references` are the folders of the baselines' measurements but for this one: the mean of their claims steers
        where the audit looks.  `notes` take down each container before it starts and what it gave; what they know already
        is not run again.  Raises what `Sandbox.run` raises, `DataError` if the prepared data are not sound, and `StateError`.
        """
        refuse_full(folder, self._phases.room(references, self._split))
        work = Work(self._sandbox, trial, folder, seed, caps, notes, progress)
        train = work.known("trained")
        if train is None:
            work.notes = Notes(write=notes.write)
            train = work.run(self._phases.train(trial, folder, seed=seed, cap=caps.of("train")))
            work.done("trained", train, *(name for name, _ in train.outputs))
        measured = replace(_after_train(train), seed=seed, slack=slack(self._task.budget))
        if measured.ending is not Ending.FINISHED:
            return measured
        claimed = work.known("claimed")
        if claimed is None:
            work.notes = Notes(write=notes.write)
            evidence.forget_audits(folder)
            claimed, claim = self._claim(work, caps.of("claim"))
            if claim is not None and not evidence.drawn_for(folder):  # else the claim that was drawn for stands, to the last bit
                evidence.save_claim(folder, claim)
            work.done("claimed", claimed, *([evidence.CLAIM] if claim is not None else []))
        measured = replace(_with(measured, claimed), seconds=replace(measured.seconds, claim=claimed.seconds))
        if claimed.ending is not Ending.FINISHED:
            return replace(measured, ending=claimed.ending, reason=f"claim: {claimed.reason}", log_path=claimed.log_path)
        return self._audited(work, measured, references, train=train, claimed=claimed)

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
        """Audit once more what `measure` left in `folder`, with a fresh draw; the score pools all audits.

        An ending other than `finished` means that the score does not hold.  Raises what `measure` raises.
        """
        assert measured.seed is not None
        work = Work(self._sandbox, trial, folder, measured.seed, caps, notes, progress)
        claim = evidence.load_claim(folder)
        if claim is None or not (folder / CHECKPOINT).exists():
            message = (
                f"{folder} has no claim or no checkpoint any more, and its trial waits to be confirmed: the journal is older than "
                "the files beside it. Put the newer one back, or start another run with --new"
            )
            raise StateError(message)
        reference = evidence.reference(list(references))
        number = 1 + (notes.audits or len(evidence.audits(folder)[0]))
        rounds = self._task.score.confirm_rounds
        asked = self._auditor.ask(work, claim, reference, number=number, rounds=rounds)
        if asked is None:
            return _another_model(measured)
        measured = _with_audit(measured, asked.result)
        # One second look for each measurement: if there was one already, this audit is the last word.
        return self._concluded(work, measured, claim, reference, asked, number, last=number > 2)

    # -- claim -------------------------------------------------------------------------------------

    def _claim(self, work: Work, cap: Cap) -> tuple[Result, Claim | None]:
        """What the claim's container gave: float32 [R, T] in the data's own order; None: there is none, the result says why."""
        count = self.row_count(self._split)
        order = score.shuffled(count, self._randbits(128))
        spec = self._phases.claim(
            work.trial, work.folder, seed=work.seed, cap=cap, order=order.permutation, split=self._split
        )
        result = work.run(spec)
        (work.folder / ROWS).unlink(missing_ok=True)
        path = result.output(NLL)
        if path is None:
            return replace(result, ending=_failed(result)), None
        try:
            return result, score.read_claim(
                path, rows=count, sequence_length=self._prepared.sequence_length, order=order
            )
        except score.RefusedClaimError as error:
            return replace(result, ending=Ending.INVALID_OUTPUT, reason=str(error)), None
        finally:
            path.unlink(missing_ok=True)

    # -- audit -------------------------------------------------------------------------------------

    def _audited(
        self, work: Work, measured: Measurement, references: Sequence[Path], *, train: Result, claimed: Result
    ) -> Measurement:
        claim = evidence.load_claim(work.folder)
        assert claim is not None
        reference = evidence.reference(list(references))
        asked = self._auditor.ask(work, claim, reference, number=1, rounds=self._task.score.audit_rounds)
        if asked is None:
            return _another_model(measured)
        measured = _with_audit(measured, asked.result)
        used = computed(self._task.budget, train=train, claim=claimed, audit=asked.result)
        if used is None and asked.result.ending is Ending.FINISHED and work.caps.reference is None:
            message = "the engine does not say how many processor seconds a container used: a budget in steps needs that"
            raise EngineError(message)
        unknown = used is None and work.caps.reference is not None
        measured = replace(
            measured,
            compute_seconds=used,
            charge=charge(self._task.budget, used, work.caps.reference),
            guards_broken="how much it computed could not be measured, so it cannot be compared" if unknown else None,
        )
        return self._concluded(work, measured, claim, reference, asked, 1)

    def _concluded(
        self,
        work: Work,
        measured: Measurement,
        claim: Claim,
        reference: Claim | None,
        asked: Asked,
        number: int,
        *,
        last: bool = False,
    ) -> Measurement:
        """The score if the answers agree with the claim, else the ending that says why not; `last`: at this look."""
        if asked.answers is None:
            failed = asked.result
            return replace(
                measured,
                ending=failed.ending,
                reason=f"audit: {failed.reason}",
                val_bpb=None,
                score_level=None,
                log_path=failed.log_path,
            )
        found = audit.agree(claim, [asked.draw], [asked.answers], self._tolerance)
        if not found.ok and found.recheck and not last:
            # As many rounds as failed at least, or a second look would be a cheap second chance.
            rounds = max(SECOND_LOOK_ROUNDS, len(asked.draw.cuts))
            again = self._auditor.ask(work, claim, reference, number=number + 1, rounds=rounds)
            if again is None:
                return _another_model(measured)
            asked = again
            measured = _with_audit(measured, asked.result)
            if asked.answers is None:
                return replace(measured, ending=asked.result.ending, reason=f"audit: {asked.result.reason}", val_bpb=None)
            found = audit.agree(claim, [asked.draw], [asked.answers], self._tolerance)
        if not found.ok:
            ending, cause = self._cause(work, claim, asked)
            return replace(measured, ending=ending, reason=f"audit: {found.reason}; {cause}", val_bpb=None, score_level=None)
        return self._scored(work, measured, claim, reference)

    def _scored(
        self, work: Work, measured: Measurement, claim: Claim, reference: Claim | None
    ) -> Measurement:
        lengths = self._auditor.lengths
        countable, size = lengths > 0, int(lengths.sum(dtype=np.int64))
        draws, answers = evidence.audits(work.folder)
        found = audit.estimate(claim, countable, draws, answers, val_bytes=size)
        rounds = [len(one.cuts) for one in draws]
        hidden = audit.detectable_gain(claim, countable, reference, rounds=rounds, val_bytes=size)
        worst = max(audit.agree(claim, [one], [said], self._tolerance).worst for one, said in zip(draws, answers, strict=True))
        return replace(
            measured,
            reason="scored",
            val_bpb=found.val_bpb,
            score_level=score.SCORE_LEVEL,
            audit=AuditFacts(
                rounds=sum(rounds),
                k=sum(int((one.cuts >= 0).sum()) for one in draws),
                correction=found.correction,
                standard_error=found.standard_error,
                detectable_blind=hidden.blind,
                detectable_informed=hidden.informed,
                worst=worst,
            ),
        )

    # -- when they disagree ------------------------------------------------------------------------

    def _cause(self, work: Work, claim: Claim, asked: Asked) -> tuple[Ending, str]:
        """Why the answers are not what was claimed; only what nothing honest explains is called tampering.

        Claimed again with the rows in another order, a model that is random, or whose rows depend on each other, claims
        something else.  Asked again with the true text after each cut, one that looks ahead gives what it claimed.
        """
        assert asked.answers is not None
        claimed = np.stack([_at(claim, cuts) for cuts in asked.draw.cuts])
        off = np.abs(asked.answers - claimed) * (asked.draw.cuts >= 0)
        # A small shift of everything is no smaller lie: what differs by half as much as the worst is looked for.
        limit = min(self._tolerance.hard, float(off.max()) / 2)
        result, second = self._claim(work, work.caps.of("claim"))
        if second is None:
            return Ending.NOT_REPRODUCED, f"the cause could not be found ({result.reason})"
        if float(np.abs(second - claim).max()) > limit:
            return Ending.NOT_REPRODUCED, "the model is random, or a row's answer depends on the other rows"
        cap = work.caps.of("audit")
        again = self._auditor.put(work, asked.draw, np.random.default_rng(), name="cause", cap=cap, open_book=True)
        if again.answers is None:
            return Ending.NOT_REPRODUCED, f"the cause could not be found ({again.result.reason})"
        if np.all((np.abs(again.answers - claimed) <= limit)[off > limit]):
            return Ending.NOT_REPRODUCED, "the model uses tokens that come after the one it predicts"
        return Ending.TAMPERED, "it answers otherwise when it is audited, and nothing honest explains that"

def _after_train(train: Result) -> Measurement:
    told = told_by(train)
    measured = Measurement(
        ending=train.ending,
        reason=f"train: {train.reason}",
        memory_gb=_gib(train.peak_memory_bytes),
        steps=told.steps,
        tokens=told.tokens,
        seconds=Seconds(startup=train.startup_seconds, train=train.seconds, total=train.total_seconds),
        summary=told.summary,
        losses=told.losses,
        log_path=train.log_path,
    )
    checkpoint = train.output(CHECKPOINT)
    if checkpoint is None:
        return measured
    try:
        return replace(measured, params=score.count_parameters(checkpoint))
    except score.RefusedCheckpointError as error:
        return replace(measured, ending=Ending.INVALID_OUTPUT, reason=f"train: {CHECKPOINT}: {error}")


def _another_model(measured: Measurement) -> Measurement:
    reason = "audit: trained again after the engine failed it is another model, and the draw was made for the first one"
    return replace(measured, ending=Ending.NOT_REPRODUCED, reason=reason, val_bpb=None, score_level=None)


def _with(measured: Measurement, result: Result) -> Measurement:
    """With the time and the memory of one more container."""
    memory = max((gb for gb in (measured.memory_gb, _gib(result.peak_memory_bytes)) if gb is not None), default=None)
    total = (measured.seconds.total or 0.0) + result.total_seconds
    return replace(measured, memory_gb=memory, seconds=replace(measured.seconds, total=total))


def _with_audit(measured: Measurement, result: Result) -> Measurement:
    measured = _with(measured, result)
    spent = (measured.seconds.audit or 0.0) + result.seconds
    return replace(measured, seconds=replace(measured.seconds, audit=spent))


def _failed(result: Result) -> Ending:
    return Ending.INVALID_OUTPUT if result.ending is Ending.FINISHED else result.ending


def _at(claim: Claim, cuts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The claim at each row's cut; anything where there is none."""
    found: npt.NDArray[np.float64] = claim[np.arange(len(claim)), np.maximum(cuts, 0)].astype(np.float64)
    return found


def _gib(size: int | None) -> float | None:
    return None if size is None else size / (1 << 30)
