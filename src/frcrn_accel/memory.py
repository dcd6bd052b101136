"""Measure the available memory, and control how freed memory is reused."""

from __future__ import annotations

import ctypes
from pathlib import Path

from frcrn_accel.cgroups import CGROUP, OWN_GROUPS, control_groups

__all__ = ["available_memory_bytes", "keep_freed_memory"]

_MEMINFO = Path("/proc/meminfo")
# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def available_memory_bytes(
    cgroup: Path = CGROUP, meminfo: Path = _MEMINFO, own_groups: Path = OWN_GROUPS
) -> int | None:
    """Return the memory available to this process: the machine's, limited by its control groups.

    Args:
        cgroup: Mount point of the control group file system.
        meminfo: The file with Linux's memory statistics.
        own_groups: The file with the control groups of this process.

    Returns:
        Bytes; None on systems without the file.
    """
    try:
        free = 1024 * int(meminfo.read_text().split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError):
        return None
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder in control_groups("memory", cgroup, own_groups):
        for limit, used in names:  # of control group versions 2 and 1
            try:
                free = min(free, max(0, int((folder / limit).read_text()) - int((folder / used).read_text())))
            except (OSError, ValueError):  # the file does not exist, or holds "max"
                continue
    return free


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse. With other C libraries this does nothing.

    By default, glibc returns large blocks to the system at once. The system provides memory page by page and fills
    each page with zeros; a process that allocates and frees gigabytes per second spends more time on that than on
    using the memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS and musl lack the function, Windows the library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_TOP_PAD, 2**28)
