"""Literals of train.py: what their value is, and how a value is written.  Nothing is evaluated but what is listed here."""

from __future__ import annotations

import ast
import math
import re

Scalar = int | float | str | bool
Value = Scalar | tuple[Scalar, ...]

_MAX_BITS = 256
"""`2**19` is a literal to us, `10**10**10` is a way to fill the host's memory."""


def literal(node: ast.expr) -> Value | None:
    """The value of a literal, or None if the expression is anything else."""
    if not isinstance(node, ast.Tuple):
        return _scalar(node)
    items = [_scalar(item) for item in node.elts]
    whole = tuple(item for item in items if item is not None)
    return whole if len(whole) == len(items) else None


def _scalar(node: ast.expr) -> Scalar | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | str):
        return node.value
    return _number(node)


def _number(node: ast.expr) -> int | float | None:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _number(operand)
            return None if inner is None else -inner
        case ast.BinOp(left=left, op=ast.Mult() | ast.Pow() as operator, right=right):
            first, second = _number(left), _number(right)
            if first is None or second is None:
                return None
            return _power(first, second) if isinstance(operator, ast.Pow) else _bounded(first * second)
    return None


def _power(base: int | float, exponent: int | float) -> int | float | None:  # noqa: PYI041 - they differ here
    if not isinstance(exponent, int) or abs(exponent) > _MAX_BITS:
        return None
    if isinstance(base, int) and base.bit_length() * abs(exponent) > _MAX_BITS:
        return None
    try:
        return _bounded(base**exponent)
    except (OverflowError, ZeroDivisionError):
        return None


def _bounded(value: int | float) -> int | float | None:  # noqa: PYI041 - they differ here
    fits = value.bit_length() <= _MAX_BITS if isinstance(value, int) else math.isfinite(value)
    return value if fits else None


def spell_value(value: Value) -> str:
    """`value` as a Python literal; floats short (`0.02`, `1e-5`), rounded to 12 digits."""
    if isinstance(value, tuple):
        return f"({', '.join(map(spell_value, value))}{',' if len(value) == 1 else ''})"
    if not isinstance(value, float):
        return repr(value)
    return re.sub(r"e([+-]?)0*(\d)", _exponent, repr(float(f"{value:.12g}")))


def _exponent(match: re.Match[str]) -> str:
    return f"e{match[1].replace('+', '')}{match[2]}"
