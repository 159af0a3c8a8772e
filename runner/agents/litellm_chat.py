"""Models by litellm: the only module that imports it, and only when a `LitellmChat` is made (it takes seconds)."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from runner.agents.chat import ChatError, ErrorKind, Finish, Message, Reply, Usage
from runner.agents.keys import scrub, secrets_in, shown_address
from runner.agents.retrying import Asked, Failure, Pace, ask_patiently, retry_after_seconds
from runner.report.text import plain

ENVIRONMENT = {
    # Else the import fetches a table of prices from the network; nothing but "True" counts.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    # Else the import reads a file `.env` from the current folder, which may be a repository that an agent writes to.
    "LITELLM_MODE": "PRODUCTION",
    # A user's own setting would print requests, keys included.
    "LITELLM_LOG": "CRITICAL",
}
LOGGERS = ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy")
INSTALL = "run `make setup-llm`, or `pip install 'autoresearch[llm]'`"
OWN_SERVERS = frozenset(
    {"ollama", "ollama_chat", "hosted_vllm", "lm_studio", "llamafile", "xinference", "docker_model_runner"}
)
"""Providers that are a server of the user's own: nobody bills them, and most want no key."""
ADDRESSED = frozenset({"azure", "azure_ai", "azure_text", "databricks", "snowflake", "watsonx", "cloudflare"})
"""Vendors with an address for each customer: having one does not make a server the user's own."""
FINISHES = {"stop": Finish.STOP, "length": Finish.LENGTH, "content_filter": Finish.FILTERED}
NO_KEY = "none"
"""What a server of the user's own is sent where there is no key: the library wants some."""
TRY_SECONDS = 600.0
GRACE_SECONDS = 5.0
"""For a provider's code that does not let itself be interrupted."""
SAID_LIMIT = 300
_PREFIX = re.compile(r"^(?:litellm\.\w+: |\w+Error: |\w+Exception - |Error code: \d+ - )+")


@dataclass(frozen=True, kw_only=True)
class Prices:
    """US dollars a token."""

    prompt: float
    completion: float
    cached: float | None = None
    """None: cached tokens cost what others do."""

    def cost(self, usage: Usage) -> float:
        """Of one answer."""
        cached = min(usage.cached or 0, usage.prompt)
        rate = self.prompt if self.cached is None else self.cached
        return (usage.prompt - cached) * self.prompt + cached * rate + usage.completion * self.completion


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is asked."""

    model: str
    """As litellm names it: `anthropic/...`; a local server's is `openai/...`, with `api_base`."""
    api_base: str | None = None
    key_variable: str | None = None
    """The environment variable with the key; None: the one that litellm reads for the provider."""
    prices: Prices | None = None
    """None: litellm's table; a server of the user's own then has none."""
    max_tokens: int | None = None
    """Of an answer, reasoning included; a model that gives fewer is asked for that many.  None: as many as the provider lets it."""
    temperature: float | None = None
    try_seconds: float = TRY_SECONDS
    """What takes longer is given up and asked again, while there is time."""


