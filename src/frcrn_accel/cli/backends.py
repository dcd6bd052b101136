"""`frcrn-accel backends`."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from frcrn_accel.backends import backend_statuses

__all__ = ["backends"]


def backends() -> None:
    """List the backends: which can run here, and what the others need."""
    table = Table()
    table.add_column("backend", no_wrap=True)
    table.add_column("description")
    table.add_column("precisions")
    table.add_column("usable", no_wrap=True)
    table.add_column("problem")
    table.add_column("remedy", overflow="fold")
    for status in backend_statuses():
        problem = status.problem
        texts = (
            status.name,
            status.description,
            ", ".join(status.precisions),
            "yes" if status.usable else "no",
            problem.reason if problem else "",
            problem.remedy if problem else "",
        )
        table.add_row(*map(escape, texts))  # the brackets of an extra must not be taken for markup
    Console().print(table)
