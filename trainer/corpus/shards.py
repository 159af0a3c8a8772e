"""Data sets of the hub that come as shuffled parquet files of about 100 MB with a column `text`.

Validation and test are one whole file each, the same for everyone, so results can be compared.  Copies
of a document of theirs are left out of training.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from corpus.download import Downloader, Meter, Patience
from corpus.errors import CorpusError
from corpus.progress import Stage, say
from corpus.split import Split, fingerprint

HUB = "https://huggingface.co"
WORKERS = 4
BATCH_DOCUMENTS = 1024


@dataclass(frozen=True)
class Collection:
    """A data set on the hub."""

    repository: str
    shards: int
    """How many there are; the last is validation, the one before it test."""
    licence: str


COLLECTIONS = {
    "fineweb-edu": Collection(
        repository="karpathy/fineweb-edu-100b-shuffle",
        shards=1823,
        licence="FineWeb-Edu: ODC-By 1.0, and the terms of use of Common Crawl",
    ),
    "climbmix": Collection(
        repository="karpathy/climbmix-400b-shuffle",
        shards=6543,
        licence="Nemotron-ClimbMix: CC BY-NC 4.0, for research and development only, not commercial",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which files of which data set, and from where."""

    dataset: str
    train_shards: int
    revision: str
    mirror: str | None
    token: str | None
    cache: Path
    patience: Patience = field(default_factory=Patience)


class Shards:
    """A `build.Source` of downloaded parquet files."""

    def __init__(self, wanted: Wanted) -> None:
        collection = COLLECTIONS[wanted.dataset]
        self.licence = collection.licence
        self._names: dict[Split, list[str]] = {
            "train": [_name(index) for index in range(wanted.train_shards)],
            "val": [_name(collection.shards - 1)],
            "test": [_name(collection.shards - 2)],
        }
        say(licence=collection.licence)
        self._folder = wanted.cache / wanted.dataset / _folder(wanted.revision)
        self._hashes = _fetch_all(
            wanted, collection, [name for names in self._names.values() for name in names], self._folder
        )

    def facts(self) -> dict[str, object]:
        """The hash of each file that was read."""
        return {"sources": dict(sorted(self._hashes.items()))}

    def total(self, split: Split) -> int:
        """The number of documents of a split, copies of held-out ones included."""
        return sum(_documents(self._folder / name) for name in self._names[split])

    def documents(self, split: Split) -> Iterator[str]:
        """The documents of a split in the order of the files, without copies of those in val (and test)."""
        refused = self._refused[split]
        for text in self._texts(split):
            if not refused or fingerprint(text) not in refused:
                yield text

    @cached_property
    def _refused(self) -> dict[Split, set[bytes]]:
        stage = Stage("held-out", total=self.total("val") + self.total("test"), unit="documents")
        seen: dict[Split, set[bytes]] = {}
        for split in ("val", "test"):
            seen[split] = set()
            for text in self._texts(split):
                seen[split].add(fingerprint(text))
                stage.advance()
        stage.finish()
        return {"val": set(), "test": seen["val"], "train": seen["val"] | seen["test"]}

    def _texts(self, split: Split) -> Iterator[str]:
        for name in self._names[split]:
            try:
                yield from parquet_texts(self._folder / name)
            except CorpusError as error:
                (self._folder / name).unlink(missing_ok=True)
                msg = f"{error}; it was removed from the cache: prepare again to fetch it anew"
                raise CorpusError(msg) from error


def parquet_texts(path: Path) -> Iterator[str]:
    """The column `text` of a parquet file, without what is empty.  Raises `CorpusError`."""
    try:
        with pq.ParquetFile(path) as file:
            _check_column(file, path)
            for batch in file.iter_batches(batch_size=BATCH_DOCUMENTS, columns=["text"]):
                yield from (text for text in batch.column(0).to_pylist() if text and not text.isspace())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        msg = f"{path.name} is not a readable parquet file ({type(error).__name__})"
        raise CorpusError(msg) from error


def check_parquet(path: Path) -> None:
    """Raises `CorpusError` unless the file's footer is sound and it has a column `text` with documents."""
    try:
        with pq.ParquetFile(path) as file:
            _check_column(file, path)
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        msg = "it is not a whole parquet file"
        raise CorpusError(msg) from error
    if rows == 0:
        msg = "it has no documents"
        raise CorpusError(msg)


def _check_column(file: pq.ParquetFile, path: Path) -> None:
    schema = file.schema_arrow
    index = schema.get_field_index("text")
    kinds = (pa.types.is_string, pa.types.is_large_string)
    if index < 0 or not any(kind(schema.field(index).type) for kind in kinds):
        msg = f"{path.name.removesuffix('.part')} has no column `text` of strings"
        raise CorpusError(msg)


def _documents(path: Path) -> int:
    with pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _fetch_all(wanted: Wanted, collection: Collection, names: list[str], folder: Path) -> dict[str, str]:
    base = wanted.mirror or HUB
    if urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname:
        msg = f"the mirror {base!r} is not an http or https address"
        raise CorpusError(msg)
    root = f"{base.rstrip('/')}/datasets/{collection.repository}/resolve/{wanted.revision}"
    folder.mkdir(parents=True, exist_ok=True)
    downloader = Downloader(token=wanted.token, token_host=urlsplit(HUB).netloc, patience=wanted.patience)
    with _locked(wanted.cache), closing(downloader):
        meter = _Meter(len(names), note=f"{len(names)} files from {urlsplit(base).hostname}")

        def fetch(name: str) -> str:
            return downloader.fetch(f"{root}/{name}", folder / name, check=check_parquet, meter=meter)

        hashes = dict(zip(names, _in_threads(fetch, names), strict=True))
        meter.finish()
    return hashes


class _Meter(Meter):
    """Bytes of all files, of as many as the sizes known so far let expect."""

    def __init__(self, files: int, note: str) -> None:
        self._files, self._lock = files, Lock()
        self._sizes: list[int] = []
        self._stage = Stage("download", total=None, unit="bytes", note=note)

    def sized(self, size: int) -> None:
        with self._lock:
            self._sizes.append(size)
            self._stage.total = sum(self._sizes) * self._files // len(self._sizes)

    def received(self, amount: int) -> None:
        with self._lock:
            self._stage.advance(amount)

    def finish(self) -> None:
        self._stage.finish()


def _in_threads(work: Callable[[str], str], names: list[str]) -> list[str]:
    """`work` for each name, a few at a time; the first failure ends those that have not begun."""
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(work, name) for name in names]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Two preparations that share a cache take turns."""
    with (cache / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Stage("wait", total=None, unit="", note="another preparation is downloading")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _name(index: int) -> str:
    return f"shard_{index:05d}.parquet"


def _folder(revision: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in revision)
