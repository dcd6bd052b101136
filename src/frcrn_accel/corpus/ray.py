"""Run tasks on a Ray cluster, with a worker process in each actor.

A file that kills a worker does not kill its actor, which knows how the process ended; Ray does not report that of
actors. The process that runs the job gives tasks to the actors and writes the lines for the journal that they return.
Unless the output folder is a URL, all machines of the cluster must share it.

(Ray Data has threads that go on when its results are no longer read. If Ray is shut down then, they end the process
without a word.)
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from frcrn_accel.corpus.local import WorkerProcess
from frcrn_accel.corpus.plan import Task
from frcrn_accel.corpus.sizing import with_threads
from frcrn_accel.corpus.slots import Answer, Death, Loaded, Slot, run_in_slots
from frcrn_accel.corpus.work import Result, Work, text_of
from frcrn_accel.errors import CorpusError, MissingExtraError

__all__ = ["run_ray"]

_WAIT_S = 1.0


def run_ray(
    tasks: Sequence[Task], work: Work, workers: int | None, gpus: float
) -> tuple[Generator[list[Result], None, None], str]:
    """Start tasks on the cluster that `RAY_ADDRESS` names or that this process is connected to, else on this machine.

    A task whose worker process or actor dies is tried again; it fails after `MAX_TRIES` deaths of either.

    Args:
        tasks: The tasks.
        work: How to do them. An actor gets as many CPUs as its denoiser has threads, one by default.
        workers: Number of actors; None for as many as the cluster has room for.
        gpus: GPUs of each actor; may be a fraction.

    Returns:
        The results to come, in any order, and a description of the actors. Closing the iterator ends the actors.

    Raises:
        MissingExtraError: The `[ray]` extra is not installed.
        CorpusError: The cluster has no room for the actors.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("Running workers on Ray", "ray", error) from error
    cpus = work.denoiser.threads or 1
    started_ray = not ray.is_initialized()
    if started_ray:
        ray.init(configure_logging=True, logging_level=logging.WARNING, log_to_driver=False)
    resources: dict[str, float] = ray.cluster_resources()
    room = int(resources.get("CPU", 0) // cpus)
    if gpus:
        room = min(room, int(resources.get("GPU", 0) / gpus))
    if room < (workers or 1):
        if started_ray:
            ray.shutdown()
        raise CorpusError(
            f"the cluster has room for {room} worker(s) with {cpus} CPU(s) and {gpus:g} GPU(s) each: use fewer "
            "--workers, --threads or --gpus"
        )
    workers = min(workers or room, len(tasks))
    work = replace(work, denoiser=with_threads(work.denoiser, cpus))
    described = f"{workers} actor(s) x {cpus} CPU(s)" + (f" and {gpus:g} GPU(s)" if gpus else "")
    results = _results(tasks, work, workers, cpus, gpus, started_ray)
    next(results)  # enters its `try`, so that closing it ends Ray even before the first result
    return results, described


def _results(
    tasks: Sequence[Task], work: Work, workers: int, cpus: int, gpus: float, started_ray: bool
) -> Generator[list[Result], None, None]:
    import ray

    actor_class = ray.remote(_Actor).options(num_cpus=cpus, num_gpus=gpus or None)
    slots = [_Slot(actor_class, work) for _ in range(workers)]
    try:
        yield []
        for slot in slots:
            slot.load()
        yield from run_in_slots(tasks, slots, _answers)
    except ray.exceptions.RayError as error:
        *_, cause = str(error).strip().splitlines() or [type(error).__name__]  # the last line, after the stack trace
        raise CorpusError(f"Ray gave up: {cause}. Nothing is lost; run the same command to resume") from error
    finally:
        for slot in slots:
            slot.close()
        if started_ray:
            ray.shutdown()


class _Actor:
    """An actor with a worker process."""

    def load(self, work: Work) -> Loaded:
        """Start the worker process."""
        try:
            self._worker = WorkerProcess(work)
        except Exception as error:  # as text: not every exception can be pickled
            return Loaded(text_of(error))
        return Loaded(None)

    def do(self, task: Task) -> Result:
        """Do a task."""
        try:
            return self._worker.do(task)
        except CorpusError as error:
            return Result(task.output, (), stop=str(error))


class _Slot(Slot):
    """A place for an actor. Ray starts it where the cluster has room.

    Args:
        actor_class: `_Actor` with its resources.
        work: How to do the tasks.

    Attributes:
        answers: References to the answers that are expected, in their order.
    """

    kind: ClassVar[str] = "actor"

    def __init__(self, actor_class: Any, work: Work) -> None:
        super().__init__()
        self._actor_class = actor_class
        self._work = work
        self._actor: Any = None
        self.answers: deque[Any] = deque()

    @property
    def is_open(self) -> bool:
        """Whether there is an actor."""
        return self._actor is not None

    def _start_worker(self) -> None:
        self._actor = self._actor_class.remote()
        self.answers.append(self._actor.load.remote(self._work))

    def _send(self, task: Task) -> None:
        self.answers.append(self._actor.do.remote(task))

    def _end_worker(self) -> None:
        import ray

        ray.kill(self._actor)
        self._actor = None
        self.answers.clear()


def _answers(slots: Sequence[_Slot]) -> Iterator[tuple[_Slot, Answer]]:
    """Wait for a second at most; yield what actors have answered, and those that are dead."""
    import ray

    by_answer = {slot.answers[0]: slot for slot in slots if slot.answers}
    answered, _ = ray.wait(list(by_answer), num_returns=1, timeout=_WAIT_S)
    for found in answered:
        slot = by_answer[found]
        slot.answers.popleft()
        try:
            yield slot, ray.get(found)
        except ray.exceptions.RayActorError:
            yield slot, Death("out of memory?")
