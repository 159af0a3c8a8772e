"""Which split a document belongs to, by a keyed hash of its text.

The key (the salt) stays on the host, so who knows the corpus does not know the validation text.  The
hash is taken of the normalised text: copies that differ in case, spacing or Unicode form have the same
rank and so the same split.  Documents are taken in the order of their ranks until a share of all bytes
is reached, so the splits of a small corpus have the wanted size and not one that chance gives.
"""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
HELD_OUT_SHARE = 0.05
"""Of all bytes, for validation and for test each."""


def normalised(text: str) -> bytes:
    """`text` without case, spacing and Unicode variants, as UTF-8."""
    folded = text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).encode("utf-8", "surrogatepass")


def fingerprint(text: str) -> bytes:
    """16 bytes that are equal for copies of a document."""
    return hashlib.blake2b(normalised(text), digest_size=16).digest()


def rank(text: str, salt: bytes) -> int:
    """A number of 64 bits that only the salt's owner can tell; equal for copies of a document."""
    return int.from_bytes(hmac.digest(salt, normalised(text), "sha256")[:8], "big")


def assign(ranks: Sequence[int], sizes: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The split of each document: uint8 [documents], an index into `SPLITS`.

    Validation gets the lowest ranks up to about 5 % of all bytes (at least one document), test the next
    ones; documents of equal rank stay together.
    """
    keys = np.asarray(ranks, dtype=np.uint64)
    _, group = np.unique(keys, return_inverse=True)
    weights = np.bincount(group, weights=np.asarray(sizes, dtype=np.float64))
    before = np.cumsum(weights) - weights
    quota = HELD_OUT_SHARE * weights.sum()
    codes = np.full(len(weights), TRAIN, dtype=np.uint8)
    in_val = before < quota
    codes[in_val] = VAL
    codes[~in_val & (before < weights[in_val].sum() + quota)] = TEST
    return codes[group]
