"""Parquet shards from a hub: pinned validation and test, no copies of them in training, damage found."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from corpus.download import Patience
from corpus.errors import CorpusError
from corpus.shards import COLLECTIONS, Shards, Wanted, _locked

from tests.faulty_server import Served, server, truncated

PATIENCE = Patience(read_seconds=0.5, retries=1, backoff_seconds=0)


def parquet(texts: list[str | None], column: str = "text") -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), target, row_group_size=16)
    return target.getvalue()


def numbered(name: str, count: int = 50) -> list[str | None]:
    return [f"{name}: document {number}" for number in range(count)]


FILES = {
    "shard_00000.parquet": parquet([*numbered("first"), "VAL:  document 7", "test: document 3", None, "  "]),
    "shard_00001.parquet": parquet(numbered("second")),
    "shard_06541.parquet": parquet([*numbered("test"), "val: document 9"]),
    "shard_06542.parquet": parquet(numbered("val")),
}


@pytest.fixture
def hub() -> Iterator[Served]:
    with server(Served(files=dict(FILES))) as served:
        yield served


@pytest.fixture
def wanted(hub: Served, tmp_path: Path) -> Wanted:
    return Wanted(
        dataset="climbmix",
        train_shards=2,
        revision="refs/pr/1",
        mirror=f"{hub.url}/",
        token=None,
        cache=tmp_path,
        patience=PATIENCE,
    )


def test_the_last_file_is_validation_and_the_one_before_it_test(wanted: Wanted) -> None:
    shards = Shards(wanted)
    assert list(shards.documents("val")) == numbered("val")
    assert list(shards.documents("test")) == numbered("test")
    assert list(shards.documents("train")) == [*numbered("first"), *numbered("second")]


def test_the_files_are_asked_for_by_repository_and_revision(hub: Served, wanted: Wanted) -> None:
    Shards(wanted)
    paths = sorted(request["path"] for request in hub.requests)
    assert paths[0] == "/datasets/karpathy/climbmix-400b-shuffle/resolve/refs/pr/1/shard_00000.parquet"
    assert len(paths) == 4


def test_the_hash_of_every_file_is_told(wanted: Wanted) -> None:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert Shards(wanted).facts() == {"sources": hashes}


def test_the_licence_is_said_before_anything_is_asked_for(
    wanted: Wanted, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CorpusError):
        Shards(replace(wanted, mirror="ftp://nowhere"))
    assert "CC BY-NC 4.0" in capsys.readouterr().out


def test_more_training_files_cost_only_what_is_new(hub: Served, wanted: Wanted) -> None:
    Shards(replace(wanted, train_shards=1))
    Shards(wanted)
    assert len(hub.requests) == 4


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (FILES["shard_00000.parquet"][:-9], "not a whole parquet file"),
        (b"<html>sign in</html>", "not a whole parquet file"),
        (parquet(numbered("x"), column="content"), "no column `text`"),
        (parquet([]), "no column `text`|no documents"),
    ],
)
def test_what_is_not_a_shard_is_refused(hub: Served, wanted: Wanted, content: bytes, complaint: str) -> None:
    hub.files["shard_00001.parquet"] = content
    with pytest.raises(CorpusError, match=complaint):
        Shards(wanted)


def test_one_file_that_cannot_be_had_ends_it(hub: Served, wanted: Wanted) -> None:
    hub.faults = [truncated(10)] * 99
    with pytest.raises(CorpusError, match=r"shard_0\d+\.parquet from 127\.0\.0\.1"):
        Shards(wanted)


def test_damage_inside_a_sound_footer_is_found_and_the_file_removed(wanted: Wanted, tmp_path: Path) -> None:
    shards = Shards(wanted)
    path = next(tmp_path.rglob("shard_00001.parquet"))
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    path.write_bytes(data)
    with pytest.raises(CorpusError, match="removed from the cache: prepare again"):
        list(shards.documents("train"))
    assert not path.exists()
    Shards(wanted)


@pytest.mark.parametrize("mirror", ["ftp://example.org", "example.org", "https://"])
def test_a_mirror_must_be_a_web_address(wanted: Wanted, mirror: str) -> None:
    with pytest.raises(CorpusError, match="is not an http or https address"):
        Shards(replace(wanted, mirror=mirror))


def test_two_preparations_take_turns(tmp_path: Path) -> None:
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with _locked(tmp_path):
            order.append("second")

    with _locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait(5)
        thread.join(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_every_collection_names_its_licence() -> None:
    assert {name: collection.shards for name, collection in COLLECTIONS.items()} == {
        "fineweb-edu": 1823,
        "climbmix": 6543,
    }
    assert all(collection.licence for collection in COLLECTIONS.values())
