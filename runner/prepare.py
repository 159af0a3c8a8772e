"""Prepared data on the host: which folder holds what, whether it is sound, and how it comes to be.

The work itself happens in a container (`trainer/corpus`), which is handed in as a function.  This side
keeps the salt, checks every byte that comes back and puts the folder in place by one rename, so that a
folder with its final name is always a whole one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from runner.errors import AutoresearchError, DataError, StateError, UsageError

FORMAT = 2
MANIFEST, SALT = "manifest.json", "salt"
FILES = (
    "prepare/data.json",
    "prepare/tokenizer.json",
    "prepare/token_bytes.npy",
    "train/rows.bin",
    "val/rows.bin",
    "test/rows.bin",
)
"""What a prepared folder holds beside the manifest and the salt; nothing else."""
SUFFIXES = (".txt", ".jsonl", ".parquet")
"""What is read of a folder of the user's."""
EXIT_DATA, EXIT_DISK = 6, 7
TAIL_LINES = 20
BLOCK_ROWS = 1 << 14
LOCK_POLL_SECONDS = 0.5

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set that can be prepared."""

    licence: str
    """Said before the first byte is fetched."""
    salted: bool = False
    """Split by a keyed hash, with a key that stays on the host."""
    network: bool = False
    """Has to be downloaded."""
    shards: int = 0
    """How many files the data set has; the last is validation, the one before it test."""


DATASETS: Mapping[str, Dataset] = {
    "kjv": Dataset(
        licence="King James text from Debian's bible-kjv-text: public domain (UK: Crown letters patent)",
        salted=True,
    ),
    "fineweb-edu": Dataset(
        licence="FineWeb-Edu: ODC-By 1.0, and the terms of use of Common Crawl",
        network=True,
        shards=1823,
    ),
    "climbmix": Dataset(
        licence="Nemotron-ClimbMix: CC BY-NC 4.0, for research and development only, not commercial",
        network=True,
        shards=6543,
    ),
    "files": Dataset(licence="your own files: their licence is yours to know", salted=True),
}
DEFAULT_TRAIN_SHARDS = 10


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Everything that shapes the data; other options are another folder."""

    dataset: str = "kjv"
    vocab_size: int
    """Tokens, the one for the start of a document included; at most 65536."""
    sequence_length: int
    """Targets in a row."""
    val_rows: int | None = None
    """At most so many validation rows, spread evenly; None: all."""
    train_shards: int = DEFAULT_TRAIN_SHARDS
    """Files to train on; for the data sets that come in shards."""
    revision: str = "main"
    """Branch, tag or commit of the data set on its hub; for those that come in shards."""
    files: Path | None = None
    """Folder with the user's text; for `files`."""

    def __post_init__(self) -> None:
        """Raises `UsageError` for what is impossible whatever the data."""
        known = DATASETS.get(self.dataset)
        if known is None:
            message = f"there is no data set {self.dataset!r}; there are {', '.join(DATASETS)}"
            raise UsageError(message)
        if not 257 <= self.vocab_size <= 1 << 16:
            message = f"data.vocab_size is {self.vocab_size}; 257 to 65536 are possible"
            raise UsageError(message)
        if self.sequence_length < 2 or (self.val_rows is not None and self.val_rows < 1):
            message = "data.sequence_length must be at least 2 and data.val_rows, if given, at least 1"
            raise UsageError(message)
        if known.shards and not 1 <= self.train_shards <= known.shards - 2:
            message = f"data.train_shards is {self.train_shards}; {self.dataset} has 1 to {known.shards - 2} for training"
            raise UsageError(message)
        if (self.files is None) is (self.dataset == "files"):
            message = "a folder of files goes with the data set `files`, and only with it"
            raise UsageError(message)

    def shape(self) -> dict[str, Any]:
        """What the folder's name is a hash of, and what the manifest repeats; free of host paths."""
        value: dict[str, Any] = {
            "dataset": self.dataset,
            "vocab_size": self.vocab_size,
            "sequence_length": self.sequence_length,
            "val_rows": self.val_rows,
        }
        if DATASETS[self.dataset].shards:
            value |= {"train_shards": self.train_shards, "revision": self.revision}
        if self.files is not None:
            value["content"] = content_hash(self.files)
        return value


