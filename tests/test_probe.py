"""What the probe's findings are, from invented facts: each that is not as it must be is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.errors import EngineError
from runner.sandbox.probe import (
    CPUS,
    LIMITS,
    Finding,
    host_sockets,
    judge,
    judge_own_kernel,
    probe,
    refuse,
    unlimited,
)
from runner.trial import Ending, Progress, Result, TrialSpec

FACTS: dict[str, Any] = {
    "user": [10001, 10001, [10001]],
    "capabilities": {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0},
    "no_new_privileges": True,
    "seccomp": True,
    "apparmor": "",
    "kernel": "6.1.0",
    "interfaces": ["lo"],
    "answered": [],
    "sockets": [],
    "mounts": {
        "/": [0, 0, ["ro", "relatime"]],
        "/proc": [0, 0, ["rw", "nosuid"]],
        "/dev": [64 << 20, 1000, ["rw", "nosuid"]],
        "/dev/null": [0, 0, ["rw"]],
        "/dev/full": [0, 0, ["rw"]],
        "/dev/shm": [4 << 20, 0, ["rw", "nosuid", "nodev", "noexec"]],
        "/in": [0, 0, ["ro"]],
        "/out": [4 << 20, 64, ["rw", "nosuid", "nodev", "noexec"]],
        "/tmp": [256 << 20, 65536, ["rw", "nosuid", "nodev", "noexec"]],
        "/scratch": [8 << 20, 65536, ["rw", "nosuid", "nodev"]],
    },
    "gpus": [],
    "runs": ["/scratch"],
    "open": [],
    "core": 0,
    "environment": ["HOME", "LANG", "PATH"],
    "processors": CPUS,
    "processes": 37,
    "memory_survived": False,
}


def test_nothing_is_found_where_everything_holds() -> None:
    assert list(judge(FACTS, gpus=())) == []
    assert list(judge({**FACTS, "gpus": ["nvidia0"]}, gpus=(None,))) == []
    refuse(())


@pytest.mark.parametrize("label", ["", "unconfined", "docker-default (complain)"])
def test_apparmor_has_to_be_in_force_where_the_engine_has_it(label: str) -> None:
    facts = {**FACTS, "apparmor": label}
    assert list(judge(facts, gpus=())) == []

    (found,) = judge(facts, gpus=(), apparmor=True)

    assert found.what == "AppArmor"
    assert list(judge({**FACTS, "apparmor": "docker-default (enforce)"}, gpus=(), apparmor=True)) == []


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda facts: facts.update(user=[0, 0, [0]]), "user"),
        (lambda facts: facts.update(user=[10001, 10001, [10001, 999]]), "user"),
        (lambda facts: facts["capabilities"].update(CapEff=1 << 21), "no capabilities"),
        (lambda facts: facts.update(no_new_privileges=False), "no new privileges"),
        (lambda facts: facts.update(seccomp=False), "seccomp"),
        (lambda facts: facts.update(answered=["keyctl (done)"]), "seccomp profile"),
        (lambda facts: facts.update(sockets=["AF_INET"]), "no network"),
        (lambda facts: facts.update(interfaces=["eth0", "lo"]), "no network"),
        (lambda facts: facts["mounts"].update({"/": [1, 1, ["rw"]]}), "a read-only root"),
        (lambda facts: facts["mounts"].pop("/"), "a read-only root"),
        (lambda facts: facts["mounts"].update({"/host": [1, 1, ["rw"]]}), "few places to write"),
        (lambda facts: facts["mounts"]["/out"].__setitem__(0, 0), "the size of /out"),
        (lambda facts: facts["mounts"]["/tmp"].__setitem__(0, 24 << 30), "the size of /tmp"),
        (lambda facts: facts["mounts"]["/scratch"].__setitem__(1, 0), "files in /scratch"),
        (lambda facts: facts["mounts"]["/out"][2].remove("nodev"), "/out nodev"),
        (lambda facts: facts.update(gpus=["nvidia0"]), "0 GPUs"),
        (lambda facts: facts.update(runs=["/tmp", "/scratch"]), "programs run from /scratch alone"),
        (lambda facts: facts.update(runs=[]), "programs run from /scratch alone"),
        (lambda facts: facts.update(open=["/proc/stat"]), "masked paths"),
        (lambda facts: facts.update(core=-1), "no core dumps"),
        (lambda facts: facts.update(environment=["HOME", "HTTP_PROXY"]), "an environment built from empty"),
        (lambda facts: facts.update(processors=1.9), "cpus"),
        (lambda facts: facts.update(processes=None), "pids"),
        (lambda facts: facts.update(processes=80), "pids"),
        (lambda facts: facts.update(memory_survived=True), "memory"),
    ],
)
def test_what_does_not_hold_is_named(spoil: Callable[[dict[str, Any]], object], what: str) -> None:
    facts = copy.deepcopy(FACTS)
    spoil(facts)

    (found,) = judge(facts, gpus=())

    assert found.what == what
    with pytest.raises(EngineError, match=f"{what}: "):
        refuse([found])


def test_a_gpu_that_was_asked_for_and_is_not_there_is_named() -> None:
    assert list(judge(FACTS, gpus=(None,))) == [Finding(what="1 GPUs", found="0 are there ()")]


def test_what_the_driver_mounts_is_allowed_with_a_gpu_alone() -> None:
    facts = copy.deepcopy(FACTS) | {"gpus": ["nvidia0"]}
    facts["mounts"]["/run/nvidia-persistenced/socket"] = [1, 1, ["rw", "nosuid"]]
    # As mounts of their own, where the engine may not make device files.
    facts["mounts"] |= {f"/dev/{name}": [0, 0, ["rw", "nosuid"]] for name in ("nvidia0", "nvidiactl", "dri/renderD128")}
    facts["environment"] += ["NVIDIA_CTK_LIBCUDA_DIR", "NVIDIA_VISIBLE_DEVICES"]

    assert list(judge(facts, gpus=(None,))) == []
    found = [one.what for one in judge(facts | {"gpus": []}, gpus=())]
    assert sorted(found) == ["an environment built from empty"] + ["few places to write"] * 4


class FakeSandbox:
    """Ends every container as it is told, with the log that it is told."""

    def __init__(self, said: str, ending: Ending = Ending.CRASHED) -> None:
        self._said, self._ending = said, ending
        self.specs: list[TrialSpec] = []

    def run(
        self,
        spec: TrialSpec,
        destination: Path,
        *,
        created: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> Result:
        del created, progress
        self.specs.append(spec)
        path = destination / "probe.log"
        path.write_text(self._said)
        return Result(ending=self._ending, reason="exit code 1", log_path=path)

    def reap(self, labels: dict[str, str]) -> int:
        raise AssertionError(labels)


def test_a_probe_that_says_nothing_is_no_clean_bill() -> None:
    unfinished = json.dumps({**FACTS, "memory_survived": None})
    for said in ("", "{}", "Traceback ...\nImportError: no ctypes", unfinished):
        with pytest.raises(EngineError, match=r"could not be tried: .* \(exit code 1\)"):
            probe(FakeSandbox(said), "sha256:1", gpu=None, labels={})


def test_a_limit_of_memory_that_ends_the_whole_container_is_one() -> None:
    unfinished = json.dumps({**FACTS, "memory_survived": None})

    assert probe(FakeSandbox(unfinished, Ending.OUT_OF_MEMORY), "sha256:1", gpu=None, labels={}) == ()


def test_it_asks_for_a_gpu_only_if_the_run_has_one() -> None:
    sandbox = FakeSandbox(json.dumps(FACTS))
    assert [one.what for one in probe(sandbox, "sha256:1", gpu="GPU-1", labels={"a": "b"})] == ["1 GPUs"]

    (spec,) = sandbox.specs
    assert (spec.gpu, spec.labels, spec.limits) == ("GPU-1", (("a", "b"),), LIMITS)


def test_an_engine_that_says_that_it_cannot_limit_is_taken_at_its_word() -> None:
    assert unlimited({"MemoryLimit": True, "PidsLimit": True, "CpuCfsQuota": True}) == ()
    assert unlimited({}) == ()
    found = unlimited({"MemoryLimit": False, "PidsLimit": False, "CpuCfsQuota": False})
    assert [one.what for one in found] == ["memory", "pids", "cpus"]


OWN: dict[str, Any] = FACTS | {
    "kernel": "4.4.0",
    "capabilities": {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": None},
    "no_new_privileges": False,
    "seccomp": False,
    "answered": ["keyctl (Function not implemented)"],
    "sockets": ["AF_INET"],
    "open": ["/proc/stat"],
    "processes": 0,
    "mounts": {
        "/": [0, 0, ["ro"]],
        "/dev": [12 << 30, 0, ["rw"]],
        "/dev/shm": [4 << 20, 0, ["rw", "noexec"]],
        "/out": [4 << 20, 64, ["rw"]],
        "/tmp": [256 << 20, 0, ["rw", "noexec"]],
        "/scratch": [8 << 20, 0, ["rw"]],
        "/sys/fs/cgroup/cpu": [0, 0, ["rw"]],
    },
}
"""As gVisor has them: the kernel that answers is a program in the container."""


def test_a_kernel_of_its_own_is_judged_by_what_it_can_hold() -> None:
    assert list(judge_own_kernel(OWN, "6.1.0", gpus=())) == []
    assert {one.what for one in judge(OWN, gpus=())} >= {"seccomp", "no network", "masked paths", "files in /tmp"}


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        # The engine took the name of the runtime and used its default, as Podman does.
        (lambda facts: facts.update(kernel="6.1.0"), "a kernel of its own"),
        (lambda facts: facts.update(interfaces=["eth0", "lo"]), "no network"),
        (lambda facts: facts.update(kernel="6.1.0-rc5-other"), "a kernel of its own"),
        (lambda facts: facts.update(kernel=""), "a kernel of its own"),
        (lambda facts: facts.update(sockets=["AF_INET", "AF_VSOCK"]), "no network"),
        (lambda facts: facts["mounts"]["/out"].__setitem__(1, 0), "files in /out"),
        (lambda facts: facts["mounts"].update({"/": [1, 1, ["rw"]]}), "a read-only root"),
        (lambda facts: facts["mounts"].update({"/host": [1, 1, ["rw"]]}), "few places to write"),
        (lambda facts: facts["mounts"]["/out"].__setitem__(0, 1 << 40), "the size of /out"),
        (lambda facts: facts.update(runs=["/tmp"]), "programs run from /scratch alone"),
        (lambda facts: facts.update(processors=1.9), "cpus"),
        (lambda facts: facts.update(memory_survived=True), "memory"),
        (lambda facts: facts.update(gpus=["nvidia0"]), "0 GPUs"),
    ],
)
def test_what_a_kernel_of_its_own_does_not_hold_is_named(spoil: Callable[[dict[str, Any]], object], what: str) -> None:
    facts = copy.deepcopy(OWN)
    spoil(facts)

    (found,) = judge_own_kernel(facts, "6.1.0", gpus=())

    assert found.what == what


@pytest.mark.parametrize("release", ["", "<unknown>", "None"])
def test_a_machine_that_does_not_tell_its_kernel_is_believed_nothing(release: str) -> None:
    (found,) = judge_own_kernel(OWN, release, gpus=())
    assert found.what == "a kernel of its own"


def test_a_runtime_that_is_registered_with_the_machines_sockets_is_refused() -> None:
    assert host_sockets({}) == ()
    assert host_sockets({"runtimeArgs": ["--network=none", "--host-uds=none"]}) == ()
    found = host_sockets({"runtimeArgs": ["--network=host", "--host-uds=all"]})
    assert [one.found for one in found] == ["the runtime is registered with --network=host", "the runtime is registered with --host-uds=all"]


def test_devices_of_tunnels_that_the_kernel_makes_everywhere_are_no_network() -> None:
    assert list(judge(FACTS | {"interfaces": ["ip6tnl0", "lo", "sit0", "tunl0"]}, gpus=())) == []


def test_another_card_than_the_one_that_was_asked_for_is_named() -> None:
    facts = FACTS | {"gpus": ["nvidia0"]}
    assert list(judge(facts, gpus=("nvidia0",))) == []

    (found,) = judge(facts, gpus=("nvidia1",))

    assert (found.what, found.found.partition(":")[0]) == ("GPU nvidia1", "another is there (nvidia0)")


def test_a_capability_of_which_the_kernel_does_not_tell_is_not_taken_for_none() -> None:
    facts = FACTS | {"capabilities": FACTS["capabilities"] | {"CapAmb": None}}
    assert [one.found for one in judge(facts, gpus=())] == ["the kernel does not tell of CapAmb"]


def test_advice_is_about_what_was_found() -> None:
    with pytest.raises(EngineError) as caught:
        refuse([Finding(what="AppArmor", found="x")])
    assert "apparmor_parser" in str(caught.value)
    assert "cgroup" not in str(caught.value)
