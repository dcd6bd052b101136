"""Files beside the code (workflows, changelog, citation, API reference) name what is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import frcrn_accel
from frcrn_accel import errors

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
REFERENCE = sorted((DOCS / "reference").glob("*.md"))
NAMES = [
    name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
]


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def nox_sessions() -> set[str]:
    return {node.name for node in ast.parse(read("noxfile.py")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("file", ["CONTRIBUTING.md", ".github/workflows/check.yml", ".github/workflows/release.yml"])
def test_nox_sessions_are_there(file):
    text = read(file)
    named = {name.replace("-", "_") for name in re.findall(r"\bnox -s ([a-z0-9_-]*[a-z0-9])", text)}
    for sessions in re.findall(r"session: \[(.*)\]", text):
        named |= set(sessions.split(", "))
    assert named <= nox_sessions()


def test_the_matrix_has_every_python_of_the_package():
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("pyproject.toml"))
    (matrix,) = re.findall(r"python: \[(.*)\]", read(".github/workflows/check.yml"))
    assert set(classifiers) <= set(matrix.replace('"', "").split(", "))


def test_the_version_is_in_the_changelog_and_the_citation():
    assert re.search(
        rf"^## \[{re.escape(frcrn_accel.__version__)}\] - \d{{4}}-\d\d-\d\d$", read("CHANGELOG.md"), re.MULTILINE
    )
    assert f"\nversion: {frcrn_accel.__version__}\n" in read("CITATION.cff")


def test_every_page_is_in_the_navigation():
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert set(re.findall(r": (\S+\.md)$", read("mkdocs.yml"), re.MULTILINE)) == pages


@pytest.mark.parametrize("file", ["CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(file):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", read(file)):
        assert (REPOSITORY / link).is_file(), link


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the frameworks that adapters import
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_names_what_is_there(name):
    try:
        assert resolve(name) is not None
    except ImportError as error:  # MissingExtraError is one
        if (error.name or "").startswith("frcrn_accel"):
            raise
        pytest.skip(str(error))


def test_the_reference_has_every_public_name():
    """Errors are all on one page, by their module."""
    shown = {name.rpartition(".")[2] for name in NAMES}
    assert set(frcrn_accel.__all__) - shown - set(errors.__all__) == {"__version__"}


def resolve(name: str) -> object:
    """Return the object of a dotted name: a module, or a member of one."""
    module, _, member = name.rpartition(".")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return getattr(importlib.import_module(module), member)