@dataclass(frozen=True, kw_only=True)
class PrepareSpec:
    """One run of the prepare container."""

    value: dict[str, Any] = field(repr=False)
    """What becomes `/in/spec.json`, but for the paths inside the container.  Holds the salt: never shown."""
    network: bool
    """Whether it may reach the network."""
    files: Path | None = None
    """Folder whose text files it may read."""


RunContainer = Callable[[PrepareSpec, Path, Callable[[str], None]], int]
"""Runs the prepare program, hands over each line that it prints, puts the tree it made (manifest
included) into the folder, which exists and is empty but for the salt, and gives the exit code.
After an exit code other than 0 nothing was put there."""


@dataclass(frozen=True, kw_only=True)
class PrepareProgress:
    """How far the container is with one of its steps."""

    stage: str
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prepared folder that is there and has the right sizes; `verify` looks at every byte."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    digest: str
    """SHA-256 of the manifest (hex), hence of everything: names the volumes made of this folder."""
    dataset: str
    vocab_size: int
    sequence_length: int
    train_rows: int
    val_rows: int
    val_bytes: int
    """Raw bytes of all validation targets: the constant that nats are divided by."""

    def rows(self, split: Split) -> npt.NDArray[np.uint16]:
        """The rows of a split, mapped, not read: uint16 [rows, sequence_length + 1]."""
        shape = (self.manifest["counts"]["rows"][split], self.sequence_length + 1)
        return np.memmap(self.path / split / "rows.bin", dtype="<u2", mode="r", shape=shape)

    def token_bytes(self) -> npt.NDArray[np.uint16]:
        """The raw bytes of each token: uint16 [vocab_size]; 0 for the start of a document."""
        return _token_bytes(self.path, self.vocab_size)

    def verify(self) -> None:
        """Hash everything.  Raises `DataError` naming the file that is not what it was, and what to do."""
        if self.digest != _sha256(self.path / MANIFEST):
            raise _damaged(self.path, MANIFEST, "it changed since it was opened")
        for name, facts in self.manifest["files"].items():
            if _sha256(self.path / name) != facts["sha256"]:
                raise _damaged(self.path, name, "its hash is not the one in the manifest")


def data_key(options: PrepareOptions) -> str:
    """The name of the folder for these options.

    Raises `DataError` if the options name a folder of files that is not there or holds no text.
    """
    return _key(options.shape())


def find(data_root: Path, options: PrepareOptions) -> Prepared | None:
    """The prepared data for these options, or None if they were not prepared yet.

    Sizes are checked, hashes are not (`Prepared.verify`).  Raises `DataError` if the folder is damaged.
    """
    return _find(data_root / data_key(options))


def load(path: Path) -> Prepared:
    """The prepared data in a folder.  Raises `DataError` if a file is missing, foreign or of the wrong size."""
    try:
        raw = (path / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        prepared = _prepared(path, manifest, hashlib.sha256(raw).hexdigest())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, MANIFEST, f"{type(error).__name__}: {error}") from error
    _check_sizes(prepared)
    return prepared


def prepare(
    options: PrepareOptions,
    data_root: Path,
    run_container: RunContainer,
    *,
    mirror: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[PrepareProgress], None] = lambda _: None,
) -> Prepared:
    """The prepared data for these options, made now if they are not there; nothing is done twice.

    `mirror` is the address of a hub that serves the same files.  `say` gets whole sentences (the licence
    before anything is fetched), `progress` the container's own counters.

    Raises `DataError` (cannot be had, damaged, too small), `EngineError`, or `StateError` (disk full).
    """
    shape = options.shape()
    path = data_root / _key(shape)
    with _full_disk_named(data_root):
        data_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(data_root, say):
            found = _find(path)
            if found is not None:
                return found
            say(f"licence: {DATASETS[options.dataset].licence}")
            value = {"dataset": options.dataset, "options": shape, "mirror": mirror}
            return _make(path, value, options.files, run_container, progress)


def _key(shape: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **shape}, sort_keys=True).encode()).hexdigest()
    return f"{shape['dataset']}-v{shape['vocab_size']}-t{shape['sequence_length']}-{digest[:8]}"


def _find(path: Path) -> Prepared | None:
    return load(path) if path.exists() else None


