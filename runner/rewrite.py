"""Replace the values of top-level assignments, and nothing else; the only module that imports libcst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import libcst as cst

_Node = TypeVar("_Node", cst.Assign, cst.AnnAssign)


def replace_values(source: str, spellings: Mapping[str, str]) -> str:
    """`source` with the value of each named assignment spelled anew; every other byte stays.

    The caller has made sure that each name is assigned once, at the top level, and that the file is not
    nested too deep for LibCST's parser.
    """
    # LibCST drops a byte order mark.
    mark = source[: source.startswith("\ufeff")]
    return mark + cst.parse_module(source).visit(_Setter(spellings)).code


class _Setter(cst.CSTTransformer):
    """Replaces the values of top-level assignments; functions and classes are not entered."""

    def __init__(self, spellings: Mapping[str, str]) -> None:
        super().__init__()
        self._values = {name: cst.parse_expression(text) for name, text in spellings.items()}

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:  # noqa: ARG002, N802
        return False

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:  # noqa: ARG002, N802
        return False

    def leave_Assign(self, original_node: cst.Assign, updated_node: cst.Assign) -> cst.Assign:  # noqa: ARG002, N802
        if len(updated_node.targets) != 1:
            return updated_node
        return self._with_value(updated_node, updated_node.targets[0].target)

    def leave_AnnAssign(  # noqa: N802
        self,
        original_node: cst.AnnAssign,  # noqa: ARG002
        updated_node: cst.AnnAssign,
    ) -> cst.AnnAssign:
        return self._with_value(updated_node, updated_node.target)

    def _with_value(self, node: _Node, target: cst.BaseExpression) -> _Node:
        name = target.value if isinstance(target, cst.Name) else ""
        value = self._values.get(name)
        return node if value is None else node.with_changes(value=value)
