"""Handle signals such as SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Stopped", "handled", "signal_name", "stopping"]


def signal_name(number: int) -> str:
    """Return the name of a signal; real-time signals have none.

    >>> signal_name(9), signal_name(40)
    ('SIGKILL', 'signal 40')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def handled(handler: Callable[[int, FrameType | None], object], *signals: signal.Signals) -> Iterator[None]:
    """Handle signals with `handler` until the block ends, then restore the previous handlers.

    Python allows this in the main thread only.

    Args:
        handler: See `signal.signal`.
        signals: The signals to handle.
    """
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)  # None: one that C code installed


class Stopped(BaseException):
    """A signal asked this process to stop; raised by `stopping`.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Raise `Stopped` on SIGTERM and SIGHUP until the block ends, so that everything is cleaned up on the way out.

    An exception raised while a C library calls Python is lost. So the block gets a function that raises `Stopped` if
    a signal has arrived. A signal that the process ignores (`nohup`) stays ignored. Outside the main thread, where
    Python handles no signals, nothing changes.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise Stopped(number)

    def check() -> None:
        if received:
            raise Stopped(received[0])

    names = ("SIGTERM", "SIGHUP")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    if threading.current_thread() is not threading.main_thread():
        found = []
    with handled(stop, *(number for number in found if signal.getsignal(number) != signal.SIG_IGN)):
        yield check
