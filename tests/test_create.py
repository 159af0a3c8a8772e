"""What an engine made, compared with what it was asked: every setting that isolates is missed when it is not there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import docker.errors
import pytest

from runner.errors import EngineError
from runner.sandbox import container
from runner.sandbox.create import create_container, differences
from runner.trial import Limits, TrialSpec, VolumeMount

SWAP = "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."
IMAGE = "sha256:" + "ab" * 32
LIMITS = Limits(
    memory_bytes=2 << 30, cpus=1.5, pids=256, output_bytes=64 << 20, scratch_bytes=512 << 20, startup_seconds=60, seconds=303
)


def body(gpu: str | None = None, cdi: frozenset[str] = frozenset()) -> dict[str, Any]:
    spec = TrialSpec(
        phase="train",
        image=IMAGE,
        command=("python3", "/in/train.py"),
        environment=(("HOME", "/tmp"), ("OMP_NUM_THREADS", "1")),
        volumes=(VolumeMount(volume="p", target="/prepare"),),
        limits=LIMITS,
        gpu=gpu,
        labels=(("autoresearch", "1"),),
    )
    return container.trial_body(spec, in_volume="i", out_volume="o", cdi=cdi)


def made(asked: dict[str, Any]) -> dict[str, Any]:
    """What an engine that does everything says afterwards, in the words of Docker 20.10."""
    asked = copy.deepcopy(asked)
    host = asked.pop("HostConfig")
    for one in host["Mounts"]:
        if not one["ReadOnly"]:
            del one["ReadOnly"]
    host["DeviceRequests"] = [{"Count": 0, "Capabilities": None, "Options": None, **one} for one in host["DeviceRequests"]]
    host["RestartPolicy"]["MaximumRetryCount"] = 0
    unset = {
        "Binds": None, "PortBindings": None, "VolumesFrom": None, "CapAdd": None, "GroupAdd": None, "Links": None, "Devices": None,
        "DeviceCgroupRules": None, "ExtraHosts": None, "CgroupParent": "", "PidMode": "", "UTSMode": "", "UsernsMode": "",
        "PublishAllPorts": False, "OomKillDisable": False, "CgroupnsMode": "host", "Runtime": "runc",
    }  # fmt: skip
    asked["Env"] = [*asked["Env"], "PATH=/usr/bin"]
    asked["Labels"] = {**asked["Labels"], "autoresearch.content": "of the image"}
    mounts = [
        {"Type": "volume", "Name": one["Source"], "Destination": one["Target"], "RW": not one.get("ReadOnly", False)}
        for one in host["Mounts"]
    ]
    return {"Image": asked["Image"], "Config": asked, "HostConfig": {**unset, **host}, "Mounts": mounts}


CDI = frozenset({"nvidia.com/gpu=GPU-1"})


@pytest.mark.parametrize(("gpu", "cdi"), [(None, CDI), ("GPU-1", frozenset()), ("GPU-1", CDI)])
def test_an_engine_that_does_everything_differs_in_nothing(gpu: str | None, cdi: frozenset[str]) -> None:
    assert differences(body(gpu, cdi), made(body(gpu, cdi))) == []


@pytest.mark.parametrize("cdi", [frozenset(), CDI])
@pytest.mark.parametrize(
    "change",
    [
        {"DeviceIDs": ["nvidia.com/gpu=all"]},
        {"DeviceIDs": ["GPU-2"]},
        {"DeviceIDs": None},
        {"Driver": "other"},
        {"Count": -1},
        {"Count": 2},
        {"Options": {"a": "b"}},
    ],
)
def test_another_gpu_than_the_one_that_was_asked_for_is_named(change: dict[str, Any], cdi: frozenset[str]) -> None:
    found = made(body("GPU-1", cdi))
    found["HostConfig"]["DeviceRequests"][0].update(change)

    (said,) = differences(body("GPU-1", cdi), found)

    assert said.startswith("DeviceRequests: asked ")


def test_a_second_gpu_is_named_and_so_is_a_word_to_nvidias_runtime_that_is_not_there() -> None:
    found = made(body("GPU-1", CDI))
    found["HostConfig"]["DeviceRequests"].append({"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-2"]})
    found["Config"]["Env"].remove("NVIDIA_VISIBLE_DEVICES=void")

    first, second = differences(body("GPU-1", CDI), found)

    assert first == "Env lacks NVIDIA_VISIBLE_DEVICES=void"
    assert second.startswith("DeviceRequests: asked ")


@pytest.mark.parametrize("key", sorted(set(body()["HostConfig"]) - {"Mounts", "AutoRemove", "Privileged"}))
def test_a_limit_that_is_ignored_is_named(key: str) -> None:
    """As engines ignore them: the setting is empty."""
    found = made(body("GPU-1"))
    found["HostConfig"][key] = type(found["HostConfig"][key])()

    (said,) = differences(body("GPU-1"), found)

    assert said.startswith(f"{key}: asked ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Privileged", True),
        ("AutoRemove", True),
        ("CapAdd", ["CAP_SYS_ADMIN"]),
        ("Binds", ["/:/host"]),
        ("Devices", [{"PathOnHost": "/dev/nvidia0"}]),
        ("PidMode", "host"),
        ("UTSMode", "host"),
        ("UsernsMode", "host"),
        ("CgroupParent", "/"),
        ("GroupAdd", ["0"]),
        ("PortBindings", {"80/tcp": []}),
        ("OomKillDisable", True),
        ("Memory", 4 << 30),
        ("NetworkMode", "bridge"),
        ("SecurityOpt", ["no-new-privileges"]),
        ("SecurityOpt", ["no-new-privileges", "seccomp=unconfined"]),
        ("DeviceRequests", [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]),
    ],
)
def test_what_was_not_asked_is_named(key: str, value: object) -> None:
    found = made(body())
    found["HostConfig"][key] = value

    (said,) = differences(body(), found)

    assert said.startswith(f"{key}: asked ")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: found["Config"].update(User=""), "User: asked 10001:10001, made "),
        (lambda found: found["Config"].update(Entrypoint=["/entrypoint"]), "Entrypoint: asked [], made ['/entrypoint']"),
        (lambda found: found["Config"].update(Cmd=["python3"]), "Cmd: asked "),
        (lambda found: found["Config"]["Env"].remove("OMP_NUM_THREADS=1"), "Env lacks OMP_NUM_THREADS=1"),
        (lambda found: found["Config"].update(Labels={"autoresearch": "1"}), "Labels lack autoresearch.role"),
        (lambda found: found["Mounts"].pop(0), "mount /in: asked i read-only, made none"),
        (lambda found: found["Mounts"][0].update(RW=True), "mount /in: asked i read-only, made i writable"),
        (lambda found: found["Mounts"].append({"Name": "x", "Destination": "/x", "RW": True}), "mount /x: asked none, made x writable"),
    ],
)
def test_the_rest_of_the_call_counts_too(spoil: Callable[[dict[str, Any]], object], said: str) -> None:
    found = made(body())
    spoil(found)

    (one,) = differences(body(), found)

    assert one.startswith(said)


def test_an_engines_own_defaults_for_what_was_not_asked_are_no_difference() -> None:
    found = made(body())
    found["HostConfig"]["Ulimits"].append({"Name": "nproc", "Soft": 64000, "Hard": 64000})
    found["HostConfig"]["LogConfig"]["Config"]["mode"] = "non-blocking"
    assert differences(body(), found, ["WARNING: IPv4 forwarding is disabled. Networking will not work."]) == []

    networked, there = body(), made(body())
    for one in (networked, there):
        one["HostConfig"]["NetworkMode"] = "bridge"
    assert differences(networked, there, ["IPv4 forwarding is disabled. Networking will not work."]) == [
        "it warns: IPv4 forwarding is disabled. Networking will not work."
    ]

    found["HostConfig"]["LogConfig"]["Config"]["max-size"] = "-1"
    assert differences(body(), found)[0].startswith("LogConfig: asked ")


def test_a_warning_is_an_error_unless_it_is_known() -> None:
    assert differences(body(), made(body()), ["Your kernel does not support pids limit. Pids limit discarded."]) == [
        "it warns: Your kernel does not support pids limit. Pids limit discarded."
    ]
    unlimited = made(body())
    unlimited["HostConfig"]["MemorySwap"] = -1

    assert differences(body(), unlimited, [SWAP]) == []
    assert differences(body(), unlimited)[0].startswith("MemorySwap: asked ")


class FakeEngine:
    """Stands for the client: makes what it is told to make, and remembers."""

    def __init__(self, makes: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.api, self._makes = self, makes
        self.removed: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self._body: dict[str, Any] = {}

    def create_container_from_config(self, body: dict[str, Any], name: str | None) -> dict[str, Any]:
        assert name == "one"
        self._body = body
        self.asked.append(body)
        return {"Id": "f00d" * 16, "Warnings": None}

    def inspect_container(self, identifier: str) -> dict[str, Any]:
        assert identifier == "f00d" * 16
        self._must_be_there()
        return self._makes(self._body)

    def remove_container(self, identifier: str, *, force: bool, v: bool) -> None:
        assert force
        assert v
        self._must_be_there()
        self.removed.append(identifier)

    def _must_be_there(self) -> None:
        if self.removed:
            message = "no such container"
            raise docker.errors.NotFound(message)


def test_what_is_not_as_asked_is_removed_and_refused() -> None:
    def forgetful(asked: dict[str, Any]) -> dict[str, Any]:
        found = made(asked)
        found["HostConfig"]["PidsLimit"] = 0
        return found

    engine = FakeEngine(forgetful)
    with pytest.raises(EngineError, match=r"PidsLimit: asked 256, made 0\. Nothing was started"):
        create_container(engine, body(), "one")  # type: ignore[arg-type]
    assert engine.removed == ["f00d" * 16]

    honest = FakeEngine(made)
    assert create_container(honest, body(), "one") == "f00d" * 16  # type: ignore[arg-type]
    assert honest.removed == []


@pytest.mark.parametrize("image", ["autoresearch/cpu:latest", "autoresearch/cpu", "sha256:abc", "cpu@sha256:" + "ab" * 32, ""])
def test_an_image_by_name_is_refused_before_the_engine_is_asked(image: str) -> None:
    engine = FakeEngine(made)

    with pytest.raises(EngineError, match="is a name, which may mean another image tomorrow"):
        create_container(engine, {**body(), "Image": image}, "one")  # type: ignore[arg-type]

    assert engine.asked == []


def test_another_image_than_was_asked_for_is_named() -> None:
    (said,) = differences(body(), made(body()) | {"Image": "sha256:" + "cd" * 32})
    assert said.startswith("Image: asked sha256:abab")

    # Podman's way of writing it.
    assert differences(body(), made(body()) | {"Image": "ab" * 32}) == []
