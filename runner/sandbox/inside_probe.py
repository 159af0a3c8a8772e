"""What the probe container runs: tries what a trial must not be able to do, and prints what it could, one JSON object.

The runner passes this file's text to the image's python.  It is our own code under a trial's own profile; what it finds
is what the kernel does, whatever the engine says that it set.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time

SPIN_SECONDS = 0.5
EAGER = 2.0
"""Of the memory that there should be, so much is asked for."""

# Numbers of system calls on x86-64 and aarch64; each is refused by the profile.
CALLS = {
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "mincore": (27, 232),
    "ptrace": (101, 117),
    "unshare": (272, 97),
    "mount": (165, 40),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
}
SOCKETS = {"AF_INET": 2, "AF_NETLINK": 16, "AF_PACKET": 17, "AF_ALG": 38, "AF_VSOCK": 40}


def status() -> dict[str, str]:
    """/proc/self/status by name."""
    with open("/proc/self/status") as file:  # noqa: PTH123 - starts faster
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def label() -> str:
    """What AppArmor confines this process by; empty without AppArmor."""
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        try:
            with open(path) as file:  # noqa: PTH123
                return file.read().strip("\0\n ")
        except OSError:
            continue
    return ""


def interfaces() -> list[str]:
    """Names of the network's interfaces."""
    with open("/proc/net/dev") as file:  # noqa: PTH123
        return sorted(line.split(":")[0].strip() for line in file if ":" in line)


def answered_calls() -> list[str]:
    """The calls that were not refused for lack of permission."""
    column = 1 if os.uname().machine == "aarch64" else 0
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    for name, numbers in CALLS.items():
        ctypes.set_errno(0)
        # Arguments that make no call do anything if it is let through.
        result = libc.syscall(numbers[column], -1, 0, 0, 0, 0)
        if result != -1 or ctypes.get_errno() != errno.EPERM:
            found.append(f"{name} ({os.strerror(ctypes.get_errno()) if result == -1 else 'done'})")
    return found


def sockets() -> list[str]:
    """Families that a socket could be had of."""
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = (1, 2, 3, 5)  # stream, datagram, raw, sequenced packets
    return [name for name, number in SOCKETS.items() if any(libc.socket(number, kind, 0) != -1 for kind in kinds)]


def mounts() -> dict[str, list[object]]:
    """Mount points with their options, and bytes and inodes where something can be written."""
    found: dict[str, list[object]] = {}
    with open("/proc/self/mountinfo") as file:  # noqa: PTH123
        for line in file:
            words = line.split()
            point, options = words[4], words[5].split(",")
            if "rw" in options and not point.startswith(("/proc", "/sys")):
                try:
                    size = os.statvfs(point)
                    found[point] = [size.f_blocks * size.f_frsize, size.f_files, options]
                except OSError:
                    found[point] = [-1, -1, options]
            else:
                found[point] = [0, 0, options]
    return found


def forks(most: int) -> int | None:
    """How many children can live at once, up to `most`."""
    children: list[int] = []
    reached = False
    while len(children) < most:
        try:
            child = os.fork()
        except OSError:
            reached = True
            break
        if child == 0:
            time.sleep(60)
            os._exit(0)
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)
    return len(children) if reached else None


def survives(size: int) -> bool:
    """Whether a child that touches `size` bytes lives to tell."""
    child = os.fork()
    if child == 0:
        try:
            memory = mmap.mmap(-1, size)
            for at in range(0, size, 4096):
                memory[at] = 1
        except (OSError, MemoryError):
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def processors() -> float:
    """Processor seconds per second that two spinning children get."""
    began = time.monotonic()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            while time.monotonic() - began < SPIN_SECONDS:
                pass
            os._exit(0)
        children.append(child)
    used = 0.0
    for child in children:
        usage = os.wait4(child, 0)[2]
        used += usage.ru_utime + usage.ru_stime
    return used / (time.monotonic() - began)


def runs(folder: str) -> bool:
    """Whether a program that lies in `folder` can be started."""
    path = f"{folder}/program"
    try:
        with open("/bin/true", "rb") as source, open(path, "wb") as copy:  # noqa: PTH123
            copy.write(source.read())
        os.chmod(path, 0o700)  # noqa: PTH101
        return subprocess.run([path], check=False).returncode == 0
    except OSError:
        return False


def covered(path: str) -> bool | None:
    """Whether the engine's cover lies over `path`: an empty folder, or what is always empty; None: it is not there."""
    try:
        if os.path.isdir(path):  # noqa: PTH112
            return os.listdir(path) == []  # noqa: PTH208
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read(1) == b""
    except FileNotFoundError:
        return None
    except OSError:
        return True


def main(masked: list[str], memory: int, processes: int) -> None:
    """Find out, and say it before the test that may end this container.

    `memory` bytes there should be; `processes` are tried to be had at once, none if it is 0.
    """
    os.close(os.open("/out/ready", os.O_WRONLY | os.O_CREAT))
    told = status()
    facts = {
        "user": [os.getuid(), os.getgid(), os.getgroups()],
        "capabilities": {name: int(told[name], 16) if name in told else None for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privileges": told.get("NoNewPrivs") == "1",
        "seccomp": told.get("Seccomp") == "2",
        "apparmor": label(),
        "kernel": os.uname().release,
        "answered": answered_calls(),
        "interfaces": interfaces(),
        "sockets": sockets(),
        "mounts": mounts(),
        "gpus": sorted(name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdecimal()),  # noqa: PTH208
        "runs": [folder for folder in ("/tmp", "/scratch", "/out", "/dev/shm") if runs(folder)],
        "open": [path for path in masked if covered(path) is False],
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "environment": sorted(os.environ),
        "processors": processors(),
        "processes": forks(processes) if processes else 0,
        "memory_survived": None,
    }
    # The limit of memory may end this process too.
    print(json.dumps(facts), flush=True)  # noqa: T201 - this is how it speaks
    facts["memory_survived"] = survives(int(memory * EAGER))
    print(json.dumps(facts), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
