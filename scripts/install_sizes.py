"""Print what each extra takes on disk, as a table for docs/platforms.md: `nox -s install-sizes -- [EXTRA ...]`.

Each extra is installed into a folder of its own with uv, without bytecode, and the sizes of its files are added up.
"""

import argparse
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path

NONE = "none"
LARGE_BYTES = 10_000_000  # packages that the table names


def main() -> None:
    """Install and measure each extra."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", help="the wheel of frcrn-accel, or the folder of its repository")
    parser.add_argument(
        "extras", nargs="+", help=f"extras, '+' between those to install together; {NONE} for no extra"
    )
    parser.add_argument("--constraint", nargs="*", default=[], help="versions to install, such as torch==2.13.0+cpu")
    arguments = parser.parse_args()
    base: Counter[str] = Counter()
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}", file=sys.stderr)
    print("| extra | packages | MB | more than no extra, MB | packages of 10 MB and more |\n|---|---|---|---|---|")
    for extra in dict.fromkeys([NONE, *arguments.extras]):
        found = sizes_of(requirement(arguments.wheel, extra), arguments.constraint)
        print(row(extra, found, base), flush=True)
        base = base or found


def requirement(wheel: str, extra: str) -> str:
    """Return the requirement for an extra, or several with "+" between.

    >>> requirement("x.whl", "ort+serve")
    'x.whl[ort,serve]'
    """
    return wheel if extra == NONE else f"{wheel}[{extra.replace('+', ',')}]"


def sizes_of(package: str, constraints: list[str]) -> "Counter[str]":
    """Return the size of each installed package in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "packages")
        limits = Path(name, "constraints.txt")
        limits.write_text("\n".join(constraints))
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
        options = ["--target", str(folder), "--no-compile-bytecode", "--constraint", str(limits)]
        subprocess.run([*install, *options, package], check=True)
        return measure(folder)


def measure(site: Path) -> "Counter[str]":
    """Return the size in bytes of each package in a folder of packages, by its record of files."""
    return Counter(
        {
            found.metadata["Name"].lower(): sum(
                path.stat().st_size
                for file in found.files or ()
                if (path := Path(str(found.locate_file(file)))).is_file()
            )
            for found in distributions(path=[str(site)])
        }
    )


def row(extra: str, found: "Counter[str]", base: "Counter[str]") -> str:
    """Return the line of the table for an extra; `base` is what is installed without any.

    >>> row("ort", Counter({"numpy": 70_000_000, "onnxruntime": 60_400_000}), Counter({"numpy": 70_000_000}))
    '| `ort` | 2 | 130 | 60 | onnxruntime 60 |'
    """
    added = [(name, size) for name, size in found.most_common() if size >= LARGE_BYTES and name not in base]
    large = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in added)
    name = extra if extra == NONE else f"`{extra}`"
    more = found.total() - base.total()
    return f"| {name} | {len(found)} | {found.total() / 1e6:.0f} | {more / 1e6:.0f} | {large} |"


if __name__ == "__main__":
    main()
