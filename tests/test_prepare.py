"""Prepared data on the host: names, the way there, and everything that can be wrong with them."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import AutoresearchError, DataError, StateError, UsageError
from runner.prepare import (
    DATASETS,
    FILES,
    FORMAT,
    PrepareOptions,
    PrepareProgress,
    PrepareSpec,
    at_rest,
    content_hash,
    data_key,
    find,
    load,
    prepare,
    text_files,
)

OPTIONS = PrepareOptions(vocab_size=300, sequence_length=4)
ROWS = {"train": 7, "val": 3, "test": 2}


class FakeContainer:
    """Makes a small sound tree, as the program in the container does; `spoil` changes it afterwards."""

    def __init__(
        self,
        *,
        code: int = 0,
        says: tuple[str, ...] = (),
        spoil: Callable[[Path], object] = lambda _: None,
    ) -> None:
        self.code, self.says, self.spoil = code, says, spoil
        self.specs: list[PrepareSpec] = []

    def __call__(self, spec: PrepareSpec, destination: Path, on_line: Callable[[str], None]) -> int:
        self.specs.append(spec)
        assert sorted(path.name for path in destination.iterdir()) == (["salt"] if spec.value["salt"] else [])
        for line in self.says:
            on_line(line)
        if self.code == 0:
            tree(destination, spec.value)
            self.spoil(destination)
        return self.code


def tree(out: Path, value: dict[str, Any]) -> None:
    """A sound tree: token 299 is BOS, token t has t % 5 + 1 bytes."""
    for name in ("prepare", *ROWS):
        (out / name).mkdir()
    token_bytes = np.array([token % 5 + 1 for token in range(299)] + [0], dtype=np.uint16)
    np.save(out / "prepare" / "token_bytes.npy", token_bytes)
    (out / "prepare" / "data.json").write_text("{}")
    (out / "prepare" / "tokenizer.json").write_text("{}")
    rows = {name: np.arange(count * 5, dtype="<u2").reshape(count, 5) for name, count in ROWS.items()}
    for name, array in rows.items():
        array.tofile(out / name / "rows.bin")
    write_manifest(out, value, val_bytes=int(token_bytes[rows["val"][:, 1:]].sum()))


def write_manifest(out: Path, value: dict[str, Any], **more: object) -> None:
    import hashlib

    def facts(name: str) -> dict[str, object]:
        data = (out / name).read_bytes()
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    manifest = {
        "format": FORMAT,
        "dataset": value["dataset"],
        "options": value["options"],
        "license": "none",
        "files": {name: facts(name) for name in FILES},
        "counts": {"rows": ROWS},
        **more,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))


def rewritten(out: Path, **changes: object) -> None:
    """The manifest made anew after a change of files, with `changes`."""
    manifest = json.loads((out / "manifest.json").read_text())
    value = {"dataset": manifest["dataset"], "options": manifest["options"]}
    write_manifest(out, value, **{"val_bytes": manifest["val_bytes"], **changes})


# ---------------------------------------------------------------------------------------------- names


def test_every_option_that_shapes_the_data_changes_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    options = [
        OPTIONS,
        PrepareOptions(vocab_size=301, sequence_length=4),
        PrepareOptions(vocab_size=300, sequence_length=5),
        PrepareOptions(vocab_size=300, sequence_length=4, val_rows=9),
        PrepareOptions(dataset="climbmix", vocab_size=300, sequence_length=4),
        PrepareOptions(dataset="climbmix", vocab_size=300, sequence_length=4, train_shards=3),
        PrepareOptions(dataset="climbmix", vocab_size=300, sequence_length=4, revision="abc"),
        PrepareOptions(dataset="files", vocab_size=300, sequence_length=4, files=tmp_path),
    ]
    names = [data_key(option) for option in options]
    assert len(set(names)) == len(names)
    assert names[0].startswith("kjv-v300-t4-")
    assert all(len(name.rsplit("-", 1)[1]) == 8 for name in names)


def test_the_name_of_a_folder_of_files_follows_its_content_not_its_place(tmp_path: Path) -> None:
    names = []
    for place, text in (("a", "text"), ("b", "text"), ("c", "other")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.txt").write_text(text)
        names.append(
            data_key(
                PrepareOptions(dataset="files", vocab_size=300, sequence_length=4, files=tmp_path / place)
            )
        )
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"dataset": "moon"}, "there is no data set 'moon'; there are kjv, fineweb-edu, climbmix, files"),
        ({"vocab_size": 65_537}, "257 to 65536"),
        ({"vocab_size": 256}, "257 to 65536"),
        ({"sequence_length": 1}, "at least 2"),
        ({"val_rows": 0}, "at least 1"),
        ({"dataset": "climbmix", "train_shards": 6542}, "1 to 6541"),
        ({"dataset": "files"}, "a folder of files"),
        ({"files": Path("x")}, "a folder of files"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], complaint: str) -> None:
    options: dict[str, Any] = {"vocab_size": 300, "sequence_length": 4}
    with pytest.raises(UsageError, match=complaint):
        PrepareOptions(**{**options, **wrong})


# ------------------------------------------------------------------------------------------- the way there


def test_prepared_data_are_made_once(tmp_path: Path) -> None:
    container = FakeContainer()
    assert find(tmp_path, OPTIONS) is None
    made = prepare(OPTIONS, tmp_path, container)
    again = prepare(OPTIONS, tmp_path, container)
    assert again == made == find(tmp_path, OPTIONS)
    assert len(container.specs) == 1
    assert made.path == tmp_path / data_key(OPTIONS)
    assert (made.vocab_size, made.sequence_length, made.train_rows, made.val_rows) == (300, 4, 7, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", data_key(OPTIONS)]


def test_rows_and_token_bytes_are_read_as_they_were_written(tmp_path: Path) -> None:
    made = prepare(OPTIONS, tmp_path, FakeContainer())
    assert made.rows("val").tolist() == np.arange(15).reshape(3, 5).tolist()
    assert made.rows("train").shape == (7, 5)
    assert made.rows("train").dtype == np.uint16
    assert made.token_bytes()[made.rows("val")[:, 1:]].sum() == made.val_bytes
    made.verify()


def test_the_salt_is_the_owners_alone_and_is_not_shown(tmp_path: Path) -> None:
    container = FakeContainer()
    made = prepare(OPTIONS, tmp_path, container)
    salt = (made.path / "salt").read_text().strip()
    assert stat.S_IMODE((made.path / "salt").stat().st_mode) == 0o600
    assert len(bytes.fromhex(salt)) == 32
    assert container.specs[0].value["salt"] == salt
    assert salt not in repr(container.specs[0])


def test_an_interrupted_preparation_is_taken_up_with_its_salt(tmp_path: Path) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    first, second = FakeContainer(spoil=killed), FakeContainer()
    with pytest.raises(KeyboardInterrupt):
        prepare(OPTIONS, tmp_path, first)
    assert find(tmp_path, OPTIONS) is None
    prepare(OPTIONS, tmp_path, second)
    assert first.specs[0].value["salt"] == second.specs[0].value["salt"]


def test_two_folders_have_two_salts(tmp_path: Path) -> None:
    container = FakeContainer()
    prepare(OPTIONS, tmp_path / "a", container)
    prepare(OPTIONS, tmp_path / "b", container)
    assert container.specs[0].value["salt"] != container.specs[1].value["salt"]


@pytest.mark.parametrize("dataset", ["kjv", "fineweb-edu", "climbmix"])
def test_only_what_is_downloaded_has_a_network_and_only_what_is_not_has_a_salt(
    tmp_path: Path, dataset: str
) -> None:
    container, network = FakeContainer(), dataset != "kjv"
    options = PrepareOptions(dataset=dataset, vocab_size=300, sequence_length=4)
    made = prepare(options, tmp_path, container, mirror="https://mirror.example.org")
    assert container.specs[0].network is network
    assert (made.path / "salt").exists() is not network
    assert container.specs[0].value["mirror"] == "https://mirror.example.org"


def test_the_licence_is_said_before_the_container_starts(tmp_path: Path) -> None:
    said: list[str] = []

    def container(spec: PrepareSpec, destination: Path, on_line: Callable[[str], None]) -> int:
        assert "CC BY-NC 4.0" in said[-1]
        return FakeContainer()(spec, destination, on_line)

    options = PrepareOptions(dataset="climbmix", vocab_size=300, sequence_length=4)
    prepare(options, tmp_path, container, say=said.append)
    assert len(said) == 1


def test_the_containers_counters_are_handed_on(tmp_path: Path) -> None:
    heard: list[PrepareProgress] = []
    says = (
        '{"stage": "pack", "done": 3, "total": 9, "unit": "rows", "note": "x"}',
        "noise",
        "[1]",
        '{"a": 1}',
    )
    prepare(OPTIONS, tmp_path, FakeContainer(says=says), progress=heard.append)
    assert heard[0] == PrepareProgress(stage="pack", done=3, total=9, unit="rows", note="x")
    assert [progress.stage for progress in heard] == ["pack", "check"]


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"), [(6, DataError, 6), (7, StateError, 7), (1, AutoresearchError, 70)]
)
def test_a_failure_keeps_its_words_and_leaves_nothing_that_looks_prepared(
    tmp_path: Path, code: int, kind: type[AutoresearchError], exit_code: int
) -> None:
    container = FakeContainer(code=code, says=("Traceback", '{"error": "what is wrong"}'))
    with pytest.raises(kind, match="what is wrong") as caught:
        prepare(OPTIONS, tmp_path, container)
    assert caught.value.exit_code == exit_code
    assert find(tmp_path, OPTIONS) is None


def test_a_failure_without_a_word_shows_the_last_lines(tmp_path: Path) -> None:
    container = FakeContainer(code=1, says=tuple(f"line {number}" for number in range(50)))
    with pytest.raises(AutoresearchError, match=r"line 30\n(.*\n)*line 49$"):
        prepare(OPTIONS, tmp_path, container)


def test_a_second_preparation_waits_for_the_first_and_uses_its_result(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(_: Path) -> None:
        begun.set()
        assert go_on.wait(10)

    said: list[str] = []
    container = FakeContainer(spoil=slow)
    first = threading.Thread(target=prepare, args=(OPTIONS, tmp_path, container))
    first.start()
    assert begun.wait(10)
    with at_rest(tmp_path) as resting:
        assert not resting

    def say(text: str) -> None:
        said.append(text)
        go_on.set()

    prepare(OPTIONS, tmp_path, container, say=say)
    first.join(10)
    assert len(container.specs) == 1
    assert "waiting" in said[0]
    with at_rest(tmp_path) as resting:
        assert resting


# --------------------------------------------------------------------------------- what is wrong with a tree


def cut(name: str) -> Callable[[Path], None]:
    def spoil(out: Path) -> None:
        data = (out / name).read_bytes()
        (out / name).write_bytes(data[:-1])

    return spoil


def flip(name: str) -> Callable[[Path], None]:
    def spoil(out: Path) -> None:
        data = bytearray((out / name).read_bytes())
        data[-1] ^= 1
        (out / name).write_bytes(data)

    return spoil


def linked(out: Path) -> None:
    (out / "test" / "rows.bin").rename(out.parent / "elsewhere")
    (out / "test" / "rows.bin").symlink_to(out.parent / "elsewhere")


def with_salt_inside(out: Path) -> None:
    (out / "prepare" / "data.json").write_text((out / "salt").read_text())
    rewritten(out)


def with_foreign_tokens(out: Path) -> None:
    np.full((7, 5), 300, dtype="<u2").tofile(out / "train" / "rows.bin")
    rewritten(out)


def with_wrong_kind_of_token_bytes(out: Path) -> None:
    np.save(out / "prepare" / "token_bytes.npy", np.ones(300, dtype=np.int64))
    rewritten(out)


def with_objects(out: Path) -> None:
    np.save(out / "prepare" / "token_bytes.npy", np.array([{}] * 300, dtype=object), allow_pickle=True)
    rewritten(out)


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda out: (out / "extra").touch(), "not the files it should"),
    (lambda out: (out / "val" / "rows.bin").unlink(), "not the files it should"),
    (linked, "not the files it should"),
    (cut("train/rows.bin"), r"train/rows\.bin is damaged \(it has 69 bytes instead of 70\)"),
    (flip("val/rows.bin"), r"val/rows\.bin is damaged \(its hash"),
    (flip("prepare/tokenizer.json"), r"tokenizer\.json is damaged \(its hash"),
    (lambda out: (out / "manifest.json").write_text("{"), r"manifest\.json is damaged"),
    (lambda out: (out / "manifest.json").write_text("[]"), r"manifest\.json is damaged"),
    (lambda out: rewritten(out, format=99), "format 99"),
    (lambda out: rewritten(out, val_bytes=1), "val_bytes is 1, the rows have"),
    (lambda out: rewritten(out, options={"vocab_size": 300, "sequence_length": 4}), "other options"),
    (lambda out: rewritten(out, counts={"rows": {**ROWS, "val": 4}}), "not 4 rows of 10 bytes"),
    (with_salt_inside, "it holds the salt"),
    (with_foreign_tokens, "tokens outside the vocabulary"),
    (with_wrong_kind_of_token_bytes, "not 300 numbers of type uint16"),
    (with_objects, r"token_bytes\.npy is damaged"),
]


@pytest.mark.parametrize(("spoil", "complaint"), WRONG)
def test_a_tree_that_is_not_sound_is_not_put_in_place(
    tmp_path: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        prepare(OPTIONS, tmp_path, FakeContainer(spoil=spoil))
    assert find(tmp_path, OPTIONS) is None
    prepare(OPTIONS, tmp_path, FakeContainer())


@pytest.mark.parametrize("name", [name for name in FILES if name != "prepare/data.json"])
def test_a_changed_byte_is_found_and_the_remedy_named(tmp_path: Path, name: str) -> None:
    made = prepare(OPTIONS, tmp_path, FakeContainer())
    flip(name)(made.path)
    with pytest.raises(
        DataError, match=rf"{name} is damaged .*: remove .* and run `autoresearch prepare` again"
    ):
        load(made.path).verify()


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_missing_file_is_found_without_hashing(tmp_path: Path, name: str) -> None:
    made = prepare(OPTIONS, tmp_path, FakeContainer())
    (made.path / name).unlink()
    with pytest.raises(DataError, match=name):
        find(tmp_path, OPTIONS)


def test_a_manifest_that_changed_since_it_was_read_is_found(tmp_path: Path) -> None:
    made = prepare(OPTIONS, tmp_path, FakeContainer())
    rewritten(made.path, created="now")
    with pytest.raises(DataError, match="changed since it was opened"):
        made.verify()


# ------------------------------------------------------------------------------------------- files of the user


def test_text_files_are_found_in_sub_folders_and_hidden_or_other_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    for name in ("b.txt", "sub/a.JSONL", "sub/c.parquet", "d.md", ".e.txt", "sub/.git/f.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "README").symlink_to(tmp_path / "d.md")
    assert [name for name, _ in text_files(tmp_path)] == ["b.txt", "sub/a.JSONL", "sub/c.parquet"]


@pytest.mark.parametrize("target", ["b.txt", "sub"])
def test_a_link_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"link\.txt is a link: put the file itself there"):
        text_files(tmp_path)


def test_a_folder_that_is_missing_or_without_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        text_files(tmp_path / "x")
    with pytest.raises(DataError, match=r"has no \.txt, \.jsonl, \.parquet file"):
        text_files(tmp_path)


def test_the_hash_of_a_folder_sees_names_and_bytes(tmp_path: Path) -> None:
    hashes = set()
    for name, text in (("a.txt", "1"), ("b.txt", "1"), ("b.txt", "2")):
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / name).write_text(text)
        hashes.add(content_hash(tmp_path))
    assert len(hashes) == 3


def test_every_data_set_names_a_licence() -> None:
    assert all(known.licence for known in DATASETS.values())
