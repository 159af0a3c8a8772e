"""When a request to a model is tried again, and after how long; what a person is told if it was in vain.

By status alone, except where providers use one status for two things: a 429 is both "slow down" and "no credit", and a
request that is too long is a 400 like any other.  A malformed answer of the model is none of this: it is for whoever reads it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count

import structlog

from runner.agents.chat import ChatError, ErrorKind, Reply

TRIES = 5
FIRST_WAIT, GROWTH, LONGEST_WAIT = 2.0, 3.0, 60.0
"""Four waits of together 60 s on average: the commonest rate limits are per minute."""
AGAIN = frozenset({408, 409, 425, 429})
"""And all 5xx, and no answer."""
NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
TOO_LONG = (
    "context_length_exceeded",
    "maximum context length",
    "maximum context limit",
    "exceed_context_size",
    "available context size",
    "exceed context limit",
    "prompt is too long",
    "input is too long",
    "exceeds the maximum number of tokens",
    "longer than the model's context",
    "context the overflows",
)
"""How servers say so: none has a status or a code of its own for it that all share."""

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What one try ended in."""

    status: int | None
    """None: there was no HTTP answer."""
    said: str = ""
    """What the server or the system said: one printable line without keys."""
    retry_after: float | None = None
    """Seconds that the server asks to wait."""
    too_long: bool = False
    """The library knows that the request was too long."""
    timed_out: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Whom the messages are about."""

    model: str
    place: str
    """As in `at http://127.0.0.1:8000/v1`; empty: the provider's own."""
    key_variable: str | None
    """The environment variable with the key; None: one that only the library knows."""
    key_sent: bool = True

    def __str__(self) -> str:
        return f"model {self.model}{' ' if self.place else ''}{self.place}"


@dataclass(frozen=True)
class Pace:
    """Time and chance; a test hands in its own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random


def ask_patiently(ask: Callable[[float], Reply | Failure], asked: Asked, seconds: float, pace: Pace) -> Reply:
    """Call `ask`, with the seconds that are left, until it gives a reply.  Raises `ChatError`.

    A wait that would outlast the deadline is not begun.
    """
    began = pace.clock()
    for tries in count(1):
        outcome = ask(max(0.0, seconds - (pace.clock() - began)))
        spent = pace.clock() - began
        if isinstance(outcome, Reply):
            return replace(outcome, seconds=spent)
        kind = kind_of(outcome)
        wait = wait_after(tries, outcome, pace.chance())
        if kind is None and (tries == TRIES or spent + wait >= seconds):
            kind = ErrorKind.EXHAUSTED
        if kind is not None:
            raise ChatError(kind, sentence(kind, outcome, asked, tries=tries, spent=spent))
        if structlog.is_configured():  # else nobody has a run's folder for it, and it would go to the screen
            log.info("model_retry", model=asked.model, status=outcome.status, tries=tries, wait=round(wait, 1))
        pace.sleep(wait)
    raise AssertionError


def kind_of(failure: Failure) -> ErrorKind | None:
    """What the failure means; None: another try may help."""
    status, said = failure.status, failure.said.lower()
    if failure.too_long or status == 413 or (status in {400, 422, 500} and any(words in said for words in TOO_LONG)):
        return ErrorKind.TOO_LONG
    if any(words in said for words in NO_CREDIT):
        return ErrorKind.FATAL
    if status is None or status in AGAIN or status >= 500:
        return None
    return ErrorKind.FATAL


def wait_after(tries: int, failure: Failure, chance: float) -> float:
    """Seconds to wait after so many tries: longer each time, with jitter, and never less than the server asks."""
    wait = min(LONGEST_WAIT, FIRST_WAIT * GROWTH ** (tries - 1))
    jittered = wait * (0.5 + chance / 2)
    if failure.retry_after is None:
        return jittered
    # Many clients are told the same time: a little later than that, they do not come all at once.
    return max(jittered, failure.retry_after + chance)


def retry_after_seconds(value: str | None, now: datetime | None = None) -> float | None:
    """What the header Retry-After says, as seconds or as a date; None if nothing that makes sense."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 12:
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    zoned = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (zoned - (now or datetime.now(UTC))).total_seconds())


def sentence(kind: ErrorKind, failure: Failure, asked: Asked, *, tries: int, spent: float) -> str:
    """What is wrong, where, and what to do."""
    status = failure.status
    key = f"the key in {asked.key_variable}" if asked.key_variable else "the key"
    if kind is ErrorKind.TOO_LONG:
        told = f"{asked}: the request is longer than the model can read; shorten program.md or take a model that reads more"
    elif kind is ErrorKind.EXHAUSTED:
        told = _exhausted(failure, asked, tries, spent)
    elif any(words in failure.said.lower() for words in NO_CREDIT) or status == 402:
        told = f"{asked}: the account has no credit left (status {status}); add some, or use another key"
    elif status == 401 and not asked.key_sent:
        told = f"{asked}: it wants a key (status 401); put one into {asked.key_variable}"
    elif status == 401:
        told = f"{asked}: {key} was refused (status 401); check it"
    elif status == 403:
        told = f"{asked}: {key} may not use this model (status 403); ask for access, or name another model"
    elif status == 404:
        told = f"{asked}: the server does not know this model or address (status 404); check both"
    else:
        told = f"{asked}: the request was refused (status {status}); check the model's name and options"
    return f"{told}. The answer was: {failure.said}" if failure.said else told


def _exhausted(failure: Failure, asked: Asked, tries: int, spent: float) -> str:
    over = f"{tries} {'try' if tries == 1 else 'tries'} in {spent:.0f} s"
    if failure.timed_out:
        return f"{asked}: no whole answer in time ({over}); try a faster model, or give it longer"
    if failure.status is None:
        return f"{asked}: the server cannot be reached ({over}); check that it runs, its address and the network"
    if failure.retry_after is not None and tries < TRIES:
        return f"{asked}: the server asks to wait {failure.retry_after:.0f} s, which is too long (status {failure.status}, {over}); try again later"
    if failure.status == 429:
        return f"{asked}: its rate limit is reached (status 429, {over}); try again later, or raise the limit"
    return f"{asked}: the server does not work (status {failure.status}, {over}); try again later"
