"""Tries on a real container whether the engine does what isolates a trial; what it says that it set is another matter.

The container is a trial's own in everything but the program and how small its limits are.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import EngineError
from runner.protocols import Sandbox
from runner.sandbox.container import TMP_BYTES, TRIAL_USER
from runner.sandbox.masks import masked_paths
from runner.trial import Ending, Limits, TrialSpec

PROGRAM = Path(__file__).with_name("inside_probe.py").read_text(encoding="utf-8")
MEMORY, PIDS, CPUS = 96 << 20, 40, 0.5
SCRATCH, OUT, SHM = 8 << 20, 4 << 20, 4 << 20
LIMITS = Limits(
    memory_bytes=MEMORY,
    cpus=CPUS,
    pids=PIDS,
    output_bytes=OUT,
    output_inodes=64,
    scratch_bytes=SCRATCH,
    shm_bytes=SHM,
    log_bytes=1 << 20,
    startup_seconds=60,
    seconds=60,
)
MANY_PROCESSES = 100
"""More than twice as many as the probe may have; more would not fit into its memory."""
OWN_KERNEL_LIMITS = replace(LIMITS, memory_bytes=384 << 20, pids=256)
"""For a runtime with a kernel of its own, which is a program in the container: its memory and threads count too."""
CPU_TOLERANCE = 1.5
"""The kernel gives out processor time in slices of a tenth of a second, and half a second has few of them."""
ENVIRONMENT = (("HOME", "/tmp"), ("LANG", "C.UTF-8"))
WRITABLE: Mapping[str, int] = {"/tmp": TMP_BYTES, "/scratch": SCRATCH, "/out": OUT, "/dev/shm": SHM}
"""Where a trial may write, and how many bytes at most."""
OF_THE_KERNEL = (
    "/dev", "/dev/pts", "/dev/mqueue", "/dev/console",
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
)  # fmt: skip
"""Writable with every engine: what they hold is memory that counts as the container's, or nothing.  Where the engine may not make
device files (rootless, userns-remap), each is a mount of its own."""

INTERFACES = frozenset(
    ("lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0")
)
"""What there may be without a network: loopback, and what the kernel makes in every new network namespace, down and for ever so,
while the modules of these tunnels are loaded."""
HOST_SOCKETS = frozenset(("AF_VSOCK", "AF_ALG", "AF_PACKET"))
"""Of any kernel: ways to the machine, to its kernel's cryptography, to frames of a network."""
OPEN_RUNTIME = ("network=host", "host-uds")
"""Arguments of gVisor that hand sockets of the machine to a container."""
RULES = Path(__file__).read_text(encoding="utf-8")
"""This file: what held by other rules is tried again."""
OF_THE_DRIVER = ("/dev/nvidia", "/dev/dri/", "/run/nvidia-", "/var/run/nvidia-", "/tmp/nvidia-mps")
"""Device files and sockets that NVIDIA's toolkit, or its CDI specification, mounts for a container with a GPU.  Where the engine may
not make device files, each is a mount."""


ADVICE: Mapping[str, tuple[str, ...]] = {
    "Engines without root need cgroup v2 with its controllers delegated": ("memory", "pids", "cpus"),
    "A machine with swap needs the kernel's swap accounting": ("memory",),
    "AppArmor's profiles are loaded by apparmor_parser: install the package apparmor and start the engine again": ("AppArmor",),
    "--runtime is for a runtime with a kernel of its own, such as gVisor": ("a kernel of its own",),
    "If the engine's default runtime is gVisor, say so: --runtime runsc": ("seccomp",),
}
"""What to do, and on which findings."""


Gpus = tuple[str | None, ...]
"""Device files that there must be; None: of whatever name."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that does not hold."""

    what: str
    """What was asked for, in a word or two."""
    found: str


def has_apparmor(info: Mapping[str, Any]) -> bool:
    """Whether the engine that describes itself as `info` confines containers by AppArmor."""
    return any(one.startswith("name=apparmor") for one in info.get("SecurityOptions") or ())


