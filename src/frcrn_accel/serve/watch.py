"""Watch an engine: whether it answers, and whether it works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import Session
from frcrn_accel.errors import EngineError

__all__ = ["EngineWatch", "WatchedSession"]

_FAILURES = 3


class EngineWatch:
    """Notes the calls of an engine, from any thread.

    Args:
        stall_s: The engine has stalled if it has calls to answer and answered none for this time.
        clock: Returns the time in seconds.
    """

    def __init__(self, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stall_s = stall_s
        self._clock = clock
        self._lock = threading.Lock()
        self._calls = 0
        self._moved = clock()
        self._failures = 0

    @contextmanager
    def call(self) -> Iterator[None]:
        """Note a call of the engine."""
        with self._lock:
            if not self._calls:
                self._moved = self._clock()
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                self._moved = self._clock()

    @property
    def is_busy(self) -> bool:
        """Whether the engine has calls to answer."""
        return self._calls > 0

    def succeeded(self) -> None:
        """Note a good result."""
        self._failures = 0

    def failed(self) -> None:
        """Note a failure of the engine."""
        with self._lock:
            self._failures += 1

    @property
    def has_stalled(self) -> bool:
        """Whether the engine does not answer."""
        with self._lock:
            return self._calls > 0 and self._clock() - self._moved > self._stall_s

    @property
    def has_failed(self) -> bool:
        """Whether the last calls of the engine failed."""
        return self._failures >= _FAILURES

    @property
    def problem(self) -> str:
        """Why the engine cannot be used now; "" if it can."""
        if self.has_stalled:
            return f"the engine has not answered for {self._stall_s:g} s"
        if self.has_failed:
            return f"the engine failed {self._failures} times in a row"
        return ""


class WatchedSession(Session):
    """A session whose calls are noted."""

    def __init__(self, session: Session, watch: EngineWatch) -> None:
        self._session = session
        self._watch = watch
        self.device = session.device

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a batch, see `Session.run`."""
        try:
            with self._watch.call():
                return self._session.run(audio)
        except EngineError:
            raise  # the caller counts it, like errors about the numbers that came back
        except BaseException:  # also the exit of an engine
            self._watch.failed()
            raise
