"""Run tasks in worker processes on this machine, any of which may die.

Each worker is a `ProcessPoolExecutor` with one process. When a process dies, its executor breaks as a whole and does
not say which task is to blame; with a single process and one task at a time that is known, and the other workers are
not affected. (loky's executor also gives up all its tasks when a process dies.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from frcrn_accel.corpus.plan import Task
from frcrn_accel.corpus.work import MAX_TRIES, Result, Work, Worker, failed, text_of
from frcrn_accel.errors import CorpusError

__all__ = ["run_local"]

_CONTEXT = multiprocessing.get_context("spawn")  # engines' threads do not survive a fork


def run_local(tasks: Iterable[Task], work: Work, workers: int) -> Generator[list[Result], None, None]:
    """Run tasks in processes.

    A task whose worker dies is tried again after all others, with another worker; it fails after `MAX_TRIES` deaths.

    Args:
        tasks: The tasks.
        work: How to do them.
        workers: Number of processes.

    Yields:
        Results as they become available, in any order. Closing the iterator ends the processes immediately.

    Raises:
        CorpusError: Workers cannot load the model, or die while they load it.
    """
    new = iter(tasks)
    again: deque[Task] = deque()
    deaths: Counter[str] = Counter()

    def next_task() -> Task | None:
        return next(new, None) or (again.popleft() if again else None)

    with _slots(work, workers) as slots:
        running: dict[Future[Any], tuple[_Slot, Task | None]] = {slot.load(): (slot, None) for slot in slots}
        idle: list[_Slot] = []
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            results: list[Result] = []
            for future in done:
                slot, task = running.pop(future)
                try:
                    answer = future.result()
                except BrokenProcessPool:
                    if task is not None:
                        deaths[task.output] += 1
                        if deaths[task.output] < MAX_TRIES:
                            again.append(task)
                        else:
                            results.append(
                                failed(task, f"its worker process died {MAX_TRIES} times (out of memory?)")
                            )
                    running[slot.load()] = (slot, None)
                    continue
                if isinstance(answer, Result):
                    results.append(answer)
                else:
                    slot.check(answer)
                idle.append(slot)
            while idle and (task := next_task()) is not None:
                slot = idle.pop()
                try:
                    running[slot.start(task)] = (slot, task)
                except BrokenProcessPool:  # it died while idle
                    again.appendleft(task)
                    running[slot.load()] = (slot, None)
            if results:
                yield results


class _Slot:
    """A worker process, which can be replaced.

    Args:
        work: Work for the process.
        alive: The process ends when the other end of this connection is closed.
    """

    def __init__(self, work: Work, alive: Connection) -> None:
        self._arguments = (work, alive)
        self._pool: ProcessPoolExecutor | None = None
        self._loads = 0  # since the last success

    def load(self) -> Future[str | None]:
        """Start a process that loads the model; pass the result to `check`.

        Raises:
            CorpusError: `MAX_TRIES` processes in a row died while loading.
        """
        if self._loads == MAX_TRIES:
            raise CorpusError(
                f"a worker process died {MAX_TRIES} times while it loaded the model (out of memory?): run fewer "
                "workers with --workers"
            )
        self._loads += 1
        self.close()
        self._pool = ProcessPoolExecutor(1, _CONTEXT, _start, self._arguments)
        with _interrupts_held():
            return self._pool.submit(_load)

    def check(self, problem: str | None) -> None:
        """Check the result of `load`.

        Raises:
            CorpusError: The model cannot be loaded.
        """
        if problem is not None:
            raise CorpusError(problem)
        self._loads = 0

    def start(self, task: Task) -> Future[Result]:
        """Start a task in the process.

        Raises:
            BrokenProcessPool: The process has died.
        """
        assert self._pool is not None
        return self._pool.submit(_do, task)

    def close(self) -> None:
        """Wait for a process to end that has died or has been asked to end."""
        if self._pool is not None:
            self._pool.shutdown()


@contextmanager
def _slots(work: Work, workers: int) -> Iterator[list[_Slot]]:
    """Open slots whose processes end with the block, or with this process, whatever they are doing."""
    alive, end = _CONTEXT.Pipe(duplex=False)
    slots = [_Slot(work, alive) for _ in range(workers)]
    try:
        yield slots
    finally:
        end.close()
        for slot in slots:
            slot.close()
        alive.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C, which all processes of a terminal get, from those that are being started: this one handles it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: processes get it until `_start`
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_work: Work | None = None
_worker: Worker | None = None


def _start(work: Work, alive: Connection) -> None:
    """Set up a new process."""
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        alive.poll(None)  # nothing is ever sent; this returns when the other end is closed
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _load() -> str | None:
    global _worker
    assert _work is not None
    try:
        _worker = Worker(_work)
    except Exception as error:  # as text: not every exception can be pickled
        return text_of(error)
    return None


def _do(task: Task) -> Result:
    assert _worker is not None
    return _worker.do(task)
