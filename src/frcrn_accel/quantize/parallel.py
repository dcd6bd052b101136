"""Run networks on several clips at once, a thread for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from frcrn_accel.cpu import available_cpus

__all__ = ["Threads", "map_parallel", "plan_threads"]

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


def plan_threads(samples: Sequence[int]) -> Threads:
    """Choose how many clips to run at once: as many as there are CPUs, if the clips are short enough.

    Threads that share a clip wait for each other at the end of each operator; threads with clips of their own do not.
    With other processes on the machine, this halves the CPU time. The outputs are the same.

    Args:
        samples: Lengths of the clips.
    """
    cpus = available_cpus()
    fitting = _SAMPLES_AT_ONCE // max(samples, default=1)
    clips = max(1, min(cpus, len(samples), fitting))
    return Threads(clips, max(1, cpus // clips))


def map_parallel(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, report: Callable[[int], None]
) -> list[_Result]:
    """Return the results of a function for each item, in their order.

    Args:
        function: The function; threads call it.
        items: The items.
        threads: Number of threads.
        report: Called with the number of results after each.

    Raises:
        Exception: The first exception that the function raises.
    """
    results: list[_Result] = []
    with ThreadPoolExecutor(threads) as pool:
        for result in pool.map(function, items):
            results.append(result)
            report(len(results))
    return results
