"""The profile in real containers: what it refuses is refused, and training works under it."""

from __future__ import annotations

import errno
import json
import platform
from typing import TYPE_CHECKING

import pytest

from tests.docker.inside import inside, started

if TYPE_CHECKING:
    from docker import DockerClient

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="calls by their numbers on x86-64"),
]

CALL = """
import ctypes, errno, json, mmap, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.memset(buffer, 0, 4096)
    ctypes.set_errno(0)
    result = libc.syscall(number, *(ctypes.c_long(value) for value in arguments))
    return "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
page = mmap.mmap(-1, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
image = os.open("/bin/sh", os.O_RDONLY)
unix = socket.socket(socket.AF_UNIX).detach()
own = os.open("/tmp", os.O_TMPFILE | os.O_RDWR)
space = ctypes.create_string_buffer(4096)
buffer = ctypes.addressof(space)
vector = (ctypes.c_long * 2)(buffer, 1)
vector_address = ctypes.addressof(vector)
"""

EXTRA = {
    "fadvise64": "221, image, 0, 4096, 4",
    "readahead": "187, image, 0, 4096",
    "mincore": "27, address, 4096, buffer",
    "cachestat": "451, image, buffer, buffer + 64, 0",
    "preadv2 RWF_NOWAIT": "327, image, vector_address, 1, 0, 0, 8",
    "pwritev2 RWF_DONTCACHE": "328, own, vector_address, 1, 0, 0, 0x80",
    "io_setup": "206, 1, buffer",
    "io_submit": "209, 0, 0, 0",
    "madvise WILLNEED": "28, address, 4096, 3",
    "madvise COLD": "28, address, 4096, 20",
    "madvise PAGEOUT": "28, address, 4096, 21",
    "madvise MERGEABLE": "28, address, 4096, 12",
    "prctl PR_SET_MEMORY_MERGE": "157, 67, 0, 0, 0, 0",
    "openat2 RESOLVE_CACHED": "437, -100, buffer + 120, buffer, 24",
    "inotify_init1": "294, 0",
    "fcntl F_SETLEASE": "72, own, 1024, 1",
    "fcntl F_NOTIFY": "72, image, 1026, 1",
    "memfd_secret": "447, 0",
    "ptrace": "101, 0xFFFF, 1, 0, 0",
    "socket AF_INET": "41, 2, 1, 0",
    "socket AF_INET6": "41, 10, 1, 0",
    "socket AF_NETLINK": "41, 16, 3, 0",
    "getsockopt SO_COOKIE": "55, unix, 1, 57, buffer, buffer + 64",
    "pidfd_open": "434, os.getpid(), 0",
    "socket AF_ALG": "41, 38, 5, 0",
    "syncfs": "306, own",
    "splice": "275, image, 0, own, 0, 1, 0",
    "shmget": "29, 0, 4096, 0x3B6",
    "adjtimex": "159, buffer",
    "personality": "135, 8",
}
"""Refused beyond Docker's default profile, with arguments that the kernel would otherwise answer in its own way."""

DEFAULT = {
    "mount": "165, 0, 0, 0, 0, 0",
    "unshare user": "272, 0x10000000",
    "clone user": "56, 0x10000011, 0, 0, 0, 0",
    "setns": "308, image, 0",
    "bpf": "321, 0, buffer, 0",
    "keyctl": "250, 0, 0, 0",
    "add_key": "248, buffer, buffer, 0, 0, 0",
    "request_key": "249, buffer, 0, 0, 0",
    "userfaultfd": "323, 1",
    "perf_event_open": "298, buffer, 0, -1, -1, 0",
    "io_uring_setup": "425, 1, buffer",
    "io_uring_enter": "426, 0, 0, 0, 0, 0",
    "socket AF_VSOCK": "41, 40, 1, 0",
    "process_vm_readv": "310, os.getpid(), vector_address, 1, vector_address, 1, 0",
    "kcmp": "312, 1, 1, 0, 0, 0",
    "move_pages": "279, 0, 0, 0, 0, 0, 0",
    "mbind": "237, 0, 0, 0, 0, 0, 0",
    "process_madvise": "440, 0, 0, 0, 0, 0",
    "open_by_handle_at": "304, 0, 0, 0",
    "name_to_handle_at": "303, image, buffer, buffer, buffer, 0",
    "fanotify_init": "300, 0, 0",
    "pidfd_getfd": "438, 0, 0, 0",
    "kexec_load": "246, 0, 0, 0, 0",
    "swapon": "167, buffer, 0",
    "syslog": "103, 3, buffer, 1",
}
"""Refused by Docker's default too, by that of some versions at least."""


def answers(
    engine: DockerClient, image: str, calls: dict[str, str], *, default: bool = False
) -> dict[str, str]:
    """Name of the error, or `done`, for each call; under the engine's default profile if `default`."""
    text = "\n".join(f"said[{name!r}] = call({arguments})" for name, arguments in calls.items())
    host = {"SecurityOpt": ["no-new-privileges"]} if default else {}
    said: dict[str, str] = json.loads(
        inside(engine, image, f"{CALL}\nsaid = {{}}\n{text}\nprint(json.dumps(said))", host=host)
    )
    return said


