"""Run tasks on a Ray cluster, with a worker process in each actor.

A file that kills a worker does not kill its actor, which knows how the process ended; Ray does not report that of
actors. Ray Data starts actors where the cluster has room, gives them tasks, restarts those that die and repeats their
tasks. A task returns its lines for the journal, which the process that runs the job writes. Unless the output folder
is a URL, all machines of the cluster must share it.
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

from frcrn_accel.corpus.local import WorkerProcess
from frcrn_accel.corpus.plan import Task
from frcrn_accel.corpus.sizing import with_threads
from frcrn_accel.corpus.work import MAX_TRIES, Result, Work, failed, text_of
from frcrn_accel.errors import CorpusError, MissingExtraError

__all__ = ["run_ray"]

_ROUND = 10_000  # tasks that Ray Data gets at a time, since it holds them in memory
_Batch = dict[str, NDArray[np.object_]]


def run_ray(
    tasks: Sequence[Task], work: Work, workers: int | None, gpus: float
) -> tuple[Generator[list[Result], None, None], str]:
    """Start tasks on the cluster that `RAY_ADDRESS` names or that this process is connected to, else on this machine.

    A task whose worker or actor dies is tried again; it fails after `MAX_TRIES` deaths.

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
        import ray.data
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
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    tries: Any = ray.remote(_Tries).options(num_cpus=0).remote()
    rest = iter(tasks)
    try:
        yield []
        while some := [{"task": pickle.dumps(task)} for task in islice(rest, _ROUND)]:
            # One task in each block: when an actor dies, Ray repeats whole blocks.
            dataset = ray.data.from_items(some, override_num_blocks=len(some)).map_batches(
                _Actor,
                fn_constructor_kwargs={"work": work, "tries": tries},
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(some))),
                num_cpus=cpus,
                num_gpus=gpus or None,
            )
            for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
                yield [pickle.loads(result) for result in batch["result"]]
    except ray.exceptions.RayError as error:
        *_, cause = str(error).strip().splitlines() or [type(error).__name__]  # the last line, after the stack trace
        raise CorpusError(f"Ray gave up: {cause}. Nothing is lost; run the same command to resume") from error
    finally:
        ray.kill(tries)
        if started_ray:
            ray.shutdown()


class _Actor:
    """An actor with a worker process.

    Args:
        work: Work for the worker.
        tries: The actor that counts tries.
    """

    def __init__(self, work: Work, tries: Any) -> None:
        import ray

        self._tries = tries
        self._problem: str | None = None
        loading = f"loading in actor {ray.get_runtime_context().get_actor_id()}"  # kept when Ray restarts it
        if not self._may_try(loading):
            self._problem = (
                f"an actor on {platform.node()} died {MAX_TRIES} times while it loaded the model (out of memory?): "
                "run fewer workers with --workers"
            )
            return
        try:
            self._worker = WorkerProcess(work)
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
            return failed(task, f"its actor died {MAX_TRIES} times (out of memory?)")
        try:
            result = self._worker.do(task)
        except CorpusError as error:
            result = Result(task.output, (), stop=str(error))
        self._end(task.output)
        return result

    def _may_try(self, what: str) -> bool:
        import ray

        count: int = ray.get(self._tries.begin.remote(what))
        return count <= MAX_TRIES

    def _end(self, what: str) -> None:
        self._tries.end.remote(what)


class _Tries:
    """Counts tries that were begun and did not end: Ray itself either retries forever or gives up the whole job."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, what: str) -> int:
        self._begun[what] += 1
        return self._begun[what]

    def end(self, what: str) -> None:
        del self._begun[what]
