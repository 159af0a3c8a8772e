"""The shipped attacks: small pieces of Python in `attacks/*.toml`, put into whatever train.py is the champion.

An attack is kept small so that it stays current: it adds its own code after the definitions of the champion's file
and before its last lines, where it may replace any of them.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import random
import tokenize
import tomllib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.constants import set_constants
from runner.errors import UsageError
from runner.literals import Value
from runner.prepare import Prepared

FOLDER = Path(__file__).with_name("attacks")
SNIPPETS = "snippets.toml"
GUARD = '\nif __name__ == "__main__":\n'
"""What every train.py ends with; an attack stands before it."""
REFUSED = "refused"
"""As an honest ending: no container was spent on the proposal."""
_BLOB_BYTES, _GROWN_BYTES = 30_000, 200_000
_TEXT_CHARACTERS, _IDS = 2000, 400


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One hostile candidate."""

    name: str
    area: str
    """What it is directed at: the file it stands in."""
    tries: str
    """What it tries, in a sentence that begins with a verb."""
    honest: tuple[str, ...]
    """Endings that show that it failed; `finished` only with a score that honest work explains."""
    quick: bool = False
    """Part of the representative third."""
    bare: bool = False
    """Without the prelude: the code is all that is added."""
    code: str = ""
    """Python, after the champion's definitions."""
    embeds: str | None = None
    """What the name EMBEDDED stands for in the code: `text` or `ids` of validation rows, or a `blob`."""
    transform: str | None = None
    """What is done with the champion's text first: one of `TRANSFORMS`."""
    constants: tuple[tuple[str, Value], ...] = ()
    """Constants of the champion that are set."""

    def candidate(self, champion: str, prepared: Prepared) -> str:
        """The whole hostile train.py.

        Raises `UsageError` if the champion's file is not of the form that the attack builds on.
        """
        source = TRANSFORMS[self.transform](champion) if self.transform else champion
        if self.constants:
            source = set_constants(source, dict(self.constants))
        code = self.code
        if self.embeds is not None:
            code = f"EMBEDDED = {EMBEDDED[self.embeds](prepared)!r}\n{code}"
        return insert(source, code) if code else source


def insert(champion: str, code: str) -> str:
    """`champion` with `code` before its last lines.  Raises `UsageError` if they are not as expected."""
    if champion.count(GUARD) != 1:
        message = f"the selftest needs a train.py with exactly one line {GUARD.strip()!r}"
        raise UsageError(message)
    before, after = champion.split(GUARD)
    return f"{before.rstrip()}\n\n\n{code.strip()}\n\n{GUARD}{after}"


def load(folder: Path = FOLDER) -> tuple[Attack, ...]:
    """Every shipped attack, by area in the order of the files."""
    snippets = tomllib.loads((folder / SNIPPETS).read_text(encoding="utf-8"))
    attacks = [
        _attack(entry, path.stem, snippets)
        for path in sorted(folder.glob("*.toml"))
        if path.name != SNIPPETS
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["attack"]
    ]
    names = [attack.name for attack in attacks]
    assert len(set(names)) == len(names), "two attacks have one name"
    return tuple(attacks)


def choose(
    attacks: Sequence[Attack], *, names: Sequence[str] = (), areas: Sequence[str] = (), quick: bool = False
) -> tuple[Attack, ...]:
    """Those that are named, or in the areas, or all; of these the quick ones only.  Raises `UsageError`."""
    for kind, asked, known in (
        ("attack", names, [attack.name for attack in attacks]),
        ("area", areas, sorted({attack.area for attack in attacks})),
    ):
        for name in asked:
            if name not in known:
                message = f"there is no {kind} {name!r}; `autoresearch selftest --list` shows all"
                raise UsageError(message)
    every = not names and not areas
    return tuple(
        attack
        for attack in attacks
        if (every or attack.name in names or attack.area in areas) and (attack.quick or not quick)
    )


