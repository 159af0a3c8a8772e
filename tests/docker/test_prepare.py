"""Preparation through the real container of the prepare image."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import numpy as np
import pytest

from runner import images
from runner.errors import DataError, EngineError
from runner.gates import HeldOut
from runner.prepare import SPLITS, Prepared, PrepareOptions, PrepareProgress, PrepareSpec, prepare
from runner.resources import resource
from runner.sandbox import job as jobs
from runner.sandbox.job import Access, JobLimits, PrepareJob, job_labels, reap
from runner.sandbox.translate import remove_volume
from tests.docker.conftest import STATE, ours
from tests.test_corpus_shards import parquet

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

pytestmark = pytest.mark.docker

PROGRAM = resource("trainer", "corpus")
KJV = PrepareOptions(vocab_size=1024, sequence_length=64)


@pytest.fixture(scope="session")
def prepare_image() -> str:
    """Engine id of the prepare image; `make images` builds it."""
    return images.image_id("prepare", STATE)


@pytest.fixture(autouse=True)
def cache(engine: DockerClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A download cache of the test's own."""
    name = f"autoresearch-cache-test-{os.getpid()}"
    monkeypatch.setattr(jobs, "cache_volume", lambda: name)
    yield name
    remove_volume(engine, name)


@pytest.fixture
def job(engine: DockerClient, prepare_image: str, tmp_path: Path) -> Iterator[PrepareJob]:
    """Runs the container; afterwards nothing of it is left."""
    yield PrepareJob(engine, prepare_image, PROGRAM)
    assert left(engine, tmp_path) == []


@pytest.fixture(scope="module")
def king_james(
    engine: DockerClient, prepare_image: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Prepared, list[PrepareProgress]]:
    """The embedded corpus, prepared once for the tests that only look at it, and what was said meanwhile."""
    heard: list[PrepareProgress] = []
    root = tmp_path_factory.mktemp("king-james")
    job = PrepareJob(engine, prepare_image, PROGRAM)
    made = prepare(KJV, root / "data", job, progress=heard.append)
    assert left(engine, root) == []
    assert prepare(KJV, root / "data", job) == made
    return made, heard


def left(engine: DockerClient, tmp_path: Path) -> list[str]:
    return ours(engine, f"{jobs.DATA_ROOT}={job_labels(tmp_path / 'data')[jobs.DATA_ROOT]}")


def test_the_king_james_text_is_prepared_soundly(king_james: tuple[Prepared, list[PrepareProgress]]) -> None:
    made, heard = king_james
    made.verify()
    counts = made.manifest["counts"]
    assert sum(counts["documents"].values()) == 1189
    assert 0.04 < made.val_bytes / 4_137_849 < 0.07
    assert counts["tokens"] == {split: rows * 65 for split, rows in counts["rows"].items()}
    assert {"tokenizer", "pack train", "pack val", "check"} <= {progress.stage for progress in heard}


def test_the_text_of_all_rows_is_plain_verses(king_james: tuple[Prepared, list[PrepareProgress]]) -> None:
    made, _ = king_james
    ranks = json.loads((made.path / "prepare" / "tokenizer.json").read_text())["ranks"]
    raw = [base64.b64decode(token) for token in ranks] + [b""]
    text = b"".join(raw[token] for split in SPLITS for token in made.rows(split).ravel()).decode(
        errors="replace"
    )
    # What stands in held-out text and elsewhere is cut out: 0.7 % of the book or less.
    assert 0.985 * 4_137_849 < len(text.encode()) < 4_137_849
    assert text.count("\n") == pytest.approx(31_102, rel=0.015)
    assert not any(digit in text for digit in "0123456789")


