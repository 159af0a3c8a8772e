"""The tuner: searches the constants of the champion's train.py with Optuna; needs no model and no key.

Proposals are perturbations of the champion (one to three constants) until `STARTUP` settings were scored on the champion's structure, and
every second trial after that; the others come from a tree-structured Parzen estimator over all trials of that structure, whoever
proposed them (`runner.agents.study`).  On a plateau near misses that change constants alone are put together, once.  In simulation (15 constants, noisy quadratics) that mixture is as good as either alone at every
length of a run, while the estimator alone is behind at 12 and at 100 trials.

Every proposal depends only on the seed, its number and what was judged before, never on the state of a random generator or of a file of its
own, so a run that was killed and continued proposes what an undisturbed one does.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.agents.coding import EXPLAINED, coordinates, decode, encode
from runner.agents.combine import combine
from runner.agents.moves import Region, Setting, describe, ends, perturb, region, repair
from runner.agents.plateau import near_misses
from runner.agents.space import Dimension
from runner.agents.study import Point, Source, Study, fingerprint
from runner.agents.surrogate import Prediction, predict
from runner.constants import find_constants, set_constants
from runner.errors import AgentError, UsageError
from runner.literals import spell_value
from runner.report.summary import NO_IDEAS
from runner.trial import Kind, Proposal, Record

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

STARTUP = 6
"""So many scored settings of one structure before the estimator has its first turn."""
SIZES = (1, 1, 2, 2, 3)
"""How many constants a perturbation moves; drawn from these."""
PLANNED_TRIES, ALL_TRIES = 8, 40
"""How often a proposal that was there before is drawn again: as planned, then ever wider."""


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A setting that the tuner would try next."""

    changes: Setting
    """The constants that it changes, and to what."""
    source: str
    """The champion's file with these."""
    idea: str
    why: str
    predicted: Prediction | None
    """Of the score; None: too little is known."""
    champion: float | None
    """The champion's score, mean of all its measurements."""


