"""What a proposal has to pass before a trial is spent on it; pure.

A source is refused if it does not parse, is a program that was tried already, carries more new data than an idea
needs, repeats text of the data set that the champion does not have, or has no `build_model` for the score.
"""

from __future__ import annotations

import ast
import base64
import bz2
import codecs
import hashlib
import io
import json
import keyword
import lzma
import re
import string
import sys
import tokenize
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from runner.tried import Barred

if TYPE_CHECKING:
    from runner.prepare import Prepared

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """How much a proposal may bring.  Where they come from: 1 KB of validation text in the source is worth 0.008 bpb."""

    source_bytes: int = 64 << 10
    """Bytes of the whole file; a champion that is larger may stay as large as it is."""
    growth_bytes: int = 4 << 10
    """Bytes that the file may grow over the champion."""
    text_bytes: int = 4 << 10
    """Bytes of string and number literals and comments that the champion does not have."""


def refuse(
    source: str,
    *,
    champion: str,
    tried: Mapping[str, int],
    limits: GateLimits,
    held_out: HeldOut | None,
    scored: bool = True,
) -> Barred | None:
    """Why no trial is spent on a source, or None.

    Args:
        source: the proposed file; hostile.
        champion: the file that it is compared with.
        tried: the trial of each `fingerprint` that a trial was spent on.
        limits: how much it may bring.
        held_out: text that it must not repeat; None: not looked at.
        scored: whether the score is made by building the file's model; if not, it needs none.

    The reason is safe to show: it quotes neither the source nor the data set.  A repeat is nothing to mend, and who is told to
    mend a file with text of the data set in it learns to hide it.
    """
    if (reason := _unreadable(source, max(limits.source_bytes, _size(champion)))) is not None:
        return Barred(reason=reason)
    if (reason := _tried(source, champion, tried)) is not None:
        return Barred(reason=reason, mendable=False)
    if (reason := _too_much(source, champion, limits)) is not None:
        return Barred(reason=reason)
    if held_out is not None and (reason := held_out.overlap(source, champion)) is not None:
        return Barred(reason=reason, mendable=False)
    reason = _without_model(source) if scored else None
    return None if reason is None else Barred(reason=reason)


RULES = f"1, Python {sys.version_info.major}.{sys.version_info.minor}"
"""By which `fingerprint` goes: a number to count up when it changes, and the syntax trees' version."""


@lru_cache(maxsize=4)
def fingerprint(source: str) -> str | None:
    """A hash (hex) that is equal for two sources that are the same experiment; None if the source does not parse.

    It is taken of the syntax tree, so layout, comments, positions and the spelling of a value (`1_000` or `1000`, but not
    `1e3`, which has another type) do not count.  Nor do docstrings, other constants that stand alone, and `pass`.
    """
    try:
        tree = _parse(source)
    except _ParseError:
        return None
    return hashlib.sha256("\0".join(_spelled(tree)).encode("utf-8", "surrogatepass")).hexdigest()


# Gates ------------------------------------------------------------------------------------------------------------


def _unreadable(source: str, most: int) -> str | None:
    try:
        size = len(source.encode())
    except UnicodeEncodeError as error:
        return f"line {_line(source, error.start)} is not UTF-8 text"
    if size > most:
        return f"the file has {size:,} bytes; {most:,} are allowed"
    if "\0" in source:
        return f"line {_line(source, source.index(chr(0)))} has a null byte"
    # The container reads bytes and would obey; everything here would have read another program.  Python looks at two
    # lines, whatever ends a line.
    declared = (_ENCODING.match(line) for line in re.split(r"[\r\n]", source)[:4])
    if not all(_is_utf8(found[1]) for found in declared if found):
        return "a comment at its top declares another encoding than UTF-8"
    try:
        _parse(source)
        _parts(source)
    except _ParseError as error:
        return f"does not parse: {error}"
    return None


def _tried(source: str, champion: str, tried: Mapping[str, int]) -> str | None:
    found = fingerprint(source)
    if found is None:
        return None
    same = "only comments, docstrings or layout differ"
    if found == fingerprint(champion):
        return f"the same program as the champion: at most, {same}"
    if found in tried:
        return f"the same program as trial {tried[found]}: at most, {same}"
    return None


