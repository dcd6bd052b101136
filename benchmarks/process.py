"""Measures of the process that a benchmark runs in."""

from __future__ import annotations

from pathlib import Path


def peak_memory_kib() -> int:
    """Peak resident memory of this process, on Linux.

    Not getrusage: its peak takes in the process that this one was started from.
    """
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