class LitellmChat:
    """Implements `runner.agents.chat.Chat` for every provider that litellm knows, and every server that is like OpenAI's."""

    def __init__(
        self,
        options: ModelOptions,
        *,
        environment: Mapping[str, str] = os.environ,
        pace: Pace | None = None,
    ) -> None:
        """Raises `ChatError` if litellm is not installed, does not know the provider, or the key is missing."""
        self.name = options.model
        self._options, self._pace = options, pace or Pace()
        self._litellm = _imported()
        provider = self._provider()
        base = options.api_base or _base_in(environment, provider)
        self._own = provider in OWN_SERVERS or (base is not None and provider not in ADDRESSED)
        known = {} if self._own else self._known()
        self._prices = options.prices or _prices(known)
        most = known.get("max_output_tokens")
        limits = [one for one in (options.max_tokens, most) if isinstance(one, int)]
        self._longest = min(limits, default=None)
        variable = options.key_variable or f"{provider.upper()}_API_KEY"
        key = environment.get(variable, "").strip()
        self._secrets = (*secrets_in(environment), key)
        self._asked = Asked(
            model=options.model,
            place=f"at {shown_address(base)}" if base else "",
            key_variable=variable if key or self._own else None,
            key_sent=bool(key) or not self._own,
        )
        if not key:
            self._need_key(environment)
        self._key = key or (NO_KEY if self._own else None)
        # A thread of its own for the library, which works with asyncio: the caller then waits where signals reach it.
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _loop, _context: None)  # else dropped connections are told on stderr
        self._thread = threading.Thread(target=self._loop.run_forever, name="model", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; nothing can be asked afterwards."""
        if self._loop.is_closed():
            return
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(GRACE_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(GRACE_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    def complete(self, messages: Sequence[Message], *, seconds: float) -> Reply:
        """See `Chat.complete`."""
        return ask_patiently(partial(self._try, messages), self._asked, seconds, self._pace)

    def most_usd(self, prompt_tokens: int) -> float | None:
        """See `Chat.most_usd`."""
        if self._prices is None or self._longest is None:
            return None
        return self._prices.cost(Usage(prompt=prompt_tokens, completion=self._longest, cached=None))

    # ------------------------------------------------------------------------------------------ before the first

    def _provider(self) -> str:
        try:
            _, provider, _, _ = self._litellm.get_llm_provider(
                model=self._options.model, api_base=self._options.api_base
            )
        except Exception:  # noqa: BLE001 - a foreign library's, whose text is of no use
            provider = None
        if not provider:
            raise ChatError(
                ErrorKind.FATAL,
                f"model {plain(self._options.model, 100)}: no such provider is known; "
                "name it as provider/model, for a server of your own as openai/model with its address",
            )
        return str(provider)

    def _known(self) -> Mapping[str, Any]:
        """What the library's table has of the model."""
        try:
            return dict(self._litellm.get_model_info(model=self._options.model))
        except Exception:  # noqa: BLE001 - a foreign library's: it is not in the table
            return {}

    def _need_key(self, environment: Mapping[str, str]) -> None:
        """Raise if there is none: the library would send the request, and the failure look like the server's."""
        name = self._options.key_variable
        missing = [name] if name else self._litellm.validate_environment(model=self._options.model)["missing_keys"]
        missing = [name for name in missing if not environment.get(name, "").strip()]
        if missing and (name or not self._own):
            # A key of two names is one key; what else is listed is needed as well.
            word = " or " if all(name.endswith("_API_KEY") for name in missing) else " and "
            raise ChatError(
                ErrorKind.FATAL,
                f"{self._asked}: no key; put it into the environment: {word.join(missing)}",
            )

    # ---------------------------------------------------------------------------------------------------- a try

    def _try(self, messages: Sequence[Message], left: float) -> Reply | Failure:
        limit = min(left, self._options.try_seconds)
        future = asyncio.run_coroutine_threadsafe(self._answer(messages, limit), self._loop)
        try:
            return future.result(limit + GRACE_SECONDS)
        except TimeoutError:
            return Failure(status=None, timed_out=True)
        finally:
            future.cancel()

    async def _answer(self, messages: Sequence[Message], limit: float) -> Reply | Failure:
        request = self._litellm.acompletion(
            model=self._options.model,
            messages=[{"role": str(message.role), "content": message.text} for message in messages],
            api_base=self._options.api_base,
            api_key=self._key,
            max_tokens=None if self._options.max_tokens is None else self._longest,
            temperature=self._options.temperature,
            stream=False,
            drop_params=True,
            # Its own retries ask again also where that is useless; and its limit is for each read, so that an answer
            # that drips has none.
            num_retries=0,
            max_retries=0,
            timeout=limit,
        )
        try:
            response = await asyncio.wait_for(request, limit)
        except TimeoutError:
            return Failure(status=None, timed_out=True)
        except Exception as error:  # noqa: BLE001 - a foreign library's: all become values here
            return self._failure(error)
        return self._reply(response)

    def _reply(self, response: Any) -> Reply:
        usage = _usage(getattr(response, "usage", None))
        first = next(iter(response.choices or ()), None)
        text = getattr(getattr(first, "message", None), "content", None)
        finish = str(getattr(first, "finish_reason", None))
        return Reply(
            text=text if isinstance(text, str) else "",
            model=plain(scrub(str(response.model or self._options.model), self._secrets), 200),
            finish=Finish.NOTHING if first is None else FINISHES.get(finish, Finish.OTHER),
            usage=usage,
            cost_usd=self._cost(response, usage),
            seconds=0,
        )

    def _cost(self, response: Any, usage: Usage | None) -> float | None:
        if usage is None:
            return None
        if self._options.prices is not None:
            return self._options.prices.cost(usage)
        if self._own:
            return None  # the table knows a name that a server of the user's own may well use too
        cost = response._hidden_params.get("response_cost")  # noqa: SLF001 - where the library documents it
        # The table has 0 also where nobody entered a price.
        return float(cost) if cost else None

    def _failure(self, error: BaseException) -> Failure:
        errors = list(_chain(error))
        # The library's own class and status are guessed from words; the first in the chain has the server's.
        answered = next((e for e in reversed(errors) if isinstance(_status_of(e), int)), error)
        system = next((e for e in reversed(errors) if isinstance(e, OSError) and e.strerror), None)
        return Failure(
            status=None if system else _status_of(answered),
            said=self._said(_system_words(system) if system else answered),
            retry_after=retry_after_seconds(_header(errors, "retry-after")),
            too_long=isinstance(error, self._litellm.ContextWindowExceededError),
            timed_out=isinstance(error, self._litellm.Timeout),
        )

    def _said(self, what: object) -> str:
        body = getattr(what, "body", None)
        told = body.get("message") if isinstance(body, Mapping) else None
        code = body.get("code") if isinstance(body, Mapping) else None
        text = _PREFIX.sub("", str(told or what))
        text = f"{text} ({code})" if isinstance(code, str) and code not in text else text
        # Keys first: cutting might leave the half of one.
        return plain(scrub(text, self._secrets), SAID_LIMIT)

    async def _finish(self) -> None:
        with suppress(Exception):
            await self._litellm.close_litellm_async_clients()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


def _imported() -> Any:
    """litellm, quiet and without a network of its own.  Raises `ChatError` if it is not there."""
    os.environ.update(ENVIRONMENT)
    try:
        import litellm
    except ImportError as error:
        raise ChatError(
            ErrorKind.FATAL, f"the agent `llm` needs litellm, and {error.name} is not installed; {INSTALL}"
        ) from None
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    # The other transport knows neither proxies nor how to be closed without complaints.
    litellm.disable_aiohttp_transport = True
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)
    return litellm


