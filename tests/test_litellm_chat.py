"""The real library against a real HTTP server on this machine: every way to answer, and every way not to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.agents.chat import Chat, ChatError, ErrorKind, Finish, Message, Reply, Role, Usage
from runner.agents.litellm_chat import LitellmChat, ModelOptions, Prices
from runner.agents.retrying import TRIES, Pace
from runner.log import events_to
from tests import modelserver as says
from tests.modelserver import Behaviour, ModelServer, model_server

ROOT = Path(__file__).resolve().parents[1]
CANARY = "canary/7f3a+91c0d2e8b465"
MESSAGES = (Message(Role.SYSTEM, "You are terse."), Message(Role.USER, "An idea, please."))
PRICES = Prices(prompt=1e-6, completion=2e-6, cached=1e-7)


class Waits:
    """Sleeps that do not last, and are remembered."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.pace = Pace(sleep=self.slept.append, chance=lambda: 0.0)


@contextmanager
def chat_with(server: ModelServer, waits: Waits, options: ModelOptions | None = None) -> Iterator[LitellmChat]:
    options = options or ModelOptions(model="openai/some-model")
    options = replace(options, api_base=server.url, key_variable="THE_KEY")
    with LitellmChat(options, environment={"THE_KEY": CANARY}, pace=waits.pace) as chat:
        yield chat


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def ask(waits: Waits) -> Callable[..., tuple[Reply, ModelServer]]:
    """Asks a server with a script once."""

    def asked(*script: Behaviour, options: ModelOptions | None = None, seconds: float = 60) -> tuple[Reply, ModelServer]:
        with model_server(*script) as server, chat_with(server, waits, options) as chat:
            return chat.complete(MESSAGES, seconds=seconds), server

    return asked


@pytest.fixture
def fails(waits: Waits) -> Callable[..., tuple[ChatError, ModelServer]]:
    """Asks a server that never answers well."""

    def failed(
        *script: Behaviour, always: Behaviour | None = None, options: ModelOptions | None = None, seconds: float = 60
    ) -> tuple[ChatError, ModelServer]:
        with model_server(*script, always=always) as server, chat_with(server, waits, options) as chat:
            with pytest.raises(ChatError) as raised:
                chat.complete(MESSAGES, seconds=seconds)
            error = raised.value
            # Nothing of the library or the provider hangs on to it.
            assert error.__cause__ is None
            assert error.__context__ is None
            assert CANARY not in "".join(traceback.format_exception(error))
            assert "litellm." not in str(error)
            assert str(error).isprintable()
            return error, server

    return failed


Ask = Callable[..., tuple[Reply, ModelServer]]
Fails = Callable[..., tuple[ChatError, ModelServer]]


# ------------------------------------------------------------------------------------------------- answers


def test_a_good_answer(ask: Ask, waits: Waits) -> None:
    reply, server = ask(says.answers("an idea", model="some-model-2026"))
    assert replace(reply, seconds=0) == Reply(
        text="an idea",
        model="some-model-2026",
        finish=Finish.STOP,
        usage=Usage(prompt=120, completion=30, cached=None),
        cost_usd=None,
        seconds=0,
    )
    assert 0 < reply.seconds < 60
    assert waits.slept == []
    [request] = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.key == CANARY
    # Nothing is sent but what was asked for.
    assert request.body == {
        "model": "some-model",
        "messages": [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "An idea, please."}],
    }


def test_what_an_answer_can_cost_at_most_is_known_before_it_is_asked_for(waits: Waits) -> None:
    def most(**options: Any) -> float | None:
        with model_server() as server, chat_with(server, waits, ModelOptions(**options)) as chat:
            found = chat.most_usd(1000)
            assert server.requests == []
            return found

    priced = replace(PRICES, prompt=1e-6, completion=2e-6)
    assert most(model="openai/some-model", prices=priced, max_tokens=500) == pytest.approx(1000e-6 + 2 * 500e-6)
    # Without a limit of the answer, without a price, and for a name that a vendor has too: nobody knows.
    assert most(model="openai/some-model", prices=priced) is None
    assert most(model="openai/some-model", max_tokens=500) is None
    assert most(model="openai/gpt-4o", max_tokens=500) is None
    # A vendor's model is in the table, with its price and its longest answer (16384 tokens).
    assert most(model="azure/gpt-4o", max_tokens=500) == pytest.approx(1000 * 2.5e-6 + 500 * 10e-6)
    assert most(model="azure/gpt-4o", max_tokens=10**6) == most(model="azure/gpt-4o") == pytest.approx(1000 * 2.5e-6 + 16_384 * 10e-6)
    assert most(model="azure/nobody-priced-this", max_tokens=500) is None