def _make(
    path: Path,
    value: dict[str, Any],
    files: Path | None,
    run_container: RunContainer,
    progress: Callable[[PrepareProgress], None],
) -> Prepared:
    known = DATASETS[value["dataset"]]
    part = path.with_name(f".{path.name}.part")
    part.mkdir(mode=0o700, exist_ok=True)
    _clear(part, keep=SALT)
    salt = _salt(part) if known.salted else None
    spec = PrepareSpec(value={**value, "salt": salt}, network=known.network, files=files)
    heard = _Heard(progress)
    code = run_container(spec, part, heard.line)
    if code != 0:
        raise heard.failure(code)
    progress(PrepareProgress(stage="check", unit="files", total=len(FILES)))
    _check(part, value["options"], salt)
    _sync(part)
    part.rename(path)
    return load(path)


class _Heard:
    """What the container says: counters go on, an error and the last lines are kept."""

    def __init__(self, progress: Callable[[PrepareProgress], None]) -> None:
        self._progress = progress
        self._error = ""
        self._tail: list[str] = []

    def line(self, text: str) -> None:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            self._tail = [*self._tail[1 - TAIL_LINES :], text]
        elif "error" in value:
            self._error = str(value["error"])
        elif "stage" in value:
            self._progress(_progress(value))

    def failure(self, code: int) -> AutoresearchError:
        said = self._error or "\n".join(self._tail) or "it said nothing"
        if code == EXIT_DATA:
            return DataError(said)
        if code == EXIT_DISK:
            return StateError(said)
        return AutoresearchError(
            f"the prepare program ended with exit code {code}, which is a defect of ours:\n{said}"
        )


def _progress(value: dict[str, Any]) -> PrepareProgress:
    done, total = value.get("done"), value.get("total")
    return PrepareProgress(
        stage=str(value["stage"]),
        done=done if isinstance(done, int) else 0,
        total=total if isinstance(total, int) else None,
        unit=str(value.get("unit", "")),
        note=str(value.get("note", "")),
    )


def text_files(folder: Path) -> list[tuple[str, Path]]:
    """(relative path, path) of the text files in a folder of the user's, sorted; hidden ones are left out.

    Raises `DataError` for a link, since it may point anywhere, and if there is no text at all.
    """
    if not folder.is_dir():
        message = f"{folder} is not a folder: name one with {', '.join(SUFFIXES)} files"
        raise DataError(message)
    try:
        found = sorted((path.relative_to(folder).as_posix(), path) for path in _walk(folder))
    except OSError as error:
        message = f"{error.filename} cannot be read: {error.strerror}"
        raise DataError(message) from error
    if not found:
        message = f"{folder} has no {', '.join(SUFFIXES)} file"
        raise DataError(message)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_symlink():
            if path.suffix.lower() in SUFFIXES or path.is_dir():
                message = f"{path} is a link: put the file itself there"
                raise DataError(message)
        elif path.is_dir():
            yield from _walk(path)
        elif path.suffix.lower() in SUFFIXES:
            if not path.is_file():
                message = f"{path} is not a regular file"
                raise DataError(message)
            if not _is_utf8(path):
                message = f"{os.fsencode(path)!r}: a name that is not UTF-8; rename it"
                raise DataError(message)
            yield path


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def content_hash(folder: Path) -> str:
    """Hex digest of the names and bytes of the text files in a folder."""
    digest = hashlib.sha256()
    for name, path in text_files(folder):
        digest.update(json.dumps([name, _sha256(path)]).encode())
    return digest.hexdigest()


def _prepared(path: Path, manifest: Mapping[str, Any], digest: str) -> Prepared:
    if manifest["format"] != FORMAT or set(manifest["files"]) != set(FILES):
        message = f"format {manifest['format']} with {len(manifest['files'])} files is not known"
        raise ValueError(message)
    options, rows = manifest["options"], manifest["counts"]["rows"]
    return Prepared(
        path=path,
        manifest=manifest,
        digest=digest,
        dataset=str(manifest["dataset"]),
        vocab_size=int(options["vocab_size"]),
        sequence_length=int(options["sequence_length"]),
        train_rows=int(rows["train"]),
        val_rows=int(rows["val"]),
        val_bytes=int(manifest["val_bytes"]),
    )


