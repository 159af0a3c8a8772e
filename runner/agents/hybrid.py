"""The tuner suggests; on a share of the tries a model sees the suggestion first, and may take it, change it or put its own idea in its place.

With 30 % and the classical search in the majority this was the best method of a published comparison on this very task (Ferreira et al.,
arXiv 2603.24647, "Centaur").  The model costs nothing on the other tries, and a model that fails costs no try: the suggestion goes
ahead, and the record says so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import structlog

from runner.agents.chat import ChatError
from runner.agents.llm import LlmAgent, number_after
from runner.agents.study import structure
from runner.agents.tuner import Suggestion, TunerAgent, proposal_of
from runner.constants import find_constants
from runner.errors import AgentError, UsageError
from runner.literals import spell_value
from runner.money import NOTHING, TooDearError
from runner.trial import Proposal, Record, Refusal, Spent, Suggested

NAME = "hybrid"

SEEN = "A numerical search over the file's constants, which has seen every score so far, would try this next:"
CHOICE = (
    "Make exactly this change if nothing better is at hand, change it, or propose an idea of your own in its place. The search goes on either way "
    "and learns from the result; what it cannot do is change code, or know why something should work."
)

log = structlog.get_logger()


class HybridAgent:
    """Implements `runner.protocols.Agent`."""

    name = NAME

    def __init__(self, tuner: TunerAgent, model: LlmAgent, *, share: float, seed: int) -> None:
        """`model` has this agent's name; `share` of the tries, above 0 and at most 1, on which it is asked."""
        self._tuner, self._model, self._share, self._seed = tuner, model, share, seed
        self._answered = False

    def propose(self, champion: str, history: Sequence[Record]) -> Proposal | Refusal | None:
        """See `Agent`.  A model that has never answered and refuses for good (a wrong key) is an error: nobody wants a night without it."""
        number = number_after([record for record in history if record.agent == self.name])
        suggestion, mends = self._suggestion(champion, history), self._model.mends(history)
        if suggestion is not None and not mends and not self._asks(number):
            return _ahead(suggestion, number, Suggested.UNSEEN, NOTHING)
        try:
            found = self._model.propose(champion, history, "" if suggestion is None else told(suggestion))
        except TooDearError as error:
            if suggestion is None:
                raise
            return _ahead(suggestion, number, Suggested.FALLBACK, NOTHING, str(error))
        except ChatError as error:
            if suggestion is None or not self._answered:
                raise
            return _ahead(suggestion, number, Suggested.FALLBACK, Spent(), str(error))
        self._answered = self._answered or isinstance(found, Proposal)
        if isinstance(found, Refusal):
            return found if suggestion is None else _ahead(suggestion, number, Suggested.FALLBACK, found.spent, found.reason)
        return found if suggestion is None or mends else replace(found, suggestion=became(champion, suggestion, found.source))

    def preview(self, champion: str, history: Sequence[Record]) -> tuple[str, str]:
        """System message and request of the next proposal, if the model is asked for it.  Raises `AgentError`."""
        suggestion = self._suggestion(champion, history)
        return self._model.preview(champion, history, "" if suggestion is None else told(suggestion))

    def _asks(self, number: int) -> bool:
        return random.Random(f"{self._seed}/{number}/{NAME}").random() < self._share  # noqa: S311 - not a secret

    def _suggestion(self, champion: str, history: Sequence[Record]) -> Suggestion | None:
        """None where there is nothing to tune, or nothing left: then the model goes on alone."""
        try:
            return self._tuner.suggest(champion, history)
        except AgentError as error:
            log.warning("hybrid.no_suggestion", reason=str(error))
            return None


def told(suggestion: Suggestion) -> str:
    """Pure: the suggestion as a model is told it, in the form in which it would answer."""
    lines = [f"SET {name} = {spell_value(value)}" for name, value in suggestion.changes.items()]
    return "\n".join([SEEN, "", *lines, "", suggestion.why, _merit(suggestion), "", CHOICE])


def _merit(suggestion: Suggestion) -> str:
    found = suggestion.predicted
    if found is None:
        return "What it will score cannot be predicted yet: too few settings of this file were measured."
    against = "" if suggestion.champion is None else f"; the champion has {suggestion.champion:.4f}"
    return (
        f"Predicted score: {found.mean:.4f}, give or take {found.standard_deviation:.4f} (a smooth fit through the {found.points} "
        f"settings of this file that were measured){against}."
    )


def became(champion: str, suggestion: Suggestion, source: str) -> Suggested:
    """Pure: what the model made of the suggestion, by the file `source` that it proposed."""
    names = suggestion.changes.keys()
    try:
        before, after = find_constants(champion), find_constants(source)
    except UsageError:
        return Suggested.OVERRIDDEN
    now = {name: after[name].value for name in names if name in after}
    if now == suggestion.changes and structure(source, names) == structure(suggestion.source, names):
        return Suggested.TAKEN
    moved = any(value != before[name].value for name, value in now.items())
    return Suggested.CHANGED if moved else Suggested.OVERRIDDEN


def _ahead(suggestion: Suggestion, number: int, what: Suggested, spent: Spent, failed: str = "") -> Proposal:
    """The suggestion as it is; the token has the number, and what names the file."""
    if failed:
        log.warning("hybrid.model_failed", reason=failed)
    proposal = proposal_of(suggestion, NAME)
    why = f"{proposal.why} The model was to be asked, and {failed[:1].lower()}{failed[1:]}" if failed else proposal.why
    return replace(proposal, why=why, token=f"{number} {proposal.token}", spent=spent, suggestion=what)