REFUSALS = {errno.errorcode[errno.EPERM], errno.errorcode[errno.ENOSYS]}


def test_every_refused_call_fails(engine: DockerClient, cpu_image: str) -> None:
    said = answers(engine, cpu_image, EXTRA | DEFAULT)
    assert {name: answer for name, answer in said.items() if answer not in REFUSALS} == {}


def test_it_is_the_profile_that_refuses(engine: DockerClient, cpu_image: str) -> None:
    """Under the engine's own profile the same calls reach the kernel, so the test above can fail."""
    said = answers(engine, cpu_image, EXTRA, default=True)
    refused = {name for name, answer in said.items() if answer in REFUSALS}
    # The kernel itself may lack these or forbid them to our user.
    assert refused <= {
        "cachestat",
        "memfd_secret",
        "socket AF_ALG",
        "madvise MERGEABLE",
        "prctl PR_SET_MEMORY_MERGE",
    }, said


def test_plain_forms_of_the_same_calls_work(engine: DockerClient, cpu_image: str) -> None:
    plain = {
        "preadv2": "327, image, vector_address, 1, 0, 0, 0",
        "madvise DONTNEED": "28, address, 4096, 4",
        "fcntl F_SETFD": "72, image, 2, 1",
        "socket AF_UNIX": "41, 1, 1, 0",
        "prctl PR_SET_NAME": "157, 15, buffer, 0, 0, 0",
    }
    assert answers(engine, cpu_image, plain) == dict.fromkeys(plain, "done")


@pytest.mark.parametrize(
    "code",
    ["ctypes.CDLL(None).syscall(0x40000000 + 39)", "ctypes.CFUNCTYPE(ctypes.c_int)(at)()"],
    ids=["x32", "32 bits"],
)
def test_calls_of_other_interfaces_end_the_process(engine: DockerClient, cpu_image: str, code: str) -> None:
    script = f"""
    import ctypes, mmap
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
    at = ctypes.addressof(ctypes.c_char.from_buffer(page))
    {code}
    """
    with started(engine, cpu_image, script) as identifier:
        assert engine.api.wait(identifier)["StatusCode"] == 128 + 31  # SIGSYS


def test_training_works(engine: DockerClient, cpu_image: str) -> None:
    said = inside(
        engine,
        cpu_image,
        """
        import warnings, torch
        from torch.utils.data import DataLoader, TensorDataset
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
        first = last = None
        for (x,) in DataLoader(TensorDataset(torch.randn(640, 64)), batch_size=32, num_workers=2):
            last = (model(x) - x).square().mean()
            first = first or last.item()
            last.backward(); optimiser.step(); optimiser.zero_grad()
        assert last < 0.9 * first, (first, last)
        assert torch.get_num_threads() > 1 or torch.multiprocessing.cpu_count() == 1
        torch.save(model.state_dict(), "/tmp/weights"); torch.load("/tmp/weights")
        print("trained")
        """,
    )
    assert said.splitlines()[-1] == "trained"


def test_processes_files_and_clocks_work(engine: DockerClient, cpu_image: str) -> None:
    said = inside(
        engine,
        cpu_image,
        """
        import asyncio, concurrent.futures, fcntl, mmap, os, shutil, signal, subprocess, tempfile, threading, time
        assert subprocess.run(["sh", "-c", "echo $((1 + 1))"], capture_output=True, check=True).stdout == b"2\\n"
        with concurrent.futures.ProcessPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
        async def child(): return await (await asyncio.create_subprocess_exec("true")).wait()
        assert asyncio.run(child()) == 0
        thread = threading.Thread(target=time.sleep, args=(0.01,)); thread.start(); thread.join()
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(5000)); file.flush(); fcntl.flock(file, fcntl.LOCK_EX); fcntl.lockf(file, fcntl.LOCK_SH)
            mmap.mmap(file.fileno(), 0).flush(); shutil.copy2(file.name, "/tmp/copy"); os.fsync(file.fileno())
            os.replace("/tmp/copy", "/tmp/other"); os.truncate("/tmp/other", 10); os.chmod("/tmp/other", 0o600)
        os.mkfifo("/tmp/pipe"); os.symlink("a", "/tmp/link"); os.link("/tmp/other", "/tmp/more"); shutil.copytree("/etc/default", "/tmp/tree")
        signal.setitimer(signal.ITIMER_REAL, 60); signal.alarm(0); os.sched_setaffinity(0, os.sched_getaffinity(0)); os.nice(1)
        assert os.sysconf("SC_PHYS_PAGES") > 0 and os.cpu_count() > 0 and len(os.urandom(4)) == 4
        print("worked")
        """,
    )
    assert said.splitlines()[-1] == "worked"
