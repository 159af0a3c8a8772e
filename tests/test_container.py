from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runner.sandbox import container, seccomp
from runner.sandbox.masks import masked_paths
from runner.trial import InputFile, Limits, OutputFile, Round, TrialSpec, VolumeMount

LIMITS = Limits(
    memory_bytes=2 << 30,
    cpus=1.5,
    pids=256,
    output_bytes=64 << 20,
    output_inodes=100,
    scratch_bytes=512 << 20,
    shm_bytes=32 << 20,
    log_bytes=4 << 20,
    startup_seconds=60,
    seconds=303,
)


@pytest.fixture
def spec(tmp_path: Path) -> TrialSpec:
    (tmp_path / "train.py").write_bytes(bytes(1000))
    return TrialSpec(
        phase="train",
        image="sha256:abc",
        command=("python3", "/in/train.py"),
        environment=(("HOME", "/tmp"),),
        files=(InputFile(name="train.py", path=tmp_path / "train.py"),),
        volumes=(
            VolumeMount(volume="p", target="/prepare"),
            VolumeMount(volume="d", target="/data", gated=True),
        ),
        outputs=(OutputFile(name="checkpoint.safetensors", max_bytes=1),),
        limits=LIMITS,
        labels=(("autoresearch", "1"),),
    )


def mount(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return {
        "Type": "volume",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "VolumeOptions": {"NoCopy": True},
    }


CONFINED = {
    "NetworkMode": "none",
    "ReadonlyRootfs": True,
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges", seccomp.SECURITY_OPTION],
    "MaskedPaths": masked_paths(gpu=False),
    "IpcMode": "private",
    "Init": True,
    "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": 4096, "Hard": 4096}],
    "RestartPolicy": {"Name": "no"},
    "AutoRemove": False,
    "Privileged": False,
}


def test_the_whole_body_of_a_trial(spec: TrialSpec) -> None:
    assert container.trial_body(spec, in_volume="i", out_volume="o") == {
        "Image": "sha256:abc",
        "Entrypoint": [],
        "Cmd": ["timeout", "-s", "KILL", "423", "python3", "/in/train.py"],
        "User": "10001:10001",
        "WorkingDir": "/tmp",
        "Env": ["HOME=/tmp", "NVIDIA_VISIBLE_DEVICES=void"],
        "Labels": {"autoresearch": "1", "autoresearch.role": "trial"},
        "NetworkDisabled": True,
        "HostConfig": {
            **CONFINED,
            "Memory": 2 << 30,
            "MemorySwap": 2 << 30,
            "PidsLimit": 256,
            "NanoCpus": 1_500_000_000,
            "Tmpfs": {
                "/tmp": "rw,noexec,nosuid,nodev,size=268435456,nr_inodes=65536,mode=1777",
                "/scratch": "rw,exec,nosuid,nodev,size=536870912,nr_inodes=65536,mode=1777",
            },
            "ShmSize": 32 << 20,
            "Mounts": [
                mount("i", "/in", read_only=True),
                mount("o", "/out", read_only=False),
                mount("p", "/prepare", read_only=True),
                mount("d", "/data", read_only=True),
            ],
            "LogConfig": {
                "Type": "local",
                "Config": {"max-size": str(4 << 20), "max-file": "1", "compress": "false"},
            },
            "DeviceRequests": [],
        },
    }


def test_the_whole_body_of_the_holder(spec: TrialSpec) -> None:
    assert container.holder_body(spec, in_volume="i", out_volume="o") == {
        "Image": "sha256:abc",
        "Entrypoint": [],
        "Cmd": ["python3", "-I", "-c", container.HOLDER_PROGRAM, "/hold/out", "963", "[]"],
        "User": "10002:10002",
        "Env": [],
        "Labels": {"autoresearch": "1", "autoresearch.role": "holder"},
        "NetworkDisabled": True,
        "HostConfig": {
            **CONFINED,
            "Memory": 64 << 20,
            "MemorySwap": 64 << 20,
            "PidsLimit": 32,
            "NanoCpus": 1_000_000_000,
            "Mounts": [
                mount("i", "/hold/in", read_only=False),
                mount("o", "/hold/out", read_only=True),
                mount("d", "/hold/0", read_only=False),
            ],
            "LogConfig": {
                "Type": "local",
                "Config": {"max-size": str(1 << 20), "max-file": "1", "compress": "false"},
            },
        },
    }


