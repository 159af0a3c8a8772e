"""The King James text of Debian's bible-kjv, decoded by its own reader, one document a chapter.

The reader looks for its data in the current folder first, so both are named.  Its switch for plain
output is a toggle whose start differs between versions: both positions are tried, and what comes
back counts only if it has exactly the verses of the whole book.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from itertools import groupby

from corpus.errors import CorpusError
from corpus.split import SPLITS, Split, assign, rank

LICENCE = "King James text: public domain (Debian bible-kjv-text; UK Crown letters patent aside)"
READER = "/usr/bin/bible"
DATA_FOLDER = "/usr/lib"
DATA_FILE = "bible.data"
EVERYTHING = "Gen1:1-Rev22:21"
VERSES = 31_102
CHAPTERS = 1_189
SECONDS = 60

_VERSE = re.compile(r"(?P<chapter>[0-9]?[A-Za-z]+[0-9]+):[0-9]+ (?P<text>\S.*)")


def documents(reader: str = READER) -> list[str]:
    """Every chapter in the book's order: its verses without references, one a line.

    Raises `CorpusError` if the reader or its data are missing or give something else.
    """
    for switches in (("-f",), ()):
        verses = _verses(_read(reader, switches))
        if verses is not None:
            break
    else:
        msg = f"{reader} did not print {VERSES} verses; the prepare image needs Debian's bible-kjv and bible-kjv-text"
        raise CorpusError(msg)
    chapters = [
        "".join(f"{text}\n" for _, text in group) for _, group in groupby(verses, key=lambda verse: verse[0])
    ]
    if len(chapters) != CHAPTERS:
        msg = f"{reader} printed {len(chapters)} chapters where {CHAPTERS} were expected"
        raise CorpusError(msg)
    return chapters


def _read(reader: str, switches: tuple[str, ...]) -> str:
    command = [reader, *switches, "-p", DATA_FOLDER, "-d", DATA_FILE, EVERYTHING]
    try:
        run = subprocess.run(
            command,
            check=True,
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
    except FileNotFoundError as error:
        msg = f"{reader} is missing: the prepare image needs Debian's bible-kjv and bible-kjv-text"
        raise CorpusError(msg) from error
    except subprocess.SubprocessError as error:
        msg = f"the reader of bible-kjv failed: {error}"
        raise CorpusError(msg) from error
    return run.stdout.decode("utf-8")


def _verses(output: str) -> list[tuple[str, str]] | None:
    """(chapter, text) of each line, or None if these are not all the verses, one a line."""
    matches = [_VERSE.fullmatch(line) for line in output.splitlines()]
    verses = [(match["chapter"], match["text"]) for match in matches if match]
    return verses if len(matches) == len(verses) == VERSES else None


class KingJames:
    """A `build.Source`: the chapters, split by the salt."""

    licence = LICENCE

    def __init__(self, salt: bytes, reader: str = READER) -> None:
        self._splits: dict[Split, list[str]] = {split: [] for split in SPLITS}
        texts = documents(reader)
        codes = assign([rank(text, salt) for text in texts], [len(text) for text in texts])
        for text, code in zip(texts, codes, strict=True):
            self._splits[SPLITS[code]].append(text)

    def facts(self) -> dict[str, object]:
        """Nothing to add."""
        return {}

    def total(self, split: Split) -> int:
        """The number of chapters of a split."""
        return len(self._splits[split])

    def documents(self, split: Split) -> Iterator[str]:
        """The chapters of a split in the book's order."""
        return iter(self._splits[split])
