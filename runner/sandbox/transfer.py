"""Archives in and out of a container, as streams; what comes back is treated as hostile.

Nothing is unpacked: the one expected member is copied byte by byte into a file that the host opened.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from runner.trial import InputFile

CHUNK = 1 << 20


class RefusedOutputError(Exception):
    """What the container left under the name is not a regular file of an acceptable size."""


def pack(
    files: Iterable[InputFile],
    gated: Iterable[InputFile],
    *,
    uid: int,
    with_gate: bool,
    closed: Iterable[InputFile] = (),
) -> Iterator[bytes]:
    """A tar stream of `files` and, in a folder `gated` that only `uid` may enter, of `gated` and `closed`.

    Those of `closed` can be read by nobody but `uid` even when the folder is open.
    """
    if with_gate:
        folder = tarfile.TarInfo("gated")
        folder.type, folder.mode, folder.uid, folder.gid = tarfile.DIRTYPE, 0o700, uid, uid
        yield folder.tobuf()
    for file in files:
        yield from _member(file.name, file.path, uid)
    for file in gated:
        yield from _member(f"gated/{file.name}", file.path, uid)
    for file in closed:
        yield from _member(f"gated/{file.name}", file.path, uid, mode=0o400)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _member(name: str, path: Path, uid: int, *, mode: int = 0o444) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid = path.stat().st_size, mode, uid, uid
    yield info.tobuf()
    left = info.size
    with path.open("rb") as source:
        while left:
            chunk = source.read(min(CHUNK, left))
            if not chunk:
                message = f"{path} became shorter while it was copied into a container"
                raise OSError(message)
            left -= len(chunk)
            yield chunk
    yield bytes(-info.size % tarfile.BLOCKSIZE)


def receive(stream: Iterable[bytes], destination: Path, *, max_bytes: int) -> None:
    """Copy the single regular file in the tar `stream` to `destination`.

    Raises `RefusedOutputError` for anything but one regular file of at most `max_bytes`.
    """
    try:
        with tarfile.open(fileobj=_Reader(stream), mode="r|") as source:
            member = source.next()
            if member is None or not member.isreg() or member.issparse():
                message = "not a regular file"
                raise RefusedOutputError(message)
            if member.size > max_bytes:
                message = f"{member.size} bytes, more than the {max_bytes} allowed"
                raise RefusedOutputError(message)
            content = source.extractfile(member)
            assert content is not None
            with destination.open("wb") as target:
                while chunk := content.read(CHUNK):
                    target.write(chunk)
    except tarfile.TarError as error:
        message = f"unreadable archive: {error}"
        raise RefusedOutputError(message) from error


class _Reader(io.RawIOBase):
    """An iterator of byte chunks as the file object that `tarfile` wants."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while size < 0 or have < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            parts.append(chunk)
            have += len(chunk)
        whole = b"".join(parts)
        cut = len(whole) if size < 0 else size
        self._rest = whole[cut:]
        return whole[:cut]