def _too_much(source: str, champion: str, limits: GateLimits) -> str | None:
    growth = _size(source) - _size(champion)
    if growth > limits.growth_bytes:
        return f"the file grows by {growth:,} bytes over the champion; {limits.growth_bytes:,} at a time are allowed"
    new = _parts(source).literals - _parts(champion).literals
    size = sum(_size(text) * count for text, count in new.items())
    if size > limits.text_bytes:
        return (
            f"{size:,} bytes of literals and comments are new; {limits.text_bytes:,} at a time are allowed: "
            "data belong into the data set"
        )
    return None


MAIN, MODEL = "main", "build_model"


def _without_model(source: str) -> str | None:
    """Whether a scoring program that calls `build_model(device)` surely finds nothing to call.

    A file that has no `main` either is no version of the training file but a person's own script, which is given its container.
    """
    made: list[ast.AST] = []
    version = False
    for node in _in_order(_parse(source)):
        version = version or (isinstance(node, ast.FunctionDef) and node.name == MAIN)
        match node:
            case ast.ImportFrom(names=names) | ast.Import(names=names) if any((one.asname or one.name) in (MODEL, "*") for one in names):
                return None
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name) if name == MODEL:
                made.append(node)
            case ast.Name(id=name, ctx=ast.Store()) if name == MODEL:
                return None
            case ast.Constant(value=value) | ast.keyword(arg=value) if value == MODEL:
                return None  # set by its name
            case _:
                pass
    if not made and not version:
        return None
    if not made:
        return f"the contract: there is no {MODEL}(device), which the score needs"
    match made:
        case [ast.FunctionDef(args=given, decorator_list=[]) as only] if not _takes_one(given):
            return f"the contract: {MODEL} at line {only.lineno} cannot be called with the device alone"
    return None


def _takes_one(given: ast.arguments) -> bool:
    places = [*given.posonlyargs, *given.args]
    needed = len(places) - len(given.defaults)
    return needed <= 1 and (bool(places) or given.vararg is not None) and None not in given.kw_defaults


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _line(source: str, position: int) -> int:
    return source.count("\n", 0, position) + 1


_ENCODING = re.compile(r"[ \t\f\ufeff]*#.*?coding[:=][ \t]*([-\w.]+)")
"""Python's own rule for the declaration of an encoding (PEP 263)."""


def _is_utf8(name: str) -> bool:
    try:
        return codecs.lookup(name).name in {"utf-8", "utf-8-sig"}
    except LookupError:
        return False


# Parsing ----------------------------------------------------------------------------------------------------------


class _ParseError(Exception):
    """Where and why, in plain words."""


@lru_cache(maxsize=4)
def _parse(source: str) -> ast.Module:
    """Raises `_ParseError`.  Time and stack are bounded by CPython's own limits once the size is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source.removeprefix("\ufeff"))
    except SyntaxError as error:
        message = "".join(letter for letter in str(error.msg) if letter.isprintable())[:200]
        raise _ParseError(f"line {error.lineno or 1}: {message}") from None
    except (RecursionError, MemoryError):
        raise _ParseError("it is nested too deeply") from None
    except ValueError as error:
        raise _ParseError(str(error)) from None


def _spelled(tree: ast.Module) -> Iterator[str]:
    """The tree in an unambiguous form.  Empty fields are left out: newer versions of Python add some.  No recursion."""
    stack: list[tuple[str, object]] = [("", tree)]
    while stack:
        field, item = stack.pop()
        if isinstance(item, ast.AST):
            yield f"{field}={type(item).__name__}("
            stack.append((")", None))
            present = ((name, getattr(item, name, None)) for name in reversed(item._fields) if name != "kind")
            stack.extend((name, value) for name, value in present if value is not None or name == "value")
        elif isinstance(item, list):
            items = _that_matter(field, item)
            if items:
                yield f"{field}=[{len(items)}"
                stack.extend(("", inner) for inner in reversed(items))
        else:
            # Long integers have no decimal form that Python would make.
            yield f"{field}={type(item).__name__} {hex(item) if type(item) is int else repr(item)}"


def _that_matter(field: str, items: list[object]) -> list[object]:
    kept = [item for item in items if not _is_idle(item)]
    return kept or (items and [] if field in {"orelse", "finalbody"} else [ast.Pass()] if items else [])


def _is_idle(item: object) -> bool:
    return isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))


def _in_order(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, a parent before its children, which come in the order of the source; no recursion."""
    stack = [tree]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(list(ast.iter_child_nodes(node))))


