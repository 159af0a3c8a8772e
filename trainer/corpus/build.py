"""From documents to the prepared tree: repetitions cut, tokenizer, token bytes, packed splits, manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from corpus import manifest
from corpus.errors import CorpusError
from corpus.pack import pack
from corpus.progress import Stage
from corpus.repeats import HELD_OUT, Repeats
from corpus.split import Split
from corpus.tokenizer import Tokenizer, train

ROWS = "rows.bin"
BLOCK_ROWS = 4096


class Source(Protocol):
    """Where documents come from."""

    licence: str

    def facts(self) -> dict[str, object]:
        """What else the manifest should say, for example the hash of each file that was read."""
        ...

    def total(self, split: Split) -> int | None:
        """The number of documents of a split, if it is known before they are read."""
        ...

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split; the same ones in the same order each time."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the prepared data should look like."""

    vocab_size: int
    sequence_length: int
    val_rows: int | None
    """At most so many validation (and test) rows, spread evenly over all; None: all."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one split came to."""

    documents: int
    """Those that were read; repetitions of held-out text are cut out of them."""
    dropped: int
    """Words that were cut out."""
    rows: int
    tokens: int
    """Those in the rows."""


def build(source: Source, shape: Shape, facts: dict[str, object], out: Path, threads: int) -> None:
    """Write the prepared tree into the empty folder `out`, the manifest last.

    `facts` go into the manifest as they are.  Raises `CorpusError` if a split gives no row.
    """
    prepare = out / "prepare"
    prepare.mkdir()
    repeats = _repeats(source)
    tokenizer = _train(source, repeats, shape.vocab_size)
    tokenizer.save(prepare / "tokenizer.json")
    token_bytes = tokenizer.token_bytes()
    np.save(prepare / "token_bytes.npy", token_bytes, allow_pickle=False)
    splits: tuple[Split, ...] = (*HELD_OUT, "train")
    counts = {
        split: _pack(source, repeats, split, tokenizer, shape, out / split, threads) for split in splits
    }
    _write_json(
        prepare / "data.json",
        {
            "vocab_size": tokenizer.vocab_size,
            "sequence_length": shape.sequence_length,
            "bos": tokenizer.bos,
            "train_rows": counts["train"].rows,
            "dataset": facts["dataset"],
        },
    )
    stage = Stage("hash", total=None, unit="files", note="manifest")
    described = {
        **facts,
        "license": source.licence,
        **source.facts(),
        "counts": {
            name: {s: getattr(counts[s], name) for s in ("train", "val", "test")} for name in _COUNTED
        },
        "val_bytes": target_bytes(out / "val" / ROWS, shape.sequence_length + 1, token_bytes),
    }
    manifest.write(out, described)
    stage.finish()


_COUNTED = ("documents", "dropped", "rows", "tokens")


def target_bytes(path: Path, row_length: int, token_bytes: npt.NDArray[np.uint16]) -> int:
    """The raw bytes of all targets (every token of a row but its first) of the rows in a file."""
    rows = np.memmap(path, dtype="<u2", mode="r").reshape(-1, row_length)
    blocks = (rows[start : start + BLOCK_ROWS, 1:] for start in range(0, len(rows), BLOCK_ROWS))
    return sum(int(token_bytes[block].sum(dtype=np.int64)) for block in blocks)


def _repeats(source: Source) -> Repeats:
    stage = Stage("repeats", total=None, unit="documents", note="what is held out")
    repeats = Repeats(lambda split: _counted(source.documents(split), stage))
    stage.finish()
    return repeats


def _train(source: Source, repeats: Repeats, vocab_size: int) -> Tokenizer:
    stage = Stage("tokenizer", total=None, unit="documents", note=f"vocabulary of {vocab_size}")
    texts = repeats.removed(_counted(source.documents("train"), stage), "train")
    tokenizer = train(texts, vocab_size)
    stage.finish()
    return tokenizer


def _counted(texts: Iterable[str], stage: Stage) -> Iterator[str]:
    for text in texts:
        stage.advance()
        yield text


def _pack(
    source: Source,
    repeats: Repeats,
    split: Split,
    tokenizer: Tokenizer,
    shape: Shape,
    folder: Path,
    threads: int,
) -> Counts:
    folder.mkdir()
    row_length = shape.sequence_length + 1
    stage = Stage(f"pack {split}", total=source.total(split), unit="documents")
    texts = repeats.removed(_counted(source.documents(split), stage), split)
    path = folder / ROWS
    rows = 0
    with path.open("wb", buffering=manifest.BLOCK) as file:
        for block in pack(tokenizer.encode_all(texts, threads), row_length):
            file.write(block.astype("<u2", copy=False).tobytes())
            rows += len(block)
    if rows == 0:
        msg = (
            f"the {split} split has {stage.done} documents and not one row of {row_length} tokens: "
            "more text is needed, or shorter rows"
        )
        raise CorpusError(msg)
    if split != "train" and shape.val_rows is not None and rows > shape.val_rows:
        _thin(path, row_length, shape.val_rows)
        rows = shape.val_rows
    stage.finish(note=f"{rows} rows")
    return Counts(documents=stage.done, dropped=repeats.dropped[split], rows=rows, tokens=rows * row_length)


def _thin(path: Path, row_length: int, keep: int) -> None:
    """Keep `keep` rows of the file, evenly spread, in their order."""
    rows = np.memmap(path, dtype="<u2", mode="r").reshape(-1, row_length)
    chosen = np.arange(keep, dtype=np.int64) * len(rows) // keep
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        for start in range(0, keep, BLOCK_ROWS):
            file.write(rows[chosen[start : start + BLOCK_ROWS]].tobytes())
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
