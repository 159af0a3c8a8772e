"""The parts of /proc and /sys that a container of ours does not see.

Most of what is here are counters of the whole machine: a container can raise them, and one that runs later can read how
far they were raised, some ten bits a counter.  `vmstat` alone has about 200.
"""

from __future__ import annotations

DOCKERS_DEFAULT = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""Named because a list of one's own takes the place of the engine's."""

COUNTERS = (
    "/proc/buddyinfo",
    "/proc/cgroups",
    "/proc/diskstats",
    "/proc/fs",  # of the host's ext4 and its journal
    "/proc/irq",
    "/proc/key-users",
    "/proc/loadavg",
    "/proc/locks",
    "/proc/meminfo",
    "/proc/pagetypeinfo",
    "/proc/pressure",
    "/proc/schedstat",
    "/proc/slabinfo",
    "/proc/softirqs",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/fs",  # dentry-state, inode-nr, file-nr, aio-nr
    "/proc/sys/kernel/pty",
    "/proc/vmallocinfo",
    "/proc/vmstat",
    "/proc/zoneinfo",
)

SYS = ("/sys",)
"""Whole: training on a CPU asks for nothing there that it does not get from system calls."""

SYS_WITH_GPU = ("/sys/block", "/sys/fs", "/sys/kernel", "/sys/power")
"""The driver's libraries look for devices, NUMA nodes and modules in the rest."""


def masked_paths(*, gpu: bool) -> list[str]:
    """What the engine covers, with an empty file or folder; a path that the kernel does not have does no harm."""
    return sorted({*DOCKERS_DEFAULT, *COUNTERS, *(SYS_WITH_GPU if gpu else SYS)})
