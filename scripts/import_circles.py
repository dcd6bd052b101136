"""Count the modules of a package that import each other in circles: `python scripts/import_circles.py [PACKAGE]`.

A circle is a set of modules each of which reaches every other through imports. Imports inside functions count, and so
do imports of packages: `from package.a import x` leads to the submodule `package.a.x` if there is one, else to
`package/a/__init__.py`. An import of `package.a.b` does not lead to `package/a/__init__.py`: Python runs that file
first, but the import uses nothing from it.

The first count takes imports under `if TYPE_CHECKING:` too, the second only what runs. The third is of units: the
modules and packages directly in the package, each taken as a whole, with type annotations.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

Graph = Mapping[str, frozenset[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the modules of a package that import each other in circles.")
    parser.add_argument(
        "package", type=Path, nargs="?", default=Path("src/frcrn_accel"), help="Folder of the package."
    )
    folder = parser.parse_args().package.resolve()

    graph = import_graph(folder, annotations=True)
    print_circles(f"files in circles, of {len(graph)}", circles(graph))
    print_circles("without imports for annotations", circles(import_graph(folder, annotations=False)))
    units = unit_graph(graph)
    print_circles(f"units in circles, of {len(units)}", circles(units))


def print_circles(title: str, found: list[list[str]]) -> None:
    print(f"{title}: {sum(map(len, found))}")
    for circle in found:
        print(f"  {len(circle)}: {' '.join(circle)}")


def import_graph(folder: Path, *, annotations: bool) -> Graph:
    """Return the modules that each module of a package imports, itself left out."""
    paths = {module_name(path, folder): path for path in sorted(folder.rglob("*.py"))}
    graph = {}
    for name, path in paths.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        imported = {
            module if module in paths else module.rpartition(".")[0]
            for statement in import_statements(tree, annotations)
            for module in imported_names(statement, package)
        }
        graph[name] = frozenset(imported & paths.keys() - {name})
    return graph


def module_name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_statements(node: ast.AST, annotations: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports in a tree, with those under `if TYPE_CHECKING:` or without."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and not annotations and "TYPE_CHECKING" in ast.unparse(node.test):
        children = node.orelse
    for child in children:
        yield from import_statements(child, annotations)


def imported_names(statement: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    """Yield the full names that a statement in a package imports: modules, or members of modules."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    base = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
    module = ".".join([*base, *([statement.module] if statement.module else [])])
    yield from (f"{module}.{alias.name}" for alias in statement.names)


def unit_graph(graph: Graph) -> Graph:
    """Return the imports between the modules and packages directly in the package."""

    def unit(name: str) -> str:
        return ".".join(name.split(".")[:2])

    units: dict[str, set[str]] = {unit(name): set() for name in graph}
    for name, imported in graph.items():
        units[unit(name)] |= {unit(other) for other in imported} - {unit(name)}
    return {name: frozenset(imported) for name, imported in units.items()}


def circles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one node, each sorted, the largest first."""
    reached = {name: reachable(graph, name) for name in graph}
    found = {tuple(sorted(other for other in reached[name] if name in reached[other])) for name in graph}
    return [list(circle) for circle in sorted(found, key=lambda circle: (-len(circle), circle)) if len(circle) > 1]


def reachable(graph: Graph, name: str) -> set[str]:
    """Return all nodes that a node leads to, itself included."""
    reached = {name}
    waiting = [name]
    while waiting:
        new = graph[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


if __name__ == "__main__":
    main()
