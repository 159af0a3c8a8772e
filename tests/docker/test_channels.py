"""What a claim, which sees all validation text, can leave in the kernel for an audit or the next training to find.

Each attack is a sender and a receiver in containers that follow one another.  The message has as many ones as zeros, the
receiver takes the half of its measurements that look most like ones, so a guess is right for half of the bits, give or
take 2 %.  Where a defence closes a channel, the same attack without that defence shows that it would have worked.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from runner import images
from runner.sandbox.masks import masked_paths
from tests.docker.conftest import STATE
from tests.docker.inside import inside, started

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = pytest.mark.docker

BITS = 512
GUESSED = 0.6
"""Four and a half standard deviations above one half."""
READ = 0.9
WITHOUT_OUR_PROFILE = {"SecurityOpt": ["no-new-privileges"]}


@pytest.fixture(scope="session")
def phases() -> images.PhaseImages:
    return images.image_ids("cpu", STATE)


@pytest.fixture
def message() -> list[int]:
    bits = [0, 1] * (BITS // 2)
    random.SystemRandom().shuffle(bits)
    return bits


def share_right(message: Sequence[int], measured: Sequence[float]) -> float:
    """Of the bits, if the smaller half of what was measured are the ones."""
    order = sorted(range(BITS), key=measured.__getitem__)
    ones = set(order[: BITS // 2])
    return sum((index in ones) == bool(bit) for index, bit in enumerate(message)) / BITS


def passed_on(
    engine: DockerClient,
    message: Sequence[int],
    scripts: tuple[str, str],
    sender: str,
    receiver: str,
    *,
    host: Mapping[str, Any] | None = None,
) -> float:
    """Run sender and receiver, one after the other; the share of bits that arrived."""
    inside(engine, sender, f"bits = {message}\n{scripts[0]}", host=host)
    measured = json.loads(inside(engine, receiver, f"count = {len(message)}\n{scripts[1]}", host=host))
    return share_right(message, measured)


# ---------------------------------------------------------------------------------------------- page cache

FILES = """
import json, os, time
files = []
for folder, _, names in sorted(os.walk("/usr/local/lib/python3.11/dist-packages/torch")):
    paths = [os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")]
    files += [path for path in paths if os.path.getsize(path) >= 8192]  # nothing reads them: they are compiled
files = files[:512]
assert len(files) == 512
"""
PAGE_CACHE = (
    FILES
    + """
for path, bit in zip(files, bits):
    file = os.open(path, os.O_RDONLY)
    try: os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    except PermissionError: pass
    if bit: os.pread(file, 1 << 20, 0)
    os.close(file)
""",
    FILES
    + """
times = []
for path in files:
    file = os.open(path, os.O_RDONLY)
    began = time.perf_counter_ns(); os.pread(file, 1, 0); times.append(time.perf_counter_ns() - began)
    os.close(file)
print(json.dumps(times))
""",
)


def test_the_page_cache_would_carry_a_message(
    engine: DockerClient, phases: images.PhaseImages, message: list[int]
) -> None:
    share = passed_on(engine, message, PAGE_CACHE, phases.claim, phases.claim, host=WITHOUT_OUR_PROFILE)
    assert share > READ


@pytest.mark.parametrize("host", [None, WITHOUT_OUR_PROFILE], ids=["confined", "images alone"])
@pytest.mark.parametrize("receiver", ["audit", "train"])
def test_the_page_cache_carries_nothing_to_another_phase(
    engine: DockerClient,
    phases: images.PhaseImages,
    message: list[int],
    receiver: str,
    host: Mapping[str, Any] | None,
) -> None:
    share = passed_on(engine, message, PAGE_CACHE, phases.claim, getattr(phases, receiver), host=host)
    assert share < GUESSED


# --------------------------------------------------------------------------- names that were looked up in vain

IMAGE_FOLDER = "/usr/local/lib/python3.11/dist-packages/torch/include/ATen/ops"


def dentries(folder: str) -> tuple[str, str]:
    """Sender and receiver; each bit is 16 names, of which the median time counts."""
    stem = f"{folder}/{uuid.uuid4().hex}"
    common = f"""
import json, os, statistics, time
def look(name):
    path = f"{stem}-{{name}}"
    began = time.perf_counter_ns()
    try: os.stat(path)
    except OSError: pass
    return time.perf_counter_ns() - began
"""
    return (
        common
        + "for index, bit in enumerate(bits):\n    if bit: [look(f'{index}-{one}') for one in range(16)]",
        common
        + "for index in range(500): look(f'warm-{index}')\n"
        + "print(json.dumps([statistics.median([look(f'{index}-{one}') for one in range(16)]) for index in range(count)]))",
    )


def test_missing_names_would_carry_a_message(
    engine: DockerClient, phases: images.PhaseImages, message: list[int]
) -> None:
    """Fully confined: no filter can tell one name from another."""
    assert passed_on(engine, message, dentries(IMAGE_FOLDER), phases.claim, phases.claim) > READ


@pytest.mark.parametrize("receiver", ["audit", "train"])
@pytest.mark.parametrize(
    "folder", [IMAGE_FOLDER, "/usr/bin", "/etc", "/", "/dev", "/proc", "/proc/sys/kernel"]
)
def test_missing_names_carry_nothing_to_another_phase(
    engine: DockerClient, phases: images.PhaseImages, message: list[int], folder: str, receiver: str
) -> None:
    share = passed_on(engine, message, dentries(folder), phases.claim, getattr(phases, receiver))
    assert share < GUESSED


# ------------------------------------------------------------------------------------------- source ports of TCP

PORTS = """
import json, socket
def source(port):
    with socket.socket() as near:
        near.connect(("127.0.0.1", port))
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        return near.getsockname()[1]
def listen(index):
    far = socket.socket(); far.bind(("127.0.0.1", 5000 + index)); far.listen(1000)
    return far
"""
SOURCE_PORTS = (
    PORTS
    + """
for index, bit in enumerate(bits):
    with listen(index):
        for _ in range(1000):  # each connection moves the next one's port up a little
            port = source(5000 + index)
            if port >> 7 & 1 != bit and 30 < port & 127 < 60: break
""",
    PORTS
    + """
found = []
for index in range(count):
    with listen(index): found.append(source(5000 + index) >> 7 & 1)
print(json.dumps(found))
""",
)


def test_ports_of_the_loopback_would_carry_a_message(
    engine: DockerClient, phases: images.PhaseImages, message: list[int]
) -> None:
    """Although neither container has a network: the kernel's table is one for all."""
    share = passed_on(engine, message, SOURCE_PORTS, phases.claim, phases.audit, host=WITHOUT_OUR_PROFILE)
    assert share > READ


def test_there_are_no_such_ports(engine: DockerClient, phases: images.PhaseImages) -> None:
    said = inside(
        engine,
        phases.claim,
        """
        import socket
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
            try: socket.socket(family, socket.SOCK_DGRAM)
            except PermissionError: print("refused")
        """,
    )
    assert said.split() == ["refused"] * 3


# ---------------------------------------------------------------------------------------------- what is in common


def test_no_counter_of_the_whole_machine_can_be_read(
    engine: DockerClient, phases: images.PhaseImages
) -> None:
    said = inside(
        engine,
        phases.audit,
        f"""
        import os
        for path in {masked_paths(gpu=False)}:
            try: left = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read()
            except OSError: left = None
            if left: print(path, left[:100])
        print(len(os.listdir("/sys")))
        """,
    )
    assert said.split() == ["0"]


def test_with_a_gpu_more_of_sys_stays_and_training_works_with_either(
    engine: DockerClient, phases: images.PhaseImages
) -> None:
    said = inside(
        engine,
        phases.train,
        "import os, torch; torch.ones(9, requires_grad=True).sum().backward(); print(sorted(os.listdir('/sys/devices'))[:1] != [])",
        host={"MaskedPaths": masked_paths(gpu=True)},
    )
    assert said.split() == ["True"]


def test_what_is_mounted_in_two_phases_is_the_init_program_alone(
    engine: DockerClient, phases: images.PhaseImages
) -> None:
    script = "import time; print(open('/proc/self/mountinfo').read() + '-- all', flush=True); time.sleep(60)"
    with started(engine, phases.claim, script) as claim, started(engine, phases.audit, script) as audit:
        seen = [mounts(engine, identifier) for identifier in (claim, audit)]
    # Control groups are one file system for all, seen from folders of their own, and covered like all of /sys.
    common = [point for key, point in seen[0].items() if key in seen[1] and not point.startswith("/sys/")]
    assert [point.rsplit("/", 1)[-1] for point in common] == ["docker-init"]


def wait_for(engine: DockerClient, identifier: str, word: str) -> str:
    """What a running container has printed, once that has the word in it."""
    give_up = time.monotonic() + 20
    while word not in (text := engine.api.logs(identifier).decode()):
        assert time.monotonic() < give_up, text
        time.sleep(0.1)
    return str(text)


def mounts(engine: DockerClient, identifier: str) -> dict[tuple[str, str], str]:
    """Of a running container: device and root within it, and where that is mounted."""
    text = wait_for(engine, identifier, "-- all")
    fields = [line.split() for line in text.partition("-- all")[0].splitlines()]
    return {(device, root): point for _, _, device, root, point, *_ in fields}
