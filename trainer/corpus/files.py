"""A folder of the user's: .txt, .jsonl with a field `text` a line, .parquet with a column `text`.

A text file may be a whole book, so it is cut into documents of some thousand characters where
paragraphs end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from corpus import manifest
from corpus.errors import CorpusError
from corpus.progress import Stage
from corpus.shards import parquet_texts
from corpus.split import SPLITS, Split, assign, rank

LICENCE = "the user's own files"
SUFFIXES = (".txt", ".jsonl", ".parquet")
PARAGRAPH_CHARS = 4_000
"""A document of a text file ends at the first blank line after so many characters,"""
LINE_CHARS = 16_000
"""or at the end of a line after so many."""
READ_CHARS = 1 << 16


class Folder:
    """A `build.Source` of text files, split by the salt."""

    licence = LICENCE

    def __init__(self, folder: Path, salt: bytes, content: object) -> None:
        """`content` is the hash that the host made of the files before it copied them."""
        self._paths = _paths(folder)
        if _content_hash(self._paths) != content:
            msg = "the files changed while they were copied: prepare again"
            raise CorpusError(msg)
        ranks, sizes = [], []
        stage = Stage("read", total=None, unit="documents", note=f"{len(self._paths)} files")
        for text in self._texts():
            ranks.append(rank(text, salt))
            sizes.append(len(text))
            stage.advance()
        stage.finish()
        if not ranks:
            msg = "the files hold no text"
            raise CorpusError(msg)
        self._codes = assign(ranks, sizes)

    def facts(self) -> dict[str, object]:
        """Nothing to add: the hash of the content is one of the options."""
        return {}

    def total(self, split: Split) -> int:
        """The number of documents of a split."""
        return int((self._codes == SPLITS.index(split)).sum())

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split in the order of the files."""
        code = SPLITS.index(split)
        for text, found in zip(self._texts(), self._codes, strict=True):
            if found == code:
                yield text

    def _texts(self) -> Iterator[str]:
        for name, path in self._paths:
            match path.suffix.lower():
                case ".txt":
                    yield from _txt(name, path)
                case ".jsonl":
                    yield from _jsonl(name, path)
                case _:
                    yield from parquet_texts(path)


def _paths(folder: Path) -> list[tuple[str, Path]]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def _content_hash(paths: list[tuple[str, Path]]) -> str:
    """As the host makes it (`runner.prepare.content_hash`)."""
    digest = hashlib.sha256()
    for name, path in paths:
        digest.update(json.dumps([name, manifest.sha256(path)]).encode())
    return digest.hexdigest()


def _txt(name: str, path: Path) -> Iterator[str]:
    lines: list[str] = []
    chars = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(READ_CHARS):
                lines.append(line)
                chars += len(line)
                if chars >= LINE_CHARS or (chars >= PARAGRAPH_CHARS and line.isspace()):
                    yield from _joined(lines)
                    lines, chars = [], 0
    except UnicodeDecodeError as error:
        msg = f"{name} is not UTF-8 ({error.reason}): convert it, for example with iconv"
        raise CorpusError(msg) from error
    yield from _joined(lines)


def _joined(lines: list[str]) -> Iterator[str]:
    text = "".join(lines)
    if text and not text.isspace():
        yield text


def _jsonl(name: str, path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                text = json.loads(line.decode("utf-8-sig"))["text"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                text = error
            if not isinstance(text, str):
                msg = f"{name}, line {number}: not a JSON object with a string `text`, in UTF-8"
                raise CorpusError(msg)
            if text and not text.isspace():
                yield text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
