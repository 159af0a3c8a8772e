"""Pure: how much code a file has, for the rule that prefers less of it."""

from __future__ import annotations

import ast
import warnings

TEXT_UNIT = 3
"""So many characters of a string count as much as a node: code that hides in a string is not gone."""


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
    """Which part of the code of `than` is not in `source`: 0.1 for a tenth less, negative for more; 0 if unknown."""
    size, before = code_size(source), code_size(than)
    return 0.0 if size is None or not before else 1 - size / before


def _is_idle(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _weight(node: ast.AST) -> int:
    """Of the constant that stands alone: itself and its text."""
    assert isinstance(node, ast.Expr)
    assert isinstance(node.value, ast.Constant)
    text = node.value.value
    return 1 + (len(text) // TEXT_UNIT if isinstance(text, str | bytes) else 0)