def test_no_run_of_13_words_is_held_out_and_in_training_or_held_out_twice(
    king_james: tuple[Prepared, list[PrepareProgress]],
) -> None:
    made, _ = king_james
    tokenizer = json.loads((made.path / "prepare" / "tokenizer.json").read_text())
    raw = [base64.b64decode(token) for token in tokenizer["ranks"]] + [b"|"]
    runs: dict[str, list[tuple[str, ...]]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for row in made.rows(split):
            for document in b"".join(raw[token] for token in row).decode(errors="replace").split("|"):
                # A row may begin and end in the middle of a word.
                spoken = re.findall(r"[a-z]+", document.lower())[1:-1]
                runs[split] += [tuple(spoken[start : start + 13]) for start in range(len(spoken) - 12)]
    held = runs["val"] + runs["test"]
    assert len(held) > 20_000
    assert len(set(held)) == len(held)
    assert not set(held) & set(runs["train"])
    dropped = made.manifest["counts"]["dropped"]
    assert 1000 < dropped["train"] < 12_000
    assert dropped["val"] + dropped["test"] < 3000


def test_the_shipped_files_repeat_nothing_of_the_text_and_a_verse_is_found(
    king_james: tuple[Prepared, list[PrepareProgress]],
) -> None:
    made, _ = king_james
    held_out = HeldOut.of(made)
    root = Path(__file__).parents[2]
    files = [
        root / "trainer" / "train.py",
        root / "program.md",
        *(root / "tests" / "candidates").glob("*.py"),
    ]
    for path in files:
        assert held_out.overlap(path.read_text(), "") is None
    assert held_out.overlap("# In the beginning God created the heaven and the earth.", "") is not None


def test_the_salt_is_in_no_file_but_its_own(king_james: tuple[Prepared, list[PrepareProgress]]) -> None:
    made, _ = king_james
    salt = (made.path / "salt").read_text().strip()
    holders = [
        path.name
        for path in made.path.rglob("*")
        if path.is_file() and (salt.encode() in path.read_bytes() or bytes.fromhex(salt) in path.read_bytes())
    ]
    assert holders == ["salt"]


def test_another_salt_is_another_split_of_the_same_text(
    king_james: tuple[Prepared, list[PrepareProgress]], job: PrepareJob, tmp_path: Path
) -> None:
    other = prepare(KJV, tmp_path / "data", job)
    rows = [{row.tobytes() for row in made.rows("val")} for made in (king_james[0], other)]
    assert len(rows[0] & rows[1]) < len(rows[0]) / 2


def test_a_folder_of_files_is_prepared(job: PrepareJob, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    lines = [json.dumps({"text": f"Number {number} comes before {number + 1}."}) for number in range(600)]
    (folder / "sub" / "a.jsonl").write_text("\n".join(lines))
    (folder / "b.txt").write_text("An ordinary paragraph of text.\n\n" * 600)
    (folder / "c.parquet").write_bytes(parquet([f"cell {number}" for number in range(100)]))
    (folder / "ignored.pdf").write_text("not text")
    options = PrepareOptions(dataset="files", vocab_size=300, sequence_length=16, val_rows=5, files=folder)
    made = prepare(options, tmp_path / "data", job)
    assert (made.val_rows, made.rows("val").shape) == (5, (5, 17))
    assert sum(made.manifest["counts"]["documents"].values()) >= 704


def test_a_file_that_cannot_be_read_is_named(job: PrepareJob, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "old.txt").write_bytes("café".encode("latin-1") * 99)
    options = PrepareOptions(dataset="files", vocab_size=300, sequence_length=16, files=tmp_path / "files")
    with pytest.raises(DataError, match=r"old\.txt is not UTF-8"):
        prepare(options, tmp_path / "data", job)


@contextmanager
def web_server(engine: DockerClient, image: str, files: dict[str, bytes]) -> Iterator[Container]:
    """A container on the bridge that serves `files` on port 8000, also as a proxy for http://hub.invalid."""
    root = "srv/http:/hub.invalid/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{root}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    command = ["python3", "-u", "-m", "http.server", "--directory", "/tmp/srv"]
    container = engine.containers.create(image, command, entrypoint=[], user="10001:10001", init=True)
    try:
        container.put_archive("/tmp", stream.getvalue())
        container.start()
        deadline = time.monotonic() + 20
        while b"Serving HTTP" not in container.logs():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        container.reload()
        yield container
    finally:
        container.remove(force=True)


def test_shards_are_downloaded_through_the_users_proxy_and_kept_in_the_cache(
    engine: DockerClient, prepare_image: str, tmp_path: Path, cache: str
) -> None:
    names = ("shard_00000", "shard_01821", "shard_01822")
    files = {
        f"{name}.parquet": parquet([f"{name} {number}: text {number * 7}." for number in range(400)])
        for name in names
    }
    (tmp_path / "ca.pem").write_text(Path(certifi.where()).read_text())
    with web_server(engine, prepare_image, files) as proxy:
        address = proxy.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        access = Access(
            proxies={"http_proxy": f"http://{address}:8000"},
            authorities=tmp_path / "ca.pem",
            token="hf_secret",
        )
        job = PrepareJob(engine, prepare_image, PROGRAM, access=access)
        for vocab_size in (300, 310):
            options = PrepareOptions(
                dataset="fineweb-edu", vocab_size=vocab_size, sequence_length=16, train_shards=1
            )
            made = prepare(options, tmp_path / "data", job, mirror="http://hub.invalid")
            assert sorted(made.manifest["sources"]) == sorted(files)
        assert proxy.logs().count(b'"GET http://hub.invalid/') == 3
    assert left(engine, tmp_path) == []
    assert cache in ours(engine, "autoresearch.role=cache")


def test_without_a_download_there_is_no_network(
    engine: DockerClient, prepare_image: str, tmp_path: Path
) -> None:
    seen = inside(engine, prepare_image, tmp_path, network=False)
    assert seen["interfaces"] == ["lo"]


def test_what_the_container_sees(engine: DockerClient, prepare_image: str, tmp_path: Path) -> None:
    """Not root, nothing of the host's environment, no capability, a read-only root, no secret in its inspection."""
    seen = inside(engine, prepare_image, tmp_path, network=True)
    assert seen["uid"] == 10001
    assert seen["capabilities"] == "0000000000000000"
    assert seen["root"] == "read-only"
    assert seen["secret_mode"] == "0o400"
    assert seen["token"] == "hf_secret"
    assert not any("hf_secret" in value or "SALT" in value for value in seen["environment"])
    assert "hf_secret" not in seen["inspection"]
    assert "SALT" not in seen["inspection"]
    assert {"eth0", "lo"} <= set(seen["interfaces"])


PROBE = """
import json, os, sys
def capabilities():
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff"))
try:
    open("/x", "w"); root = "writable"
except OSError:
    root = "read-only"
seen = {"uid": os.getuid(), "capabilities": capabilities(), "root": root,
        "interfaces": sorted(line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line),
        "environment": [f"{name}={value}" for name, value in os.environ.items()]}
if os.path.exists("/in/secrets.json"):
    seen["secret_mode"] = oct(os.stat("/in/secrets.json").st_mode & 0o777)
    seen["token"] = json.load(open("/in/secrets.json"))["token"]
print(json.dumps(seen))
sys.exit(3)
"""


def inside(engine: DockerClient, image: str, tmp_path: Path, *, network: bool) -> dict[str, Any]:
    """What a probe in the program's place sees, and what the engine tells of its container."""
    program, destination = tmp_path / "probe", tmp_path / "data" / "part"
    program.mkdir()
    destination.mkdir(parents=True)
    (program / "__main__.py").write_text(PROBE)
    lines: list[str] = []
    inspection: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        names = [name for name in left(engine, tmp_path) if name.startswith("/")]
        inspection.extend(json.dumps(engine.api.inspect_container(name)) for name in names)

    job = PrepareJob(engine, image, program, access=Access(token="hf_secret"))
    code = job(PrepareSpec(value={"salt": "SALT"}, network=network), destination, on_line)
    assert code == 3
    assert inspection
    return {**json.loads(lines[0]), "inspection": inspection[0]}


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("x = bytearray(300 << 20)", "more than its 0.1 GiB of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended from outside"),
    ],
)
def test_an_end_by_force_is_the_engines_fault(
    engine: DockerClient, prepare_image: str, tmp_path: Path, program: str, complaint: str
) -> None:
    (tmp_path / "__main__.py").write_text(program)
    job = PrepareJob(engine, prepare_image, tmp_path, limits=JobLimits(memory_bytes=128 << 20))
    with pytest.raises(EngineError, match=complaint):
        prepare(KJV, tmp_path / "data", job)
    assert left(engine, tmp_path) == []


