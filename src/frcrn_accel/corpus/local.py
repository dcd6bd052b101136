"""Run tasks in worker processes on this machine, any of which may die, stop or hang.

Each worker is a process with a pipe. It sends a beat each second, so this process notices one that was stopped or
whose engine does not return. One that is stopped in the middle of a message is ended after the same time.
(`concurrent.futures` and loky report neither which task killed a process, nor how.)
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar

from frcrn_accel.corpus.plan import Task
from frcrn_accel.corpus.slots import Answer, Death, Loaded, Slot, run_in_slots
from frcrn_accel.corpus.work import Result, Work, Worker, text_of
from frcrn_accel.errors import CorpusError
from frcrn_accel.posix_signals import signal_name
from frcrn_accel.printable import escape_warnings
from frcrn_accel.processes.deadline import ends_after

__all__ = ["SILENT_S", "WorkerProcess", "run_local"]

SILENT_S = 120.0  # a worker that sends nothing for this long is replaced
_HANG_S = 1800.0  # without progress in a file a worker stops sending beats
_BEAT_S = 1.0
_END_S = 5.0
_CONTEXT = multiprocessing.get_context("spawn")  # engines' threads do not survive a fork


def run_local(
    tasks: Iterable[Task], work: Work, workers: int, silent_s: float = SILENT_S
) -> Generator[list[Result], None, None]:
    """Run tasks in processes, see `run_in_slots`.

    Args:
        tasks: The tasks.
        work: How to do the tasks.
        workers: Number of processes.
        silent_s: A worker that does not respond for this time is killed and replaced.

    Yields:
        Results as they become available, in any order. Closing the iterator ends the processes immediately.

    Raises:
        CorpusError: Workers cannot load the model, or die while they load it.
    """
    with _slots(work, workers, silent_s) as slots:
        for slot in slots:
            slot.load()
        yield from run_in_slots(tasks, slots, _answers)


class WorkerProcess:
    """A worker process that does one task at a time and is replaced when it dies.

    Args:
        work: How to do the tasks.
        silent_s: A worker that does not respond for this time is killed and replaced.

    Raises:
        CorpusError: It cannot load the model, or dies `MAX_TRIES` times while it loads it.
    """

    def __init__(self, work: Work, silent_s: float = SILENT_S) -> None:
        self._slot = _Slot(work, silent_s)
        try:
            self._slot.load()
            list(run_in_slots((), [self._slot], _answers))  # returns once the model is loaded
        except BaseException:
            self.close()
            raise

    def do(self, task: Task) -> Result:
        """Do a task; it fails after `MAX_TRIES` deaths.

        Raises:
            CorpusError: A new process cannot load the model.
        """
        (result,) = next(run_in_slots([task], [self._slot], _answers))
        return result

    def close(self) -> None:
        """End the process: at once if it is busy."""
        self._slot.close()


class _Slot(Slot):
    """A place for a worker process.

    Args:
        work: How to do the tasks.
        silent_s: A process that does not respond for this time is killed.

    Attributes:
        connection: The pipe to the process; None without one.
        waited_s: How long this process has waited for a message from it.
    """

    kind: ClassVar[str] = "worker process"

    def __init__(self, work: Work, silent_s: float) -> None:
        super().__init__()
        self._work = work
        self._silent_s = silent_s
        self._process: Any = None
        self._is_silent = False
        self.connection: Connection | None = None
        self.waited_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether there is a process."""
        return self.connection is not None

    def _start_worker(self) -> None:
        self._is_silent, self.waited_s = False, 0.0
        with ExitStack() as opened:
            try:
                ours, theirs = map(opened.enter_context, _CONTEXT.Pipe())
                process = _CONTEXT.Process(target=_run_worker, args=(self._work, theirs))
                with _interrupts_held():
                    process.start()
            except OSError as error:  # no descriptors, or too many processes
                raise CorpusError(
                    f"a worker process cannot be started: {error.strerror}: run fewer workers with --workers, or "
                    "raise the limit with 'ulimit'"
                ) from error
            theirs.close()
            opened.pop_all()
        self.connection, self._process = ours, process

    def _send(self, task: Task) -> None:
        assert self.connection is not None
        with suppress(OSError), self._timely():  # it has died; `_answers` finds that out
            self.connection.send(task)

    def receive(self) -> Answer | None:
        """Receive a message that has begun to arrive; None for a beat."""
        assert self.connection is not None
        self.waited_s = 0.0
        try:
            with self._timely():
                message: Result | Loaded | None = self.connection.recv()
                return message
        except (EOFError, OSError):
            return self._end()

    def wait(self, passed_s: float) -> Death | None:
        """Note that it has sent nothing for some time; return its death if it does not respond."""
        self.waited_s += passed_s
        if self.waited_s < self._silent_s:
            return None
        self.waited_s = 0.0
        return self._silence

    @contextmanager
    def _timely(self) -> Iterator[None]:
        """Kill the process if it does not take or send a whole message in time."""
        with ends_after(self._silent_s, self._give_up):
            yield

    def _give_up(self) -> None:
        self._is_silent = True
        self._process.kill()

    @property
    def _silence(self) -> Death:
        return Death(f"it did not respond for {self._silent_s:g} s")

    def _end(self) -> Death:
        """Wait for a process that has closed its end of the pipe; return how it ended."""
        self._process.join(_END_S)
        self._process.kill()
        self._process.join()
        return self._silence if self._is_silent else Death(_reason(self._process.exitcode))

    def _end_worker(self) -> None:
        assert self.connection is not None
        self.connection.close()
        if not self.is_busy:
            self._process.join(_END_S)
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection = None