def test_no_longer_answer_is_asked_for_than_the_model_gives(ask: Ask) -> None:
    _, server = ask(says.answers(), options=ModelOptions(model="azure/gpt-4o", max_tokens=10**6))
    assert server.requests[0].body["max_tokens"] == 16_384


def test_options_are_sent(ask: Ask) -> None:
    options = ModelOptions(model="openai/some-model", max_tokens=4000, temperature=0.7)
    _, server = ask(says.answers(), options=options)
    assert (server.requests[0].body["max_tokens"], server.requests[0].body["temperature"]) == (4000, 0.7)


def test_unknown_usage_is_none_and_costs_nobody_knows_what(ask: Ask) -> None:
    reply, _ = ask(says.without_usage, options=ModelOptions(model="openai/some-model", prices=PRICES))
    assert (reply.text, reply.usage, reply.cost_usd) == ("an idea", None, None)


def test_cached_tokens_and_prices_of_ones_own(ask: Ask) -> None:
    reply, _ = ask(says.cached, options=ModelOptions(model="openai/some-model", prices=PRICES))
    assert reply.usage == Usage(prompt=120, completion=30, cached=100)
    assert reply.cost_usd == pytest.approx(20e-6 + 10e-6 + 60e-6)

    full = replace(PRICES, cached=None)
    reply, _ = ask(says.cached, options=ModelOptions(model="openai/some-model", prices=full))
    assert reply.cost_usd == pytest.approx(120e-6 + 60e-6)


def test_a_server_of_ones_own_is_not_billed_at_a_vendors_price(ask: Ask) -> None:
    reply, _ = ask(says.answers(), options=ModelOptions(model="openai/gpt-4o"))
    assert reply.cost_usd is None


def test_a_vendors_price_is_known_or_not(ask: Ask) -> None:
    # Every customer of this vendor has an address of their own, so that a server here can stand for it.
    reply, server = ask(says.answers(), options=ModelOptions(model="azure/gpt-4o"))
    assert server.requests[0].headers["api-key"] == CANARY
    assert reply.usage == Usage(prompt=120, completion=30, cached=None)
    assert reply.cost_usd == pytest.approx(120 * 2.5e-6 + 30 * 10e-6)

    reply, _ = ask(says.answers(), options=ModelOptions(model="azure/nobody-priced-this"))
    assert (reply.usage is None, reply.cost_usd) == (False, None)


@pytest.mark.parametrize("provider", ["hosted_vllm", "lm_studio", "openai"])
def test_servers_like_openais(ask: Ask, provider: str) -> None:
    reply, server = ask(says.answers(), options=ModelOptions(model=f"{provider}/some-model"))
    assert reply.text == "an idea"
    assert server.requests[0].body["model"] == "some-model"


@pytest.mark.parametrize("behaviour", [says.thinking, says.reasoning])
def test_reasoning_is_no_part_of_the_answer(ask: Ask, behaviour: Behaviour) -> None:
    reply, _ = ask(behaviour)
    assert (reply.text.strip(), reply.finish) == ("an idea", Finish.STOP)


@pytest.mark.parametrize(
    ("behaviour", "text", "finish"),
    [
        (says.cut, "half an", Finish.LENGTH),
        (says.only_reasoning, "", Finish.LENGTH),
        (says.null, "", Finish.STOP),
        (says.filtered, "", Finish.FILTERED),
        (says.no_choices, "", Finish.NOTHING),
        (says.answers("", finish="tool_calls"), "", Finish.OTHER),
    ],
)
def test_answers_that_are_none_are_told_apart(ask: Ask, waits: Waits, behaviour: Behaviour, text: str, finish: Finish) -> None:
    reply, server = ask(behaviour)
    assert (reply.text, reply.finish) == (text, finish)
    assert reply.usage is not None
    assert (len(server.requests), waits.slept) == (1, [])


def test_one_chat_asks_often(waits: Waits) -> None:
    def write(request: says.Request) -> str:
        return request.texts[-1].upper()

    with model_server(always=says.answers_with(write)) as server, chat_with(server, waits) as chat:
        seam: Chat = chat
        assert seam.name == "openai/some-model"
        for text in ("one", "two", "three"):
            assert seam.complete([Message(Role.USER, text)], seconds=30).text == text.upper()
        assert len(server.requests) == 3


