"""Run blocking work in threads that may hang: nobody has to wait for them, and they do not keep the process alive."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

__all__ = ["Slots", "contained", "in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[[], T], ended: Callable[[], None] = lambda: None) -> T:
    """Call a function in a thread of its own, which runs on if the caller is cancelled.

    Args:
        function: The function.
        ended: Called in the event loop when the function has ended, also if nobody waits for it any more.

    Raises:
        RuntimeError: The function called `sys.exit`, which must not end the process, or no thread can be started.
        Exception: What the function raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        ended()
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: Exception | None = None
        try:
            result = function()
        except BaseException as caught:
            error = contained(caught)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    try:
        threading.Thread(target=work, name="frcrn-accel-work", daemon=True).start()
    except BaseException:  # the process may have no more threads
        ended()
        raise
    return await future


def contained(error: BaseException) -> Exception:
    """Return an error that a future may hold: `SystemExit` in a future would end the event loop."""
    if isinstance(error, Exception):
        return error
    contained_error = RuntimeError(f"the work ended with {error!r}")
    contained_error.__cause__ = error
    return contained_error


class Slots:
    """A limited number of threads for work. A thread that does not return keeps its slot.

    Calls get free slots in order, but those of the client with the fewest slots first, so that one client cannot take
    all of them.

    Args:
        count: Number of threads.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._running: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def running(self) -> int:
        """Number of threads that work."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a thread."""
        return len(self._waiting)

    async def run(self, function: Callable[[], T], client: str) -> T:
        """Call a function in a thread, once there is a slot.

        Args:
            function: The function. It runs on if the caller is cancelled.
            client: Whose work it is.
        """
        await self._take(client)
        return await in_thread(function, lambda: self._give_back(client))

    async def _take(self, client: str) -> None:
        if self._free:
            self._grant(client)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((client, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(client)
            else:
                self._waiting.remove((client, turn))
            raise

    def _grant(self, client: str) -> None:
        self._free -= 1
        self._running[client] += 1

    def _give_back(self, client: str) -> None:
        self._free += 1
        self._running[client] -= 1
        self._running += Counter()  # forgets those at zero
        waiting = [item for item in self._waiting if not item[1].cancelled()]  # others remove themselves
        if waiting:
            first = min(waiting, key=lambda item: self._running[item[0]])
            self._waiting.remove(first)
            self._grant(first[0])
            first[1].set_result(None)
