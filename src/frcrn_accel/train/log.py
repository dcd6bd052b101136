"""The log of a run: one JSON object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frcrn_accel.atomic import replacing
from frcrn_accel.errors import TrainingError

__all__ = ["LOG", "append_entry", "cut_log", "read_log"]

LOG = "log.jsonl"


def append_entry(path: Path, entry: dict[str, Any]) -> None:
    """Append an entry to a log; numbers that are not finite become null."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """Return a value with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read a log. A last line that a kill cut short is left out.

    Raises:
        TrainingError: A line is damaged.
    """
    return [entry for _, entry in _entries(path)]


def cut_log(path: Path, step: int) -> None:
    """Remove the entries after a step, which will be logged again.

    Raises:
        TrainingError: A line is damaged.
    """
    kept = [line for line, entry in _entries(path) if entry.get("step", 0) <= step]
    with replacing(path, overwrite=True) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the complete lines of a log and what they hold."""
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8")
            entry = json.loads(text)
        except ValueError as error:
            raise TrainingError(f"line {number} of {str(path)!r} is damaged: delete that line") from error
        if not isinstance(entry, dict):
            raise TrainingError(f"line {number} of {str(path)!r} is not an entry of a log: delete that line")
        yield text, entry