def test_two_chats_do_not_disturb_each_other(waits: Waits) -> None:
    with model_server(always=says.answers()) as server, chat_with(server, waits) as first:
        assert first.complete(MESSAGES, seconds=30).text == "an idea"
        with chat_with(server, waits) as second:
            assert second.complete(MESSAGES, seconds=30).text == "an idea"
        second.close()
        assert first.complete(MESSAGES, seconds=30).text == "an idea"
        assert (len(server.requests), waits.slept) == (3, [])


# -------------------------------------------------------------------------------------------- tried again


@pytest.mark.parametrize(
    "behaviour",
    [
        says.status(500, "The server had an error"),
        says.status(503, "overloaded"),
        says.page(502),
        says.page(200),
        says.truncated,
        says.empty,
        says.resets,
        says.slow_down(),
        says.status(408),
        says.status(409),
        says.status(529, "overloaded"),
    ],
)
def test_what_may_pass_is_tried_again(ask: Ask, waits: Waits, behaviour: Behaviour) -> None:
    reply, server = ask(behaviour, behaviour, says.answers())
    assert reply.text == "an idea"
    # Exactly ours: the library below adds none of its own.
    assert len(server.requests) == 3
    assert waits.slept == [1.0, 3.0]


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (says.status(500, "The server had an error"), "does not work (status 500, 5 tries"),
        (says.page(502), "does not work (status 502, 5 tries"),
        (says.status(503, "overloaded"), "does not work (status 503, 5 tries"),
        (says.slow_down(), "its rate limit is reached (status 429, 5 tries"),
        (says.resets, "cannot be reached (5 tries"),
        (says.truncated, "does not work (status 500, 5 tries"),
        (says.page(200), "does not work (status 500, 5 tries"),
        (says.empty, "does not work (status 500, 5 tries"),
    ],
)
def test_what_does_not_pass_is_given_up(fails: Fails, waits: Waits, behaviour: Behaviour, told: str) -> None:
    error, server = fails(always=behaviour)
    assert error.kind is ErrorKind.EXHAUSTED
    assert told in str(error)
    assert f"at {server.url}" in str(error)
    assert len(server.requests) == TRIES
    assert waits.slept == [1.0, 3.0, 9.0, 27.0]


def test_the_server_says_when_to_come_back(ask: Ask, fails: Fails, waits: Waits) -> None:
    reply, _ = ask(says.slow_down(7), says.answers())
    assert reply.text == "an idea"
    assert waits.slept == [7.0]

    error, server = fails(says.slow_down(3600))
    assert error.kind is ErrorKind.EXHAUSTED
    assert "asks to wait 3600 s" in str(error)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there(waits: Waits) -> None:
    with model_server() as server:
        pass
    with chat_with(server, waits) as chat, pytest.raises(ChatError, match="cannot be reached") as raised:
        chat.complete(MESSAGES, seconds=60)
    assert raised.value.kind is ErrorKind.EXHAUSTED
    assert "refused" in str(raised.value)
    assert len(waits.slept) == TRIES - 1


@pytest.mark.parametrize("behaviour", [says.hangs, says.drips(0.1)])
def test_silence_and_dripping_end_at_the_deadline(fails: Fails, behaviour: Behaviour) -> None:
    began = time.monotonic()
    # Long enough for the library's first request, which loads more of it.
    error, server = fails(behaviour, seconds=3)
    assert time.monotonic() - began < 30
    assert error.kind is ErrorKind.EXHAUSTED
    assert "no whole answer in time (1 try in " in str(error)
    # The connection does not stay open behind our back.
    assert server.hung_up.wait(5)


def test_one_long_try_does_not_use_up_all_the_time(ask: Ask) -> None:
    options = ModelOptions(model="openai/some-model", try_seconds=3)
    reply, server = ask(says.hangs, says.answers(), options=options)
    assert reply.text == "an idea"
    assert len(server.requests) == 2


