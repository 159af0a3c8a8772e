"""A folder of the user's: three kinds of files, clear words about what is wrong with them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from corpus.errors import CorpusError
from corpus.files import LINE_CHARS, Folder
from corpus.split import SPLITS

from runner.prepare import content_hash

SALT = bytes(range(32))


def documents(folder: Path) -> list[str]:
    source = Folder(folder, SALT, content_hash(folder))
    found = {split: list(source.documents(split)) for split in SPLITS}
    assert {split: source.total(split) for split in SPLITS} == {split: len(found[split]) for split in SPLITS}
    return sorted(text for texts in found.values() for text in texts)


def test_the_three_kinds_are_read_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.TXT").write_text("\ufeffa text\n", encoding="utf-8")
    (tmp_path / "two.jsonl").write_text('{"text": "a line"}\n\n{"text": " ", "id": 3}\n{"text": "another"}')
    pq.write_table(pa.table({"text": ["a cell", None, ""]}), tmp_path / "three.parquet")
    (tmp_path / "four.md").write_text("not this")
    assert documents(tmp_path) == ["a cell", "a line", "a text\n", "another"]


def test_a_book_is_cut_where_paragraphs_end_and_nothing_is_lost(tmp_path: Path) -> None:
    book = "".join(f"Paragraph {number}. {'word ' * (number % 90)}\n\n" for number in range(900))
    (tmp_path / "book.txt").write_text(book)
    found = documents(tmp_path)
    assert sum(map(len, found)) == len(book)
    assert all(text in book and text.endswith("\n\n") for text in found)
    assert 20 < len(found) < 80


def test_text_without_paragraphs_is_cut_at_lines_and_without_lines_anywhere(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a line of text\n" * 9000)
    (tmp_path / "run.txt").write_text("x" * 300_000)
    found = documents(tmp_path)
    assert sum(map(len, found)) == 9000 * 15 + 300_000
    assert max(len(text) for text in found if "line" in text) < LINE_CHARS + 15


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.txt", "caf\xe9".encode("latin-1"), r"a\.txt is not UTF-8"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"txt": 1}',
            r"a\.jsonl, line 2: not a JSON object with a string `text`",
        ),
        ("a.jsonl", b'{"text": 3}', "line 1"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1"),
        ("a.jsonl", b'"text"', "line 1"),
        ("a.parquet", b"PAR1", r"a\.parquet is not a readable parquet file"),
        ("a.txt", b" \n ", "the files hold no text"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=complaint):
        documents(tmp_path)


def test_a_parquet_file_without_a_text_column_is_named(tmp_path: Path) -> None:
    target = io.BytesIO()
    pq.write_table(pa.table({"text": [1, 2]}), target)
    (tmp_path / "a.parquet").write_bytes(target.getvalue())
    with pytest.raises(CorpusError, match=r"a\.parquet has no column `text` of strings"):
        documents(tmp_path)


def test_half_of_a_surrogate_pair_becomes_a_replacement_character(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "half \ud83d, whole \U0001f388"}))
    assert documents(tmp_path) == ["half \ufffd, whole \U0001f388"]


def test_files_that_changed_while_they_were_copied_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    before = content_hash(tmp_path)
    (tmp_path / "a.txt").write_text("two")
    with pytest.raises(CorpusError, match="changed while they were copied"):
        Folder(tmp_path, SALT, before)
