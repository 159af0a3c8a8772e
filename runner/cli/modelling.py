"""The flags of `run` about a model and a tuner, and the agents that they mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.steering import CONTEXT_TOKENS, count, shown_by
from runner.errors import UsageError

if TYPE_CHECKING:
    from runner.agents.llm import LlmAgent
    from runner.agents.tuner import TunerAgent
    from runner.cli.session import Session
    from runner.money import Purse
    from runner.task import Task

SHARE = 0.3
"""Of the tries on which a hybrid's model is asked: with 0.8 the published results were worse."""
OUTPUT_TOKENS = 16_384
"""Of an answer, where the sum is limited and nobody said: an answer without a limit has no price beforehand."""


class AgentName(StrEnum):
    """Who proposes."""

    TUNER = "tuner"
    REPLAY = "replay"
    LLM = "llm"
    HYBRID = "hybrid"
    COMMAND = "command"


MODELS = (AgentName.LLM, AgentName.HYBRID)
"""Who asks a language model."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The flags as they were given."""

    model: str | None
    api_base: str | None
    price: str | None
    context: int | None
    max_output: int | None
    share: float | None
    max_usd: float | None

    def check(self, agent: AgentName) -> None:
        """Raises `UsageError` if they do not go with the agent."""
        flags = (("--model", self.model), ("--api-base", self.api_base), ("--price", self.price), ("--max-output", self.max_output))
        given = [flag for flag, value in flags if value]
        if agent in MODELS and self.model is None:
            message = f"--agent {agent} wants --model provider/name, for example anthropic/NAME, or openai/NAME with --api-base for a local server"
            raise UsageError(message)
        if agent not in MODELS and given:
            message = f"{given[0]} goes with --agent llm or hybrid, and only with them"
            raise UsageError(message)
        if agent not in (*MODELS, AgentName.COMMAND) and self.context:
            message = "--context goes with --agent llm, hybrid or command, and only with them"
            raise UsageError(message)
        if agent is not AgentName.HYBRID and self.share is not None:
            message = "--model-share goes with --agent hybrid, and only with it"
            raise UsageError(message)
        if self.share is not None and not 0 < self.share <= 1:
            message = f"--model-share {self.share:g}: a share of the tries, above 0 and at most 1; without a model it is --agent tuner"
            raise UsageError(message)
        if self.max_usd is not None and not math.isfinite(self.max_usd):
            message = f"--max-usd {self.max_usd}: a sum of dollars; leave it out for no limit"
            raise UsageError(message)
        self.prices()

    def prices(self) -> tuple[float, float] | None:
        """Dollars per token, in and out."""
        if self.price is None:
            return None
        try:
            found = [float(word) / 1e6 for word in self.price.split(",")]
        except ValueError:
            found = []
        if len(found) != 2 or not all(0 <= one < 1 for one in found):
            message = f"--price {self.price}: two numbers, dollars per million tokens in and out: --price 3,15"
            raise UsageError(message)
        return found[0], found[1]

    def described(self, agent: AgentName) -> str:
        """Who proposes, for the head of a run."""
        if agent is AgentName.HYBRID:
            return f"hybrid: the tuner suggests, {self.model} sees it on {(self.share or SHARE) * 100:.0f} % of the tries"
        return f"{agent}: {self.model}" if agent is AgentName.LLM else str(agent)


@contextmanager
def modelled(session: Session, asked: Asked, purse: Purse, name: str) -> Iterator[LlmAgent]:
    """The agent that asks the model, while its connections are open.  Raises `AgentError` if it cannot be asked."""
    from runner.agents.litellm_chat import LitellmChat, ModelOptions, Prices
    from runner.agents.llm import LlmAgent

    assert asked.model is not None
    prices = asked.prices()
    options = ModelOptions(
        model=asked.model,
        api_base=asked.api_base,
        prices=Prices(prompt=prices[0], completion=prices[1]) if prices else None,
        max_tokens=asked.max_output or (OUTPUT_TOKENS if purse.limited else None),
    )
    with LitellmChat(options) as chat:
        shown = shown_by(session.folder, session.checkout.root, session.task, session.header)
        yield LlmAgent(chat, shown, limit=asked.context or CONTEXT_TOKENS, count=count, purse=purse, name=name)


def tuning(folder: Path, checkout: Task, task: Task, seed: int) -> TunerAgent:
    """The tuner of the run in `folder`.  Its ranges are the `checkout`'s: a person may change them while the run goes on.

    Raises `AgentError` if the task has no space.
    """
    from runner.agents.shown import proposed
    from runner.agents.space import load_space
    from runner.agents.tuner import TunerAgent

    return TunerAgent(
        space=load_space(checkout.root / checkout.space, task.preset) if checkout.space else None,
        source=partial(proposed, folder),
        seed=seed,
        sequence_length=task.data.sequence_length if task.data else 1,
        maximise=task.score.maximise,
    )
