"""Pure: from a `TrialSpec` to the body of the engine's create call.  Reads as the list of what isolation is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runner.sandbox import seccomp
from runner.sandbox.masks import masked_paths
from runner.trial import TrialSpec

TRIAL_UID = 10001
TRIAL_USER = f"{TRIAL_UID}:{TRIAL_UID}"
HOLDER_UID = 10002
"""Owns the gated folders, so that only the holder can open them for the trial's user."""
HOLDER_USER = f"{HOLDER_UID}:{HOLDER_UID}"
HOLD = "/hold"
"""Where the holder sees the volumes: /hold/in, /hold/out, /hold/0, /hold/1, ..."""
HOLDER_MEMORY = 64 << 20
TMP_BYTES = 256 << 20
ORPHAN_GRACE_SECONDS = 60
"""A container whose runner died ends by itself this long after its deadline."""
CDI_KIND = "nvidia.com/gpu"
"""What NVIDIA's specifications call a GPU, and a part of one too."""

HOLDER_PROGRAM = Path(__file__).with_name("inside_holder.py").read_text(encoding="utf-8")

Body = dict[str, Any]


def trial_body(
    spec: TrialSpec, *, in_volume: str, out_volume: str, cdi: frozenset[str] = frozenset(), runtime: str | None = None
) -> Body:
    """The create call of the container that runs untrusted code.

    `cdi` are the names under which the engine gives out GPUs by CDI; one that is not among them is asked for as engines
    without CDI are.  `runtime` is the engine's name of what runs it; None: its default.
    """
    limits = spec.limits
    by_cdi = spec.gpu is not None and cdi_name(spec.gpu) in cdi
    deadline = limits.startup_seconds + limits.seconds + ORPHAN_GRACE_SECONDS
    mounts = [
        _volume(in_volume, "/in", read_only=True),
        _volume(out_volume, "/out", read_only=False),
        *(_volume(mount.volume, mount.target, read_only=True) for mount in spec.volumes),
    ]
    return {
        "Image": spec.image,
        "Entrypoint": [],
        "Cmd": ["timeout", "-s", "KILL", f"{deadline:.0f}", *spec.command],
        "User": TRIAL_USER,
        "WorkingDir": "/tmp",
        "Env": [*(f"{name}={value}" for name, value in spec.environment), _gpu_environment(spec.gpu, by_cdi=by_cdi)],
        "Labels": {**dict(spec.labels), "autoresearch.role": "trial"},
        "NetworkDisabled": True,
        "HostConfig": {
            **_confinement(
                memory=limits.memory_bytes, pids=limits.pids, cpus=limits.cpus, gpu=spec.gpu is not None
            ),
            "Tmpfs": {
                "/tmp": _tmpfs(TMP_BYTES, "noexec"),
                "/scratch": _tmpfs(limits.scratch_bytes, "exec"),
            },
            "ShmSize": limits.shm_bytes,
            "Mounts": mounts,
            "LogConfig": _log(limits.log_bytes),
            "DeviceRequests": _gpu(spec.gpu, by_cdi=by_cdi),
            **({} if runtime is None else {"Runtime": runtime}),
        },
    }


def holder_body(spec: TrialSpec, *, in_volume: str, out_volume: str, kept_volume: str | None = None) -> Body:
    """The create call of our own small container that keeps the volumes alive and works the gate.

    `kept_volume` is where it puts the answers of a spec with rounds.
    """
    limits = spec.limits
    deadline = limits.startup_seconds + limits.seconds + 10 * ORPHAN_GRACE_SECONDS
    gated = [mount for mount in spec.volumes if mount.gated]
    mounts = [
        _volume(in_volume, f"{HOLD}/in", read_only=False),
        _volume(out_volume, f"{HOLD}/out", read_only=True),
        *(_volume(mount.volume, f"{HOLD}/{index}", read_only=False) for index, mount in enumerate(gated)),
        *([_volume(kept_volume, f"{HOLD}/kept", read_only=False)] if kept_volume else []),
    ]
    rounds = json.dumps([[one.question.name, one.answer.name, one.answer.max_bytes] for one in spec.rounds])
    command = ["python3", "-I", "-c", HOLDER_PROGRAM, f"{HOLD}/out", f"{deadline:.0f}", rounds]
    labels = {**dict(spec.labels), "autoresearch.role": "holder"}
    return _ours(spec.holder_image or spec.image, command, mounts, labels, memory=HOLDER_MEMORY + _kept_bytes(spec))


def keeper_body(image: str, *, mounts: list[Body], seconds: float, labels: dict[str, str]) -> Body:
    """A container of ours that only sleeps, with `mounts`: what fills and checks a prepared volume."""
    command = ["sleep", f"{seconds:.0f}"]
    return _ours(image, command, mounts, {**labels, "autoresearch.role": "keeper"})