# Parts of a source ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What could carry text, in the order of the source."""

    strings: list[str]
    """Values of string literals."""
    joined: list[str]
    """Strings that stand in one list, tuple or set, put together."""
    blobs: list[bytes]
    """Values of bytes literals, and of integers of more than two bytes."""
    integers: list[int]
    """Values of the other integer literals."""
    comments: list[str]
    names: list[str]
    literals: Counter[str]
    """The lines of string literals, number literals and comments, as they are written."""


_WRITTEN = frozenset(
    getattr(tokenize, name)
    for name in ("STRING", "NUMBER", "COMMENT", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
    if hasattr(tokenize, name)
)


@lru_cache(maxsize=4)
def _parts(source: str) -> _Parts:
    """Raises `_ParseError`."""
    strings: list[str] = []
    joined: list[str] = []
    blobs: list[bytes] = []
    integers: list[int] = []
    for node in _in_order(_parse(source)):
        match node:
            case ast.Constant(value=str(text)):
                strings.append(text)
            case ast.Constant(value=bytes(blob)):
                blobs.append(blob)
            case ast.Constant(value=int(number)) if number >> 16:
                blobs.append(number.to_bytes((number.bit_length() + 7) // 8, "big"))
            case ast.Constant(value=int(number)) if not isinstance(number, bool):
                integers.append(number)
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                texts = [item.value for item in items if isinstance(item, ast.Constant)]
                joined.append("".join(text for text in texts if isinstance(text, str)))
            case _:
                pass
    comments: list[str] = []
    names: list[str] = []
    literals: Counter[str] = Counter()
    for token in _tokens(source):
        if token.type in _WRITTEN:
            literals.update(token.string.split("\n"))
        if token.type == tokenize.COMMENT:
            comments.append(token.string)
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            names.append(token.string)
    return _Parts(
        strings=strings,
        joined=joined,
        blobs=blobs,
        integers=integers,
        comments=comments,
        names=names,
        literals=literals,
    )


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    # The parser ends a line at `\r` too, the tokenizer of the library does not.
    text = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        yield from tokenize.generate_tokens(io.StringIO(text).readline)
    except (tokenize.TokenError, SyntaxError) as error:
        raise _ParseError("it cannot be cut into tokens") from error


# Held-out text ----------------------------------------------------------------------------------------------------

BLOCK_TOKENS = 1 << 18
SMALL_TOKENS = 4 << 20
"""Up to here every run of letters is known, and the training text is looked at too."""
SMALL_RUN, LARGE_RUN = 24, 32
"""Letters in a row that are a repetition.  Eight words of the King James text have 25 or more in 95 % of cases.  Of
6,000 Python files on a developer's machine none has 24 letters in common with its held-out text, and one with the
whole text; in 80 MB of documentation and code a chance find is rarer from 32 on (`tests/test_gates.py` looks at the
shipped files)."""
LARGE_STRIDE = 8
"""Of a large text only the run at every eighth letter is stored, 1 byte of memory a letter; so 39 letters are surely found."""
ENCODED_CHARS = 24
DECOMPRESSED_BYTES = 1 << 20


class HeldOut:
    """Finds text of the data set in a source.

    What is compared are letters alone: case, accents, spaces, digits, punctuation and where one literal or line ends
    and the next begins make no difference.  Of the source these are looked at, each forwards, backwards, with the
    words backwards, and in rot13: the file as it stands, its string literals, its comments and its names; integers as
    token ids and as characters, bytes and characters as token ids; one level of hexadecimal, base64, base85 or
    ascii85 in one literal or one list, and of zlib, bz2 or lzma under it.

    What it cannot find: any other encoding or encryption, however simple (a letter shifted, every second word left
    out, a word between every two); text that is computed; text shorter than a run; knowledge of the text in other
    words.  The caps on growth and on new literals bound what such tricks carry.

    A refusal is an answer to whoever proposes.  Where the whole data set is small (`SMALL_TOKENS`), training text is
    refused alike, so the answer does not tell which text is held out; in a large one it does.
    """

    def __init__(self, rows: Iterable[npt.NDArray[np.uint16]], pieces: Sequence[bytes]) -> None:
        """`rows` are token ids, uint16 [R, T + 1] each; `pieces` the bytes of each token.

        They are read when the first source is looked at: 0.5 s for a million tokens, and memory for 8 bytes a letter,
        or 1 for more than `SMALL_TOKENS`.
        """
        self._rows = list(rows)
        self._pieces = [*pieces, *[b""] * ((1 << 16) - len(pieces))]
        small = sum(array.size for array in self._rows) <= SMALL_TOKENS
        self._run = SMALL_RUN if small else LARGE_RUN
        self._stride = 1 if small else LARGE_STRIDE

    @classmethod
    def of(cls, prepared: Prepared) -> HeldOut:
        """That of a prepared folder: validation and test rows, and in a small one the training rows too."""
        tokenizer = json.loads((prepared.path / "prepare" / "tokenizer.json").read_text(encoding="utf-8"))
        pieces = [base64.b64decode(piece) for piece in tokenizer["ranks"]]
        rows = [prepared.rows("val"), prepared.rows("test")]
        train = prepared.rows("train")
        if train.size + sum(array.size for array in rows) <= SMALL_TOKENS:
            rows.append(train)
        return cls(rows, pieces)

    def overlap(self, source: str, baseline: str) -> str | None:
        """Where `source` repeats the text and `baseline` does not, in plain words that do not quote it, or None."""
        views = [(where, _runs(letters, self._run)) for where, letters in self._views(source)]
        found = self._known(np.concatenate([runs for _, runs in views]))
        if not found.size:
            return None
        old = np.concatenate([_runs(letters, self._run) for _, letters in self._views(baseline)])
        new = np.setdiff1d(found, old)
        if not new.size:
            return None
        where = next(where for where, runs in views if np.isin(new, runs).any())
        return f"{where} repeats text of the data set ({self._run} letters in a row or more) that the champion does not have"

    def _known(self, runs: Hashes) -> Hashes:
        """Those of `runs` that are in the text."""
        wanted = np.sort(runs)
        if not self._index.size:
            return wanted[:0]
        places = np.searchsorted(self._index, wanted)
        places[places == self._index.size] = 0
        known: Hashes = wanted[self._index[places] == wanted]
        return known

    @cached_property
    def _index(self) -> Hashes:
        chunks = [np.empty(0, dtype=np.uint64)]
        for array in self._rows:
            tail = b""
            flat = array.reshape(-1)
            for start in range(0, flat.size, BLOCK_TOKENS):
                letters = tail + _letters(self._spelled(flat[start : start + BLOCK_TOKENS].tolist()))
                chunks.append(_runs(letters, self._run)[:: self._stride])
                tail = letters[max(0, len(letters) - self._run + 1) :]
        self._rows = []
        index = np.concatenate(chunks)
        index.sort()
        return index

    def _spelled(self, tokens: Iterable[int]) -> str:
        return b"".join(map(self._pieces.__getitem__, tokens)).decode("utf-8", "ignore")

    def _views(self, source: str) -> Iterator[tuple[str, bytes]]:
        """(what it is, letters) of all that is looked at."""
        texts = [("the file", source)]
        numbers = [[int(digits) for digits in _DIGITS.findall(source)]]
        blobs: list[tuple[str, list[bytes]]] = []
        try:
            parts = _parts(source)
        except _ParseError:
            pass
        else:
            strings = "".join(parts.strings)
            texts += [("a string literal", strings), ("a comment", "".join(parts.comments))]
            texts.append(("a name", "".join(parts.names)))
            numbers.append(parts.integers)
            if not strings.isascii():
                numbers.append([ord(letter) for letter in strings])
            blobs = [("a literal", parts.blobs), ("an encoded literal", list(_decoded(parts)))]
        for where, text in texts:
            yield from ((where, letters) for letters in _turned(text))
        for ids in numbers:
            for order in (ids, ids[::-1]):
                yield "a sequence of numbers", _letters(self._spelled(i for i in order if i < 1 << 16))
                yield "a sequence of numbers", _letters("".join(chr(i) for i in order if i < 0x110000))
        for where, packed in blobs:
            together = b"".join(packed)
            found = [*packed, *(inner for blob in (together, *packed) for inner in _unpacked(blob))]
            yield from ((where, letters) for letters in _turned(b"".join(found).decode("utf-8", "ignore")))
            even = b"".join(blob + b"\0" * (len(blob) % 2) for blob in found)
            for kind in ("<u2", ">u2"):
                yield where, _letters(self._spelled(np.frombuffer(even, dtype=kind).tolist()))


_DIGITS = re.compile(r"[0-9]{1,5}")
_ROT13 = bytes.maketrans(
    string.ascii_lowercase.encode(), (string.ascii_lowercase[13:] + string.ascii_lowercase[:13]).encode()
)


def _turned(text: str) -> Iterator[bytes]:
    letters = _letters(text)
    yield letters
    yield letters.translate(_ROT13)
    yield _letters(text[::-1])
    yield _letters("".join(reversed(re.findall(r"\w+", text))))


_DECODERS: tuple[Callable[[str], bytes], ...] = (
    bytes.fromhex,
    lambda text: base64.b64decode(text + "=" * (-len(text) % 4), validate=True),
    lambda text: base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True),
    base64.b85decode,
    base64.a85decode,
)


def _decoded(parts: _Parts) -> Iterator[bytes]:
    """What each literal, or list of literals, is an encoding of."""
    latin = [blob.decode("latin-1") for blob in parts.blobs]
    for decode in _DECODERS:
        for text in (*parts.strings, *parts.joined, *latin, "".join(latin)):
            compact = "".join(text.split())
            if len(compact) < ENCODED_CHARS:
                continue
            try:
                yield decode(compact)
            except ValueError:
                continue


def _unpacked(blob: bytes) -> Iterator[bytes]:
    """What compressed bytes hold, up to a limit."""
    try:
        if blob[:3] == b"BZh":
            yield bz2.BZ2Decompressor().decompress(blob, DECOMPRESSED_BYTES)
        elif blob[:6] == b"\xfd7zXZ\0" or blob[:3] == b"\x5d\0\0":
            yield lzma.LZMADecompressor(memlimit=64 << 20).decompress(blob, DECOMPRESSED_BYTES)
        elif blob[:2] == b"\x1f\x8b" or (blob[:1] == b"x" and int.from_bytes(blob[:2], "big") % 31 == 0):
            yield zlib.decompressobj(wbits=47).decompress(blob, DECOMPRESSED_BYTES)
    except (OSError, zlib.error, lzma.LZMAError, EOFError):
        return


# Letters ----------------------------------------------------------------------------------------------------------

_FOREIGN = re.compile(r"[^\x00-\x7f]+")
_LOWER = bytes(byte | 0x20 if 0x41 <= byte <= 0x5A else byte for byte in range(256))
_NO_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalpha())


def _letters(text: str) -> bytes:
    """The letters of `text`, in lower case, without accents, as UTF-8."""
    plain = text if text.isascii() else _FOREIGN.sub(lambda match: _plain(match[0]), text)
    return plain.encode().translate(_LOWER, _NO_LETTERS)


@lru_cache(maxsize=1 << 14)
def _plain(run: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", run).casefold() if letter.isalpha())


_FACTOR = 0x9E37_79B9_7F4A_7C15
_VALUES = np.random.default_rng(0).integers(0, 1 << 64, size=256, dtype=np.uint64)
"""A number for each byte."""


def _runs(letters: bytes, length: int) -> Hashes:
    """A hash of each run of `length` letters: uint64 [len(letters) - length + 1], polynomial modulo 2**64.

    Runs of twice the length are made of two halves, so the passes over the text are logarithmic in the length.
    """
    count = len(letters) - length + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    half = _VALUES[np.frombuffer(letters, dtype=np.uint8)]
    runs, done, width = np.zeros(count, dtype=np.uint64), 0, 1
    while True:
        shift = np.uint64(pow(_FACTOR, width, 1 << 64))
        if length & width:
            runs = runs * shift + half[done : done + count]
            done += width
        if done == length:
            return runs
        half = half[:-width] * shift + half[width:]
        width *= 2
