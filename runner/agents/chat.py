"""The seam between the agent and a language model: what is asked, what comes back, what can go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from runner.errors import AgentError


class Role(StrEnum):
    """Whose words a message has."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens as the server counted them."""

    prompt: int
    completion: int
    """Reasoning included, where the model reasons."""
    cached: int | None
    """The part of `prompt` that came from the provider's cache; None: the server did not say."""


class Finish(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    """Cut at the limit of tokens: what is there is only the beginning, and may be empty after long reasoning."""
    FILTERED = "filtered"
    """Withheld by the provider's content filter."""
    OTHER = "other"
    NOTHING = "nothing"
    """The server sent no choice at all."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model answered."""

    text: str
    """Without its reasoning; empty if there was no text (`finish` says why)."""
    model: str
    """The model that the server says it used."""
    finish: Finish
    usage: Usage | None
    """None: the server did not say."""
    cost_usd: float | None
    """None: a price is not known."""
    seconds: float
    """Of the whole call, waits and earlier tries included."""


class ErrorKind(StrEnum):
    """What to do after a `ChatError`."""

    FATAL = "fatal"
    """Wrong key, unknown model, no credit, forbidden: asking again is useless."""
    EXHAUSTED = "exhausted"
    """Rate limits, server errors or silence lasted to the deadline or through all tries."""
    TOO_LONG = "too_long"
    """More than the model can read: trim the messages and ask again."""


class ChatError(AgentError):
    """No answer; the message is one sentence for a person, and holds no key."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Chat(Protocol):
    """A language model."""

    name: str
    """The model as the user named it."""

    def complete(self, messages: Sequence[Message], *, seconds: float) -> Reply:
        """The model's answer, within `seconds` for everything, waits and further tries included.

        Raises `ChatError`.
        """
        ...

    def most_usd(self, prompt_tokens: int) -> float | None:
        """What one answer to so many tokens can cost at most; None: not known."""
        ...
