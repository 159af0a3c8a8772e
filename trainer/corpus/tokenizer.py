"""Byte-pair tokenizer: trained by rustbpe on training text alone, used through tiktoken, stored as JSON."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rustbpe  # type: ignore[import-untyped]
import tiktoken

from corpus.errors import CorpusError

BOS = "<|bos|>"
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""GPT-4's way to cut text into words, with groups of one or two digits."""
MIN_VOCAB, MAX_VOCAB = 257, 65_536
TRAINING_CHARS = 250_000_000
"""How much text the merges are learned from."""
DOCUMENT_CHARS = 10_000
"""How much of one document counts for it."""
ENCODE_CHARS = 1 << 16
"""Longest text handed to the encoder at once: its regular expressions give up on very long runs."""
BATCH_CHARS = 1 << 20

Tokens = npt.NDArray[np.uint16]


class Tokenizer:
    """Tokens are `ranks` by id; the last id is BOS, which is no text."""

    def __init__(self, ranks: Sequence[bytes], pattern: str = PATTERN) -> None:
        self.ranks, self.pattern = list(ranks), pattern
        self.bos = len(self.ranks)
        self.vocab_size = len(self.ranks) + 1

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            name="autoresearch",
            pat_str=self.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.ranks)},
            special_tokens={BOS: self.bos},
        )

    def encode(self, text: str) -> Tokens:
        """BOS and the tokens of `text`: uint16 [1 + tokens].  Text that reads like BOS is ordinary text."""
        parts = [np.array([self.bos], dtype=np.uint16)]
        for start in range(0, len(text), ENCODE_CHARS):
            piece = text[start : start + ENCODE_CHARS]
            parts.append(self._encoding.encode_to_numpy(piece, disallowed_special=()).astype(np.uint16))
        return np.concatenate(parts)

    def encode_all(self, texts: Iterable[str], threads: int) -> Iterator[Tokens]:
        """`encode` of each text in order, in `threads` threads, with a bounded number of texts in memory."""
        with ThreadPoolExecutor(threads) as pool:
            pending: deque[Future[list[Tokens]]] = deque()
            for batch in _batches(texts):
                pending.append(pool.submit(self._encode_batch, batch))
                if len(pending) > 2 * threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()

    def _encode_batch(self, texts: list[str]) -> list[Tokens]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The raw bytes of `tokens`; BOS has none."""
        return b"".join(self.ranks[token] for token in tokens if token != self.bos)

    def token_bytes(self) -> Tokens:
        """uint16 [vocab]: the number of raw bytes of each token, whether or not they are valid UTF-8; BOS has 0."""
        lengths = [len(self._encoding.decode_single_token_bytes(token)) for token in range(self.bos)]
        return np.array([*lengths, 0], dtype=np.uint16)

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        ranks = [base64.b64encode(token).decode("ascii") for token in self.ranks]
        value = {"pattern": self.pattern, "ranks": ranks, "special": {BOS: self.bos}}
        path.write_text(json.dumps(value) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read `tokenizer.json`."""
        value = json.loads(path.read_text(encoding="utf-8"))
        return cls([base64.b64decode(token) for token in value["ranks"]], value["pattern"])


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` tokens, BOS included, learned from `texts`.

    Raises `CorpusError` if the text is too small for so many tokens.
    """
    if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        msg = f"a vocabulary of {vocab_size} tokens is not possible: {MIN_VOCAB} to {MAX_VOCAB} are"
        raise CorpusError(msg)
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(_excerpts(texts), vocab_size - 1, pattern=PATTERN)
    ranks = [bytes(token) for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda item: item[1])]
    if len(ranks) != vocab_size - 1:
        msg = f"the training text gives {len(ranks) + 1} tokens, {vocab_size} were asked for: add text or ask for fewer"
        raise CorpusError(msg)
    return Tokenizer(ranks)


def _excerpts(texts: Iterable[str]) -> Iterator[str]:
    chars = 0
    for text in texts:
        excerpt = text[:DOCUMENT_CHARS]
        yield excerpt
        chars += len(excerpt)
        if chars >= TRAINING_CHARS:
            return


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    chars = 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
