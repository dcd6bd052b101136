"""Text for the terminal, and the JSON report that commands can write in addition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import typer

from frcrn_accel.atomic import replacing
from frcrn_accel.printable import printable

__all__ = ["echo", "report_file", "write_json"]


def report_file(path: Path | None, overwrite: bool) -> AbstractContextManager[Path | None]:
    """Return a context that gives the file to write a report to, or None if no report is wanted.

    Entering it fails if the report cannot be written; the report appears under its name when the block ends.

    Args:
        path: The report; None for none.
        overwrite: Replace an existing file.
    """
    return nullcontext() if path is None else replacing(path, overwrite=overwrite)


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write a report to the file that `report_file` gave; with None, write nothing."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def echo(line: str, *, err: bool = False) -> None:
    """Print a line, whose names may hold anything, to standard output.

    Args:
        line: The line; what is not printable in it is escaped.
        err: Print to standard error instead.
    """
    typer.echo(printable(line), err=err)
