"""The most recent values at each new hop of a live signal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["trailing", "trailing_max"]


def trailing(history: NDArray[np.float64], count: int, longest: int) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield the most recent values at each new one: one by one while fewer than `longest`, then all at once.

    Args:
        history: The values so far, `(channels, hops)`, of which the last `count` are new; contiguous.
        count: Number of new values.
        longest: Number of values up to each new one, itself included.

    Yields:
        Which new values, and `(channels, new values, values up to each)`, not to be written to.
    """
    if count == 1:
        yield slice(0, 1), history[:, None, -longest:]
        return
    old = history.shape[1] - count
    short = min(max(longest - 1 - old, 0), count)
    for new in range(short):
        yield slice(new, new + 1), history[:, None, : old + new + 1]
    if short < count:
        row, value = history.strides
        first = (old + short + 1 - longest) * value
        shape = (len(history), count - short, longest)
        yield slice(short, count), np.ndarray(shape, history.dtype, history, first, (row, value, value))


def trailing_max(history: NDArray[np.float64], count: int, longest: int) -> NDArray[np.float64]:
    """Return the largest of the most recent values at each new one, `(channels, count)`; see `trailing`."""
    largest = np.empty((len(history), count))
    for new, values in trailing(history, count, longest):
        values.max(axis=2, out=largest[:, new])
    return largest
