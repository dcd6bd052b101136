"""The JSON file that a command writes beside what it shows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from frcrn_accel.atomic import replacing

__all__ = ["report_file"]


def report_file(path: Path | None, overwrite: bool) -> AbstractContextManager[Path | None]:
    """Where to write the report: refused at once if it cannot be written, in place when it is complete."""
    return nullcontext() if path is None else replacing(path, overwrite=overwrite)
