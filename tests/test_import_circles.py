"""`scripts/import_circles.py` on packages that are made up, and on this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run(folder: Path) -> list[str]:
    command = [sys.executable, REPOSITORY / "scripts" / "import_circles.py", folder]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.fixture
def write(tmp_path):
    """Write a package from the contents of its files."""

    def write_package(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / "p" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        for folder in {path.parent for path in (tmp_path / "p").rglob("*.py")} | {tmp_path / "p"}:
            (folder / "__init__.py").touch()
        return tmp_path / "p"

    return write_package


def test_no_circle(write):
    assert run(write({"a": "from p import b", "b": "import os, p.c", "c": ""})) == [
        "files in circles, of 4: 0",
        "without imports for annotations: 0",
        "units in circles, of 4: 0",
    ]


def test_imports_inside_functions_count(write):
    assert run(write({"a": "from p.b import x", "b": "x = 1\ndef f():\n    import p.a", "c": "from p import a"})) == [
        "files in circles, of 4: 2",
        "  2: p.a p.b",
        "without imports for annotations: 2",
        "  2: p.a p.b",
        "units in circles, of 4: 2",
        "  2: p.a p.b",
    ]


def test_imports_for_annotations_are_counted_apart(write):
    checked = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import x\nelse:\n    import p.c"
    assert run(write({"a": "from p.b import y\nx = 1", "b": checked, "c": "from p import b"})) == [
        "files in circles, of 4: 3",
        "  3: p.a p.b p.c",
        "without imports for annotations: 2",
        "  2: p.b p.c",
        "units in circles, of 4: 3",
        "  3: p.a p.b p.c",
    ]


def test_a_name_from_a_package_leads_to_its_init(write):
    """And a submodule to the submodule, by absolute and by relative imports."""
    files = {
        "u/a": "from p.u import name",
        "u/__init__": "from .a import name",
        "v/a": "from . import b",
        "v/b": "from ..v import c",
        "v/c": "",
        "w": "from p.u import a",
    }
    assert run(write(files)) == [
        "files in circles, of 8: 2",
        "  2: p.u p.u.a",
        "without imports for annotations: 2",
        "  2: p.u p.u.a",
        "units in circles, of 4: 0",
    ]


def test_units_can_be_in_a_circle_that_no_files_are_in(write):
    assert run(write({"u/a": "import p.v.a", "u/b": "", "v/a": "", "v/b": "from p.u.b import x"}))[0::2] == [
        "files in circles, of 7: 0",
        "units in circles, of 3: 2",
    ]


def test_the_units_of_this_package_are_free_of_circles():
    (units,) = (line for line in run(REPOSITORY / "src" / "frcrn_accel") if line.startswith("units"))
    assert units.endswith(": 0")


def test_no_files_of_this_package_are_in_a_circle():
    counts = [line.rpartition(": ")[2] for line in run(REPOSITORY / "src" / "frcrn_accel")]
    assert counts == ["0", "0", "0"]
