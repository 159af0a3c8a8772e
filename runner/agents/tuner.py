"""The tuner: searches the constants of the champion's train.py with Optuna; needs no model and no key.

Proposals are perturbations of the champion (one to three constants) for the first `STARTUP` trials and
every second trial after that; the others come from a tree-structured Parzen estimator over all trials so
far.  In simulation (15 constants, noisy quadratics) that mixture is as good as either alone at every length
of a run, while the estimator alone is behind at 12 and at 100 trials.

Every proposal depends only on the seed, its number and what was judged before, never on the state of a
random generator, so a run that was killed and continued proposes what an undisturbed one does.  The study
file holds exactly the proposals: what the estimator merely tried out stays in memory.
"""

from __future__ import annotations

import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.agents.coding import EXPLAINED, champion_score, decode, encode, fingerprint, parameter, unspell
from runner.agents.moves import Region, Setting, describe, ends, perturb, region, repair
from runner.agents.space import Dimension
from runner.constants import find_constants, set_constants
from runner.errors import AgentError, StateError, UsageError
from runner.literals import Value, spell_value
from runner.trial import Kind, Proposal, Record

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STARTUP = 6
"""So many perturbations before the estimator has its first turn."""
SIZES = (1, 1, 2, 2, 3)
"""How many constants a perturbation moves; drawn from these."""
PLANNED_TRIES, ALL_TRIES = 8, 40
"""How often a proposal that was there before is drawn again: as planned, then ever wider."""
STUDY = "tuner"


class TunerAgent:
    """See the module's docstring."""

    name = "tuner"

    def __init__(
        self,
        *,
        space: Mapping[str, Dimension] | None,
        journal: Path,
        seed: int,
        sequence_length: int,
        maximise: bool = False,
    ) -> None:
        """Take up the study in the file `journal` or begin one.  Raises `AgentError` without a space.

        `maximise`: higher scores are better.  The study itself always minimises.
        """
        if not space:
            raise AgentError(
                "the tuner needs a space file with ranges: name it as `space` in autoresearch.yaml"
            )
        self._space, self._seed, self._sequence_length = space, seed, sequence_length
        self._sign = -1.0 if maximise else 1.0
        self._study = _open(journal)
        self._handed: set[int] = set()
        self._told: set[int] = set()

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | None:
        """A setting that was not tried on this file; None when none is found any more.

        Raises `AgentError` if the champion's file has nothing to tune.
        """
        for record in history:
            if record.agent == self.name:
                self.observe(record)
        where = self._region(champion)
        self._learn_champion(champion, where, history)
        lost = self._asked_and_lost(champion, where)
        if lost is not None:
            return lost
        number = len(self._trials())
        for attempt in range(ALL_TRIES):
            how, setting = self._draw(where, number, attempt)
            source = set_constants(champion, setting)
            if fingerprint(source) not in self._tried(champion):
                self._write(where, setting, {"source": fingerprint(source), "how": how})
                return self._proposal(number, where, setting, source, how)
        return None

    def observe(self, record: Record) -> None:
        """Tell the study what became of a proposal; telling it again changes nothing."""
        from optuna.trial import TrialState

        number = int(record.token) if record.token.isdecimal() else -1
        if number in self._told:
            return
        trials = self._trials()
        if not 0 <= number < len(trials):
            raise AgentError(
                f"the tuner's study does not know trial {record.trial} of this run: its file was removed or changed; "
                "start another --tag"
            )
        self._told.add(number)
        if trials[number].state.is_finished():
            return
        score = None if record.guards_broken else record.val_bpb
        with _writing():
            if score is not None and math.isfinite(score):
                self._study.tell(number, self._sign * score)
            else:
                self._study.tell(number, state=TrialState.FAIL)

    # What is known ------------------------------------------------------------------------------

    def _region(self, champion: str) -> Region:
        try:
            where = region(self._space, find_constants(champion), self._sequence_length)
        except UsageError as error:
            raise AgentError(f"the tuner cannot work on the champion's file: {error}") from None
        if not where.dimensions:
            raise AgentError("the champion's file has none of the constants that the space file names")
        return where

    def _learn_champion(self, champion: str, where: Region, history: Sequence[Record]) -> None:
        """Add the champion as a finished trial unless it is one: the baseline, or what another agent found."""
        marks = {trial.user_attrs.get("source") for trial in self._trials()}
        score = champion_score(history)
        if score is not None and fingerprint(champion) not in marks:
            known = {"source": fingerprint(champion), "how": "champion"}
            self._write(where, where.current, known, self._sign * score)

    def _tried(self, champion: str) -> set[str]:
        return {fingerprint(champion), *(trial.user_attrs.get("source", "") for trial in self._trials())}

    def _asked_and_lost(self, champion: str, where: Region) -> Proposal | None:
        """A proposal that an earlier process made and nobody judged: the same once more."""
        from optuna.trial import TrialState

        for trial in self._trials():
            if trial.state.is_finished() or trial.number in self._handed:
                continue
            setting = {name: unspell(text) for name, text in trial.user_attrs["setting"].items()}
            if setting.keys() == where.current.keys():
                source = set_constants(champion, setting)
                if fingerprint(source) == trial.user_attrs["source"]:
                    return self._proposal(trial.number, where, setting, source, trial.user_attrs["how"])
            # The champion moved on meanwhile (another agent's keep): the idea was about another file.
            with _writing():
                self._study.tell(trial.number, state=TrialState.FAIL)
        return None

    # Drawing ------------------------------------------------------------------------------------

    def _draw(self, where: Region, number: int, attempt: int) -> tuple[str, Setting]:
        chance = random.Random(f"{self._seed}/{number}/{attempt}")  # noqa: S311 - not a secret
        made = self._made()
        planned = attempt < PLANNED_TRIES
        if planned and made >= STARTUP and (made - STARTUP) % 2 == 0:
            return "estimator", self._estimate(where, chance.getrandbits(32))
        if planned:
            return "perturbation", perturb(where, chance, count=chance.choice(SIZES))
        wider = 1 + (attempt - PLANNED_TRIES) // 8
        count = chance.randint(1, max(SIZES) + wider)
        return "wide perturbation", perturb(where, chance, count=count, reach=1 + wider / 2)

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _made(self) -> int:
        return sum(trial.user_attrs.get("how") != "champion" for trial in self._trials())

    def _estimate(self, where: Region, seed: int) -> Setting:
        import optuna

        with _quiet():
            sampler = optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=False, n_startup_trials=1, seed=seed
            )
            scratch = optuna.create_study(sampler=sampler)
            scratch.add_trials([trial for trial in self._trials() if trial.state.is_finished()])
            wanted = {
                parameter(name, dimension): _distribution(dimension)
                for name, dimension in where.dimensions.items()
            }
            params = scratch.ask(wanted).params
        drawn = {
            name: decode(dimension, params[parameter(name, dimension)], where.current[name])
            for name, dimension in where.dimensions.items()
        }
        return repair(where, drawn)

    # Writing ------------------------------------------------------------------------------------

    def _write(
        self, where: Region, setting: Mapping[str, Value], about: dict[str, Any], score: float | None = None
    ) -> None:
        """One line in the study: a trial that runs, or a finished one with its score."""
        from optuna.trial import TrialState, create_trial

        params, distributions = {}, {}
        for name, dimension in where.dimensions.items():
            value = encode(dimension, setting[name])
            params[parameter(name, dimension)] = value
            distributions[parameter(name, dimension)] = _distribution(dimension, value)
        spelled = {name: spell_value(value) for name, value in setting.items()}
        trial = create_trial(
            state=TrialState.RUNNING if score is None else TrialState.COMPLETE,
            value=score,
            params=params,
            distributions=distributions,
            user_attrs={**about, "setting": spelled},
        )
        with _writing():
            self._study.add_trial(trial)

    def _proposal(self, number: int, where: Region, setting: Setting, source: str, how: str) -> Proposal:
        self._handed.add(number)
        scored = sum(trial.value is not None for trial in self._trials())
        return Proposal(
            agent=self.name,
            idea=describe(where.current, setting),
            why=f"{EXPLAINED[how].format(scored=scored)} {describe(where.current, setting, None)}.",
            kind=Kind.HYPERPARAMETER,
            source=source,
            token=str(number),
        )


