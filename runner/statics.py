"""Static errors: what ruff finds in a source that its champion does not have; the only module that runs ruff.

Ruff reads the source as text in a process of its own, without any configuration, and heeds no comment in it.  Only findings
that end a program when it gets there count, so an unused import is none, nor is `F823`: a local variable that a loop reads before
the line that binds it is often bound by then.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import structlog

RULES = {
    "F821": "undefined name",
    # The compiler refuses these, the parser does not.
    "F622": "two starred targets in one assignment",
    "F701": "`break` outside a loop",
    "F702": "`continue` outside a loop",
    "F704": "`yield` outside a function",
    "F706": "`return` outside a function",
    "F707": "a bare `except` that is not the last",
    "PLE0115": "a name that is both global and nonlocal",
    "PLE0117": "a nonlocal name without a binding",
    "PLE0118": "a name that is used before its `global`",
    "PLE1142": "`await` outside an async function",
    # Each raises an exception, and most stand in a line that is printed at the end of a training.
    "F501": "a % format that is not valid",
    "F502": "a % format that wants a mapping and gets none",
    "F503": "a % format that wants a tuple and gets a mapping",
    "F505": "a % format without a value for a name in it",
    "F506": "a % format with names and places",
    "F507": "a % format with another number of values than places",
    "F508": "a % format with a star and names",
    "F509": "a % format with an unknown letter",
    "F521": "a call of str.format whose text is not valid",
    "F524": "a call of str.format without a value for a place in it",
    "F525": "a call of str.format with places that are numbered and places that are not",
    "F633": "`>>` on print",
}
"""What each is called in a reason."""
DYNAMIC = frozenset({"exec", "eval", "globals", "vars", "locals", "setattr", "builtins", "__builtins__"})
"""With any of these a name may be there that nobody assigns."""
SECONDS = 10.0
"""A file at the limit of size takes hundredths of a second."""
SHOWN = 3
NAME_CHARS = 60

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class _Finding:
    line: int
    code: str
    name: str
    """What is undefined; empty for other rules, and where it is no name."""

    def __str__(self) -> str:
        return f"line {self.line}: {RULES[self.code]}{f' `{self.name}`' if self.name else ''} ({self.code})"


class _NoRuffError(Exception):
    """It could not be asked; why."""


def static_errors(source: str, champion: str) -> str | None:
    """Why a source is surely broken where the champion is not, by line and rule, or None.

    `source` parses, and is hostile: nothing of it is quoted but names.  If ruff cannot be asked, that is no fault of the
    source's: it passes, with a warning in the run's events.
    """
    try:
        found, old = _findings(source), _findings(champion)
    except _NoRuffError as error:
        log.warning("gate.no_ruff", reason=str(error))
        return None
    known = Counter((one.code, one.name) for one in old)
    new = []
    for one in found:
        if known[one.code, one.name]:
            known[one.code, one.name] -= 1
        else:
            new.append(one)
    if not new:
        return None
    more = f" and {len(new) - SHOWN} more" if len(new) > SHOWN else ""
    return "; ".join(str(one) for one in new[:SHOWN]) + more


@lru_cache(maxsize=4)
def _findings(source: str) -> tuple[_Finding, ...]:
    """In the order of the source.  Raises `_NoRuffError`."""
    from ruff import find_ruff_bin

    try:
        command = [
            find_ruff_bin(), "check", "--isolated", "--no-cache", "--ignore-noqa", "--exit-zero", "--quiet", "--output-format=json",
            # The newest: what an image's own Python cannot parse, its dry run finds.
            "--target-version=py314", f"--select={','.join(RULES)}", "--stdin-filename=train.py", "-",
        ]  # fmt: skip
        done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=SECONDS, env={}, cwd="/", check=True)
        told = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        raise _NoRuffError(f"ruff ended with {error.returncode}: {error.stderr[:200].decode(errors='replace')}") from error
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise _NoRuffError(f"{type(error).__name__}: {error}") from error
    findings = [
        _Finding(line=one["location"]["row"], code=one["code"], name=_name(one["message"]) if one["code"] == "F821" else "")
        for one in told
        if one["code"] in RULES
    ]
    used = _used(source)
    return tuple(one for one in findings if one.code != "F821" or (one.line, one.name) in used)


def _name(message: str) -> str:
    found = re.search(r"`([^`]*)`", message)
    name = found[1] if found else ""
    return name if name.isidentifier() and name.isprintable() and len(name) <= NAME_CHARS else ""


def _used(source: str) -> set[tuple[int, str]]:
    """(line, name) of every name that Python looks up, if its line is reached: not those in texts and in annotations that it
    does not evaluate.
    """
    try:
        tree = ast.parse(source.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()  # a champion that Python of this version cannot read
    if DYNAMIC & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}:
        return set()
    idle = {id(node) for annotation in _unevaluated(tree) for node in ast.walk(annotation)}
    deleted = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Del)}
    found = set()
    for node in ast.walk(tree):
        # What is deleted in a branch may be there in another.
        if isinstance(node, ast.Name) and id(node) not in idle and node.id not in deleted:
            found.add((node.lineno, node.id if len(node.id) <= NAME_CHARS else ""))
    return found


def _unevaluated(tree: ast.Module) -> Iterator[ast.expr]:
    future = any(
        isinstance(node, ast.ImportFrom) and node.module == "__future__" and any(one.name == "annotations" for one in node.names)
        for node in tree.body
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # Those of local variables.
            yield from (inner.annotation for inner in ast.walk(node) if isinstance(inner, ast.AnnAssign))
        if not future:
            continue
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            yield node.returns
