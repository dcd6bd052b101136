"""Find the features of an Arm CPU by the names that Linux gives them."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["AUXV", "arm_flags", "flags_of_auxv", "flags_of_sysctl", "flags_of_windows"]

AUXV = Path("/proc/self/auxv")
_WORD = struct.Struct("=QQ")
# Entries and bits of the auxiliary vector: arch/arm64/include/uapi/asm/hwcap.h of Linux.
_HWCAPS = {
    16: {"asimd": 1, "asimdhp": 10, "asimddp": 20, "sve": 22},
    26: {"i8mm": 13, "bf16": 14},
}
# Apple's "Determining Instruction Set Characteristics". Its chips have no SVE outside of streaming mode.
_SYSCTL = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}
# PF_ARM_... of winnt.h.
_WINDOWS = {19: "asimd", 67: "asimdhp", 43: "asimddp", 66: "i8mm", 68: "bf16", 46: "sve"}


def arm_flags(system: str) -> frozenset[str]:
    """Return the features of this Arm CPU that matter here; empty if the system does not list them.

    Args:
        system: The operating system, as `platform.system()` names it.
    """
    try:
        if system == "Linux" and sys.maxsize > 2**32:  # a 32-bit process sees the names of 32-bit Arm
            # Not /proc/cpuinfo: in an emulated container, that file describes the host's CPU.
            return flags_of_auxv(AUXV.read_bytes())
        if system == "Darwin":
            command = ["/usr/sbin/sysctl", "-i", *_SYSCTL]  # -i: no error for names that an older macOS does not know
            return flags_of_sysctl(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if system == "Windows":
            return flags_of_windows(ctypes.WinDLL("kernel32").IsProcessorFeaturePresent)  # type: ignore[attr-defined]
    except (AttributeError, OSError, subprocess.SubprocessError):
        pass
    return frozenset()


def flags_of_auxv(auxv: bytes) -> frozenset[str]:
    """Return the features in an auxiliary vector of 64-bit Linux, the content of `/proc/self/auxv`.

    >>> sorted(flags_of_auxv(struct.pack("=QQQQQQ", 16, 1 << 1 | 1 << 20, 26, 1 << 13, 0, 0)))
    ['asimd', 'asimddp', 'i8mm']
    """
    whole = len(auxv) // _WORD.size * _WORD.size
    found = dict(_WORD.iter_unpack(auxv[:whole]))
    return frozenset(
        name for entry, bits in _HWCAPS.items() for name, bit in bits.items() if found.get(entry, 0) >> bit & 1
    )


def flags_of_sysctl(text: str) -> frozenset[str]:
    """Return the features in the output of macOS's `sysctl`.

    >>> sorted(flags_of_sysctl("hw.optional.arm.FEAT_DotProd: 1\\nhw.optional.arm.FEAT_I8MM: 0\\n"))
    ['asimddp']
    """
    values = (line.partition(":") for line in text.splitlines())
    return frozenset(_SYSCTL[name] for name, _, value in values if name in _SYSCTL and value.strip() == "1")


def flags_of_windows(is_present: Callable[[int], int]) -> frozenset[str]:
    """Return the features that Windows knows.

    >>> sorted(flags_of_windows(lambda feature: feature in (19, 43)))
    ['asimd', 'asimddp']

    Args:
        is_present: `IsProcessorFeaturePresent`, which returns 0 for numbers that an older Windows does not know.
    """
    return frozenset(name for number, name in _WINDOWS.items() if is_present(number))
