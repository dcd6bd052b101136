"""Bound the time that a process may take for one message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["ends_after"]


@contextmanager
def ends_after(limit_s: float, end: Callable[[], None]) -> Iterator[None]:
    """End a process if the block takes longer than a limit.

    Reading from the pipe of a process that is stopped in the middle of a message, and writing to one that does not
    read, blocks forever, even after waiting for data. Both fail once the process has ended.

    Args:
        limit_s: The limit.
        end: Ends the process. It is called in another thread.
    """
    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
