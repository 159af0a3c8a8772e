"""The prepare program as the container runs it: a spec in, a tree, progress and an exit code out."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import corpus.__main__ as program
import pytest

from runner.prepare import FILES, content_hash, load
from tests.faulty_server import Served, server, truncated
from tests.test_corpus_shards import parquet

TRAINER = Path(__file__).parents[1] / "trainer"
SALT = "5a" * 32
OPTIONS = {"vocab_size": 300, "sequence_length": 16, "val_rows": None}


def run(tmp_path: Path, **spec: object) -> tuple[int, list[dict[str, Any]], Path]:
    """Exit code, what it said, and the tree."""
    out = tmp_path / "out"
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"out": str(out), "cache": str(tmp_path / "cache"), **spec}))
    done = subprocess.run(
        [sys.executable, "-m", "corpus", str(path)],
        env={"PYTHONPATH": str(TRAINER), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], out


def folder(tmp_path: Path) -> Path:
    files = tmp_path / "files"
    files.mkdir()
    lines = [
        json.dumps({"text": f"Number {number} is followed by {number + 1}, as always."})
        for number in range(400)
    ]
    (files / "a.jsonl").write_text("\n".join(lines))
    return files


def from_files(tmp_path: Path, **more: object) -> tuple[int, list[dict[str, Any]], Path]:
    files = tmp_path / "files" if (tmp_path / "files").exists() else folder(tmp_path)
    spec: dict[str, object] = {
        "dataset": "files",
        "options": {**OPTIONS, "content": content_hash(files)},
        "salt": SALT,
        "files": str(files),
    }
    return run(tmp_path, **{**spec, **more})


def test_a_folder_becomes_the_documented_tree(tmp_path: Path) -> None:
    code, said, out = from_files(tmp_path)
    assert code == 0
    assert said[-1]["stage"] == "done"
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert found == sorted(["manifest.json", *FILES])
    prepared = load(out)
    prepared.verify()
    assert json.loads((out / "prepare" / "data.json").read_text()) == {
        "vocab_size": 300,
        "sequence_length": 16,
        "bos": 299,
        "train_rows": prepared.train_rows,
        "dataset": "files",
    }
    assert prepared.manifest["counts"]["documents"].keys() == {"train", "val", "test"}
    assert sum(prepared.manifest["counts"]["documents"].values()) == 400


def test_the_salt_is_nowhere_in_the_tree(tmp_path: Path) -> None:
    _, _, out = from_files(tmp_path)
    for path in out.rglob("*"):
        assert path.is_dir() or (
            SALT.encode() not in path.read_bytes() and bytes.fromhex(SALT) not in path.read_bytes()
        )


def test_the_same_spec_gives_the_same_bytes_and_another_salt_another_split(tmp_path: Path) -> None:
    _, _, out = from_files(tmp_path)
    first = load(out).manifest["files"]
    _, _, out = from_files(tmp_path)
    assert load(out).manifest["files"] == first
    _, _, out = from_files(tmp_path, salt="77" * 32)
    assert load(out).manifest["files"]["val/rows.bin"] != first["val/rows.bin"]


def test_what_an_earlier_run_left_in_out_is_gone(tmp_path: Path) -> None:
    (tmp_path / "out" / "old").mkdir(parents=True)
    (tmp_path / "out" / "old" / "file").touch()
    _, _, out = from_files(tmp_path)
    assert not (out / "old").exists()


def test_shards_become_a_tree_that_names_its_sources(tmp_path: Path) -> None:
    def shard(name: str) -> bytes:
        return parquet([f"{name} {number}: the sum of {number} and {name}." for number in range(300)])

    names = ("shard_00000", "shard_00001", "shard_01821", "shard_01822")
    files = {f"{name}.parquet": shard(name) for name in names}
    with server(Served(files=files, faults=[truncated(900)])) as hub:
        options = {**OPTIONS, "train_shards": 2, "revision": "main"}
        code, said, out = run(tmp_path, dataset="fineweb-edu", options=options, mirror=hub.url)
    assert code == 0
    assert said[0] == {"licence": "FineWeb-Edu: ODC-By 1.0, and the terms of use of Common Crawl"}
    assert sorted(load(out).manifest["sources"]) == sorted(files)
    assert load(out).manifest["counts"]["documents"] == {"train": 600, "val": 300, "test": 300}


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"salt": None}, "the spec has no salt"),
        ({"options": {**OPTIONS, "content": "x"}}, "the files changed"),
        ({"dataset": "moon"}, "there is no data set 'moon'"),
    ],
)
def test_bad_data_end_in_one_line_and_exit_code_6(
    tmp_path: Path, spec: dict[str, object], complaint: str
) -> None:
    code, said, out = from_files(tmp_path, **spec)
    assert code == 6
    assert complaint in said[-1]["error"]
    assert not (out / "manifest.json").exists()


def test_a_full_disk_ends_in_exit_code_7(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    assert program.guarded(lambda: full(tmp_path)) == 7
    assert "disk is full" in capsys.readouterr().out


def test_anything_else_is_a_defect_and_keeps_its_traceback() -> None:
    def refused() -> None:
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        program.guarded(refused)