# ------------------------------------------------------------------------------------------- stops at once


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (says.wrong_key, "the key in THE_KEY was refused (status 401); check it"),
        (says.forbidden, "the key in THE_KEY may not use this model (status 403)"),
        (says.unknown_model, "does not know this model or address (status 404); check both"),
        (says.no_credit, "the account has no credit left (status 429)"),
        (says.bad_request, "the request was refused (status 400); check the model's name and options. The answer was: Invalid 'temp"),
        (says.status(422, "Unprocessable"), "the request was refused (status 422)"),
        (says.status(402, "Insufficient Balance"), "the account has no credit left (status 402)"),
    ],
)
def test_what_stays_wrong_is_said_at_once(fails: Fails, waits: Waits, behaviour: Behaviour, told: str) -> None:
    error, server = fails(behaviour, says.answers())
    assert error.kind is ErrorKind.FATAL
    assert str(error).startswith(f"model openai/some-model at {server.url}: ")
    assert told in str(error)
    assert (len(server.requests), waits.slept) == (1, [])


def test_words_about_limits_do_not_make_a_refusal_a_rate_limit(fails: Fails) -> None:
    error, server = fails(says.status(400, "rate_limit is not an option"), says.answers())
    assert (error.kind, len(server.requests)) == (ErrorKind.FATAL, 1)


@pytest.mark.parametrize(
    "behaviour",
    [says.too_long, says.status(400, "the request exceeds the available context size", kind="exceed_context_size_error")],
)
def test_too_long(fails: Fails, waits: Waits, behaviour: Behaviour) -> None:
    error, server = fails(behaviour, says.answers())
    assert error.kind is ErrorKind.TOO_LONG
    assert "longer than the model can read" in str(error)
    assert (len(server.requests), waits.slept) == (1, [])


# ------------------------------------------------------------------------------------------------------ keys


def test_the_key_is_in_no_message_log_or_file(
    tmp_path: Path, waits: Waits, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    parrot = [says.repeats_key(code, CANARY) for code in (500, 429, 503, 400)]
    events = tmp_path / "events.jsonl"
    with events_to(events), model_server(*parrot, says.wrong_key, says.page(404, CANARY)) as server, chat_with(server, waits) as chat:
        for _ in range(3):
            with pytest.raises(ChatError) as raised:
                chat.complete(MESSAGES, seconds=60)
            error: BaseException | None = raised.value
            assert "[key]" in str(error)
            assert CANARY not in repr(error) + "".join(traceback.format_exception(raised.value))
        assert [request.key for request in server.requests] == [CANARY] * 6
        assert CANARY not in repr(chat)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert caplog.text == "" or CANARY not in caplog.text
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert [(event["event"], event["status"], event["tries"]) for event in told] == [
        ("model_retry", 500, 1),
        ("model_retry", 429, 2),
        ("model_retry", 503, 3),
    ]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and CANARY in path.read_text()]


def test_a_missing_key_is_said_before_anything_is_sent() -> None:
    options = ModelOptions(model="openai/some-model", key_variable="MY_KEY")
    with pytest.raises(ChatError, match="no key; put it into the environment: MY_KEY") as raised:
        LitellmChat(options, environment={})
    assert raised.value.kind is ErrorKind.FATAL


def test_a_server_of_ones_own_needs_no_key() -> None:
    with model_server(says.answers(), says.wrong_key) as server:
        options = ModelOptions(model="openai/some-model", api_base=server.url)
        with LitellmChat(options, environment={}) as chat:
            assert chat.complete(MESSAGES, seconds=60).text == "an idea"
            with pytest.raises(ChatError, match=r"it wants a key \(status 401\); put one into OPENAI_API_KEY"):
                chat.complete(MESSAGES, seconds=60)
        assert server.requests[0].key == "none"


def test_an_unknown_provider() -> None:
    with pytest.raises(ChatError, match="model nobody/knows: no such provider is known") as raised:
        LitellmChat(ModelOptions(model="nobody/knows"), environment={})
    assert raised.value.kind is ErrorKind.FATAL


# ------------------------------------------------------------------------------------- a process of its own


