"""One large file over HTTP into a cache: resumed, retried, checked.

requests and urllib3 do the protocol: redirects (which drop the token on the way to another host),
proxies, and retries of connections and answers with back-off, jitter and Retry-After.  What is left to
do here is what only the receiver can: notice a body that ends early, stalls or changed between two
attempts, ask for the rest of it, and believe nothing before size and hash are right.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from corpus import manifest
from corpus.errors import CorpusError

BLOCK = 1 << 16
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to put up with a server."""

    connect_seconds: float = 20.0
    read_seconds: float = 60.0
    """Without a byte."""
    slowest: int = 4096
    """Bytes a second; a body that is slower than that over `read_seconds` has stalled."""
    retries: int = 6
    """In a row, for one file, without `progress_bytes` of it."""
    progress_bytes: int = 1 << 20
    downloads: int = 3
    """How often a file that turned out wrong is fetched in all."""
    backoff_seconds: float = 1.0
    """Doubled each time, up to two minutes."""
    retry_after_seconds: int = 300
    """The longest wait that a server may ask for."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What a server said about a file."""

    size: int | None = None
    sha256: str | None = None
    etag: str | None = None
    """Strong validator of the answer that carried the bytes."""
    linked: str | None = None
    """The hub's own name for the content; the same for every copy."""


class Meter:
    """Told how a download goes, from any thread.  This one does not care."""

    def sized(self, size: int) -> None:
        """A file has `size` bytes."""

    def received(self, amount: int) -> None:
        """`amount` more bytes are there; fewer, if it is negative."""


class _TransientError(Exception):
    """Try again, from what is there."""


class _WrongError(Exception):
    """Try again, from nothing."""


