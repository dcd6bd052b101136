"""Work on several clips at once, a thread for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from frcrn_accel.cpu import available_cpus

__all__ = ["Threads", "map_parallel", "plan_threads", "workers"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_SAMPLES_AT_ONCE = 320_000  # 20 s at 16 kHz: about 2 GB at the released size


class Threads(NamedTuple):
    """How to spread work over the CPUs.

    Attributes:
        clips: Clips at once.
        each: Threads of the engine for each of them.
    """

    clips: int
    each: int


def plan_threads(samples: Sequence[int], cpus: int | None = None) -> Threads:
    """Choose how many clips to run at once: as many as there are CPUs, if the clips are short enough.

    Threads that share a clip wait for each other at the end of each operator; threads with clips of their own do not.
    With other processes on the machine, this halves the CPU time. The outputs are the same.

    Args:
        samples: Lengths of the clips.
        cpus: CPUs to use; None for all.
    """
    cpus = cpus or available_cpus()
    fitting = _SAMPLES_AT_ONCE // max(samples, default=1)
    clips = max(1, min(cpus, len(samples), fitting))
    return Threads(clips, max(1, cpus // clips))


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Provide threads that take up tasks in order. At the end of the block, tasks that have not begun are dropped."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def map_parallel(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    pool: ThreadPoolExecutor,
    report: Callable[[int], None] = lambda done: None,
) -> list[_Result]:
    """Return the results of a function for each item, in their order.

    Args:
        function: The function; threads call it.
        items: The items.
        pool: The threads.
        report: Called with the number of results after each.

    Raises:
        Exception: The first exception that the function raises.
    """
    results: list[_Result] = []
    for result in pool.map(function, items):
        results.append(result)
        report(len(results))
    return results
