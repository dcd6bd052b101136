"""Choose how many workers a machine runs, and how many threads each has."""

from __future__ import annotations

from dataclasses import dataclass, replace

from frcrn_accel.backends import Backend, resolve_backend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.errors import BenchError, CorpusError
from frcrn_accel.memory import available_memory_bytes
from frcrn_accel.models import find_model
from frcrn_accel.processes import DenoiserProcess

__all__ = ["Sharing", "choose_sharing", "fit_workers", "with_threads"]

_MEMORY_SHARE = 0.8  # of the available memory; decoding files and other programs need some too


@dataclass(frozen=True)
class Sharing:
    """How a machine is shared out.

    Attributes:
        workers: Processes, each working on a file of its own.
        threads: CPU threads of each; None for a backend that does not compute on the CPU.
    """

    workers: int
    threads: int | None

    def __str__(self) -> str:
        """Return a description."""
        threads = "" if self.threads is None else f" x {self.threads} thread(s)"
        return f"{self.workers} worker(s){threads}"


def with_threads(options: DenoiserOptions, threads: int) -> DenoiserOptions:
    """Return options with a number of threads, where they have none and the backend computes on the CPU."""
    if options.threads is not None or not _backend_of(options).uses_threads:
        return options
    return replace(options, threads=threads)


def choose_sharing(options: DenoiserOptions, tasks: int, workers: int | None) -> Sharing:
    """Share a machine out.

    Many files need no threads within a file, so each CPU gets a worker as long as memory suffices: the peak memory of
    one worker is measured on a signal that fills a window. Workers share the CPUs that are left. On a GPU one worker
    runs.

    Args:
        options: Options of the denoiser; `threads` is the number for each worker, None to choose it.
        tasks: Number of tasks, at least 1: more workers would have nothing to do.
        workers: Most workers; None to choose the number.

    Raises:
        CorpusError: The process that measures the memory failed.
    """
    cpus = available_cpus()
    if workers is None:
        workers = max(1, min(cpus // (options.threads or 1), tasks))
        if workers > 1 and _backend_of(options).on_gpu:
            workers = 1
        if workers > 1:
            workers = fit_workers(workers, _peak_bytes(with_threads(options, 1)), available_memory_bytes())
    workers = min(workers, tasks)
    return Sharing(workers, with_threads(options, max(1, cpus // workers)).threads)


def fit_workers(workers: int, worker_bytes: int | None, available_bytes: int | None) -> int:
    """Return the number of workers that fit into memory, at least one; all of them where memory is not known."""
    if not worker_bytes or not available_bytes:
        return workers
    return max(1, min(workers, int(_MEMORY_SHARE * available_bytes / worker_bytes)))


def _peak_bytes(options: DenoiserOptions) -> int | None:
    """Measure the peak memory of a worker."""
    try:
        with DenoiserProcess("a worker", options) as process:
            process.run(options.windowing.window_s)
            return process.peak_memory_bytes()
    except BenchError as error:
        raise CorpusError(str(error)) from error


def _backend_of(options: DenoiserOptions) -> Backend:
    return resolve_backend(options.backend, options.precision, options.calibration, find_model(options.model))
