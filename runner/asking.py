"""Asks a trial's containers: runs them, and puts the questions of an audit.

A question shows a row up to a cut that was drawn after the claim was on the disk.  What was asked and answered stays with
the measurement (`runner.evidence`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runner import audit, evidence, notes
from runner.audit import Draw
from runner.compute import Caps
from runner.errors import DataError
from runner.notes import Notes
from runner.phases import Cap, Phases, question
from runner.prepare import Prepared, Split
from runner.protocols import Sandbox
from runner.trial import Ending, Progress, Result, TrialSpec

Claim = npt.NDArray[np.float32]
Answers = npt.NDArray[np.float64]


class Work:
    """One measurement under way: runs its containers and writes down how far they are."""

    def __init__(
        self,
        sandbox: Sandbox,
        trial: int,
        folder: Path,
        seed: int,
        caps: Caps,
        notes: Notes,
        progress: Callable[[Progress], None],
    ) -> None:
        self.trial, self.folder, self.seed, self.caps = trial, folder, seed, caps
        self.notes = notes
        self._sandbox, self._progress = sandbox, progress

    def run(self, spec: TrialSpec, destination: Path | None = None) -> Result:
        """Run a phase's container; raises what `Sandbox.run` raises."""
        container = ""

        def created(identifier: str) -> None:
            nonlocal container
            container = identifier
            self.notes.write("created", phase=spec.phase, container=container)
            self.notes.write("started", phase=spec.phase, container=container)

        result = self._sandbox.run(spec, destination or self.folder, created=created, progress=self._progress)
        self.notes.write("exited", phase=spec.phase, container=container, ending=result.ending, exit_code=result.exit_code)
        return result

    def known(self, event: str, **facts: object) -> Result | None:
        """What a container gave that came to its end before the runner died; None if it has to be run."""
        found = self.notes.known(event, **facts)
        return None if found is None else notes.result_from_json(found["result"], self.folder)

    def done(self, event: str, result: Result, *files: str, **facts: object) -> None:
        """Write down what a container gave and which `files` in the folder hold it, so that it is not run again.

        Not what has to be made again: what something else disturbed, or what lacks the processor seconds that it is charged by.
        """
        uncounted = result.ending is Ending.FINISHED and self.caps.counts_cpu and result.cpu_seconds is None
        if result.ending is Ending.INVALID_ENVIRONMENT or uncounted:
            return
        self.notes.write(event, **facts, result=notes.result_to_json(result, self.folder, files))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One audit's container and what came of it."""

    result: Result
    draw: Draw
    answers: Answers | None
    """Float64 [rounds, R], nats; None: there are none, the result says why."""


class Auditor:
    """Puts the questions of audits on one split of the data."""

    def __init__(
        self, phases: Phases, prepared: Prepared, split: Split, *, first_rounds: int, randbits: Callable[[int], int]
    ) -> None:
        """`first_rounds`: how many a first audit has; caps are made for so many."""
        self._phases, self._prepared, self._split = phases, prepared, split
        self._first_rounds, self._randbits = first_rounds, randbits

    def ask(
        self, work: Work, claim: Claim, reference: Claim | None, *, number: int, rounds: int
    ) -> Asked | None:
        """Draw, ask in a fresh container, and keep the answers as audit `number`.

        None: the draw was made for another model, before an engine failed, and there is no second one.  The baselines,
        which are trusted, are drawn for anew.
        """
        entropy = evidence.entropy(work.folder, number, self._randbits)
        if entropy is None and work.caps.reference is None:
            evidence.forget_draws(work.folder)
            entropy = evidence.entropy(work.folder, number, self._randbits)
        if entropy is None:
            return None
        random = np.random.default_rng(entropy)
        draw = audit.draw(claim, self.lengths > 0, reference, rounds=rounds, rng=random)
        known = work.known("audited", number=number)
        if known is not None:
            answers = evidence.answers(work.folder, number) if known.ending is Ending.FINISHED else None
            return Asked(result=known, draw=draw, answers=answers)
        times = max(1.0, rounds / self._first_rounds)
        asked = self.put(work, draw, random, name=f"audit-{number}", cap=work.caps.of("audit", times=times))
        if asked.answers is not None:
            evidence.save_audit(work.folder, number, draw, asked.answers)
        work.done("audited", asked.result, *([evidence.audit_file(number)] if asked.answers is not None else []), number=number)
        return asked

    def put(
        self,
        work: Work,
        draw: Draw,
        random: np.random.Generator,
        *,
        name: str,
        cap: Cap,
        open_book: bool = False,
    ) -> Asked:
        """Ask for the logits at the draw's cuts; with `open_book` the true text stands after each cut."""
        asked = np.flatnonzero(draw.cuts[0] >= 0)
        rows = np.asarray(self._prepared.rows(self._split)[asked])
        questions, orders = [], []
        for cuts in draw.cuts[:, asked]:
            orders.append(random.permutation(len(asked)))
            filler = self._prepared.rows("train")
            cuts_and_ids = question(rows, cuts, filler, random, orders[-1])
            if open_book:
                cuts_and_ids = cuts[orders[-1]], rows[orders[-1], :-1]
            questions.append(cuts_and_ids)
        spec = self._phases.audit(
            work.trial,
            work.folder,
            seed=work.seed,
            cap=cap,
            questions=questions,
            seen_as="claim" if open_book else "audit",
        )
        result = work.run(spec, work.folder / name)
        for one in spec.rounds:
            one.question.path.unlink(missing_ok=True)
        if result.ending is not Ending.FINISHED:
            return Asked(result=result, draw=draw, answers=None)
        answers = np.zeros(draw.cuts.shape)
        try:
            for number, (one, order) in enumerate(zip(spec.rounds, orders, strict=True)):
                targets = rows[np.arange(len(rows)), draw.cuts[number, asked] + 1]
                nll = _read_answer(result, one.answer.name, targets[order], self._prepared.vocab_size)
                answers[number, asked[order]] = nll
        except audit.RefusedAnswerError as error:
            refused = replace(result, ending=Ending.INVALID_OUTPUT, reason=str(error))
            return Asked(result=refused, draw=draw, answers=None)
        return Asked(result=result, draw=draw, answers=answers)

    @cached_property
    def lengths(self) -> npt.NDArray[np.uint16]:
        """The bytes of each target, uint16 [R, T]; those without any count nowhere.

        Raises `DataError` if there are none at all, or validation has not those that the manifest names.
        """
        data = self._prepared
        lengths: npt.NDArray[np.uint16] = data.token_bytes()[data.rows(self._split)[:, 1:]]
        size = int(lengths.sum(dtype=np.int64))
        if size == 0 or (self._split == "val" and size != data.val_bytes):
            named = f"the {data.val_bytes} validation bytes that its manifest names" if size else f"any text in its {self._split} split"
            message = f"{data.path} does not have {named}: run `autoresearch prepare` again"
            raise DataError(message)
        return lengths


def _read_answer(result: Result, name: str, targets: npt.NDArray[np.uint16], vocab: int) -> npt.NDArray[np.float64]:
    path = result.output(name)
    assert path is not None
    try:
        return audit.target_nll(np.fromfile(path, dtype="<f4").reshape(len(targets), vocab), targets)
    finally:
        path.unlink(missing_ok=True)
