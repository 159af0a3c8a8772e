"""No run of 13 words stands in held-out text and in training, or twice in held-out text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from corpus import repeats
from corpus.repeats import RUN, Repeats, runs, words
from corpus.split import SPLITS, Split
from hypothesis import given
from hypothesis import strategies as st

Texts = dict[Split, list[str]]


def spelled(start: int, count: int) -> str:
    """`count` different words."""
    return " ".join(f"w{number}" for number in range(start, start + count))


def removed(**texts: list[str]) -> Texts:
    """What is left of each split."""
    every: Texts = {split: texts.get(split, []) for split in SPLITS}
    found = Repeats(every.__getitem__)
    return {split: list(found.removed(every[split], split)) for split in SPLITS}


def plain_runs(text: str) -> list[tuple[str, ...]]:
    """Straight from the definition."""
    spoken = re.findall(r"[^\W_]+", text.lower())
    return [tuple(spoken[start : start + RUN]) for start in range(len(spoken) - RUN + 1)]


def test_a_training_document_loses_what_is_held_out_and_keeps_the_rest_as_documents() -> None:
    before, shared, after = spelled(0, 20), spelled(100, 30), spelled(200, 20)
    left = removed(train=[f"{before}, {shared}; {after}.\n"], val=[f"{spelled(300, 5)} {shared}"])
    assert left["train"] == [before, f"{after}.\n"]
    assert left["val"] == [f"{spelled(300, 5)} {shared}"]


@pytest.mark.parametrize(
    "change", [str.upper, lambda text: text.replace(" ", ",\n — "), lambda text: f"“{text}”"]
)
def test_case_and_what_stands_between_words_make_no_difference(change: Callable[[str], str]) -> None:
    shared = spelled(100, RUN)
    assert removed(train=[change(shared)], test=[shared])["train"] == []


def test_thirteen_words_are_a_run_and_twelve_are_none() -> None:
    for count, there in ((RUN - 1, True), (RUN, False)):
        train = f"{spelled(0, 40)} {spelled(100, count)} {spelled(200, 40)}"
        left = removed(train=[train], val=[spelled(100, count)])["train"]
        assert (left == [train]) is there


def test_short_stretches_go_with_what_was_cut_beside_them_and_short_documents_stay() -> None:
    train = f"{spelled(0, RUN - 1)} {spelled(100, RUN)} {spelled(200, RUN)}"
    left = removed(train=[train, "Two words"], val=[spelled(100, RUN), "Two words"])
    assert left["train"] == [spelled(200, RUN), "Two words"]


def test_validation_keeps_its_text_and_test_loses_it() -> None:
    shared = spelled(100, 20)
    left = removed(val=[shared], test=[f"{shared} {spelled(0, 30)}", spelled(500, 20)])
    assert left["val"] == [shared]
    assert left["test"] == [spelled(0, 30), spelled(500, 20)]


def test_of_a_run_that_is_held_out_twice_the_first_one_stays() -> None:
    shared = spelled(100, 20)
    left = removed(val=[f"{shared} {spelled(0, 30)} {shared}", spelled(200, 20), shared])
    assert left["val"] == [f"{shared} {spelled(0, 30)}", spelled(200, 20)]


def test_what_repeats_itself_keeps_its_first_run() -> None:
    assert removed(val=["la " * 100])["val"] == [("la " * RUN).strip()]


def test_training_text_may_repeat_itself() -> None:
    train = [spelled(0, 30)] * 3
    assert removed(train=train, val=[spelled(100, 30)])["train"] == train


def test_words_that_were_cut_are_counted() -> None:
    found = Repeats({"val": [spelled(100, 20)] * 2, "test": [spelled(300, 20)]}.__getitem__)
    for _ in range(2):
        list(found.removed([f"{spelled(0, 5)} {spelled(100, 20)} {spelled(200, 20)}"], "train"))
        list(found.removed([spelled(100, 20)] * 2, "val"))
        assert found.dropped == {"train": 25, "val": 20, "test": 0}


TEXT = st.lists(st.sampled_from(["a", "B", "cé", "d,", "e\n", "北", "7"]), max_size=80).map(" ".join)
DOCUMENTS = st.lists(TEXT, max_size=5)


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_afterwards_no_run_stands_twice(train: list[str], val: list[str], test: list[str]) -> None:
    left = removed(train=train, val=val, test=test)
    held = [run for split in ("val", "test") for text in left[split] for run in plain_runs(text)]
    assert len(set(held)) == len(held)
    assert not set(held) & {run for text in left["train"] for run in plain_runs(text)}


@given(st.lists(st.text(max_size=120), max_size=4), DOCUMENTS)
def test_what_is_left_is_text_of_the_documents_in_their_order(train: list[str], val: list[str]) -> None:
    left = removed(train=train + val, val=val)
    everything = "\0".join(train + val)
    place = 0
    for text in left["train"]:
        place = everything.index(text, place) + len(text)


@given(TEXT, TEXT)
def test_hashes_are_equal_exactly_where_the_runs_are(first: str, second: str) -> None:
    hashes = [run for text in (first, second) for run in runs(words(text)).tolist()]
    expected = plain_runs(first) + plain_runs(second)
    assert len(hashes) == len(expected)
    assert len(set(hashes)) == len(set(expected))
    assert len(dict(zip(hashes, expected, strict=True))) == len(set(zip(hashes, expected, strict=True)))


@given(st.text(max_size=200))
def test_words_are_found_where_they_stand(text: str) -> None:
    found = words(text)
    whole = [text[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    basic = "".join(letter if ord(letter) < 1 << 16 else "x" for letter in text)
    pattern = "".join(letter if letter.isalnum() else " " for letter in basic)
    assert [len(word) for word in whole] == [len(word) for word in pattern.split(" ") if word]


def test_a_very_long_text_is_read_in_blocks_that_end_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"word{number} " for number in range(3 * repeats.BLOCK_CHARS // 8))
    found = words(text)
    assert len(found.hashes) == text.count(" ")
    tail = words(text[-200:].partition(" ")[2])
    assert found.hashes[-len(tail.hashes) :].tolist() == tail.hashes.tolist()
    assert text[found.starts[-1] : found.ends[-1]] == text.split()[-1]


def test_a_word_longer_than_a_block_is_no_endless_loop() -> None:
    assert len(words("x" * (repeats.BLOCK_CHARS + 5)).hashes) == 2


def test_held_out_documents_are_read_once_and_training_ones_as_they_come() -> None:
    read: list[str] = []

    def documents(split: Split) -> Iterator[str]:
        read.append(split)
        yield spelled(100, 20)

    found = Repeats(documents)
    assert read == ["val", "test"]
    left = found.removed((spelled(number, 20) for number in range(10**9)), "train")
    assert next(left) == spelled(0, 20)
