"""Give tasks to workers that may die, wherever they run.

A slot is a place for a worker, which loads the model, then does one task at a time, and is replaced when it dies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from frcrn_accel.corpus.plan import Task
from frcrn_accel.corpus.work import MAX_TRIES, Result, failed
from frcrn_accel.errors import CorpusError

__all__ = ["Answer", "Death", "Loaded", "Slot", "run_in_slots"]


@dataclass(frozen=True)
class Loaded:
    """The first answer of a worker: why the model cannot be loaded; None if it is."""

    problem: str | None


@dataclass(frozen=True)
class Death:
    """How a worker died."""

    reason: str


Answer = Result | Loaded | Death


class Slot(ABC):
    """A place for a worker.

    Attributes:
        kind: What its worker is, for messages.
        is_loading: Whether the worker loads the model.
        task: The task that it does, or will do once it has loaded the model; None for none.
    """

    kind: ClassVar[str]

    def __init__(self) -> None:
        self.is_loading = False
        self.task: Task | None = None
        self._loads = 0  # since the last success

    @property
    def is_busy(self) -> bool:
        """Whether an answer is expected."""
        return self.is_loading or self.task is not None

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether there is a worker."""

    def load(self, reason: str = "") -> None:
        """Start a worker that loads the model.

        Args:
            reason: How the one before died.

        Raises:
            CorpusError: `MAX_TRIES` workers in a row died while loading, or none can be started.
        """
        if self._loads == MAX_TRIES:
            raise CorpusError(
                f"the {self.kind} died {MAX_TRIES} times while it loaded the model ({reason}): "
                "run fewer workers with --workers"
            )
        self._loads += 1
        self.is_loading = True
        self._start_worker()

    def check(self, answer: Loaded) -> None:
        """Check the answer to `load`.

        Raises:
            CorpusError: The model cannot be loaded.
        """
        if answer.problem is not None:
            raise CorpusError(answer.problem)
        self.is_loading, self._loads = False, 0

    def start(self, task: Task) -> None:
        """Start a task, with a new worker if the one before has died."""
        if not self.is_open:
            self.load()
        self.task = task
        self._send(task)

    def close(self) -> None:
        """End the worker, if there is one: at once if it is busy."""
        if self.is_open:
            self._end_worker()
        self.is_loading, self.task = False, None

    @abstractmethod
    def _start_worker(self) -> None:
        """Start a worker, which begins to load the model."""

    @abstractmethod
    def _send(self, task: Task) -> None:
        """Give the worker a task, which it does once it has loaded the model."""

    @abstractmethod
    def _end_worker(self) -> None:
        """End the worker."""


SlotT = TypeVar("SlotT", bound=Slot)


def run_in_slots(
    tasks: Iterable[Task],
    slots: Sequence[SlotT],
    answers: Callable[[Sequence[SlotT]], Iterable[tuple[SlotT, Answer]]],
) -> Iterator[list[Result]]:
    """Run tasks in slots that are open; end when all are done and no slot is loading.

    A task whose worker dies is tried again after all others; it fails after `MAX_TRIES` deaths.

    Args:
        tasks: The tasks.
        slots: Where to run them.
        answers: Waits for a second at most, and returns what has been answered.

    Yields:
        Results as they become available, in any order.

    Raises:
        CorpusError: Workers cannot load the model, or die while they load it.
    """
    new = iter(tasks)
    again: deque[Task] = deque()
    deaths: Counter[str] = Counter()

    def start_tasks() -> None:
        for slot in slots:
            if slot.is_busy:
                continue
            task = next(new, None) or (again.popleft() if again else None)
            if task is not None:
                slot.start(task)

    start_tasks()
    while any(slot.is_busy for slot in slots):
        results: list[Result] = []
        for slot, answer in answers(slots):
            if isinstance(answer, Result):
                slot.task = None
                results.append(answer)
            elif isinstance(answer, Loaded):
                slot.check(answer)
            else:
                task, was_loading = slot.task, slot.is_loading
                slot.close()
                if was_loading:
                    slot.load(answer.reason)
                if task is None:
                    continue
                deaths[task.output] += not was_loading
                if deaths[task.output] < MAX_TRIES:
                    again.append(task)
                else:
                    results.append(failed(task, f"its {slot.kind} died {MAX_TRIES} times ({answer.reason})"))
        start_tasks()
        if results:
            yield results
