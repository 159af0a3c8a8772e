"""Text that stands twice: what is held out shares no run of 13 words with training, nor with itself.

A word is a run of letters and digits, whatever its case; a run is 13 words in a row, whatever stands between them.
Where a run of a training document is held out too, its words are cut out of the training document, and what stands
before and after them becomes documents of their own, so the held-out text stays what it is.  Of a run that stands in
the held-out text more than once the first one stays; validation is read before test.

Only hashes of the held-out runs are kept in memory: 8 bytes a word, and for each of the two splits a table of at most
256 MiB.  Scripts that are written without spaces have few and long words, so there only long passages are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from corpus.split import SPLITS, Split

RUN = 13
"""Words.  Usual for this purpose since GPT-3 (Brown et al. 2020, appendix C)."""
BLOCK_CHARS = 1 << 20
MIN_TABLE_BITS, MAX_TABLE_BITS, PART_BITS = 10, 31, 24

Hashes = npt.NDArray[np.uint64]
Offsets = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_FACTOR = 0x9E37_79B9_7F4A_7C15
_MIX = np.uint64(0xD6E8_FEB8_6659_FD93)


class Repeats:
    """Knows the runs of the held-out documents, and cuts their repetitions out of any split."""

    def __init__(self, documents: Callable[[Split], Iterable[str]]) -> None:
        """`documents` gives those of a split; validation and test are read now."""
        self._known: dict[Split, _Known] = {}
        self._twice: dict[Split, _Known] = {}
        for split in HELD_OUT:
            found = np.concatenate([_NOTHING, *(runs(words(text)) for text in documents(split))])
            found.sort()
            self._known[split] = _Known(found)
            self._twice[split] = _Known(found[1:][found[1:] == found[:-1]])
        self.dropped: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        """Words that were cut out of each split when it was last read."""

    def removed(self, documents: Iterable[str], split: Split) -> Iterator[str]:
        """The documents of a split, in their order, without what stands elsewhere.

        Of a document that was cut, stretches of fewer than `RUN` words are left out too.
        """
        seen: set[int] = set()
        self.dropped[split] = 0
        for text in documents:
            found = words(text)
            cut = self._cut(runs(found), split, seen)
            if not cut.any():
                yield text
                continue
            kept = [(first, last) for first, last in _stretches(~cut) if last - first >= RUN]
            self.dropped[split] += len(cut) - sum(last - first for first, last in kept)
            for first, last in kept:
                begin = found.starts[first] if first > 0 else 0
                end = found.ends[last - 1] if last < len(cut) else len(text)
                yield text[begin:end]

    def _cut(self, hashes: Hashes, split: Split, seen: set[int]) -> Mask:
        """Which words of a document are cut: bool [words]."""
        cut = np.zeros(len(hashes) + RUN - 1, dtype=bool)
        repeated = np.zeros(len(hashes), dtype=bool)
        for other in HELD_OUT if split == "train" else HELD_OUT[: HELD_OUT.index(split)]:
            repeated |= self._known[other].holds(hashes)
        for place in np.flatnonzero(repeated):
            cut[place : place + RUN] = True
        if split != "train":
            self._cut_later(hashes, self._twice[split].holds(hashes), seen, cut)
        return cut

    @staticmethod
    def _cut_later(hashes: Hashes, twice: Mask, seen: set[int], cut: Mask) -> None:
        """Cut those of the runs marked by `twice` that were seen before, and remember them all."""
        here: dict[int, int] = {}
        for place in np.flatnonzero(twice).tolist():
            run = int(hashes[place])
            if run in seen:
                # The words that it shares with its own first occurrence (`la la la`) stay.
                cut[max(place, here.get(run, -RUN) + RUN) : place + RUN] = True
            else:
                seen.add(run)
                here[run] = place


HELD_OUT: tuple[Split, ...] = ("val", "test")
_NOTHING: Hashes = np.empty(0, dtype=np.uint64)
_NOWHERE: Offsets = np.empty(0, dtype=np.int64)


def _stretches(mask: Mask) -> list[tuple[int, int]]:
    """(first, last + 1) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


