"""Read and rewrite the upper-case constants of a Python file through its syntax tree.

Why not regular expressions: a constant that is set twice, changed by a function or computed from
another one must be refused by name, never rewritten in the place that has no effect.  The file is
parsed, never imported: it may have been written by an agent.

The standard library's `ast` decides what is a constant; `runner.rewrite` replaces it and keeps every comment.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from runner.errors import UsageError
from runner.literals import Scalar, Value, literal, spell_value

NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_POWER_OF_TWO = re.compile(r"2(\s*)\*\*(\s*)\d+")
_ROW = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_MAX_DEPTH = 200
"""Deeper expressions overflow the stack of LibCST's parser, which would end this process."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """One `NAME = literal` at the top level of a file."""

    name: str
    value: Value
    line: int
    spelling: str
    """The literal as it is written, e.g. `2**19`."""


def find_constants(source: str) -> dict[str, Constant]:
    """All constants of `source` that `set_constants` can set, in the file's order.

    Raises `UsageError` if the file does not parse.
    """
    found, _ = _read(source)
    return found


def set_constants(source: str, values: Mapping[str, Value]) -> str:
    """`source` with the constants in `values` set; comments, layout and spelling stay.

    Raises `UsageError` naming the first constant that is absent, assigned more than once, not a
    literal, or of another type than the value.
    """
    found, refused = _read(source)
    spellings: dict[str, str] = {}
    for name, value in values.items():
        if name not in found:
            raise UsageError(f"{name}: {refused.get(name) or _absent(name, found)}")
        spelling = _respell(found[name], value)
        if spelling != found[name].spelling:
            spellings[name] = spelling
    if not spellings:
        return source
    from runner.rewrite import replace_values  # LibCST takes a tenth of a second to import

    return replace_values(source, spellings)


# Finding ----------------------------------------------------------------------------------------


def _read(source: str) -> tuple[dict[str, Constant], dict[str, str]]:
    """The constants that can be set, and for every other upper-case name why it cannot."""
    text = source.removeprefix("\ufeff")
    tree = _parse(text)
    bound: dict[str, list[int]] = {}
    for name, line in _bindings(tree):
        if NAME.fullmatch(name):
            bound.setdefault(name, []).append(line)
    plain = dict(_plain_assignments(tree))
    rows = _ROW.findall(text.encode())
    found: dict[str, Constant] = {}
    refused: dict[str, str] = {}
    for name, lines in bound.items():
        value = literal(plain[name]) if name in plain else None
        if len(lines) > 1:
            places = " and ".join(str(line) for line in sorted(lines))
            refused[name] = f"assigned more than once (lines {places})"
        elif value is None:
            refused[name] = f"line {lines[0]} does not assign a literal to this name alone"
        else:
            spelling = _segment(rows, plain[name])
            found[name] = Constant(name=name, value=value, line=lines[0], spelling=spelling)
    return found, refused


def _segment(rows: Sequence[bytes], node: ast.expr) -> str:
    """What `node` is written as.  `ast.get_source_segment` splits the whole file each time: 0.2 s for one with 30 constants."""
    assert node.end_lineno is not None and node.end_col_offset is not None  # noqa: PT018 - one fact
    if node.lineno == node.end_lineno:
        return rows[node.lineno - 1][node.col_offset : node.end_col_offset].decode()
    first, last = rows[node.lineno - 1][node.col_offset :], rows[node.end_lineno - 1][: node.end_col_offset]
    return b"".join([first, *rows[node.lineno : node.end_lineno - 1], last]).decode()


def _parse(text: str) -> ast.Module:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UsageError(f"line {error.lineno or 1} is not valid Python: {error.msg}") from None
    except (RecursionError, MemoryError, ValueError) as error:
        raise UsageError(f"the file cannot be parsed ({type(error).__name__})") from None
    level: list[ast.AST] = [tree]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tree
    raise UsageError(f"the file is nested more than {_MAX_DEPTH} levels deep")


def _plain_assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSION = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _bindings(node: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of everything that binds or deletes a name of the module, wherever it stands."""
    line = getattr(node, "lineno", 0)
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name, line
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name, line
        case ast.alias(name=name, asname=asname):
            yield asname or name.partition(".")[0], line
        case (
            ast.ExceptHandler(name=str(name))
            | ast.MatchAs(name=str(name))
            | ast.MatchStar(name=str(name))
            | ast.MatchMapping(rest=str(name))
        ):
            yield name, line
    if isinstance(node, _FUNCTION):
        yield from _global_statements(node)
    elif isinstance(node, _COMPREHENSION):
        yield from _walruses(node)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _bindings(child)


def _global_statements(function: ast.AST) -> Iterator[tuple[str, int]]:
    for inner in ast.walk(function):
        if isinstance(inner, ast.Global):
            yield from ((name, inner.lineno) for name in inner.names)


def _walruses(comprehension: ast.AST) -> Iterator[tuple[str, int]]:
    for inner in ast.walk(comprehension):
        if isinstance(inner, ast.NamedExpr):
            yield inner.target.id, inner.lineno


# Writing ----------------------------------------------------------------------------------------


def _respell(constant: Constant, value: Value) -> str:
    old = constant.value
    if isinstance(old, tuple) != isinstance(value, tuple):
        raise UsageError(_wrong_type(constant, value))
    if not isinstance(value, tuple) or not isinstance(old, tuple):
        return _respell_scalar(constant, constant.spelling, old, value)  # type: ignore[arg-type]
    if value == old:
        return constant.spelling
    # Elements beyond the old length follow the last one that was there.
    models = [*old, *[old[-1] if old else item for item in value[len(old) :]]]
    items = [
        _respell_scalar(constant, spell_value(model), model, item)
        for model, item in zip(models, value, strict=False)
    ]
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _respell_scalar(constant: Constant, spelling: str, old: Scalar, value: Scalar) -> str:
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(old, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(old) is not type(value) or (isinstance(value, float) and not math.isfinite(value)):
        raise UsageError(_wrong_type(constant, value))
    if value == old:
        return spelling
    if isinstance(value, str) and spelling.startswith('"') and _quotable(value):
        return f'"{value}"'
    power = _POWER_OF_TWO.fullmatch(spelling)
    if power and isinstance(value, int) and value > 0 and value & (value - 1) == 0:
        return f"2{power[1]}**{power[2]}{value.bit_length() - 1}"
    if isinstance(value, int) and "_" in spelling and not isinstance(value, bool):
        return f"{value:_}"
    return spell_value(value)


def _wrong_type(constant: Constant, value: Value) -> str:
    kind = type(constant.value).__name__
    return f"{constant.name}: line {constant.line} holds {constant.spelling} ({kind}), not {value!r}"


def _absent(name: str, found: Mapping[str, Constant]) -> str:
    near = get_close_matches(name, found, n=1, cutoff=0.7)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"no constant of this name at the top level of the file{hint}"


def _quotable(text: str) -> bool:
    return text.isprintable() and '"' not in text and "\\" not in text
