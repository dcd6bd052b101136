"""Identify the CPU, count the CPUs that this process may use, and measure how busy the machine is."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

from frcrn_accel.cgroups import CGROUP, OWN_GROUPS, control_groups

__all__ = ["affinity_cpus", "available_cpus", "busy_cpu_s", "cpu_identity", "quota_cpus"]

_STAT = Path("/proc/stat")
_CPUINFO = Path("/proc/cpuinfo")
_IDENTIFYING = ("model name", "flags", "CPU implementer", "CPU part", "Features")  # of x86, and of Arm


def available_cpus(cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> int:
    """Return the number of CPUs that this process may use: its affinity, limited by the quotas of its control groups.

    By default, engines size their thread pools by the host's cores, of which a container may have only a share.

    Args:
        cgroup: Mount point of the control group file system.
        own_groups: The file with the control groups of this process.

    Returns:
        At least 1.
    """
    cpus = affinity_cpus() or os.cpu_count() or 1
    return max(1, min(cpus, quota_cpus(cgroup, own_groups) or cpus))


def affinity_cpus() -> int | None:
    """Return the number of CPUs in this process's affinity; None on systems without it (macOS and Windows)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return None


def quota_cpus(cgroup: Path = CGROUP, own_groups: Path = OWN_GROUPS) -> int | None:
    """Return the CPU quota in CPUs, rounded up: the lowest of this process's control groups; None without a quota.

    systemd, Slurm and container runtimes give processes groups of their own. The quotas of all groups above hold,
    too.

    Args:
        cgroup: Mount point of the control group file system.
        own_groups: The file with the control groups of this process.
    """
    quotas = [
        quota for folder in control_groups("cpu", cgroup, own_groups) if (quota := _quota_of(folder)) is not None
    ]
    return math.ceil(min(quotas)) if quotas else None


def _quota_of(folder: Path) -> float | None:
    """Return the CPU quota of a control group in CPUs; None without one."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()  # version 1
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except (OSError, ValueError):
            return None
    if not quota.isdecimal() or not period.isdecimal() or int(quota) == 0 or int(period) == 0:  # "max" and -1: none
        return None
    return int(quota) / int(period)


@cache
def cpu_identity(cpuinfo: Path = _CPUINFO) -> str:
    """Return a text that is the same for CPUs of the same model with the same instructions.

    Args:
        cpuinfo: The file in which Linux describes its CPUs.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    fields = (line.partition(":") for line in lines)
    found = [f"{name.strip()}={value.strip()}" for name, _, value in fields if name.strip() in _IDENTIFYING]
    return "; ".join([platform.machine(), *found])


def busy_cpu_s(stat: Path = _STAT) -> float | None:
    """Return the CPU time spent since the machine started, on all processes and other virtual machines, in seconds.

    Args:
        stat: The file with Linux's CPU times.

    Returns:
        None on systems without the file.
    """
    try:
        fields = stat.read_text().split("\n", 1)[0].split()
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
