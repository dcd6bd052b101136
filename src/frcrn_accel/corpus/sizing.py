"""How many workers, and threads for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcrn_accel.backends import resolve_backend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.errors import BenchError, CorpusError
from frcrn_accel.memory import available_memory_bytes
from frcrn_accel.models import find_model
from frcrn_accel.processes.process import Process
from frcrn_accel.windows import Windowing

__all__ = ["Sharing", "choose_sharing", "fit_workers"]

_MEMORY_SHARE = 0.8  # of what is available: files are decoded, and others live on the machine, too


@dataclass(frozen=True)
class Sharing:
    """How a machine is shared out.

    Attributes:
        workers: Processes, each with a file of its own.
        threads: CPU threads of each.
    """

    workers: int
    threads: int


def choose_sharing(options: Mapping[str, Any], tasks: int, workers: int | None, threads: int | None) -> Sharing:
    """Share a machine out.

    One file in one thread wastes nothing, so there is a worker for each CPU, as long as there is memory for them:
    what one takes is tried out, on a file that fills a window. Threads that are left over go to the workers. On a GPU
    there is one worker.

    Args:
        options: Arguments of `Denoiser`.
        tasks: How many there are to do.
        workers: As asked for; None to choose.
        threads: Of each worker, as asked for; None to choose.

    Raises:
        CorpusError: A worker cannot be tried out.
    """
    cpus = available_cpus()
    if workers is None:
        workers = max(1, min(cpus // (threads or 1), tasks))
        if workers > 1 and _on_gpu(options):
            workers = 1
        if workers > 1:
            workers = fit_workers(workers, _worker_bytes(options, threads or 1), available_memory_bytes())
    return Sharing(workers, threads or max(1, cpus // workers))


def fit_workers(workers: int, worker_bytes: int | None, available_bytes: int | None) -> int:
    """As many workers as there is memory for, at least one; all where memory is not known."""
    if not worker_bytes or not available_bytes:
        return workers
    return max(1, min(workers, int(_MEMORY_SHARE * available_bytes / worker_bytes)))


def _worker_bytes(options: Mapping[str, Any], threads: int) -> int | None:
    """Peak memory of a worker."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    try:
        with Process("a worker", {**plain, "threads": threads}) as process:
            process.run(Windowing().window_s)
            return process.peak_memory_bytes()
    except BenchError as error:
        raise CorpusError(str(error)) from error


def _on_gpu(options: Mapping[str, Any]) -> bool:
    """Engines on a GPU are those that want windows of one length."""
    file = find_model(options["model"])
    backend = resolve_backend(options.get("backend", "auto"), options.get("precision"), None, file)
    return backend.fixed_windows