# Optuna's side ----------------------------------------------------------------------------------


def _open(journal: Path) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with _quiet(), _writing():
        _cut_torn_line(journal)
        try:
            backend = JournalFileBackend(str(journal), lock_obj=_NoLock())  # type: ignore[arg-type]
            storage = JournalStorage(backend)
            return optuna.create_study(storage=storage, study_name=STUDY, load_if_exists=True)
        except (ValueError, KeyError) as error:
            raise StateError(f"{journal} is damaged ({error}): start another --tag") from error


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot write the tuner's study {error.filename or ''}: {error.strerror}"
        ) from error


def _cut_torn_line(journal: Path) -> None:
    """A process that was killed while it wrote leaves half a line; Optuna would append to it."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            file.truncate(whole)
            os.fsync(file.fileno())


class _NoLock:
    """The run's own lock already keeps others out; Optuna's stays behind after a kill and stalls for 30 s."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class _quiet(warnings.catch_warnings):  # noqa: N801 - reads as a verb
    """Without Optuna's progress lines and its warnings that an option is experimental."""

    def __enter__(self) -> None:
        import optuna

        super().__enter__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _distribution(dimension: Dimension, holding: float | str | None = None) -> BaseDistribution:
    """The range as Optuna sees it, stretched to hold one value that repair may have put outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.choices:
        return CategoricalDistribution([spell_value(choice) for choice in dimension.choices])
    low, high = (encode(dimension, end) for end in ends(dimension))
    held = low if holding is None else holding
    assert isinstance(low, int | float) and isinstance(high, int | float) and isinstance(held, int | float)  # noqa: PT018
    low, high = min(low, held), max(high, held)
    if dimension.power_of_two:
        return IntDistribution(int(low), int(high))
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(low, high, log=dimension.log)