class TunerAgent:
    """See the module's docstring."""

    name = "tuner"

    def __init__(
        self, *, space: Mapping[str, Dimension] | None, source: Source, seed: int, sequence_length: int, maximise: bool = False
    ) -> None:
        """`source` gives the file that a trial proposed; `maximise`: higher scores are better.  Raises `AgentError` without a space.

        The study itself always minimises.
        """
        if not space:
            raise AgentError(
                "the tuner needs a space file with ranges: name it as `space` in autoresearch.yaml"
            )
        self._space, self._seed, self._sequence_length = space, seed, sequence_length
        self._sign = -1.0 if maximise else 1.0
        self._study = Study(space, source)

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | None:
        """A setting that was not tried on this file; None when none is found any more.

        Raises `AgentError` if the champion's file has nothing to tune.
        """
        found = self.suggest(champion, history, foresee=False)
        return None if found is None else proposal_of(found, self.name)

    def suggest(self, champion: str, history: Sequence[Record], *, foresee: bool = True) -> Suggestion | None:
        """The same; with `foresee` also what it is expected to score, which nobody needs who only wants to try it."""
        where = self._region(champion)
        points = self._study.points(champion, where, history)
        tried = {fingerprint(champion)} | self._study.tried(history)
        number = 1 + sum(record.verdict not in NO_IDEAS for record in history)
        if (combined := self._combined(champion, where, history)) is not None and fingerprint(combined[1]) not in tried:
            how, (setting, source) = "combination", combined
            return self._suggestion(where, points, setting, source, how, self._foreseen(where, points, history, setting) if foresee else None)
        for attempt in range(ALL_TRIES):
            how, setting = self._draw(where, points, number, attempt)
            source = set_constants(champion, setting)
            if fingerprint(source) not in tried:
                return self._suggestion(where, points, setting, source, how, self._foreseen(where, points, history, setting) if foresee else None)
        return None

    def _suggestion(
        self, where: Region, points: Sequence[Point], setting: Setting, source: str, how: str, predicted: Prediction | None
    ) -> Suggestion:
        return Suggestion(
            changes={name: value for name, value in setting.items() if value != where.current[name]},
            source=source,
            idea=describe(where.current, setting),
            why=f"{EXPLAINED[how].format(scored=len(points))} {describe(where.current, setting, None)}.",
            predicted=predicted,
            champion=next((point.score for point in points if point.setting == where.current), None),
        )

    def _foreseen(self, where: Region, points: Sequence[Point], history: Sequence[Record], setting: Setting) -> Prediction | None:
        noise = next((record.sigma for record in reversed(history) if record.sigma is not None), 0.0)
        known = [coordinates(where.dimensions, point.setting) for point in points]
        return predict(known, [point.score for point in points], coordinates(where.dimensions, setting), noise=noise)

    def _combined(self, champion: str, where: Region, history: Sequence[Record]) -> tuple[Setting, str] | None:
        """On a plateau: the near misses together, as far as they lie in the space."""
        texts = [self._study.text(record.trial) for record in near_misses(history)]
        found = combine(champion, [text for text in texts if text is not None])
        if found is None or not found.changes.keys() <= where.dimensions.keys():
            return None
        setting = repair(where, {**where.current, **found.changes})
        return setting, set_constants(champion, setting)

    def _region(self, champion: str) -> Region:
        try:
            where = region(self._space, find_constants(champion), self._sequence_length)
        except UsageError as error:
            raise AgentError(f"the tuner cannot work on the champion's file: {error}") from None
        if not where.dimensions:
            raise AgentError("the champion's file has none of the constants that the space file names")
        return where

    # Drawing ------------------------------------------------------------------------------------

    def _draw(self, where: Region, points: Sequence[Point], number: int, attempt: int) -> tuple[str, Setting]:
        chance = random.Random(f"{self._seed}/{number}/{attempt}")  # noqa: S311 - not a secret
        planned = attempt < PLANNED_TRIES
        others = sum(point.setting != where.current for point in points)
        if planned and others >= STARTUP and number % 2:
            return "estimator", self._estimate(where, points, chance.getrandbits(32))
        if planned:
            return "perturbation", perturb(where, chance, count=chance.choice(SIZES))
        wider = 1 + (attempt - PLANNED_TRIES) // 8
        count = chance.randint(1, max(SIZES) + wider)
        return "wide perturbation", perturb(where, chance, count=count, reach=1 + wider / 2)

    def _estimate(self, where: Region, points: Sequence[Point], seed: int) -> Setting:
        import optuna

        with _quiet():
            sampler = optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=False, n_startup_trials=1, seed=seed
            )
            study = optuna.create_study(sampler=sampler)
            for point in points:
                params = {name: encode(dimension, point.setting[name]) for name, dimension in where.dimensions.items()}
                held = {name: _distribution(dimension, params[name]) for name, dimension in where.dimensions.items()}
                study.add_trial(optuna.trial.create_trial(value=self._sign * point.score, params=params, distributions=held))
            asked = study.ask({name: _distribution(dimension) for name, dimension in where.dimensions.items()}).params
        drawn = {name: decode(dimension, asked[name], where.current[name]) for name, dimension in where.dimensions.items()}
        return repair(where, drawn)


def proposal_of(suggestion: Suggestion, agent: str) -> Proposal:
    """The suggestion as it is, as a proposal of `agent`; the token names the file, which leaves no other trace if it is refused."""
    return Proposal(
        agent=agent,
        idea=suggestion.idea,
        why=suggestion.why,
        kind=Kind.HYPERPARAMETER,
        source=suggestion.source,
        token=fingerprint(suggestion.source),
    )


# Optuna's side ----------------------------------------------------------------------------------


class _quiet(warnings.catch_warnings):  # noqa: N801 - reads as a verb
    """Without Optuna's progress lines and its warnings that an option is experimental."""

    def __enter__(self) -> None:
        import optuna

        super().__enter__()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def _distribution(dimension: Dimension, holding: float | str | None = None) -> BaseDistribution:
    """The range as Optuna sees it, stretched to hold one value that may lie outside: repair and other agents put it there."""
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