def _attack(entry: Mapping[str, Any], area: str, snippets: Mapping[str, str]) -> Attack:
    """A table of a file as a value; the pieces that it uses come before its own code."""
    known = {"name", "tries", "honest", "quick", "bare", "trains", "uses", "code", "embeds", "transform", "constants"}
    assert entry.keys() <= known, f"{area}: {entry.get('name')} has {sorted(entry.keys() - known)}"
    own = entry.get("code", "")
    used = [] if entry.get("trains", True) else ["no_training"]
    used += entry.get("uses", [])
    pieces = [*(snippets[name] for name in used), own]
    if any(pieces) and not entry.get("bare", False):
        pieces.insert(0, snippets["prelude"])
    return Attack(
        name=entry["name"],
        area=area,
        tries=entry["tries"],
        honest=tuple(entry["honest"]),
        quick=entry.get("quick", False),
        bare=entry.get("bare", False),
        code="\n\n".join(piece.strip() for piece in pieces if piece),
        embeds=entry.get("embeds"),
        transform=entry.get("transform"),
        constants=tuple(entry.get("constants", {}).items()),
    )


# What changes the champion's own text ----------------------------------------------------------------------------


def respace(source: str) -> str:
    """The same program with other comments and blank lines."""
    return "# The same in other clothes.\n" + strip_comments(source).replace("\n\n\n", "\n\n\n\n") + "\n# Its end.\n"


def strip_comments(source: str) -> str:
    """Without any comment; docstrings stay."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    return "\n".join(lines) + "\n"


def drop_kernels(source: str) -> str:
    """Without the functions that only a GPU needs, and the choice between them."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and ("flash" in node.name or "flex" in node.name):
            del lines[node.lineno - 1 : node.end_lineno]
        elif isinstance(node, ast.FunctionDef) and node.name == "choose_attention":
            # Its last two lines say and give what is there without a GPU.
            del lines[node.body[1].lineno - 1 : node.body[-3].end_lineno]
    return "".join(lines)


def grow(source: str) -> str:
    """With functions that nobody calls."""
    body = "".join(f"def unused_{i}(x):\n    return (x + {i}) * {i}\n\n\n" for i in range(_GROWN_BYTES // 50))
    return insert(source, body)


def number(champion: str) -> str:
    """`champion` with its longest class compressed into a number that is run as code."""
    tree = ast.parse(champion)
    longest = max(
        (node for node in tree.body if isinstance(node, ast.ClassDef)), key=lambda node: (node.end_lineno or 0) - node.lineno
    )
    lines = champion.splitlines(keepends=True)
    first, last = longest.lineno - 1, longest.end_lineno or 0
    packed = zlib.compress(ast.unparse(longest).encode(), 9)
    value = int.from_bytes(packed, "big")
    run = f"import zlib\n\nexec(zlib.decompress(({value:#x}).to_bytes({len(packed)}, 'big')))\n"
    return "".join([*lines[:first], run, *lines[last:]])


TRANSFORMS: Mapping[str, Callable[[str], str]] = {
    "respace": respace,
    "strip_comments": strip_comments,
    "drop_kernels": drop_kernels,
    "grow": grow,
    "number": number,
}

# What only the host can write into an attack: what an agent that knows the corpus by heart might -------------------


def validation_text(prepared: Prepared) -> str:
    """The beginning of the validation rows as text, without the marks between documents."""
    tokenizer = json.loads((prepared.path / "prepare" / "tokenizer.json").read_text(encoding="utf-8"))
    raw = dict(enumerate(base64.b64decode(rank) for rank in tokenizer["ranks"]))
    text = b"".join(raw.get(token, b" ") for token in _validation_ids(prepared, _TEXT_CHARACTERS))
    return text.decode(errors="ignore")[:_TEXT_CHARACTERS]


def _validation_ids(prepared: Prepared, count: int) -> list[int]:
    return [int(token) for token in prepared.rows("val").ravel()[:count]]


def _blob(_prepared: Prepared) -> str:
    return base64.b85encode(random.Random(1).randbytes(_BLOB_BYTES)).decode()  # noqa: S311 - bytes that look like data


EMBEDDED: Mapping[str, Callable[[Prepared], object]] = {
    "text": validation_text,
    "ids": lambda prepared: _validation_ids(prepared, _IDS),
    "blob": _blob,
}