class _Known:
    """A set of hashes: sorted, and a table of one bit for each value of their first bits."""

    def __init__(self, found: Hashes) -> None:
        """`found` is sorted."""
        self._found = found
        bits = min(max((64 * len(found)).bit_length(), MIN_TABLE_BITS), MAX_TABLE_BITS)
        self._shift = np.uint64(64 - bits)
        slots, size = found >> self._shift, 1 << min(bits, PART_BITS)
        ends = np.searchsorted(slots, np.arange(0, (1 << bits) + 1, size, dtype=np.uint64))
        table = []
        for number, (low, high) in enumerate(pairwise(ends.tolist())):
            marked = np.zeros(size, dtype=bool)
            marked[slots[low:high] - np.uint64(number * size)] = True
            table.append(np.packbits(marked, bitorder="little"))
        self._table = np.concatenate(table)

    def holds(self, hashes: Hashes) -> Mask:
        """Which of `hashes` are in the set.  Most are not, and the table says so for nearly all of them."""
        slots = hashes >> self._shift
        held = (self._table[slots >> np.uint64(3)] >> (slots & np.uint64(7)).astype(np.uint8) & 1).astype(
            bool
        )
        maybe = np.flatnonzero(held)
        if len(maybe):
            places = np.searchsorted(self._found, hashes[maybe])
            places[places == len(self._found)] = 0
            held[maybe] = self._found[places] == hashes[maybe]
        return held


# Words ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """The words of a text."""

    hashes: Hashes
    starts: Offsets
    """Where each begins, in characters,"""
    ends: Offsets
    """and the character after it."""


def words(text: str) -> Words:
    """The words of `text`, each hashed as a polynomial of its letters modulo 2**64."""
    blocks = [_words(text[start:end], start) for start, end in _blocks(text)]
    return Words(
        np.concatenate([_NOTHING, *(block.hashes for block in blocks)]),
        np.concatenate([_NOWHERE, *(block.starts for block in blocks)]),
        np.concatenate([_NOWHERE, *(block.ends for block in blocks)]),
    )


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Stretches that bound the memory needed; they end between words, but for words that are longer."""
    start = 0
    while start < len(text):
        end = min(start + BLOCK_CHARS, len(text))
        if end < len(text):
            end = next((at for at in range(end, start, -1) if not text[at - 1].isalnum()), end)
        yield start, end
        start = end


def _words(text: str, offset: int) -> Words:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    letters = _folded().take(codes, mode="clip")
    inside = np.zeros(len(codes) + 2, dtype=np.int8)
    inside[1:-1] = letters != 0
    edges = np.diff(inside)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    up, down = _powers()
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(letters * up[: len(codes)], out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * down[starts]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    return Words(hashes, starts + offset, ends + offset)


def runs(found: Words) -> Hashes:
    """A hash of each `RUN` words in a row: uint64 [max(0, words - RUN + 1)]."""
    count = len(found.hashes) - RUN + 1
    if count < 1:
        return _NOTHING
    # Runs of twice the width are made of two halves.
    half, made, done, width = found.hashes, np.zeros(count, dtype=np.uint64), 0, 1
    while True:
        shift = np.uint64(pow(_FACTOR, width, 1 << 64))
        if RUN & width:
            made = made * shift + half[done : done + count]
            done += width
        if done == RUN:
            return made
        half = half[:-width] * shift + half[width:]
        width *= 2


@cache
def _folded() -> Hashes:
    """A number for each character in lower case, 0 where it is in no word; beyond the basic plane all have the last one."""
    table = np.zeros((1 << 16) + 1, dtype=np.uint64)
    for code in range(1 << 16):
        letter = chr(code)
        if letter.isalnum():
            table[code] = ord(letter.lower()[0])
    table[1 << 16] = 1 << 16
    return table * _MIX


@cache
def _powers() -> tuple[Hashes, Hashes]:
    """The powers of the factor and of its inverse: uint64 [BLOCK_CHARS] each."""
    made = []
    for base in (_FACTOR, pow(_FACTOR, -1, 1 << 64)):
        powers = np.full(BLOCK_CHARS, base, dtype=np.uint64)
        powers[0] = 1
        made.append(np.cumprod(powers))
    return made[0], made[1]
