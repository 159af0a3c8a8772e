"""The prepare container's confinement, what it is told of the user's network, and a copy that stalls."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from runner.errors import DataError, EngineError, UsageError
from runner.sandbox import job, seccomp
from runner.sandbox.job import Access, JobLimits, PrepareJob, prepare_body
from runner.sandbox.masks import masked_paths

VOLUMES = {"/in": "v-in", "/out": "v-out"}
LIMITS = JobLimits(memory_bytes=1 << 30, cpus=1.5, pids=99, log_bytes=1 << 20)


def test_the_container_is_confined() -> None:
    body = prepare_body("sha256:x", volumes=VOLUMES, labels={"a": "b"}, limits=LIMITS, network=False)
    host = body.pop("HostConfig")
    assert body.pop("Cmd")[0] == "sh"
    assert body == {
        "Image": "sha256:x",
        "Entrypoint": [],
        "User": "10001:10001",
        "WorkingDir": "/tmp",
        "Env": ["PYTHONPATH=/in", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1", "HOME=/tmp"],
        "Labels": {"a": "b"},
        "NetworkDisabled": True,
    }
    mounts = host.pop("Mounts")
    assert {(mount["Type"], mount["Source"], mount["Target"]) for mount in mounts} == {
        ("volume", "v-in", "/in"),
        ("volume", "v-out", "/out"),
    }
    assert host == {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", seccomp.SECURITY_OPTION],
        "MaskedPaths": masked_paths(gpu=False),
        "Memory": 1 << 30,
        "MemorySwap": 1 << 30,
        "PidsLimit": 99,
        "NanoCpus": 1_500_000_000,
        "IpcMode": "private",
        "Init": True,
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "RestartPolicy": {"Name": "no"},
        "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=268435456,mode=1777"},
        "LogConfig": {
            "Type": "local",
            "Config": {"max-size": "1048576", "max-file": "1", "compress": "false"},
        },
    }


def test_only_a_download_has_a_network() -> None:
    body = prepare_body("x", volumes=VOLUMES, labels={}, limits=LIMITS, network=True)
    assert (body["HostConfig"]["NetworkMode"], body["NetworkDisabled"]) == ("bridge", False)
    assert body["HostConfig"]["SecurityOpt"] == ["no-new-privileges", seccomp.security_option(network=True)]


def test_the_users_network_is_taken_from_the_usual_variables(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    access = Access.of(
        {
            "HTTPS_PROXY": "http://user:password@proxy:3128",
            "no_proxy": "localhost",
            "HTTP_PROXY": "",
            "SSL_CERT_FILE": str(bundle),
            "HF_TOKEN": "hf_secret",
            "OTHER": "x",
        }
    )
    assert access.proxies == {"https_proxy": "http://user:password@proxy:3128", "no_proxy": "localhost"}
    assert (access.authorities, access.token) == (bundle, "hf_secret")
    assert "password" not in repr(access)
    assert "hf_secret" not in repr(access)


def test_nothing_set_is_nothing_told() -> None:
    assert Access.of({}) == Access()


def test_a_bundle_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"REQUESTS_CA_BUNDLE names /nowhere/ca\.pem"):
        Access.of({"REQUESTS_CA_BUNDLE": "/nowhere/ca.pem"})


def test_the_archive_of_a_folder_has_the_text_files_alone(tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    long = f"{'x' * 150}.txt"
    for name in ("b.txt", "sub/deep/a.jsonl", "c.md", f"sub/{long}"):
        (tmp_path / name).write_text(name)
    stream = io.BytesIO(b"".join(job._archive(job._folder(tmp_path))))
    with tarfile.open(fileobj=stream) as archive:
        found = {member.name: member for member in archive.getmembers()}
        assert list(found) == ["sub", "sub/deep", "b.txt", "sub/deep/a.jsonl", f"sub/{long}"]
        assert all((member.uid, member.gid) == (10001, 10001) for member in found.values())
        assert {member.mode for member in found.values() if member.isreg()} == {0o400}
        content = archive.extractfile(f"sub/{long}")
        assert content is not None
        assert content.read().decode() == f"sub/{long}"


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(bytes(3 << 20))
    stream = job._archive([("a.txt", path)])
    next(stream)
    next(stream)
    path.write_bytes(b"")
    with pytest.raises(OSError, match="became shorter"):
        list(stream)


class Api:
    """Takes an archive as the engine's client does: what fails while it reads becomes a lost connection."""

    def put_archive(self, identifier: str, target: str, stream: Iterable[bytes]) -> bool:
        try:
            assert b"".join(stream)
        except OSError as error:
            raise requests.ConnectionError(error) from error
        return True


def test_a_file_of_the_user_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    client = SimpleNamespace(api=Api())
    copier = PrepareJob(client, "image", tmp_path)  # type: ignore[arg-type]
    (tmp_path / "there.txt").touch()
    copier._put("id", "/files", [("there.txt", tmp_path / "there.txt")])
    with pytest.raises(DataError, match=r"gone\.txt cannot be read: No such file"):
        copier._put("id", "/files", [("gone.txt", tmp_path / "gone.txt")])


def test_a_copy_that_stops_growing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "STALL_SECONDS", 0.3)
    path, ended = tmp_path / "file", threading.Event()
    path.touch()

    def stall() -> None:
        path.write_bytes(b"some")
        ended.wait(10)

    with pytest.raises(EngineError, match="stopped sending"):
        job._while_it_grows(stall, path)
    ended.set()


def test_what_a_copy_raises_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def fail() -> None:
        raise ValueError("this")

    with pytest.raises(ValueError, match="this"):
        job._while_it_grows(fail, tmp_path / "file")


def test_two_data_folders_have_different_labels(tmp_path: Path) -> None:
    one, other = job.job_labels(tmp_path / "a"), job.job_labels(tmp_path / "b")
    assert one != other
    assert one["autoresearch"] == "1"
    assert one["autoresearch.role"] == "prepare"


def test_the_cache_is_the_users_own() -> None:
    assert job.cache_volume() == f"autoresearch-cache-{os.getuid()}"
