"""Documents into rows of equal length: no token lost, none repeated, nothing padded.

A document gives as many whole rows as it holds; what is left is a piece.  A row is started by the
oldest piece and filled with the largest pieces that fit; when none fits, the head of one closes the
gap and its rest becomes a fragment.  Fragments are used to fill and, while there are pieces, never to
start a row; they are also what is cut first, so that few documents are torn.  Only the last, partial
row is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.uint16]
BUFFER_ROWS = 4096
"""Rows' worth of pieces to choose from: enough for tight fits, little memory."""


class _Pool:
    """Pieces by length, each taken oldest first.  A set bit of `_lengths` is a length that is there."""

    def __init__(self, longest: int) -> None:
        self._buckets: list[deque[int]] = [deque() for _ in range(longest + 1)]
        self._pieces: dict[int, Tokens] = {}
        self._order: deque[int] = deque()
        self._numbers = count()
        self._lengths = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def push(self, piece: Tokens) -> None:
        number = next(self._numbers)
        self._pieces[number] = piece
        self._order.append(number)
        self._buckets[len(piece)].append(number)
        self._lengths |= 1 << len(piece)

    def longest(self, limit: int) -> int:
        """The greatest length up to `limit` that is there; below 1 if there is none."""
        return (self._lengths & ((1 << (limit + 1)) - 1)).bit_length() - 1

    def pop(self, length: int) -> Tokens:
        bucket = self._buckets[length]
        number = bucket.popleft()
        if not bucket:
            self._lengths &= ~(1 << length)
        return self._pieces.pop(number)

    def pop_oldest(self) -> Tokens:
        while self._order[0] not in self._pieces:
            self._order.popleft()
        return self.pop(len(self._pieces[self._order[0]]))


class Packer:
    """Packs documents (uint16 [tokens], BOS first) into rows (uint16 [row_length])."""

    def __init__(self, row_length: int, buffer_rows: int = BUFFER_ROWS) -> None:
        self.row_length = row_length
        self._capacity = buffer_rows * row_length
        self._heads, self._fragments = _Pool(row_length), _Pool(row_length)
        self._held = 0

    def add(self, document: Tokens) -> Iterator[Tokens]:
        """Take a document; give the rows [rows, row_length] that are ready."""
        whole = len(document) // self.row_length * self.row_length
        if whole:
            yield document[:whole].reshape(-1, self.row_length)
        if whole < len(document):
            self._heads.push(document[whole:])
            self._held += len(document) - whole
        while self._held > self._capacity:
            yield self._row()

    def finish(self) -> Iterator[Tokens]:
        """Give the rows that can still be filled; at most `row_length` - 1 tokens are dropped."""
        while self._held >= self.row_length:
            yield self._row()

    def _row(self) -> Tokens:
        parts = [self._start()]
        gap = self.row_length - len(parts[0])
        while gap:
            parts.append(self._fill(gap))
            gap -= len(parts[-1])
        self._held -= self.row_length
        return np.concatenate(parts).reshape(1, -1)

    def _start(self) -> Tokens:
        if self._heads:
            return self._heads.pop_oldest()
        return self._fragments.pop(self._fragments.longest(self.row_length))

    def _fill(self, gap: int) -> Tokens:
        fragment, head = self._fragments.longest(gap), self._heads.longest(gap)
        if fragment > 0 and fragment >= head:
            return self._fragments.pop(fragment)
        return self._heads.pop(head) if head > 0 else self._cut(gap)

    def _cut(self, gap: int) -> Tokens:
        pool = self._fragments or self._heads
        piece = pool.pop(pool.longest(self.row_length))
        self._fragments.push(piece[gap:])
        return piece[:gap]


def pack(documents: Iterable[Tokens], row_length: int, buffer_rows: int = BUFFER_ROWS) -> Iterator[Tokens]:
    """Rows (uint16 [rows, row_length], several at a time) of all `documents`."""
    packer = Packer(row_length, buffer_rows)
    for document in documents:
        yield from packer.add(document)
    yield from packer.finish()
