"""Read a YAML file of the task strictly; the only module that imports yaml.

YAML 1.1 reads `1e-3` as text, `no` as false and lets the second of two equal keys win, each of which
has cost someone a night.  Here numbers are numbers, only `true` and `false` are truth values, `2**19`
is a whole number as in train.py, and repeated keys, tags and aliases are errors.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from runner.errors import UsageError

_MAX_BYTES = 1 << 20
_POWER = re.compile(r"2\*\*(\d{1,2})")
_RESOLVERS = (
    ("tag:yaml.org,2002:null", re.compile(r"null|~|"), ["n", "~", ""]),
    ("tag:yaml.org,2002:bool", re.compile(r"true|false"), ["t", "f"]),
    ("tag:yaml.org,2002:int", re.compile(rf"[-+]?\d[\d_]*|{_POWER.pattern}"), list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """Without PyYAML's own guesses; see the module's docstring."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases: nothing here needs them, and they can hide one key inside another."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not used here",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:  # noqa: FBT001, FBT002
        """Refuse a key that comes twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {name!r} comes twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """A decimal number, or a power of two."""
        power = _POWER.fullmatch(node.value)
        return 1 << int(power[1]) if power else int(node.value)

    def construct_fraction(self, node: yaml.ScalarNode) -> float:
        """A number with a point or an exponent; infinite and undefined ones are refused by whoever checks the range."""
        text = node.value.lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern.pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_fraction)


def read_mapping(path: Path, where: str) -> dict[str, object]:
    """The mapping that the file holds; an empty file is an empty one.

    `where` is how messages call the file.  Raises `UsageError` if it is missing, unreadable, not YAML
    as understood here, or not a mapping with text keys.
    """
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{where}: larger than {_MAX_BYTES >> 20} MiB")
        value = yaml.load(data.decode(), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: not UTF-8 text") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{where}{line}: {error.problem or 'not YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from None
    return as_mapping({} if value is None else value, where)


def as_mapping(value: object, where: str) -> dict[str, object]:
    """`value` if it is a mapping with text keys.  Raises `UsageError` naming `where` otherwise."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must be a list of `key: value`, not {show(value)}")
    for key in value:
        if not isinstance(key, str):
            raise UsageError(f"{where}: the key {show(key)} must be text")
    return value


def show(value: object) -> str:
    """`value` as it may stand in a message: short and printable."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
