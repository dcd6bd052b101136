"""The memory of this process."""

from __future__ import annotations

import ctypes
from pathlib import Path

__all__ = ["available_memory_bytes", "keep_freed_memory"]

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
# Of glibc's mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def available_memory_bytes(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int | None:
    """What the machine has to give, limited by what the container has left; None where the system does not tell.

    Args:
        cgroup: Where the control group file system is mounted.
        meminfo: Linux's account of the machine's memory.
    """
    try:
        free = 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError):
        return None
    names = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit, used in names:  # of versions 2 and 1
        try:
            free = min(free, max(0, int((cgroup / limit).read_text()) - int((cgroup / used).read_text())))
        except (OSError, ValueError):  # there is no such file, or "max"
            continue
    return free


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for what is taken next; with other C libraries nothing happens.

    By default it gives large blocks back to the system at once. What is taken from the system comes page by page,
    each filled with zeros first, and where gigabytes are taken and freed in every second, that costs more than using
    them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl have no such function, Windows no such library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
