"""Close something once the calls that use it are done."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

__all__ = ["InUse"]


class InUse:
    """Count the calls that use something, so that closing it waits for them.

    >>> in_use = InUse("the file is closed")
    >>> with in_use:
    ...     pass
    >>> in_use.close(lambda: None)
    >>> with in_use:
    ...     pass
    Traceback (most recent call last):
    ValueError: the file is closed

    Args:
        message: Message of the `ValueError` that later calls get.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._changed = threading.Condition()
        # Process and thread of each call: after a fork, the calls of the parent are gone.
        self._calls: list[tuple[int, int]] = []
        self._is_closed = False

    def __enter__(self) -> None:
        """Begin a call.

        Raises:
            ValueError: It is closed.
        """
        with self._changed:
            if self._is_closed:
                raise ValueError(self._message)
            self._calls.append((os.getpid(), threading.get_ident()))

    def __exit__(self, *error: object) -> None:
        """End a call."""
        with self._changed:
            self._calls.remove((os.getpid(), threading.get_ident()))
            if self._is_closed:
                self._changed.notify_all()

    def close(self, free: Callable[[], None]) -> None:
        """Refuse further calls, wait until those that run are done, then free what they used.

        Args:
            free: Frees it; called again if it is closed again.

        Raises:
            RuntimeError: This thread is inside a call, and would wait for itself forever.
        """
        with self._changed:
            own = (os.getpid(), threading.get_ident())
            if own in self._calls:
                raise RuntimeError("a call that is still running cannot close what it uses: close it after the call")
            self._is_closed = True
            self._changed.wait_for(lambda: all(process != own[0] for process, _ in self._calls))
            free()
