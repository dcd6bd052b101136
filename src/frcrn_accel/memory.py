"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

__all__ = ["available_memory_bytes"]

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


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
