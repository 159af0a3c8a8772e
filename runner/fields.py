"""Check untyped mappings (YAML, flags) against frozen dataclasses, key by key, with messages that name the key.

The dataclass is the one list of keys, types and ranges; nothing is coerced except a whole number to a
fraction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field, fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from runner.errors import UsageError
from runner.yamlfile import as_mapping, show

_FOREIGN = frozenset(
    [
        "binds",
        "bind_mounts",
        "capabilities",
        "cap_add",
        "command",
        "container",
        "devices",
        "device",
        "docker",
        "docker_host",
        "engine",
        "entrypoint",
        "env",
        "environment",
        "gpu",
        "gpus",
        "host",
        "hosts",
        "image",
        "images",
        "mount",
        "mounts",
        "network",
        "networks",
        "ports",
        "privileged",
        "proxy",
        "registry",
        "runtime",
        "seccomp",
        "secrets",
        "user",
        "volume",
        "volumes",
    ]
)
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}

Reader = Callable[[object, str, str], object]
"""Makes a field's value of (what is written, the file, the key's full name); raises `UsageError` naming both."""


def key(
    default: object = MISSING,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    read: Reader | None = None,
) -> Any:
    """A dataclass field with a range; without a default it must be given.

    `read` makes the value of what is no number, text or truth value.
    """
    metadata = {"low": low, "above": above, "high": high, "choices": choices, "read": read}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def check_section(kind: type, raw: object, where: str, prefix: str = "") -> dict[str, Any]:
    """The keys of `raw` as the dataclass `kind` wants them; keys that are not given stay away.

    `where` is the file and `prefix` what stands before a key in messages (`budget.`).  Raises `UsageError`.
    """
    given = as_mapping(raw, f"{where}: {prefix.removesuffix('.')}" if prefix else where)
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind)}
    checked: dict[str, Any] = {}
    for name, value in given.items():
        label = f"{where}: {prefix}{name}"
        if name not in known:
            raise unknown_key(where, prefix, name, known)
        read: Reader | None = known[name].metadata.get("read")
        if read is None:
            checked[name] = _check_type(hints[name], value, label)
            _check_range(checked[name], known[name].metadata, label)
        else:
            checked[name] = read(value, where, f"{prefix}{name}")
    return checked


def names(kind: type, prefix: str) -> tuple[str, ...]:
    """Every key of the dataclass `kind`, with `prefix` before it."""
    return tuple(f"{prefix}{item.name}" for item in fields(kind))


def require(kind: type, given: Mapping[str, object], where: str, prefix: str) -> None:
    """Raise `UsageError` for the first key without a default that is not in `given`."""
    for item in fields(kind):
        if item.default is MISSING and item.default_factory is MISSING and item.name not in given:
            raise UsageError(f"{where}: {prefix}{item.name} is missing")


def unknown_key(where: str, prefix: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a key that nobody reads, or that a task must not set."""
    if name.lower() in _FOREIGN:
        return UsageError(
            f"{where}: {prefix}{name}: a task cannot name mounts, hosts, environment, images, devices or networks; "
            "what a container gets is decided by the runner and by the flags of whoever starts it"
        )
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
    return UsageError(f"{where}: {prefix}{name}: unknown key ({hint})")


def _check_type(hint: Any, value: object, label: str) -> object:
    options = getattr(hint, "__args__", (hint,))
    if value is None and type(None) in options:
        return None
    wanted: type = next(option for option in options if option is not type(None))
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted:
        raise UsageError(f"{label}: must be {_KINDS[wanted]}, not {show(value)}")
    return value


def _check_range(value: object, limits: Mapping[str, Any], label: str) -> None:
    choices = limits.get("choices")
    if choices and value is not None and value not in choices:
        near = get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(choices)}"
        raise UsageError(f"{label}: {show(value)} is not one of them ({hint})")
    if not isinstance(value, int | float):
        return
    low, above, high = limits.get("low"), limits.get("above"), limits.get("high")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{label}: must be finite, not {value}")
    if low is not None and value < low:
        raise UsageError(f"{label}: must be at least {low:,}, not {value:,}")
    if above is not None and value <= above:
        raise UsageError(f"{label}: must be above {above:,}, not {value:,}")
    if high is not None and value > high:
        raise UsageError(f"{label}: must be at most {high:,}, not {value:,}")