def _answers(slots: Sequence[_Slot]) -> Iterator[tuple[_Slot, Answer]]:
    """Wait for a second at most; yield what workers have answered, and those that are dead or do not respond."""
    began = time.monotonic()
    by_connection: dict[Any, _Slot] = {slot.connection: slot for slot in slots if slot.connection is not None}
    answered = {by_connection[found] for found in wait(list(by_connection), _BEAT_S)}
    # If this process was stopped, too, that time does not count.
    passed_s = min(time.monotonic() - began, 2 * _BEAT_S)
    for slot in by_connection.values():
        answer = slot.receive() if slot in answered else slot.wait(passed_s)
        if answer is not None:
            yield slot, answer


def _reason(code: int) -> str:
    """Return how a process ended.

    >>> _reason(-9), _reason(-11), _reason(3)
    ('killed by SIGKILL: out of memory?', 'killed by SIGSEGV', 'exit code 3')
    """
    if code >= 0:
        return f"exit code {code}"
    name = signal_name(-code)
    return f"killed by {name}{': out of memory?' if name == 'SIGKILL' else ''}"


@contextmanager
def _slots(work: Work, workers: int, silent_s: float) -> Iterator[list[_Slot]]:
    """Open slots whose processes end with the block, or with this process, whatever they are doing."""
    slots = [_Slot(work, silent_s) for _ in range(workers)]
    try:
        yield slots
    finally:
        for slot in slots:
            slot.close()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block SIGINT in processes that are being started: a terminal sends it to all, and this process handles it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows: processes get it until `_run_worker`
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_worker(work: Work, connection: Connection) -> None:
    """Load the model, then do the tasks that come, until the other end of the pipe is closed."""
    escape_warnings()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
    sending = threading.Lock()
    is_busy = True
    progress_s = time.monotonic()

    def note_progress() -> None:
        nonlocal progress_s
        progress_s = time.monotonic()

    def send(message: Result | Loaded | None) -> None:
        with sending, suppress(OSError):  # the other end has gone: `receive` ends this process
            connection.send(message)

    def receive() -> None:
        with suppress(EOFError, OSError):
            while True:
                tasks.put(connection.recv())
        if is_busy:
            os._exit(1)
        tasks.put(None)

    def beat() -> None:
        while True:
            time.sleep(_BEAT_S)
            if time.monotonic() - progress_s < _HANG_S or not is_busy:
                send(None)

    for run in (receive, beat):
        threading.Thread(target=run, daemon=True).start()
    problem = None
    try:
        worker = Worker(work, note_progress)
    except Exception as error:  # as text: not every exception can be pickled
        problem = text_of(error)
    is_busy = False
    send(Loaded(problem))
    while (task := tasks.get()) is not None:
        note_progress()
        is_busy = True
        result = worker.do(task)
        is_busy = False
        send(result)
