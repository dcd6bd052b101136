"""Join the calls of many threads into one call of the engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import Session
from frcrn_accel.errors import EngineError

__all__ = ["BatchingSession"]


class BatchingSession(Session):
    """A session that joins calls waiting at the same time into one call of another session.

    A call is never delayed to wait for others. Once the engine is free, the next call includes all waiting calls that
    have as many samples as the oldest, up to the batch size. Use it with `Windowing(fixed=True)`: otherwise windows
    of different signals rarely have the same length.

    >>> Denoiser(windowing=Windowing(fixed=True), wrap_session=lambda session: BatchingSession(session, 8))

    Args:
        session: The session that computes. It gets one call at a time.
        batch_size: Maximum number of rows per call; a single call with more is passed on as it is.
        observe: Called with the number of rows of each call, in the thread that makes the call.

    Raises:
        ValueError: The batch size is less than 1.
    """

    def __init__(self, session: Session, batch_size: int, observe: Callable[[int], None] = lambda rows: None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._session = session
        self._batch_size = batch_size
        self._observe = observe
        self._waiting: deque[_Call] = deque()
        self._is_running = False
        self._changed = threading.Condition()
        self.device = session.device

    @property
    def waiting(self) -> int:
        """Number of calls that wait for the engine."""
        with self._changed:
            return len(self._waiting)

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a batch, see `Session.run`."""
        own = _Call(audio)
        with self._changed:
            self._waiting.append(own)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: own.is_done or not self._is_running)
                if own.is_done:
                    break
                calls = self._take()
                self._is_running = True
            try:
                self._run(calls)
            finally:
                with self._changed:
                    self._is_running = False
                    self._changed.notify_all()
        if isinstance(own.error, EngineError):
            raise EngineError(str(own.error)) from own.error  # each thread raises an exception of its own
        if own.error is not None:
            raise own.error
        assert own.result is not None
        return own.result

    def close(self) -> None:
        """Close the session that computes."""
        self._session.close()

    def _take(self) -> list[_Call]:
        """Take the oldest call, and those that can join it."""
        samples = self._waiting[0].audio.shape[1]
        taken: list[_Call] = []
        rows = 0
        for call in self._waiting:
            if call.audio.shape[1] == samples and (not taken or rows + len(call.audio) <= self._batch_size):
                taken.append(call)
                rows += len(call.audio)
        for call in taken:
            self._waiting.remove(call)
        return taken

    def _run(self, calls: list[_Call]) -> None:
        try:
            audio = calls[0].audio if len(calls) == 1 else np.concatenate([call.audio for call in calls])
            self._observe(len(audio))
            results = self._session.run(audio)
            first = 0
            for call in calls:
                call.result = results[first : first + len(call.audio)]
                first += len(call.audio)
        except BaseException as error:
            for call in calls:
                call.error = error
            if not isinstance(error, Exception):  # e.g. KeyboardInterrupt, which is for this thread
                raise
        finally:
            for call in calls:
                call.is_done = True


class _Call:
    """The call of one thread. Calls are compared by identity."""

    def __init__(self, audio: NDArray[np.float32]) -> None:
        self.audio = audio
        self.result: NDArray[np.float32] | None = None
        self.error: BaseException | None = None
        self.is_done = False