class Downloader:
    """Fetches files of one hub."""

    def __init__(self, *, token: str | None, token_host: str, patience: Patience) -> None:
        """`token` is sent to `token_host` alone.  Proxies and authorities are taken from the environment."""
        self._token, self._token_host, self._patience = token, token_host, patience
        self._retry = Retry(
            total=patience.retries,
            other=0,  # a certificate does not get better
            status_forcelist=TRANSIENT,
            allowed_methods=("GET",),
            backoff_factor=patience.backoff_seconds,
            backoff_jitter=patience.backoff_seconds,
            retry_after_max=patience.retry_after_seconds,
            raise_on_status=False,
        )
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=self._retry))

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def fetch(self, url: str, path: Path, *, check: Callable[[Path], None], meter: Meter) -> str:
        """Make sure that `path` holds the file at `url`; its SHA-256 (hex).

        What is whole from an earlier time is not fetched again, what is partial is resumed.  `check` looks
        at the content and raises `CorpusError` if it is wrong.
        Raises `CorpusError` when the server has had its chances.
        """
        if (known := _whole(path)) is not None:
            meter.sized(path.stat().st_size)
            meter.received(path.stat().st_size)
            return known
        part = _Part(path, meter)
        retry, wrong = self._retry, 0
        while True:
            had = part.length()
            try:
                self._attempt(url, part)
                return part.accept(check)
            except _WrongError as error:
                part.discard()
                wrong += 1
                if wrong >= self._patience.downloads:
                    msg = f"{_name(url)} was fetched {wrong} times and is wrong each time: {error}"
                    raise CorpusError(msg) from error
            except _TransientError as error:
                grown = part.length() - had >= self._patience.progress_bytes
                retry = self._again(self._retry if grown else retry, url, error)

    def _again(self, retry: Retry, url: str, error: Exception) -> Retry:
        try:
            retry = retry.increment("GET", url, error=urllib3.exceptions.ProtocolError(str(error)))
        except urllib3.exceptions.MaxRetryError:
            msg = f"{_name(url)} could not be had after {self._patience.retries + 1} attempts: {error}"
            raise CorpusError(msg) from error
        retry.sleep()
        return retry

    def _attempt(self, url: str, part: _Part) -> None:
        headers = {"Accept-Encoding": "identity", **part.conditions(), **self._authorization(url)}
        timeout = (self._patience.connect_seconds, self._patience.read_seconds)
        try:
            response = self._session.get(url, headers=headers, stream=True, timeout=timeout)
        except requests.exceptions.SSLError as error:
            msg = (
                f"{_name(url)} could not be had over TLS: {_reason(error)}; "
                "if your network has certificate authorities of its own, set REQUESTS_CA_BUNDLE to their file"
            )
            raise CorpusError(msg) from error
        except _NETWORK_ERRORS as error:
            msg = (
                f"{_name(url)} could not be had after {self._patience.retries + 1} attempts: {_reason(error)}"
            )
            raise CorpusError(msg) from error
        with response:
            part.begin(response.status_code, _range(response), _remote(response), url)
            self._receive(response, part)

    def _receive(self, response: requests.Response, part: _Part) -> None:
        window, since = 0, time.monotonic()
        try:
            with part.path.open("ab") as file:
                while block := response.raw.read1(BLOCK):
                    file.write(block)
                    part.meter.received(len(block))
                    window += len(block)
                    now = time.monotonic()
                    if now - since >= self._patience.read_seconds:
                        if window < self._patience.slowest * (now - since):
                            msg = f"the server sent only {window} bytes in {now - since:.0f} s"
                            raise _TransientError(msg)
                        window, since = 0, now
        except _NETWORK_ERRORS as error:
            raise _TransientError(_reason(error)) from error

    def _authorization(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        if self._token is None or parts.netloc != self._token_host:
            return {}
        return {"Authorization": f"Bearer {self._token}"}


class _Part:
    """The beginning of a file, with what the server said of it beside it."""

    def __init__(self, path: Path, meter: Meter) -> None:
        self.meter = meter
        self._final, self.path = path, path.with_name(f"{path.name}.part")
        self._facts = path.with_name(f"{path.name}.part.json")
        self._remote = self._load()
        self.meter.received(self.length())

    def length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def conditions(self) -> dict[str, str]:
        """The headers that ask for the rest, if it can be told that it is the rest of the same file."""
        remote, length = self._remote, self.length()
        if length == 0 or (remote.etag is None and remote.sha256 is None):
            self.discard()
            return {}
        condition = {"If-Range": remote.etag} if remote.etag else {}
        return {"Range": f"bytes={length}-", **condition}

    def begin(self, status: int, start_and_size: tuple[int, int] | None, remote: Remote, url: str) -> None:
        """Take note of an answer's head, before its body."""
        if status == 206 and self._continues(start_and_size, remote):
            return
        if status in (206, 416):
            msg = "the file changed on the server, or it has another size than it said"
            raise _WrongError(msg)
        if status != 200:
            raise CorpusError(_refused(status, url))
        self.discard()
        self._remote = remote
        if remote.size is not None:
            self.meter.sized(remote.size)
        self._facts.write_text(json.dumps(asdict(remote)), encoding="utf-8")

    def accept(self, check: Callable[[Path], None]) -> str:
        """The whole file in its place; its hash.  Raises `_TransientError` if there is more to come."""
        length, remote = self.length(), self._remote
        if remote.size is not None and length < remote.size:
            msg = f"the server ended after {length} of {remote.size} bytes"
            raise _TransientError(msg)
        if remote.size is not None and length > remote.size:
            msg = f"the server sent {length} bytes where it had said {remote.size}"
            raise _WrongError(msg)
        digest = manifest.sha256(self.path)
        if remote.sha256 is not None and digest != remote.sha256:
            msg = f"its SHA-256 is {digest[:12]}..., the hub says {remote.sha256[:12]}..."
            raise _WrongError(msg)
        try:
            check(self.path)
        except CorpusError as error:
            raise _WrongError(str(error)) from error
        _seal(self._final).write_text(json.dumps({"sha256": digest, "bytes": length}), encoding="utf-8")
        self.path.rename(self._final)
        self._facts.unlink(missing_ok=True)
        return digest

    def discard(self) -> None:
        self.meter.received(-self.length())
        self.path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)
        self._remote = Remote()

    def _continues(self, start_and_size: tuple[int, int] | None, remote: Remote) -> bool:
        mine = self._remote
        same_name = mine.linked == remote.linked and (mine.etag is None or mine.etag == remote.etag)
        return same_name and start_and_size is not None and start_and_size == (self.length(), mine.size)

    def _load(self) -> Remote:
        try:
            return Remote(**json.loads(self._facts.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Remote()


def _remote(response: requests.Response) -> Remote:
    """What all answers on the way (the hub's redirect, the store's answer) say together."""
    heads: list[Any] = [answer.headers for answer in (*response.history, response)]
    linked = next((_bare(head["X-Linked-Etag"]) for head in heads if "X-Linked-Etag" in head), None)
    etag = response.headers.get("ETag", "")
    names = [name for name in (linked, _bare(etag)) if name and _SHA256.fullmatch(name)]
    said = response.headers.get("Content-Length", "")
    sizes = [head["X-Linked-Size"] for head in heads if "X-Linked-Size" in head] + [said]
    size = next((int(text) for text in sizes if text.isdecimal()), None)
    return Remote(
        size=size,
        sha256=names[0] if names else None,
        etag=etag if etag.startswith('"') else None,
        linked=linked,
    )


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _range(response: requests.Response) -> tuple[int, int] | None:
    match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2])) if match else None


def _refused(status: int, url: str) -> str:
    advice = {
        401: "it wants a token: set HF_TOKEN",
        403: "it does not let you: accept the data set's terms on the hub and set HF_TOKEN",
        404: "there is no such file: check revision and mirror",
        407: "the proxy wants a name and a password: put them into the proxy variable",
    }.get(status, "try again later, or another mirror")
    return f"{_name(url)}: the server answered {status}; {advice}"


def _name(url: str) -> str:
    """File and host; never a query, which may be signed."""
    parts = urlsplit(url)
    return f"{parts.path.rsplit('/', 1)[-1]} from {parts.hostname}"


def _reason(error: Exception) -> str:
    """The innermost cause in words, without addresses."""
    seen: BaseException = error
    while (inner := getattr(seen, "reason", None) or seen.__cause__ or seen.__context__) is not None:
        if not isinstance(inner, BaseException):
            break
        seen = inner
    text = re.sub(r"https?://\S+", "the address", str(seen))
    return f"{type(seen).__name__}: {text}"[:300]


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _whole(path: Path) -> str | None:
    """The hash of a file that was fetched earlier, if its bytes are still those; else it is removed."""
    try:
        wanted = json.loads(_seal(path).read_text(encoding="utf-8"))["sha256"]
        if manifest.sha256(path) == wanted:
            return str(wanted)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path.unlink(missing_ok=True)
    _seal(path).unlink(missing_ok=True)
    return None
