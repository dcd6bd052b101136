"""Install type stubs of TensorRT for mypy: `python scripts/tensorrt_stubs.py FOLDER`, then MYPYPATH=FOLDER mypy.

The package `tensorrt-stubs` has generated stubs, in which a few functions are not valid Python: an argument is called
`in`, or one without a default follows one with a default. Those are repaired. The package lacks the marker that mypy
requires, and would pass for an installed TensorRT, so it goes into a folder of its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

STUBS = "tensorrt-stubs==10.13.0.35.1"
REPAIRS = {
    r"\bin: (?=list\[)": "in_: ",
    r"power: Weights = None, channel_axis: int\)": "power: Weights = None, channel_axis: int = 0)",
}


def main(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
    subprocess.run([*pip, STUBS], check=True)
    path = folder / "tensorrt_bindings" / "tensorrt.pyi"
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in REPAIRS.items():
        text, count = re.subn(pattern, replacement, text)
        if not count:
            sys.exit(f"{STUBS} has changed: nothing matches {pattern!r}")
    path.write_text(text, encoding="utf-8")
    for stub in folder.glob("tensorrt*/*.pyi"):  # errors in the stubs themselves do not matter
        stub.write_text("# mypy: ignore-errors\n" + stub.read_text(encoding="utf-8"), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
