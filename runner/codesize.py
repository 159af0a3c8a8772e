"""Pure: how much code a file has, for the rule that prefers less of it."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from functools import lru_cache

TEXT_UNIT = 3
"""So many characters of a string count as much as a node: code that hides in a string is not gone."""
NEW_BYTES = 256
"""More new constants than this are no simplification, whatever else is gone."""
LONG_NAME = 40
RUN_TEXT = frozenset({"exec", "eval", "compile", "__import__", "import_module", "exec_module", "loads", "marshal"})
"""What turns data into code."""


@lru_cache(maxsize=4)  # each step of each trial asks for the champion's and the candidate's
def code_size(source: str) -> int | None:
    """Nodes of the syntax tree of `source` without docstrings; None if it does not parse.

    Comments, layout and docstrings do not count, so that nobody shortens a file by removing them.  Long names do not
    count either.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    total = 0
    for node in ast.walk(tree):
        idle = [child for child in ast.iter_child_nodes(node) if _is_idle(child)]
        total += 0 if isinstance(node, ast.expr_context) else 1
        total -= sum(1 + _weight(child) for child in idle)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            total += len(node.value) // TEXT_UNIT
    return total


def smaller_by(source: str, than: str) -> float:
    """Which part of the code of `than` is not in `source`: 0.1 for a tenth less, negative for more; 0 if unknown.

    Also 0 if `source` brings text, numbers or names that code could hide in, or runs text as code where `than` does not.
    """
    size, before = code_size(source), code_size(than)
    if size is None or not before:
        return 0.0
    carried, runs = _carriers(source)
    carried_before, runs_before = _carriers(than)
    if sum(len(text) * count for text, count in (carried - carried_before).items()) > NEW_BYTES or runs - runs_before:
        return 0.0
    return 1 - size / before


@lru_cache(maxsize=4)
def _carriers(source: str) -> tuple[Counter[str], Counter[str]]:
    """Constants and long names of a source that parses, as text; and its calls that run text as code."""
    carried: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=int(number)):
                carried[f"{number:x}"] += 1
            case ast.Constant(value=str() | bytes() as text):
                carried[repr(text)] += 1
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                if name in RUN_TEXT:
                    runs[name] += 1
                if len(name) > LONG_NAME:
                    carried[name] += 1
            case _:
                pass
    return carried, runs


def _is_idle(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _weight(node: ast.AST) -> int:
    """Of the constant that stands alone: itself and its text."""
    assert isinstance(node, ast.Expr)
    assert isinstance(node.value, ast.Constant)
    text = node.value.value
    return 1 + (len(text) // TEXT_UNIT if isinstance(text, str | bytes) else 0)
