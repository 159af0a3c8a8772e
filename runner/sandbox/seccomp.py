"""The system calls a container of ours may make: an allow-list as data, each group with its reason.

Everything that is not named here is refused with EPERM.  Nothing is named that the default profile of Docker
refuses to a container without capabilities, and left out in addition is what

- asks about or steers the kernel's caches, which all containers of one kernel share: `mincore`, `cachestat`,
  `fadvise64`, `readahead`, `process_madvise`, advice on file pages, `preadv2` and `pwritev2` with flags (RWF_NOWAIT,
  RWF_DONTCACHE), native and io_uring asynchronous I/O (which take the same flags where no filter sees them), and
  `openat2` (RESOLVE_CACHED tells whether a name is in the dentry cache);
- tells of what others do: `inotify_*`, leases, merging of equal pages (MADV_MERGEABLE, PR_SET_MEMORY_MERGE),
  `adjtimex`, `pidfd_open` (its inode number counts every process since the machine started);
- acts on the whole machine: `sync`, `syncfs`;
- looks into other processes: `ptrace`, `process_vm_*`, `kcmp`, `pidfd_getfd`, among them PID 1, which has our uid;
- is attack surface that training has no use for: keys, io_uring, user-space page faults, performance counters, secret
  memory, file handles, System V IPC and message queues, and every socket family but AF_UNIX.  AF_INET is more than
  that: even on the loopback of a container without a network, the kernel takes source ports of TCP from tables that
  all network namespaces share, so one container can leave a bit for each port number, and a later one reads them all.
  (torch.distributed needs TCP even for a single process, and is not to be had.)

A filter sees numbers, never what a pointer points to and never which file a descriptor stands for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

INT = 0xFFFFFFFF
"""The kernel reads these arguments as 32 bits; the upper half of the register may hold anything."""
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
ENOSYS = 38
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
"""Without the 32-bit and x32 calls of the same processors: a process that makes one is killed."""


@dataclass(frozen=True)
class Is:
    """A condition on one argument of a call."""

    argument: int
    """From 0."""
    value: int
    mask: int = INT
    """Which bits of the argument are compared."""


@dataclass(frozen=True)
class Group:
    """Calls that are allowed for one reason."""

    reason: str
    calls: tuple[str, ...]
    cases: tuple[tuple[Is, ...], ...] = ((),)
    """A call is allowed if all conditions of one case hold."""

    def rules(self) -> Iterator[dict[str, Any]]:
        """In the engine's form, one rule a case: two conditions on the same argument would not combine."""
        for case in self.cases:
            conditions = [
                {"index": one.argument, "value": one.mask, "valueTwo": one.value, "op": "SCMP_CMP_MASKED_EQ"}
                for one in case
            ]
            yield {"names": list(self.calls), "action": "SCMP_ACT_ALLOW", "args": conditions}


