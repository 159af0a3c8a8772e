"""The split: keyed, of the wanted size, with copies on one side."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from corpus import kjv
from corpus.errors import CorpusError
from corpus.kjv import KingJames
from corpus.split import SPLITS, TEST, TRAIN, VAL, assign, fingerprint, rank
from hypothesis import given
from hypothesis import strategies as st

SALT, OTHER = bytes(range(32)), bytes(range(1, 33))
TEXTS = [f"Document {number} says {number * number}." for number in range(2000)]


def codes(texts: list[str], salt: bytes) -> list[int]:
    return [int(code) for code in assign([rank(text, salt) for text in texts], [len(text) for text in texts])]


def test_the_same_salt_gives_the_same_split_and_another_one_another() -> None:
    assert codes(TEXTS, SALT) == codes(TEXTS, SALT)
    assert codes(TEXTS, SALT) != codes(TEXTS, OTHER)


@pytest.mark.parametrize("code", [VAL, TEST])
def test_five_percent_of_the_bytes_are_held_out_twice(code: int) -> None:
    sizes = np.array([len(text) for text in TEXTS])
    share = sizes[np.array(codes(TEXTS, SALT)) == code].sum() / sizes.sum()
    assert 0.05 <= share < 0.051


def test_the_split_of_a_document_does_not_depend_on_the_order() -> None:
    forward = dict(zip(TEXTS, codes(TEXTS, SALT), strict=True))
    backward = dict(zip(TEXTS[::-1], codes(TEXTS[::-1], SALT), strict=True))
    assert forward == backward


@given(st.lists(st.sampled_from(TEXTS[:30]), min_size=1, max_size=60), st.binary(min_size=16, max_size=32))
def test_copies_never_straddle(texts: list[str], salt: bytes) -> None:
    varied = [text.upper().replace(" ", "  \n") if index % 2 else text for index, text in enumerate(texts)]
    where: dict[str, set[int]] = {}
    for text, code in zip(texts, codes(varied, salt), strict=True):
        where.setdefault(text, set()).add(code)
    assert all(len(found) == 1 for found in where.values())


@given(st.integers(1, 12))
def test_validation_always_gets_a_document_and_three_documents_reach_all_splits(count: int) -> None:
    found = set(codes(TEXTS[:count], SALT))
    assert VAL in found
    assert count < 3 or found == {TRAIN, VAL, TEST}


def test_a_fingerprint_sees_through_case_spacing_and_unicode_form() -> None:
    assert fingerprint("\uff23afe\u0301  au lait") == fingerprint("café AU\nlait")
    assert fingerprint("cafe") != fingerprint("café")


def reader(tmp_path: Path, *, plain_with: str, verses: int = kjv.VERSES) -> str:
    """A reader like Debian's: every verse on a line with its reference, but only with (or without) `-f`."""
    path = tmp_path / "bible"
    path.write_text(f"""#!{sys.executable}
import sys
plain = ("-f" in sys.argv) == ({plain_with!r} == "-f")
assert sys.argv[-1] == "Gen1:1-Rev22:21" and "/usr/lib" in sys.argv and "bible.data" in sys.argv
for verse in range({verses}):
    chapter = verse * {kjv.CHAPTERS} // {verses}
    if plain:
        print(f"{{'1Sm' if chapter % 2 else 'Ge'}}{{chapter}}:{{verse}} Verse {{'x' * (verse % 7)}} of: {{chapter}}.")
    elif verse % 10 == 0:
        print(f"  Genesis {{chapter}}\\n\\n  {{verse}} And so")
""")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("switch", ["-f", ""])
def test_chapters_are_documents_of_verses_without_references(tmp_path: Path, switch: str) -> None:
    """Whichever way the reader's toggle starts."""
    chapters = kjv.documents(reader(tmp_path, plain_with=switch))
    assert len(chapters) == 1189
    assert sum(chapter.count("\n") for chapter in chapters) == 31_102
    assert chapters[0].startswith("Verse  of: 0.\nVerse x of: 0.\n")


def test_every_chapter_is_in_one_split(tmp_path: Path) -> None:
    source = KingJames(SALT, reader(tmp_path, plain_with="-f"))
    found = [text for split in SPLITS for text in source.documents(split)]
    assert sorted(found) == sorted(kjv.documents(reader(tmp_path, plain_with="-f")))
    assert [source.total(split) for split in SPLITS] == [
        len(list(source.documents(split))) for split in SPLITS
    ]


def test_a_reader_that_prints_less_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="did not print 31102 verses"):
        kjv.documents(reader(tmp_path, plain_with="-f", verses=31_000))


def test_a_reader_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is missing"):
        kjv.documents(str(tmp_path / "bible"))
