"""The tokenizer: exact size, raw bytes, no pickle, text that looks like a special token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from corpus.errors import CorpusError
from corpus.tokenizer import BOS, ENCODE_CHARS, Tokenizer, train
from hypothesis import given
from hypothesis import strategies as st

TEXTS = [
    f"Im Jahr {year} gab es {year * 7} Bäume, 東京 und 🎈🎈 {BOS} wieder.\n" for year in range(1500, 1900)
]
TOKENIZER = train(TEXTS, 360)


def test_the_vocabulary_has_exactly_the_size_asked_for() -> None:
    assert TOKENIZER.vocab_size == 360
    assert TOKENIZER.bos == 359
    assert len(set(TOKENIZER.ranks)) == 359


def test_training_twice_gives_the_same_tokens() -> None:
    assert train(TEXTS, 360).ranks == TOKENIZER.ranks


def test_a_token_counts_its_raw_bytes_even_if_it_is_not_valid_utf8() -> None:
    lengths = TOKENIZER.token_bytes()
    torn = [
        token for token, raw in enumerate(TOKENIZER.ranks) if raw.decode(errors="replace").encode() != raw
    ]
    assert len(torn) >= 128
    assert lengths.dtype == np.uint16
    assert lengths.tolist() == [len(raw) for raw in TOKENIZER.ranks] + [0]


def test_no_token_has_three_digits() -> None:
    assert not [raw for raw in TOKENIZER.ranks if sum(byte in b"0123456789" for byte in raw) > 2]


@given(st.text(max_size=300))
def test_encoding_starts_with_bos_and_keeps_every_byte(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert tokens[0] == TOKENIZER.bos
    assert TOKENIZER.bos not in tokens[1:]
    assert TOKENIZER.decode_bytes(tokens) == text.encode()
    assert TOKENIZER.token_bytes()[tokens].sum() == len(text.encode())


def test_text_that_reads_like_bos_is_text() -> None:
    tokens = TOKENIZER.encode(f"{BOS}{BOS}")
    assert (tokens == TOKENIZER.bos).sum() == 1


def test_a_very_long_run_without_a_space_is_encoded() -> None:
    text = "a" * (3 * ENCODE_CHARS + 5) + " " * (2 * ENCODE_CHARS)
    assert TOKENIZER.decode_bytes(TOKENIZER.encode(text)) == text.encode()


def test_many_threads_keep_the_order() -> None:
    texts = [text * 400 for text in TEXTS]
    got = list(TOKENIZER.encode_all(texts, threads=4))
    assert [tokens.tolist() for tokens in got] == [TOKENIZER.encode(text).tolist() for text in texts]


def test_it_is_stored_as_json_and_read_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    assert set(json.loads(path.read_text())) == {"pattern", "ranks", "special"}
    again = Tokenizer.load(path)
    assert again.ranks == TOKENIZER.ranks
    assert again.encode("Bäume 1234").tolist() == TOKENIZER.encode("Bäume 1234").tolist()


def test_too_little_text_for_the_vocabulary_says_how_many_there_are() -> None:
    with pytest.raises(CorpusError, match=r"gives \d+ tokens, 5000 were asked for"):
        train(["a small text"], 5000)


@pytest.mark.parametrize("size", [256, 65_537])
def test_an_impossible_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(CorpusError, match="not possible"):
        train(TEXTS, size)
