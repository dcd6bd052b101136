"""Write the size of the base install for each Python, and the version of PyAV that each gets, into docs/formats.md.

    python scripts/base_size.py [--docs docs/formats.md]

pip resolves and downloads the wheels of what pyproject.toml requires; no other interpreter is needed. The installed
size is that of the files in the wheels, without byte code.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
MARKS = "<!-- base install -->\n", "<!-- end of base install -->\n"


def requirements() -> list[str]:
    """Return the requirements of the package without extras."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return found


def measure(version: str) -> dict[str, tuple[str, float, float]]:
    """Return the version of each package, and the MB of its wheel and of its files."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "-qq", "download", "--dest", folder, "--only-binary=:all:"]
        command += ["--python-version", version, *(f"--platform={platform}" for platform in PLATFORMS)]
        subprocess.run([*command, *requirements()], check=True)
        sizes = {}
        for path in Path(folder).glob("*.whl"):
            name, number = path.name.split("-")[:2]
            with zipfile.ZipFile(path) as wheel:
                installed = sum(entry.file_size for entry in wheel.infolist())
            sizes[name] = number, path.stat().st_size / 1e6, installed / 1e6
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "formats.md")
    options = parser.parse_args()
    rows = [
        "| Python | download, MB | installed, MB | `av` installed, MB | version of `av` |",
        "|---|---|---|---|---|",
    ]
    for version in VERSIONS:
        sizes = measure(version)
        download, installed = sum(size[1] for size in sizes.values()), sum(size[2] for size in sizes.values())
        number, _, av_installed = sizes["av"]
        rows.append(f"| {version} | {download:.0f} | {installed:.0f} | {av_installed:.0f} | {number} |")
        print(rows[-1], flush=True)
    text = options.docs.read_text(encoding="utf-8")
    begin, end = MARKS
    block = begin + "\n".join(["", *rows, "", ""]) + end
    new, count = re.subn(f"{begin}.*{end}", lambda _: block, text, flags=re.DOTALL)
    if not count:
        raise SystemExit(f"{options.docs} has no lines {begin!r} and {end!r}")
    options.docs.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
