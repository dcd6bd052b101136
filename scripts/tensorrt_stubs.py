"""Repair the type stubs of TensorRT, so that mypy can read them.

    pip install --no-deps --target FOLDER tensorrt-stubs==10.13.0.35.1
    python scripts/tensorrt_stubs.py FOLDER
    MYPYPATH=FOLDER mypy

The stubs are generated, and a few functions are not valid Python: an argument is called `in`, or one without a
default follows one with a default. The package lacks the marker that mypy requires, and would pass for an installed
TensorRT, so it goes into a folder of its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPAIRS = {
    r"\bin: (?=list\[)": "in_: ",
    r"power: Weights = None, channel_axis: int\)": "power: Weights = None, channel_axis: int = 0)",
}


def main(folder: Path) -> None:
    path = folder / "tensorrt_bindings" / "tensorrt.pyi"
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in REPAIRS.items():
        text, count = re.subn(pattern, replacement, text)
        if not count:
            sys.exit(f"the stubs have changed: nothing in {path} matches {pattern!r}")
    write(path, text)
    for stub in folder.glob("tensorrt*/*.pyi"):  # errors in the stubs themselves do not matter
        write(stub, "# mypy: ignore-errors\n" + stub.read_text(encoding="utf-8"))


def write(path: Path, text: str) -> None:
    """Replace a file by a new one: an installer may have linked it to the copy in its cache."""
    path.unlink()
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
