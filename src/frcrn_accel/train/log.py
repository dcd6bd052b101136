"""The log of a run: one JSON object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frcrn_accel.atomic import replacing
from frcrn_accel.errors import TrainingError

__all__ = ["LOG", "append_entry", "cut_log", "read_log", "write_errors"]

LOG = "log.jsonl"


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the errors about a file of a run that cannot be written, as on a full disk, into a `TrainingError`.

    Args:
        path: The file.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # After a write that failed, PyTorch's writer closes its file and fails again, with a `RuntimeError`.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise TrainingError(f"{str(path)!r} cannot be written: {reason.strerror or reason}") from error


def append_entry(path: Path, entry: dict[str, Any]) -> None:
    """Append an entry to a log; numbers that are not finite become null.

    Raises:
        TrainingError: It cannot be written.
    """
    with write_errors(path), path.open("a", encoding="utf-8") as log:
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
        TrainingError: A line is damaged, or the log cannot be written.
    """
    kept = [line for line, entry in _entries(path) if entry.get("step", 0) <= step]
    with write_errors(path), replacing(path, overwrite=True) as temporary:
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
