"""Which failures are tried again, when, and what is said; no test here waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.agents.chat import ChatError, ErrorKind, Finish, Reply
from runner.agents.keys import HIDDEN, scrub, secrets_in, shown_address
from runner.agents.retrying import (
    LONGEST_WAIT,
    TRIES,
    Asked,
    Failure,
    Pace,
    ask_patiently,
    kind_of,
    retry_after_seconds,
    sentence,
    wait_after,
)
from runner.errors import AgentError

ASKED = Asked(model="openai/m", place="at http://127.0.0.1:8000/v1", key_variable="OPENAI_API_KEY")
REPLY = Reply(text="an idea", model="m", finish=Finish.STOP, usage=None, cost_usd=None, seconds=0)
BUSY, BROKEN, SILENT = Failure(status=429), Failure(status=500), Failure(status=None)


@dataclass
class FakeTime:
    """A clock that only moves when somebody sleeps or asks."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)

    @property
    def pace(self) -> Pace:
        return Pace(clock=lambda: self.now, sleep=self._sleep, chance=lambda: 1.0)

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def asks(self, *outcomes: Reply | Failure, each: float = 1.0) -> Callable[[float], Reply | Failure]:
        """One outcome a call, each after so many seconds; the last one for ever."""
        rest = list(outcomes)

        def ask(left: float) -> Reply | Failure:
            self.left.append(left)
            self.now += min(each, left)
            return rest.pop(0) if len(rest) > 1 else rest[0]

        return ask


def failing(time: FakeTime, ask: Callable[[float], Reply | Failure], seconds: float = 900) -> ChatError:
    with pytest.raises(ChatError) as raised:
        ask_patiently(ask, ASKED, seconds, time.pace)
    return raised.value


def test_an_answer_is_given_as_it_is_with_the_seconds_of_the_whole_call() -> None:
    time = FakeTime()
    reply = ask_patiently(time.asks(REPLY), ASKED, 60, time.pace)
    assert (reply.text, reply.seconds, time.slept) == ("an idea", 1.0, [])

    time = FakeTime()
    reply = ask_patiently(time.asks(BUSY, BROKEN, SILENT, REPLY), ASKED, 900, time.pace)
    assert time.slept == [2.0, 6.0, 18.0]
    assert reply.seconds == 4 + sum(time.slept)
    assert time.left == [900, 897, 890, 871]


@pytest.mark.parametrize("status", [None, 408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_five_times(status: int | None) -> None:
    time = FakeTime()
    error = failing(time, time.asks(Failure(status=status)))
    assert error.kind is ErrorKind.EXHAUSTED
    assert len(time.left) == TRIES
    assert len(time.slept) == TRIES - 1
    assert "5 tries in 85 s" in str(error)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 422, 451, 302])
def test_what_stays_wrong_is_tried_once(status: int) -> None:
    time = FakeTime()
    error = failing(time, time.asks(Failure(status=status)))
    assert (error.kind, len(time.left), time.slept) == (ErrorKind.FATAL, 1, [])
    assert f"status {status}" in str(error)


def test_no_credit_is_not_a_rate_limit() -> None:
    assert kind_of(Failure(status=429, said="Rate limit reached")) is None
    assert kind_of(Failure(status=429, said="Error code: 429 - {'code': 'insufficient_quota'}")) is ErrorKind.FATAL
    # Words that providers also use of a rate limit decide nothing.
    assert kind_of(Failure(status=429, said="You exceeded your current quota")) is None


@pytest.mark.parametrize(
    "failure",
    [
        Failure(status=400, too_long=True),
        Failure(status=413),
        Failure(status=400, said="This model's maximum context length is 8192 tokens"),
        Failure(status=400, said="request (9000 tokens) exceeds the available context size (4096 tokens)"),
        Failure(status=400, said="prompt is too long: 212000 tokens > 200000 maximum"),
        Failure(status=500, said="Trying to keep the first 9000 tokens when context the overflows"),
    ],
)
def test_too_long_is_told_from_other_refusals(failure: Failure) -> None:
    assert kind_of(failure) is ErrorKind.TOO_LONG
    assert kind_of(Failure(status=400, said="Invalid 'temperature'")) is ErrorKind.FATAL
    assert kind_of(Failure(status=429, said="maximum context length")) is None


def test_the_server_is_given_the_time_it_asks_for() -> None:
    time = FakeTime()
    ask_patiently(time.asks(Failure(status=429, retry_after=30), REPLY), ASKED, 900, time.pace)
    assert time.slept == [31.0]

    time = FakeTime()
    ask_patiently(time.asks(Failure(status=503, retry_after=0), REPLY), ASKED, 900, time.pace)
    assert time.slept == [2.0]


