"""Notices: messages about files that are not errors, such as that part of a recording is missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from frcrn_accel.errors import AudioWarning

__all__ = ["collected_notices", "notify"]

_collected: ContextVar[list[str] | None] = ContextVar("frcrn_accel_notices", default=None)


def notify(text: str) -> None:
    """Report a notice of one line: to `collected_notices` around the caller, or else as an `AudioWarning`."""
    collected = _collected.get()
    if collected is None:
        warnings.warn(text, AudioWarning, stacklevel=3)
    elif text not in collected:
        collected.append(text)


@contextmanager
def collected_notices() -> Iterator[list[str]]:
    """Collect the notices of the block in a list, each text once, instead of issuing warnings.

    Unlike `warnings.catch_warnings`, this affects only the calling thread or task.
    """
    collected: list[str] = []
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)
