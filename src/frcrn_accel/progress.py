"""Report the progress of work that takes seconds to minutes."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "no_progress"]

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the number of units done, and their total."""


def no_progress(what: str, done: int, total: int) -> None:
    """Ignore progress: the default where a `Progress` is optional."""