def unlimited(info: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What the engine that describes itself as `info` says that it does not limit, whatever it is asked for.

    One without root that was given no control groups takes every limit without a word and shows it in its containers; here it tells.
    On a busy machine this is the only sign of the missing limit of processors.
    """
    told = (("memory", "MemoryLimit"), ("pids", "PidsLimit"), ("cpus", "CpuCfsQuota"))
    return tuple(Finding(what=what, found="the engine says that it cannot limit them here") for what, key in told if info.get(key) is False)


def probe(
    sandbox: Sandbox,
    image: str,
    *,
    gpu: str | None,
    labels: Mapping[str, str],
    apparmor: bool = False,
    host_kernel: str | None = None,
    device_file: str | None = None,
) -> tuple[Finding, ...]:
    """Everything that a trial's container could do and must not; nothing if the engine isolates.

    `apparmor`: the engine says that it has that too.  `host_kernel`: the release of the machine's kernel, if trials run by a
    runtime with a kernel of its own; None if they do not.  `device_file`: the name of the card's, if `gpu` is given.

    Takes a second or two.  Raises `EngineError` if the probe itself could not run, and what `Sandbox.run` raises.
    """
    masked = masked_paths(gpu=gpu is not None)
    limits, processes = (LIMITS, MANY_PROCESSES) if host_kernel is None else (OWN_KERNEL_LIMITS, 0)
    spec = TrialSpec(
        phase="probe",
        image=image,
        command=("python3", "-I", "-c", PROGRAM, json.dumps(masked), str(limits.memory_bytes), str(processes)),
        environment=ENVIRONMENT,
        limits=limits,
        gpu=gpu,
        labels=tuple(labels.items()),
    )
    with tempfile.TemporaryDirectory(prefix="autoresearch-probe-") as folder:
        result = sandbox.run(spec, Path(folder), created=_ignore, progress=_ignore)
        said = result.log_path.read_text(errors="replace") if result.log_path else ""
    facts = _facts(said, result.ending)
    if facts is None:
        message = f"the isolation could not be tried: the probe's container ended as {result.ending} ({result.reason}) and said: {said[-300:]!r}"
        raise EngineError(message)
    gpus = () if gpu is None else (device_file,)
    return tuple(judge(facts, gpus=gpus, apparmor=apparmor) if host_kernel is None else judge_own_kernel(facts, host_kernel, gpus=gpus))


def refuse(findings: Sequence[Finding]) -> None:
    """Raises `EngineError` naming all `findings`, if there are any."""
    if findings:
        listed = "; ".join(f"{one.what}: {one.found}" for one in findings)
        advice = {text: None for text, about in ADVICE.items() if any(one.what in about for one in findings)}
        message = (
            f"this container engine does not isolate a trial, so none is started. {listed}. "
            f"{''.join(f'{one}. ' for one in advice)}docs/security.md says which engines hold what"
        )
        raise EngineError(message)


def judge(facts: Mapping[str, Any], *, gpus: Gpus = (), apparmor: bool = False) -> Iterator[Finding]:
    """Pure: what of the probe's `facts` is not as it must be."""
    yield from _of_any_kernel(facts, gpus)
    held = [name for name, bits in facts["capabilities"].items() if bits is None]
    yield from _unless(not held, "no capabilities", f"the kernel does not tell of {', '.join(held)}")
    yield from _unless(facts["no_new_privileges"], "no new privileges", "a setuid program may gain some")
    yield from _unless(facts["seccomp"], "seccomp", "no filter is in force")
    confined = facts["apparmor"].endswith("(enforce)")
    yield from _unless(confined or not apparmor, "AppArmor", f"the engine has it, and it ran as {facts['apparmor'] or 'nothing'}")
    yield from _unless(not facts["answered"], "seccomp profile", f"the kernel answered {', '.join(facts['answered'])}")
    yield from _unless(not facts["sockets"], "no network", f"sockets of {', '.join(facts['sockets'])} can be had")
    yield from _of_mounts(facts["mounts"], OF_THE_DRIVER if gpus else ())
    yield from _unless(not facts["open"], "masked paths", f"{len(facts['open'])} can be read, {', '.join(facts['open'][:3])} among them")
    forked = facts["processes"]
    yield from _unless(forked is not None and forked < PIDS, "pids", f"{'any number of' if forked is None else forked} processes could be made, not {PIDS}")
    yield from _unless(not facts["memory_survived"], "memory", f"twice the {MEMORY >> 20} MiB could be used")


def judge_own_kernel(facts: Mapping[str, Any], host_kernel: str, *, gpus: Gpus = ()) -> Iterator[Finding]:
    """Pure: the same where the kernel that answers is the runtime's own program (gVisor), and not the machine's.

    It knows no seccomp filter of ours, has counters and sockets of its own, which nobody else sees, and its threads count as
    processes; that limit is read back and not tried, since it would end that program.
    """
    # By numbers alone: an engine spells the rest of a release in its own way.
    inside, outside = _numbers(facts["kernel"]), _numbers(host_kernel)
    own = inside is not None and outside is not None and inside != outside
    yield from _unless(own, "a kernel of its own", f"{facts['kernel']!r} answers, and the machine's is {host_kernel!r}")
    yield from _of_any_kernel(facts, gpus)
    host = sorted(HOST_SOCKETS & set(facts["sockets"]))
    yield from _unless(not host, "no network", f"sockets of {', '.join(host)} can be had")
    yield from _of_mounts(facts["mounts"], OF_THE_DRIVER if gpus else (), sizes_alone=True)
    yield from _unless(not facts["memory_survived"], "memory", f"twice the {OWN_KERNEL_LIMITS.memory_bytes >> 20} MiB could be used")


def host_sockets(runtime: Mapping[str, Any]) -> tuple[Finding, ...]:
    """What the engine's description of a runtime says that it hands to a container of the machine's sockets."""
    words = [str(word) for word in runtime.get("runtimeArgs") or ()]
    opened = [word for word in words if any(one in word for one in OPEN_RUNTIME) and not word.endswith("=none")]
    return tuple(Finding(what="no network", found=f"the runtime is registered with {word}") for word in opened)


def _numbers(release: object) -> str | None:
    found = re.match(r"[0-9]+\.[0-9]+", str(release))
    return found[0] if found else None


def _of_any_kernel(facts: Mapping[str, Any], gpus: Gpus) -> Iterator[Finding]:
    user, group = map(int, TRIAL_USER.split(":"))
    yield from _unless([*facts["user"][:2]] == [user, group] and set(facts["user"][2]) <= {group}, "user", f"ran as {facts['user']}")
    held = [name for name, bits in facts["capabilities"].items() if bits]
    yield from _unless(not held, "no capabilities", f"it has some ({', '.join(held)})")
    yield from _unless(set(facts["interfaces"]) <= INTERFACES, "no network", f"it has {', '.join(facts['interfaces'])}")
    yield from _unless(facts["runs"] == ["/scratch"], "programs run from /scratch alone", f"they run from {facts['runs'] or 'nowhere'}")
    yield from _unless(facts["core"] == 0, "no core dumps", f"of up to {facts['core']} bytes")
    foreign = set(facts["environment"]) - {name for name, _ in ENVIRONMENT} - {"PATH", "PWD", "HOSTNAME", "LC_CTYPE", "container"}
    # NVIDIA's toolkit tells a container with a GPU where its files are, by CDI too; a variable of ours keeps its runtime away.
    foreign -= {name for name in foreign if name.startswith("NVIDIA_") and (gpus or name == "NVIDIA_VISIBLE_DEVICES")}
    yield from _unless(not foreign, "an environment built from empty", f"it has {', '.join(sorted(foreign))}")
    there = facts["gpus"]
    yield from _unless(len(there) == len(gpus), f"{len(gpus)} GPUs", f"{len(there)} are there ({', '.join(there)})")
    wrong = len(there) == len(gpus) and any(name is not None and name not in there for name in gpus)
    yield from _unless(not wrong, f"GPU {', '.join(map(str, gpus))}", f"another is there ({', '.join(there)}): is the CDI specification old? `nvidia-ctk cdi generate`")
    used = facts["processors"]
    yield from _unless(used <= CPUS * CPU_TOLERANCE, "cpus", f"two processes got {used:.2f} processors of {CPUS}")


def _facts(said: str, ending: Ending | None) -> Mapping[str, Any] | None:
    """What the program found out, if it came to its end or to the limit of memory."""
    try:
        facts = dict(json.loads(said.splitlines()[-1]))
        whole = facts["memory_survived"] is not None or ending is Ending.OUT_OF_MEMORY
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    return facts if whole else None


def _of_mounts(mounts: Mapping[str, Any], allowed: tuple[str, ...], *, sizes_alone: bool = False) -> Iterator[Finding]:
    root = mounts.get("/", [0, 0, []])[2]
    yield from _unless("ro" in root, "a read-only root", "it can be written")
    for point, (size, inodes, options) in sorted(mounts.items()):
        if "rw" not in options or point == "/" or point in OF_THE_KERNEL or point.startswith(("/proc", "/sys")):
            continue
        if point not in WRITABLE:
            yield from _unless(point.startswith(allowed), "few places to write", f"{point} can be written")
            continue
        capped = 0 < size <= WRITABLE[point] + (1 << 20)
        yield from _unless(capped, f"the size of {point}", f"{size >> 20} MiB instead of {WRITABLE[point] >> 20}")
        if sizes_alone and point != "/out":
            continue
        yield from _unless(point == "/dev/shm" or 0 < inodes <= 1 << 16, f"files in {point}", f"{inodes} inodes")
        if sizes_alone:
            continue
        lacking = {"nosuid", "nodev"} - set(options)
        yield from _unless(not lacking, f"{point} {' and '.join(sorted(lacking))}", "not set")


def _unless(holds: bool, what: str, found: str) -> Iterator[Finding]:  # noqa: FBT001 - reads as a sentence
    if not holds:
        yield Finding(what=what, found=found)


def _ignore(_: object) -> None:
    pass
