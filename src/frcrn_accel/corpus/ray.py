"""Many files on a Ray cluster: the same job as `corpus` does on one machine, with one denoiser in each actor.

Ray Data makes actors where there is room for them, gives tasks to them, restarts those that die and gives them their
tasks again. What comes back of a task are its lines for the journal, which the process that runs the job writes. An
output folder that is no URL must be one that all machines of the cluster share.
"""

from __future__ import annotations

import logging
import pickle
import platform
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.corpus.plan import Task
from frcrn_accel.corpus.work import MAX_TRIES, Result, Work, Worker, failed, text_of
from frcrn_accel.errors import CorpusError, MissingExtraError

__all__ = ["run_ray"]

_ROUND = 10_000  # tasks that Ray Data gets at a time: it holds all of them in memory
_Batch = dict[str, NDArray[np.object_]]


def run_ray(
    tasks: Sequence[Task], work: Work, workers: int | None, threads: int | None, gpus: float
) -> tuple[Generator[list[Result], None, None], str]:
    """Begin tasks on the cluster that `RAY_ADDRESS` names or that this process is connected to, or on this machine.

    A task whose actor dies is tried again; after `MAX_TRIES` it has failed.

    Args:
        tasks: What to do.
        work: How.
        workers: Actors; None for as many as the cluster has room for.
        threads: CPUs of each; None for one.
        gpus: GPUs of each.

    Returns:
        Results to come, in no order, and how the cluster is shared out, in words. Closing the iterator ends the
        actors.

    Raises:
        MissingExtraError: The `[ray]` extra is not installed.
        CorpusError: The cluster has no room for an actor.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("The engine 'ray'", "ray", error) from error
    threads = threads or 1
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(configure_logging=True, logging_level=logging.WARNING, log_to_driver=False)
    resources: dict[str, float] = ray.cluster_resources()
    room = int(resources.get("CPU", 0) // threads)
    if gpus:
        room = min(room, int(resources.get("GPU", 0) / gpus))
    if room < (workers or 1):
        if is_ours:
            ray.shutdown()
        raise CorpusError(
            f"the cluster has room for {room} worker(s) with {threads} CPU(s) and {gpus:g} GPU(s): ask for less"
        )
    workers = min(workers or room, len(tasks))
    work = replace(work, options={**work.options, "threads": threads})
    shares = f"{workers} actor(s) x {threads} CPU(s)" + (f" and {gpus:g} GPU(s)" if gpus else "")
    return _results(tasks, work, workers, threads, gpus, is_ours), shares


def _results(
    tasks: Sequence[Task], work: Work, workers: int, threads: int, gpus: float, is_ours: bool
) -> Generator[list[Result], None, None]:
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    tries: Any = ray.remote(_Tries).options(num_cpus=0).remote()
    rest = iter(tasks)
    try:
        while some := [{"task": pickle.dumps(task)} for task in islice(rest, _ROUND)]:
            # A task for each block: when an actor dies, blocks are what is done again.
            dataset = ray.data.from_items(some, override_num_blocks=len(some)).map_batches(
                _Actor,
                fn_constructor_kwargs={"work": work, "tries": tries},
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(some))),
                num_cpus=threads,
                num_gpus=gpus or None,
            )
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
                yield [pickle.loads(result) for result in batch["result"]]
    except ray.exceptions.RayError as error:
        *_, cause = str(error).strip().splitlines() or [type(error).__name__]  # after the stack that it was raised in
        raise CorpusError(f"Ray gave up: {cause}; nothing is lost, and run again the job goes on") from error
    finally:
        ray.kill(tries)
        if is_ours:
            ray.shutdown()


class _Actor:
    """A worker in an actor.

    Args:
        work: What is to be done.
        tries: The actor that counts.
    """

    def __init__(self, work: Work, tries: Any) -> None:
        import ray

        self._tries = tries
        self._problem: str | None = None
        loading = f"loading in actor {ray.get_runtime_context().get_actor_id()}"  # the same when it is restarted
        if not self._may_try(loading):
            self._problem = (
                f"an actor on {platform.node()} died {MAX_TRIES} times while it loaded the model: out of memory? "
                "Take fewer with --workers"
            )
            return
        try:
            self._worker = Worker(work)
        except Exception as error:
            self._problem = text_of(error)
        self._end(loading)

    def __call__(self, batch: _Batch) -> _Batch:
        results = [pickle.dumps(self._do(pickle.loads(task))) for task in batch["task"]]
        return {"result": np.array(results, dtype=np.object_)}

    def _do(self, task: Task) -> Result:
        if self._problem is not None:
            return Result(task.output, (), stop=self._problem)
        if not self._may_try(task.output):
            return failed(task, f"its actor died {MAX_TRIES} times: out of memory?")
        result = self._worker.do(task)
        self._end(task.output)
        return result

    def _may_try(self, what: str) -> bool:
        import ray

        count: int = ray.get(self._tries.begin.remote(what))
        return count <= MAX_TRIES

    def _end(self, what: str) -> None:
        self._tries.end.remote(what)


class _Tries:
    """Counts how often something was begun and never ended: Ray retries for ever, or gives up everything."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        self._begun[what] += 1
        return self._begun[what]

    def end(self, what: str) -> None:
        del self._begun[what]
