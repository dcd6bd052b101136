from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of allocating, filling and freeing 64 MB again.
FAULTS = """
import resource
import numpy as np
from frcrn_accel.memory import keep_freed_memory

if {keep}:
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(8 << 20).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_on_request():
    default, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], check=True, capture_output=True).stdout)
        for keep in (False, True)
    )
    assert kept < 20 < default