def _prices(known: Mapping[str, Any]) -> Prices | None:
    """Of the library's table, which has 0 also where nobody entered a price."""
    prompt, completion = known.get("input_cost_per_token"), known.get("output_cost_per_token")
    return Prices(prompt=float(prompt), completion=float(completion)) if prompt and completion else None


def _base_in(environment: Mapping[str, str], provider: str) -> str | None:
    """The address that the user's environment gives the provider, as the library reads it."""
    names = (f"{provider.upper()}_{end}" for end in ("BASE_URL", "API_BASE"))
    return next((environment[name] for name in names if environment.get(name)), None)


def _usage(told: Any) -> Usage | None:
    """What the server counted; the library has 0 and 0 where it did not."""
    prompt, completion = getattr(told, "prompt_tokens", None), getattr(told, "completion_tokens", None)
    if not isinstance(prompt, int) or not isinstance(completion, int) or not (prompt or completion):
        return None
    cached = getattr(getattr(told, "prompt_tokens_details", None), "cached_tokens", None)
    return Usage(prompt=prompt, completion=completion, cached=cached if isinstance(cached, int) else None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, the last first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _system_words(error: OSError) -> str:
    # A wrapper's own text has addresses; errors of name resolution are negative and have no other.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror)


def _status_of(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and not isinstance(status, bool) else None


def _header(errors: Sequence[BaseException], name: str) -> str | None:
    for error in errors:
        for holder in (getattr(error, "response", None), error):
            headers = getattr(holder, "headers", None)
            value = headers.get(name) if isinstance(headers, Mapping) else None
            if isinstance(value, str):
                return value
    return None