def test_a_wait_that_outlasts_the_deadline_is_not_begun() -> None:
    time = FakeTime()
    error = failing(time, time.asks(Failure(status=429, retry_after=3600)), seconds=600)
    assert (error.kind, time.slept) == (ErrorKind.EXHAUSTED, [])
    assert "asks to wait 3600 s" in str(error)

    time = FakeTime()
    failing(time, time.asks(BUSY), seconds=20)
    assert time.slept == [2.0, 6.0]
    assert time.now <= 120


def test_silence_ends_at_the_deadline() -> None:
    time = FakeTime()
    error = failing(time, time.asks(Failure(status=None, timed_out=True), each=1000), seconds=60)
    assert (error.kind, time.now, len(time.left)) == (ErrorKind.EXHAUSTED, 160, 1)
    assert "no whole answer in time (1 try in 60 s)" in str(error)


@given(tries=st.integers(1, 50), chance=st.floats(0, 1), asked=st.none() | st.floats(0, 1e6))
def test_waits_grow_within_bounds(tries: int, chance: float, asked: float | None) -> None:
    wait = wait_after(tries, Failure(status=429, retry_after=asked), chance)
    assert wait >= (asked or 0)
    assert wait <= max(LONGEST_WAIT, (asked or 0) + 1)
    if asked is None:
        assert wait_after(tries + 1, BUSY, 0) >= wait_after(tries, BUSY, 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("Wed, 25 Nov 2026 12:00:30 GMT", 30.0),
        ("Wed, 25 Nov 2026 11:00:00 GMT", 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("\u0661\u0662", None),
        ("9" * 400, None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value, datetime(2026, 11, 25, 12, tzinfo=UTC)) == seconds


def test_messages_say_what_where_and_what_to_do() -> None:
    def told(status: int | None, said: str = "", **more: object) -> str:
        failure = Failure(status=status, said=said, **more)  # type: ignore[arg-type]
        return sentence(kind_of(failure) or ErrorKind.EXHAUSTED, failure, ASKED, tries=5, spent=91.4)

    where = "model openai/m at http://127.0.0.1:8000/v1: "
    assert told(401, "no") == f"{where}the key in OPENAI_API_KEY was refused (status 401); check it. The answer was: no"
    assert told(404).endswith("does not know this model or address (status 404); check both")
    assert told(402).endswith("no credit left (status 402); add some, or use another key")
    assert told(403).endswith("may not use this model (status 403); ask for access, or name another model")
    assert told(413).startswith(f"{where}the request is longer than the model can read")
    assert told(429).endswith("its rate limit is reached (status 429, 5 tries in 91 s); try again later, or raise the limit")
    assert told(None).endswith("cannot be reached (5 tries in 91 s); check that it runs, its address and the network")
    assert told(503).endswith("does not work (status 503, 5 tries in 91 s); try again later")


def test_an_error_ends_the_command_like_any_of_an_agent() -> None:
    error = ChatError(ErrorKind.FATAL, "no")
    assert isinstance(error, AgentError)
    assert error.exit_code == 5


def test_keys_are_scrubbed_whole_masked_and_by_their_looks() -> None:
    secrets = secrets_in({
        "OPENAI_API_KEY": "canary-0123456789", "HF_TOKEN": " tok/en+0123 ", "AWS_SECRET_ACCESS_KEY": "canary-0123456789-longer",
        "PGPASSWORD": "hunter2hunter2", "KEYBOARD": "german", "TOKENIZERS_PARALLELISM": "false", "SHORT_KEY": "an",
    })  # fmt: skip
    assert set(secrets) == {"canary-0123456789", "tok/en+0123", "canary-0123456789-longer", "hunter2hunter2", "an"}
    text = "key canary-0123456789-longer, ?key=tok%2Fen%2B0123&x, canary-0123456789 and an ordinary word"
    assert scrub(text, secrets) == f"key {HIDDEN}, ?key={HIDDEN}&x, {HIDDEN} and an ordinary word"
    for shown in ("sk-proj-abcdefghi", "sk-ab******wxyz", "AIzaSyABCDEFG", "abcd****wxyz"):
        assert scrub(f"Incorrect key provided: {shown}.", ()).startswith(f"Incorrect key provided: {HIDDEN}")
    assert scrub("Authorization: Bearer abc.def-ghi", ()) == f"Authorization: Bearer {HIDDEN}"


def test_an_address_is_shown_without_password_and_query() -> None:
    assert shown_address("http://user:secret@host:81/v1?key=secret") == "http://host:81/v1"
    assert shown_address("http://[host/v1") == "an address that cannot be read"
    assert shown_address("http://[::1]:8000/v1") == "http://[::1]:8000/v1"
