"""Rows: every token once, nothing padded, document starts first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from corpus.build import Shape, build, target_bytes
from corpus.errors import CorpusError
from corpus.pack import pack
from corpus.split import Split
from corpus.tokenizer import Tokenizer
from hypothesis import given
from hypothesis import strategies as st

Tokens = npt.NDArray[np.uint16]


def numbered(lengths: list[int]) -> list[Tokens]:
    """Documents whose tokens are all different: 0, 1, 2, ..."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end, dtype=np.uint16) for end, length in zip(ends, lengths, strict=True)]


def packed(documents: list[Tokens], row_length: int, buffer_rows: int = 4096) -> list[list[int]]:
    return [row.tolist() for block in pack(documents, row_length, buffer_rows) for row in block]


LENGTHS = st.lists(st.integers(1, 60), max_size=60)


@given(LENGTHS, st.integers(2, 25), st.integers(1, 5))
def test_no_token_is_lost_or_repeated_and_nothing_is_padded(
    lengths: list[int], row_length: int, buffer_rows: int
) -> None:
    rows = packed(numbered(lengths), row_length, buffer_rows)
    tokens = [token for row in rows for token in row]
    assert all(len(row) == row_length for row in rows)
    assert len(set(tokens)) == len(tokens)
    assert set(tokens) <= set(range(sum(lengths)))
    assert 0 <= sum(lengths) - len(tokens) < row_length


@given(LENGTHS, st.integers(2, 25), st.integers(1, 5))
def test_no_target_of_a_row_is_seen_in_another(lengths: list[int], row_length: int, buffer_rows: int) -> None:
    """Neither as an input nor as a target: rows that follow each other in a document do not share a token."""
    rows = packed(numbered(lengths), row_length, buffer_rows)
    targets = {token for row in rows for token in row[1:]}
    inputs = {token for row in rows for token in row[:-1]}
    assert not {row[-1] for row in rows} & inputs
    assert not {row[0] for row in rows} & targets


@given(LENGTHS, st.integers(2, 25))
def test_rows_start_with_a_piece_while_there_is_one(lengths: list[int], row_length: int) -> None:
    """A piece is the start of a document, or what begins at a multiple of the row length inside it."""
    documents = numbered(lengths)
    starts = {int(token) for document in documents for token in document[::row_length]}
    proper = [row[0] in starts for row in packed(documents, row_length)]
    assert proper == sorted(proper, reverse=True)


@given(LENGTHS, st.integers(2, 25))
def test_each_row_tears_at_most_one_document(lengths: list[int], row_length: int) -> None:
    documents = numbered(lengths)
    whole_pieces = sum(-(-length // row_length) for length in lengths)
    runs = 0
    for row in packed(documents, row_length):
        first = {int(token) for document in documents for token in document[::row_length]}
        runs += sum(
            token in first or index == 0 or row[index - 1] + 1 != token for index, token in enumerate(row)
        )
    assert runs <= whole_pieces + sum(lengths) // row_length


def test_a_long_document_becomes_rows_in_its_own_order() -> None:
    assert packed(numbered([7]), 3) == [[0, 1, 2], [3, 4, 5]]


def test_a_gap_takes_the_largest_piece_that_fits() -> None:
    assert packed(numbered([6, 3, 4, 2]), 10) == [[0, 1, 2, 3, 4, 5, 9, 10, 11, 12]]


def test_the_head_of_a_piece_closes_a_gap_and_its_rest_is_used_to_fill() -> None:
    rows = packed(numbered([6, 6, 6]), 8)
    assert rows == [[0, 1, 2, 3, 4, 5, 6, 7], [12, 13, 14, 15, 16, 17, 8, 9]]


def test_memory_is_bounded_by_the_buffer() -> None:
    """After each document no more is held back than the buffer's rows and one document."""
    given_out, taken = 0, 0
    documents = numbered([7] * 2000)

    def counted() -> Iterator[Tokens]:
        nonlocal taken
        for document in documents:
            assert taken - given_out <= 4 * 10 + 10 + 7
            taken += len(document)
            yield document

    for block in pack(counted(), 10, 4):
        given_out += block.size
    assert given_out == 14_000


class Texts:
    """A source of given texts."""

    licence = "none"

    def __init__(self, **splits: list[str]) -> None:
        self._splits = splits

    def facts(self) -> dict[str, object]:
        return {}

    def total(self, split: Split) -> int | None:
        return None

    def documents(self, split: Split) -> Iterator[str]:
        return iter(self._splits[split])


WORDS = [
    f"naïve café 北京 — wholly 🎈 unremarkable text number {number}, and so on.\n" for number in range(400)
]


def made(tmp_path: Path, val_rows: int | None = None, **splits: list[str]) -> tuple[Path, Tokenizer]:
    out = tmp_path / "out"
    out.mkdir()
    source = Texts(**{"train": WORDS, "val": WORDS[:90], "test": WORDS[90:180], **splits})
    build(
        source, Shape(vocab_size=300, sequence_length=15, val_rows=val_rows), {"dataset": "x"}, out, threads=2
    )
    return out, Tokenizer.load(out / "prepare" / "tokenizer.json")


def test_val_bytes_are_the_utf8_bytes_of_the_target_text(tmp_path: Path) -> None:
    out, tokenizer = made(tmp_path)
    rows = np.fromfile(out / "val" / "rows.bin", dtype="<u2").reshape(-1, 16)
    text = b"".join(tokenizer.decode_bytes(row) for row in rows[:, 1:])
    token_bytes = np.load(out / "prepare" / "token_bytes.npy", allow_pickle=False)
    assert target_bytes(out / "val" / "rows.bin", 16, token_bytes) == len(text) > 1000


def test_rows_spell_the_documents_of_their_split_alone(tmp_path: Path) -> None:
    out, tokenizer = made(tmp_path, val=["only here: zebra. " * 40])
    for split, there in (("val", True), ("train", False), ("test", False)):
        rows = np.fromfile(out / split / "rows.bin", dtype="<u2")
        assert (b"zebra" in tokenizer.decode_bytes(rows)) is there


def test_no_training_row_has_a_passage_that_is_held_out(tmp_path: Path) -> None:
    passage = " ".join(f"zebra{number}" for number in range(20))
    train = [*WORDS, f"{'before ' * 20}{passage}{' after' * 20}"]
    out, tokenizer = made(
        tmp_path, train=train, val=[*WORDS[:90], passage.upper()], test=[*WORDS[:90], passage]
    )
    text = {
        split: tokenizer.decode_bytes(np.fromfile(out / split / "rows.bin", dtype="<u2")).lower()
        for split in ("train", "val", "test")
    }
    assert b"zebra" not in text["train"] + text["test"]
    assert (
        min(text["val"].count(b"zebra"), text["train"].count(b"before"), text["train"].count(b"after")) > 10
    )
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["dropped"] == {"train": 20, "val": 0, "test": 20}
    assert counts["documents"] == {"train": 401, "val": 91, "test": 91}


def test_a_cap_keeps_rows_spread_evenly_over_all(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    full, _ = made(tmp_path / "a")
    capped, _ = made(tmp_path / "b", val_rows=7)
    every = np.fromfile(full / "val" / "rows.bin", dtype="<u2").reshape(-1, 16)
    kept = np.fromfile(capped / "val" / "rows.bin", dtype="<u2").reshape(-1, 16)
    assert kept.tolist() == every[np.arange(7) * len(every) // 7].tolist()


def test_a_split_without_a_row_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="the val split has 1 documents and not one row of 16 tokens"):
        made(tmp_path, val=["x"])