def _one_of(argument: int, *values: int) -> tuple[tuple[Is, ...], ...]:
    return tuple((Is(argument, value),) for value in values)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ALLOWED = (
    Group(
        "Read and write open files, plainly.",
        _words("""
            read readv pread64 preadv write writev pwrite64 pwritev lseek close close_range dup dup2 dup3 sendfile
            copy_file_range fsync fdatasync ftruncate truncate fallocate flock
        """),
    ),
    Group(
        "Open files and look at them.",
        _words("""
            open openat creat access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs readlink
            readlinkat getdents getdents64 getcwd chdir fchdir umask
        """),
    ),
    Group(
        "Change the trial's own folders: the rest is mounted read-only. `mknod` makes pipes; devices need a capability.",
        _words("""
            mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat mknod mknodat
            chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utime utimes futimesat utimensat
            getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr
            removexattr lremovexattr fremovexattr
        """),
    ),
    Group(
        "preadv2 and pwritev2 as the plain calls they then are; libc makes them for `os.preadv`.",
        _words("preadv2 pwritev2"),
        _one_of(5, 0),
    ),
    Group(
        "fcntl: duplicate, descriptor and status flags, POSIX and open-file locks, owner and signal, pipe size, seals. "
        "Not leases (F_SETLEASE 1024 and F_GETLEASE) nor F_NOTIFY (1026).",
        _words("fcntl"),
        _one_of(1, *range(12), 15, 16, 36, 37, 38, 1030, 1031, 1032, 1033, 1034),
    ),
    Group(
        "Devices: the GPU is driven by ioctl alone; device cgroup and read-only mounts bound the rest.",
        ("ioctl",),
    ),
    Group(
        "Memory.",
        _words(
            "brk mmap munmap mremap mprotect msync mlock mlock2 mlockall munlock munlockall memfd_create membarrier"
        ),
    ),
    Group(
        "Advice on memory of one's own: DONTNEED and FREE for allocators, DONTFORK and DOFORK for drivers, HUGEPAGE and "
        "NOHUGEPAGE, dumps, WIPEONFORK and KEEPONFORK, POPULATE_WRITE. Not what steers file pages (RANDOM, SEQUENTIAL, "
        "WILLNEED, COLD, PAGEOUT, POPULATE_READ, COLLAPSE), nor MERGEABLE.",
        _words("madvise"),
        _one_of(2, 0, 4, 8, 10, 11, 14, 15, 16, 17, 18, 19, 23),
    ),
    Group(
        "Processes and threads.",
        _words("""
            fork vfork execve exit exit_group wait4 waitid set_tid_address set_robust_list get_robust_list rseq futex
            futex_waitv getpid getppid gettid getpgrp getpgid setpgid getsid setsid
            getuid geteuid getgid getegid getresuid getresgid getgroups capget
            getrlimit setrlimit prlimit64 getrusage
        """),
    ),
    Group("clone without a namespace of one's own.", ("clone",), ((Is(0, 0, NEW_NAMESPACES),),)),
    Group(
        "prctl: PDEATHSIG, DUMPABLE, NAME, CAPBSET_READ, TIMERSLACK, CHILD_SUBREAPER, NO_NEW_PRIVS, SVE length, "
        "THP_DISABLE, names of mappings.",
        ("prctl",),
        _one_of(0, 1, 2, 3, 4, 15, 16, 23, 29, 30, 36, 37, 38, 39, 41, 42, 51, 0x53564D41),
    ),
    Group("Thread-local storage and wide registers on x86-64.", ("arch_prctl",)),
    Group(
        "Signals.",
        _words("""
            rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigpending rt_sigtimedwait rt_sigqueueinfo
            rt_tgsigqueueinfo sigaltstack signalfd signalfd4 kill tkill tgkill pause
            restart_syscall
        """),
    ),
    Group(
        "Scheduling of one's own threads: OpenMP asks for and sets affinity.",
        _words("""
            sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
            sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
            getpriority setpriority getcpu
        """),
    ),
    Group(
        "Clocks and timers.",
        _words("""
            clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times alarm getitimer setitimer
            timer_create timer_settime timer_gettime timer_getoverrun timer_delete
            timerfd_create timerfd_settime timerfd_gettime
        """),
    ),
    Group(
        "Waiting.",
        _words("""
            poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2
            eventfd eventfd2 pipe pipe2
        """),
    ),
    Group(
        "Facts about the machine; libc's sorting and `os.sysconf` ask `sysinfo`.",
        _words("uname sysinfo getrandom"),
    ),
    Group(
        "Sockets between worker processes: AF_UNIX (1) alone.",
        ("socket", "socketpair"),
        _one_of(0, 1),
    ),
    Group(
        "Options of those sockets: SOL_SOCKET (1) from 0 to 55. SO_COOKIE (57) and SO_NETNS_COOKIE (71) are read from "
        "counters of the whole machine.",
        ("getsockopt",),
        tuple((Is(1, 1), Is(2, first, INT & -size)) for first, size in ((0, 32), (32, 16), (48, 8))),
    ),
    Group(
        "What is done with those sockets.",
        _words("""
            bind listen accept accept4 connect shutdown getsockname getpeername setsockopt
            sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg
        """),
    ),
)

NETWORK = (
    Group(
        "Sockets of a container that downloads: IPv4 (2), IPv6 (10), and netlink (16), by which libc learns which of them there is.",
        ("socket",),
        _one_of(0, 2, 10, 16),
    ),
    Group("Any option of those, the connection's among them.", ("getsockopt",)),
)
"""In addition, for our own code that has a network; never for a trial."""

FALL_BACK = ("clone3", "openat2")
"""Answered with ENOSYS, at which libc and others take the older call, whose arguments a filter can see."""


def profile(*, network: bool = False) -> dict[str, Any]:
    """The profile in the engine's form (that of Docker's `--security-opt seccomp=FILE`); with `NETWORK` if asked."""
    groups = (*ALLOWED, *NETWORK) if network else ALLOWED
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": name, "subArchitectures": []} for name in ARCHITECTURES],
        "syscalls": [
            *(rule for group in groups for rule in group.rules()),
            {"names": list(FALL_BACK), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
        ],
    }


def security_option(*, network: bool = False) -> str:
    """What a container's `SecurityOpt` takes: the engine's API wants the profile itself, not a path."""
    return "seccomp=" + json.dumps(profile(network=network), separators=(",", ":"))


SECURITY_OPTION = security_option()
"""A trial's."""
