"""The profile as data: what is in it, and what never may be."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from runner.sandbox import seccomp

REFUSED_BY_DOCKERS_DEFAULT = seccomp._words("""
    acct add_key bpf chroot clock_settime create_module delete_module fanotify_init finit_module fsconfig fsmount fsopen
    fspick get_kernel_syms get_mempolicy init_module ioperm iopl io_uring_enter io_uring_register io_uring_setup kcmp
    kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages
    nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise query_module quotactl
    quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node sethostname setdomainname setns settimeofday
    stime swapoff swapon sysfs _sysctl syslog umount umount2 unshare uselib userfaultfd ustat vhangup vm86 vm86old
""")
"""To a container without capabilities; io_uring since Docker 25."""

REFUSED_IN_ADDITION = seccomp._words("""
    adjtimex cachestat clock_adjtime execveat fadvise64 fadvise64_64 fanotify_mark inotify_add_watch inotify_init
    inotify_init1 io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioprio_set memfd_secret mincore
    modify_ldt mq_open pidfd_open pidfd_send_signal mseal msgget name_to_handle_at personality pkey_alloc process_vm_readv process_vm_writev ptrace
    readahead remap_file_pages seccomp semget setuid shmget splice sync sync_file_range syncfs tee vmsplice
""")


def allowed(call: str, *arguments: int, option: str = seccomp.SECURITY_OPTION) -> bool:
    """What the kernel would say, by the profile's text."""
    for rule in json.loads(option.removeprefix("seccomp="))["syscalls"]:
        if (
            call in rule["names"]
            and rule["action"] == "SCMP_ACT_ALLOW"
            and all(map(holds(arguments), rule["args"]))
        ):
            return True
    return False


def holds(arguments: tuple[int, ...]) -> Any:
    def one(condition: dict[str, Any]) -> bool:
        assert condition["op"] == "SCMP_CMP_MASKED_EQ"
        return bool(arguments[condition["index"]] & condition["value"] == condition["valueTwo"])

    return one


@pytest.mark.parametrize("call", [*REFUSED_BY_DOCKERS_DEFAULT, *REFUSED_IN_ADDITION])
def test_refused_whatever_the_arguments(call: str) -> None:
    assert call not in {name for group in seccomp.ALLOWED for name in group.calls}


@pytest.mark.parametrize(
    "call", ["read", "openat", "mmap", "ioctl", "futex", "execve", "wait4", "sched_setaffinity"]
)
def test_what_every_program_needs_is_allowed(call: str) -> None:
    assert allowed(call)


AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK = 1, 2, 10, 16, 17, 38, 40
SOL_SOCKET, SO_TYPE, SO_ERROR, SO_PEERCRED, SO_DOMAIN, SO_COOKIE, SO_NETNS_COOKIE = 1, 3, 4, 17, 39, 57, 71
F_SETLK, F_SETLEASE, F_GETLEASE, F_NOTIFY, F_DUPFD_CLOEXEC = 6, 1024, 1025, 1026, 1030
PTHREAD = 0x3D0F00
"""The flags with which libc makes a thread."""
CLONE_NEWUSER = 0x10000000
RWF_NOWAIT, RWF_DONTCACHE = 8, 0x80
PR_SET_NAME, PR_SET_SECCOMP, PR_SET_MEMORY_MERGE = 15, 22, 67


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("socket", (AF_UNIX, 1, 0), True),
        *(
            ("socket", (family, 1, 0), False)
            for family in (AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK)
        ),
        ("socketpair", (AF_UNIX, 1, 0), True),
        ("socketpair", (AF_VSOCK, 1, 0), False),
        *(
            ("getsockopt", (3, SOL_SOCKET, option), True)
            for option in (SO_TYPE, SO_ERROR, SO_PEERCRED, SO_DOMAIN, 55)
        ),
        *(
            ("getsockopt", (3, SOL_SOCKET, option), False)
            for option in (56, SO_COOKIE, SO_NETNS_COOKIE, 64 + SO_TYPE)
        ),
        ("getsockopt", (3, 6, SO_TYPE), False),
        ("fcntl", (3, F_SETLK), True),
        ("fcntl", (3, F_DUPFD_CLOEXEC), True),
        ("fcntl", (3, 0xFFFF << 32 | F_SETLK), True),
        ("fcntl", (3, 0xFFFF << 32 | F_SETLEASE), False),
        *(("fcntl", (3, command), False) for command in (F_SETLEASE, F_GETLEASE, F_NOTIFY)),
        ("clone", (PTHREAD,), True),
        ("clone", (PTHREAD | CLONE_NEWUSER,), False),
        ("preadv2", (3, 0, 1, 0, 0, 0), True),
        ("preadv2", (3, 0, 1, 0, 0, RWF_NOWAIT), False),
        ("pwritev2", (3, 0, 1, 0, 0, RWF_DONTCACHE), False),
        *(("madvise", (0, 4096, advice), True) for advice in (0, 4, 8, 14)),
        *(("madvise", (0, 4096, advice), False) for advice in (1, 2, 3, 12, 20, 21, 22, 25)),
        ("prctl", (PR_SET_NAME,), True),
        *(("prctl", (option,), False) for option in (PR_SET_SECCOMP, PR_SET_MEMORY_MERGE)),
    ],
)
def test_arguments_decide(call: str, arguments: tuple[int, ...], *, expected: bool) -> None:
    assert allowed(call, *arguments) is expected


def test_what_is_not_named_is_refused_and_no_call_is_named_twice() -> None:
    profile = seccomp.profile()
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    names = Counter(name for group in seccomp.ALLOWED for name in group.calls) + Counter(seccomp.FALL_BACK)
    assert [name for name, count in names.items() if count > 1] == []


def test_only_native_calls_of_two_processors() -> None:
    assert seccomp.profile()["archMap"] == [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
    ]


def test_every_group_has_a_reason_and_every_condition_names_an_argument() -> None:
    for group in seccomp.ALLOWED:
        assert group.reason.endswith(".")
        assert group.cases
        assert all(0 <= one.argument < 6 for case in group.cases for one in case)


def test_calls_whose_older_form_can_be_seen_fall_back() -> None:
    last = seccomp.profile()["syscalls"][-1]
    assert last == {"names": ["clone3", "openat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}


def test_our_own_code_with_a_network_has_sockets_in_addition_and_nothing_else() -> None:
    option = seccomp.security_option(network=True)
    for family in (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK):
        assert allowed("socket", family, 1, 0, option=option)
    for family in (AF_PACKET, AF_ALG, AF_VSOCK):
        assert not allowed("socket", family, 1, 0, option=option)
    here = seccomp.profile(network=True)["syscalls"]
    added = [rule for rule in here if rule not in seccomp.profile()["syscalls"]]
    assert {name for rule in added for name in rule["names"]} == {"socket", "getsockopt"}