def _check_sizes(prepared: Prepared) -> None:
    for name, facts in prepared.manifest["files"].items():
        try:
            size = (prepared.path / name).stat().st_size
        except OSError as error:
            raise _damaged(prepared.path, name, "it is missing") from error
        if size != facts["bytes"]:
            raise _damaged(prepared.path, name, f"it has {size} bytes instead of {facts['bytes']}")
    row_bytes = 2 * (prepared.sequence_length + 1)
    for split in SPLITS:
        rows = prepared.manifest["counts"]["rows"][split]
        if rows < 1 or prepared.manifest["files"][f"{split}/rows.bin"]["bytes"] != rows * row_bytes:
            raise _damaged(prepared.path, f"{split}/rows.bin", f"it is not {rows} rows of {row_bytes} bytes")


def _check(path: Path, shape: Mapping[str, Any], salt: str | None) -> None:
    """All that can be checked about a tree that has just come back.  Raises `DataError`."""
    wanted = {MANIFEST, *FILES} | ({SALT} if salt else set())
    found = {
        entry.relative_to(path).as_posix()
        for entry in path.rglob("*")
        if not entry.is_dir() or entry.is_symlink()
    }
    strange = [name for name in found if (path / name).is_symlink() or not (path / name).is_file()]
    if found != wanted or strange:
        message = f"the prepare container gave {sorted(found)}, not the files it should"
        raise DataError(message)
    prepared = load(path)
    prepared.verify()
    if prepared.manifest["options"] != shape:
        raise _damaged(path, MANIFEST, "it was made with other options")
    _check_salt_is_not_in(path, salt)
    _check_tokens(prepared)


def _check_salt_is_not_in(path: Path, salt: str | None) -> None:
    for name in (MANIFEST, "prepare/data.json", "prepare/tokenizer.json"):
        if salt is not None and salt.encode() in (path / name).read_bytes():
            raise _damaged(path, name, "it holds the salt")


def _check_tokens(prepared: Prepared) -> None:
    token_bytes = prepared.token_bytes()
    val_bytes = 0
    for split in SPLITS:
        rows = prepared.rows(split)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            if int(block.max()) >= prepared.vocab_size:
                raise _damaged(prepared.path, f"{split}/rows.bin", "it has tokens outside the vocabulary")
            if split == "val":
                val_bytes += int(token_bytes[block[:, 1:]].sum(dtype=np.int64))
    if val_bytes != prepared.val_bytes or val_bytes == 0:
        raise _damaged(
            prepared.path, MANIFEST, f"val_bytes is {prepared.val_bytes}, the rows have {val_bytes}"
        )


def _token_bytes(path: Path, vocab_size: int) -> npt.NDArray[np.uint16]:
    name = "prepare/token_bytes.npy"
    try:
        array = np.load(path / name, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _damaged(path, name, str(error)) from error
    if not isinstance(array, np.ndarray) or array.shape != (vocab_size,) or array.dtype != np.uint16:
        raise _damaged(path, name, f"it is not {vocab_size} numbers of type uint16")
    return array


def _damaged(path: Path, name: str, why: str) -> DataError:
    message = f"{path / name} is damaged ({why}): remove {path} and run `autoresearch prepare` again"
    return DataError(message)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise DataError(message) from error


def _salt(part: Path) -> str:
    """64 hex digits for the owner's eyes only; those of an interrupted preparation if it left any."""
    path = part / SALT
    if path.is_file() and len(path.read_text(encoding="ascii").strip()) == 64:
        return path.read_text(encoding="ascii").strip()
    path.unlink(missing_ok=True)
    salt = secrets.token_hex(32)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{salt}\n")
        file.flush()
        os.fsync(file.fileno())
    return salt


def _clear(folder: Path, *, keep: str) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != keep:
            entry.unlink()


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def at_rest(data_root: Path) -> Iterator[bool]:
    """True if no preparation is working in `data_root`; while the block runs none can begin."""
    if not data_root.is_dir():
        yield True
        return
    with (data_root / ".lock").open("a") as file:
        yield _try_lock(file.fileno())


@contextmanager
def _locked(data_root: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One preparation at a time per data folder; another one is waited for."""
    with (data_root / ".lock").open("a") as file:
        if not _try_lock(file.fileno()):
            say(f"another preparation is working in {data_root}: waiting for it")
            while not _try_lock(file.fileno()):
                time.sleep(LOCK_POLL_SECONDS)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _full_disk_named(data_root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"no space left in {data_root}: free some and run `autoresearch prepare` again"
        raise StateError(message) from error
