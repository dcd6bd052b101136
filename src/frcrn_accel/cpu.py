"""How many CPU threads this process may use, and how busy the machine is."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["affinity_cpus", "available_cpus", "busy_cpu_s", "quota_cpus"]

_CGROUP = Path("/sys/fs/cgroup")
_STAT = Path("/proc/stat")


def available_cpus(cgroup: Path = _CGROUP) -> int:
    """CPUs this process may use: its affinity, limited by its container's quota. At least 1.

    Engines that are not told size their thread pool by the host's cores, which a container has only a share of.

    Args:
        cgroup: Where the control group file system is mounted.
    """
    cpus = affinity_cpus() or os.cpu_count() or 1
    return max(1, min(cpus, quota_cpus(cgroup) or cpus))


def affinity_cpus() -> int | None:
    """CPUs this process is allowed on; None where systems have no such thing (macOS and Windows)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return None


def quota_cpus(cgroup: Path = _CGROUP) -> int | None:
    """The container's CPU quota in whole CPUs, rounded up; None without one."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()  # version 1
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:  # "max" and -1 mean no limit
        return None
    return math.ceil(int(quota) / int(period))


def busy_cpu_s(stat: Path = _STAT) -> float | None:
    """CPU time that has gone to all processes since the machine started, or to other virtual machines; else None.

    Args:
        stat: Where Linux tells it; other systems do not.
    """
    try:
        fields = stat.read_text().split("\n", 1)[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