def python(program: str, folder: Path, **environment: str) -> str:
    """What a fresh Python says, both streams."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith(("_API_KEY", "_API_BASE", "_BASE_URL"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout


def test_the_command_line_does_not_import_it(tmp_path: Path) -> None:
    program = (
        "import sys, runner.cli, runner.agents.litellm_chat, runner.agents.retrying;"
        "print([name for name in ('litellm', 'openai', 'httpx') if name in sys.modules])"
    )
    assert python(program, tmp_path) == "[]\n"


def test_without_the_extra_it_says_how_to_install_it(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['litellm'] = None\n"
        "from runner.agents.chat import ChatError\n"
        "from runner.agents.litellm_chat import *\n"
        "try: LitellmChat(ModelOptions(model='openai/m'))\n"
        "except ChatError as error: print(error.kind, error.exit_code, error)"
    )
    assert python(program, tmp_path) == (
        "fatal 5 the agent `llm` needs litellm, and litellm is not installed; "
        "run `make setup-llm`, or `pip install 'autoresearch[llm]'`\n"
    )


def test_each_provider_has_its_variable(tmp_path: Path) -> None:
    variables = {
        "openai/gpt-4o": "OPENAI_API_KEY",
        "anthropic/claude-sonnet-4-5": "ANTHROPIC_API_KEY",
        "gemini/gemini-2.5-pro": "GOOGLE_API_KEY or GEMINI_API_KEY",
        "deepseek/deepseek-chat": "DEEPSEEK_API_KEY",
        "openrouter/some/model": "OPENROUTER_API_KEY",
        "together_ai/some/model": "TOGETHERAI_API_KEY",
        "bedrock/anthropic.claude-3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        "azure/some-deployment": "AZURE_API_BASE and AZURE_API_VERSION and AZURE_API_KEY",
    }
    program = (
        "from runner.agents.chat import ChatError\n"
        "from runner.agents.litellm_chat import *\n"
        f"for model in {list(variables)!r}:\n"
        "    try: LitellmChat(ModelOptions(model=model))\n"
        "    except ChatError as error: print(error)"
    )
    assert python(program, tmp_path).splitlines() == [
        f"model {model}: no key; put it into the environment: {variable}" for model, variable in variables.items()
    ]


def test_it_is_quiet_whatever_the_user_has_set_reads_no_env_file_and_talks_to_nobody_else(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPENAI_API_KEY=planted-0123456789\nPLANTED=yes\n")
    program = (
        "import os, sys\n"
        "def watch(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo') and '127.0.0.1' not in repr(arguments): print(event, arguments)\n"
        "sys.addaudithook(watch)\n"
        "from runner.agents.chat import *\n"
        "from runner.agents.litellm_chat import *\n"
        "from runner.agents.retrying import Pace\n"
        "options = ModelOptions(model='openai/m', api_base=os.environ['SERVER'], key_variable='THE_KEY')\n"
        "with LitellmChat(options, pace=Pace(sleep=lambda seconds: None)) as chat:\n"
        "    for _ in range(3):\n"
        "        try: print(chat.complete([Message(Role.USER, 'hello')], seconds=60).text)\n"
        "        except ChatError as error: print(error.kind)\n"
        "print(os.environ.get('PLANTED'))"
    )
    script = [says.answers(), says.status(500), says.resets, says.answers("another"), says.wrong_key]
    with model_server(*script) as server:
        told = python(program, tmp_path, SERVER=server.url, THE_KEY=CANARY, LITELLM_LOG="DEBUG", LITELLM_MODE="DEV")
    assert told == "an idea\nanother\nfatal\nNone\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".env"]


def test_an_address_from_the_environment_is_a_server_of_ones_own(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from runner.agents.chat import *\n"
        "from runner.agents.litellm_chat import *\n"
        "for variable in ('OPENAI_API_BASE', 'OPENAI_BASE_URL'):\n"
        "    os.environ[variable] = os.environ['SERVER']\n"
        "    with LitellmChat(ModelOptions(model='openai/gpt-4o')) as chat:\n"
        "        print(chat.complete([Message(Role.USER, 'hello')], seconds=60).cost_usd)\n"
        "    del os.environ[variable]\n"
    )
    with model_server(always=says.answers()) as server:
        assert python(program, tmp_path, SERVER=server.url) == "None\nNone\n"
        assert [request.key for request in server.requests] == ["none", "none"]


def test_a_process_that_is_left_while_it_waits_ends_at_once(tmp_path: Path) -> None:
    program = (
        "import os, signal, threading\n"
        "from runner.agents.chat import *\n"
        "from runner.agents.litellm_chat import *\n"
        "chat = LitellmChat(ModelOptions(model='openai/m', api_base=os.environ['SERVER']))\n"
        "threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try: chat.complete([Message(Role.USER, 'hello')], seconds=60)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    began = time.monotonic()
    with model_server(says.hangs) as server:
        assert python(program, tmp_path, SERVER=server.url) == "interrupted\n"
    assert time.monotonic() - began < 40
