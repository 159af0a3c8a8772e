"""Pure: keep keys out of text.  Providers repeat keys in their errors, whole or partly masked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote, urlsplit

HIDDEN = "[key]"
SHORTEST = 6
"""A shorter value is no key, and replacing it would mangle ordinary words."""
_NAME = re.compile(r"(?:KEYS?|TOKENS?|PASS|PASSWORD|PASSWD)$|SECRET|CREDENTIAL|(?:^|_)KEY_", re.IGNORECASE)
_LOOKS = re.compile(
    r"\b(?:sk|pk|rk|gsk|xai|ghp|hf|nvapi|pplx|r8)[-_][\w*.-]{6,}"
    r"|\bAIza[\w*-]{6,}"
    r"|(?<=\bBearer )\S{6,}"
    r"|[\w.-]*\*{3,}[\w.*-]*",  # masked by the provider, with the real ends
    re.IGNORECASE,
)


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of all variables whose names say that they hold a secret."""
    return tuple(value.strip() for name, value in environment.items() if _NAME.search(name))


def scrub(text: str, secrets: Iterable[str]) -> str:
    """`text` without `secrets`, and without whatever looks like a key."""
    # The longest first: one may be part of another.
    for secret in sorted({secret for secret in secrets if len(secret) >= SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    return _LOOKS.sub(HIDDEN, text)


def shown_address(url: str) -> str:
    """An address without user, password and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
