from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.sandbox.transfer import RefusedOutputError, pack, receive
from runner.trial import InputFile


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return target.getvalue()


def special(kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("nll.bin")
    info.type, info.linkname = kind, link
    return info


def in_chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@given(st.binary(max_size=3000), st.integers(1, 2000))
def test_a_regular_file_arrives_whole_however_it_is_cut(data: bytes, size: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out"
        receive(in_chunks(archive((tarfile.TarInfo("../../etc/x"), data)), size), path, max_bytes=3000)

        assert path.read_bytes() == data
        assert [entry.name for entry in Path(folder).iterdir()] == ["out"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_anything_else_is_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(RefusedOutputError, match="not a regular file"):
        receive([archive((special(kind, "/etc/passwd"), b""))], tmp_path / "out", max_bytes=10)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [b"", b"not a tar" * 200, archive((tarfile.TarInfo("a"), bytes(900)))[:700]])
def test_a_broken_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RefusedOutputError):
        receive([data], tmp_path / "out", max_bytes=10_000)


def test_a_file_that_is_too_large_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    with pytest.raises(RefusedOutputError, match="11 bytes, more than the 10 allowed"):
        receive([archive((tarfile.TarInfo("a"), bytes(11)))], tmp_path / "out", max_bytes=10)

    assert not (tmp_path / "out").exists()


def test_what_goes_in_belongs_to_the_holder_and_the_gate_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"open")
    (tmp_path / "b").write_bytes(bytes(600))
    stream = pack(
        [InputFile(name="a", path=tmp_path / "a")],
        [InputFile(name="b", path=tmp_path / "b")],
        uid=10002,
        with_gate=True,
    )

    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as file:
        members = {member.name: member for member in file.getmembers()}

    assert list(members) == ["gated", "a", "gated/b"]
    assert members["gated"].isdir()
    assert members["gated"].mode == 0o700
    assert {member.uid for member in members.values()} == {10002}
    assert members["a"].mode == members["gated/b"].mode == 0o444
    assert members["gated/b"].size == 600