def test_a_program_that_says_nothing_is_ended(
    engine: DockerClient, prepare_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SILENCE_SECONDS", 1.0)
    (tmp_path / "__main__.py").write_text("import time; time.sleep(99)")
    with pytest.raises(EngineError, match="said nothing"):
        prepare(KJV, tmp_path / "data", PrepareJob(engine, prepare_image, tmp_path))
    assert left(engine, tmp_path) == []


def test_outputs_that_are_not_the_files_expected_are_refused(
    engine: DockerClient, prepare_image: str, tmp_path: Path
) -> None:
    """A link in place of the rows is not followed."""
    (tmp_path / "__main__.py").write_text(
        textwrap.dedent("""
        import json, os
        names = ["prepare/data.json", "prepare/tokenizer.json", "prepare/token_bytes.npy",
                 "train/rows.bin", "val/rows.bin", "test/rows.bin"]
        for name in names:
            os.makedirs(os.path.dirname(f"/out/data/{name}"), exist_ok=True)
            os.symlink("/etc/passwd", f"/out/data/{name}")
        json.dump({"files": {name: {"bytes": 9999} for name in names}}, open("/out/data/manifest.json", "w"))
        """)
    )
    with pytest.raises(DataError, match="did not give the files it should: not a regular file"):
        prepare(KJV, tmp_path / "data", PrepareJob(engine, prepare_image, tmp_path))
    assert left(engine, tmp_path) == []


def test_what_a_killed_preparation_left_is_removed_by_the_next_or_by_reap(
    engine: DockerClient, prepare_image: str, tmp_path: Path
) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__main__.py").write_text(
        "import time\nwhile True: print('on', flush=True); time.sleep(0.2)"
    )
    script = textwrap.dedent(f"""
        from pathlib import Path
        from runner.prepare import PrepareOptions, prepare
        from runner.sandbox.connect import connect
        from runner.sandbox.job import PrepareJob
        job = PrepareJob(connect(), {prepare_image!r}, Path({str(tmp_path / "slow")!r}))
        prepare(PrepareOptions(vocab_size=1024, sequence_length=64), Path({str(tmp_path / "data")!r}), job)
    """)

    def killed() -> None:
        process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + 30
        while len(left(engine, tmp_path)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert reap(engine, tmp_path / "data") == 0
        process.send_signal(signal.SIGKILL)
        process.wait()

    killed()
    assert reap(engine, tmp_path / "data") == 3
    killed()
    made = prepare(KJV, tmp_path / "data", PrepareJob(engine, prepare_image, PROGRAM))
    assert np.asarray(made.rows("val")).max() < 1024
    assert left(engine, tmp_path) == []


def test_ctrl_c_leaves_nothing_but_the_salt(engine: DockerClient, prepare_image: str, tmp_path: Path) -> None:
    def interrupted(_: PrepareProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(KJV, tmp_path / "data", PrepareJob(engine, prepare_image, PROGRAM), progress=interrupted)
    assert left(engine, tmp_path) == []
    files = [path.name for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert sorted(files) == [".lock", "salt"]


def test_an_image_that_is_not_there_is_an_engine_error(engine: DockerClient, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="images build"):
        prepare(KJV, tmp_path / "data", PrepareJob(engine, f"sha256:{'0' * 64}", PROGRAM))
    assert left(engine, tmp_path) == []