def _ours(
    image: str, command: list[str], mounts: list[Body], labels: dict[str, str], *, memory: int = HOLDER_MEMORY
) -> Body:
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": command,
        "User": HOLDER_USER,
        "Env": [],
        "Labels": labels,
        "NetworkDisabled": True,
        "HostConfig": {
            **_confinement(memory=memory, pids=32, cpus=1.0),
            "Mounts": mounts,
            "LogConfig": _log(1 << 20),
        },
    }


def in_volume_options(spec: TrialSpec, base: int = 0) -> dict[str, str]:
    """Driver options of the tmpfs volume that carries the inputs: as large as they are, and no larger.

    Here and below `base` is the host's uid of a container's root (`runner.sandbox.remap`).
    """
    questions = [one.question for one in spec.rounds]
    size = sum(file.path.stat().st_size for file in (*spec.files, *spec.gated_files, *questions))
    return _tmpfs_volume(size + (1 << 20), inodes=64, uid=base + HOLDER_UID, mode="0755")


def out_volume_options(spec: TrialSpec, base: int = 0) -> dict[str, str]:
    """Driver options of the tmpfs volume that the trial may write: the kernel caps bytes and inodes.

    The holder, another user, may look up names in it.
    """
    return _tmpfs_volume(spec.limits.output_bytes, inodes=spec.limits.output_inodes, uid=base + TRIAL_UID, mode="0711")


def kept_volume_options(spec: TrialSpec, base: int = 0) -> dict[str, str]:
    """Driver options of the tmpfs volume that only the holder sees: the answers, out of the trial's reach."""
    return _tmpfs_volume(_kept_bytes(spec), inodes=64, uid=base + HOLDER_UID, mode="0700")


def _kept_bytes(spec: TrialSpec) -> int:
    return sum(one.answer.max_bytes for one in spec.rounds) + (1 << 20 if spec.rounds else 0)


def volume_mount(volume: str, target: str, *, read_only: bool) -> Body:
    """One mount of a volume, for containers of ours."""
    return _volume(volume, target, read_only=read_only)


def _confinement(*, memory: int, pids: int, cpus: float, gpu: bool = False) -> Body:
    return {
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", seccomp.SECURITY_OPTION],
        "MaskedPaths": masked_paths(gpu=gpu),
        "Memory": memory,
        "MemorySwap": memory,
        "PidsLimit": pids,
        "NanoCpus": int(cpus * 1e9),
        "IpcMode": "private",
        "Init": True,
        "Ulimits": [
            {"Name": "core", "Soft": 0, "Hard": 0},
            {"Name": "nofile", "Soft": 4096, "Hard": 4096},
        ],
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,
        "Privileged": False,
    }


def _volume(source: str, target: str, *, read_only: bool) -> Body:
    return {
        "Type": "volume",
        "Source": source,
        "Target": target,
        "ReadOnly": read_only,
        "VolumeOptions": {"NoCopy": True},
    }


def _tmpfs(size: int, execute: str) -> str:
    return f"rw,{execute},nosuid,nodev,size={size},nr_inodes=65536,mode=1777"


def _tmpfs_volume(size: int, *, inodes: int, uid: int, mode: str) -> dict[str, str]:
    flags = f"size={size},nr_inodes={inodes},uid={uid},gid={uid},mode={mode},nosuid,nodev,noexec"
    return {"type": "tmpfs", "device": "tmpfs", "o": flags}


def _log(size: int) -> Body:
    # One file cannot be compressed: without compress=false the create succeeds and the start fails.
    return {"Type": "local", "Config": {"max-size": str(size), "max-file": "1", "compress": "false"}}


def cdi_name(uuid: str) -> str:
    """The full name of a GPU, as a CDI specification has it."""
    return f"{CDI_KIND}={uuid}"


def _gpu_environment(uuid: str | None, *, by_cdi: bool) -> str:
    """What NVIDIA's runtime reads where it is the engine's default; an image may ask it for every GPU, so this is always set.

    Without CDI the engine itself adds the variable that names the GPU.  With CDI it adds none and needs none: whatever the
    runtime gave then would come on top.
    """
    return "NVIDIA_VISIBLE_DEVICES=void" if uuid is None or by_cdi else "NVIDIA_DRIVER_CAPABILITIES=compute,utility"


def _gpu(uuid: str | None, *, by_cdi: bool) -> list[Body]:
    """One GPU by its UUID: never a number of them, never all, and by no index, which another boot may give to another card."""
    if uuid is None:
        return []
    if by_cdi:
        return [{"Driver": "cdi", "DeviceIDs": [cdi_name(uuid)]}]
    return [{"Driver": "", "DeviceIDs": [uuid], "Capabilities": [["gpu", "compute", "utility"]]}]