def test_the_holder_of_questions_keeps_the_answers_where_the_trial_cannot_reach_them(
    spec: TrialSpec, tmp_path: Path
) -> None:
    for name in ("q0", "q1"):
        (tmp_path / name).write_bytes(bytes(100))
    rounds = tuple(
        Round(
            question=InputFile(name=f"q{number}", path=tmp_path / f"q{number}"),
            answer=OutputFile(name=f"a{number}", max_bytes=5000),
        )
        for number in range(2)
    )
    asking = replace(spec, rounds=rounds, holder_image="sha256:other")
    body = container.holder_body(asking, in_volume="i", out_volume="o", kept_volume="k")

    assert body["Image"] == "sha256:other"
    assert body["Cmd"][-1] == '[["q0", "a0", 5000], ["q1", "a1", 5000]]'
    assert body["HostConfig"]["Mounts"][-1] == mount("k", "/hold/kept", read_only=False)
    assert body["HostConfig"]["Memory"] == (64 << 20) + 10_000 + (1 << 20)
    trial = container.trial_body(asking, in_volume="i", out_volume="o")
    assert "k" not in {mounted["Source"] for mounted in trial["HostConfig"]["Mounts"]}
    assert container.kept_volume_options(asking) == {
        "type": "tmpfs",
        "device": "tmpfs",
        "o": f"size={10_000 + (1 << 20)},nr_inodes=64,uid=10002,gid=10002,mode=0700,nosuid,nodev,noexec",
    }
    assert f"size={1200 + (1 << 20)}," in container.in_volume_options(asking)["o"]


def test_one_gpu_by_uuid_and_never_all(spec: TrialSpec) -> None:
    body = container.trial_body(replace(spec, gpu="GPU-123"), in_volume="i", out_volume="o")

    assert body["HostConfig"]["DeviceRequests"] == [
        {"Driver": "", "DeviceIDs": ["GPU-123"], "Capabilities": [["gpu", "compute", "utility"]]}
    ]
    assert body["HostConfig"]["MaskedPaths"] == masked_paths(gpu=True)
    # The engine adds the variable that names the GPU.
    assert body["Env"] == ["HOME=/tmp", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"]


@pytest.mark.parametrize("uuid", ["GPU-123", "MIG-123"])
def test_a_gpu_that_the_engine_knows_by_cdi_is_asked_for_by_cdi_alone(spec: TrialSpec, uuid: str) -> None:
    asking = replace(spec, gpu=uuid)
    names = frozenset({"nvidia.com/gpu=GPU-1", f"nvidia.com/gpu={uuid}", "nvidia.com/gpu=all"})
    legacy = container.trial_body(asking, in_volume="i", out_volume="o", cdi=frozenset({"nvidia.com/gpu=0", "nvidia.com/gpu=all"}))

    body = container.trial_body(asking, in_volume="i", out_volume="o", cdi=names)

    assert body["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={uuid}"]}]
    # NVIDIA's runtime, where it is the default, would add what this names.
    assert body["Env"] == ["HOME=/tmp", "NVIDIA_VISIBLE_DEVICES=void"]
    # Nothing else hangs on how it is asked for.
    assert legacy == container.trial_body(asking, in_volume="i", out_volume="o")
    for one in (body, legacy):
        del one["Env"], one["HostConfig"]["DeviceRequests"]
    assert body == legacy


def test_cdi_gives_no_gpu_to_a_trial_that_has_none(spec: TrialSpec) -> None:
    body = container.trial_body(spec, in_volume="i", out_volume="o", cdi=frozenset({"nvidia.com/gpu=None", "nvidia.com/gpu=all"}))

    assert body == container.trial_body(spec, in_volume="i", out_volume="o")
    assert body["HostConfig"]["DeviceRequests"] == []


def test_volumes_are_capped_by_the_kernel(spec: TrialSpec) -> None:
    assert container.in_volume_options(spec) == {
        "type": "tmpfs",
        "device": "tmpfs",
        "o": f"size={1000 + (1 << 20)},nr_inodes=64,uid=10002,gid=10002,mode=0755,nosuid,nodev,noexec",
    }
    assert container.out_volume_options(spec) == {
        "type": "tmpfs",
        "device": "tmpfs",
        "o": f"size={64 << 20},nr_inodes=100,uid=10001,gid=10001,mode=0711,nosuid,nodev,noexec",
    }
