"""Samples in their place in time, between a worker that computes them and a caller that cannot wait."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["DelayLine", "Playout"]

Samples = NDArray[Any]  # (channels, samples); of any dtype, since samples are only moved here


class DelayLine:
    """Delay a signal by a number of samples; zeros come out first.

    Args:
        channels: Channels of the signal.
        samples: The delay.
        dtype: Dtype of the signal.
    """

    def __init__(self, channels: int, samples: int, dtype: DTypeLike = np.int16) -> None:
        self._inside: Samples = np.zeros((channels, samples), dtype)

    @property
    def delay_samples(self) -> int:
        """The delay."""
        return int(self._inside.shape[1])

    def lengthen(self, samples: int) -> None:
        """Make the delay at least this long; zeros come out for the difference."""
        short = max(0, samples - self.delay_samples)
        self._inside = np.pad(self._inside, ((0, 0), (short, 0)))

    def exchange(self, samples: Samples) -> Samples:
        """Take in `(channels, samples)` and return an array of the same shape."""
        joined = np.concatenate([self._inside, samples], axis=1)
        out, self._inside = joined[:, : samples.shape[1]], joined[:, samples.shape[1] :]
        return out


class Playout:
    """A queue of computed samples whose reader never waits.

    Where samples are missing, `take` returns those of a fallback instead. Samples that arrive after their turn are
    dropped, so that the following ones are in their place in time again. One thread puts, one takes.

    Args:
        channels: Channels of the signal.
        hold: Number of samples taken from the fallback at the start: the time that the worker has.
        drop: Number of samples dropped at the start.
        dtype: Dtype of the signal.
    """

    def __init__(self, channels: int, hold: int = 0, drop: int = 0, dtype: DTypeLike = np.int16) -> None:
        self._lock = threading.Lock()
        self._ready: Samples = np.zeros((channels, 0), dtype)
        self._hold = hold
        self._drop = drop
        self._late_samples = 0

    @property
    def late_samples(self) -> int:
        """Number of samples that were missing when they were taken."""
        return self._late_samples

    def lengthen(self, samples: int) -> None:
        """Take this many more samples from the fallback before the next one: the delay grows."""
        with self._lock:
            self._hold += samples

    def put(self, samples: Samples) -> None:
        """Append `(channels, samples)`."""
        with self._lock:
            dropped = min(self._drop, samples.shape[1])
            self._drop -= dropped
            self._ready = np.concatenate([self._ready, samples[:, dropped:]], axis=1)

    def take(self, fallback: Samples) -> Samples:
        """Return the next samples, in the shape of `fallback`, with its samples in place of missing ones."""
        count = fallback.shape[1]
        with self._lock:
            held = min(self._hold, count)
            self._hold -= held
            ready = self._ready[:, : count - held]
            self._ready = self._ready[:, ready.shape[1] :]
            missing = count - held - ready.shape[1]
            self._drop += missing
            self._late_samples += missing
        return np.concatenate([fallback[:, :held], ready, fallback[:, count - missing :]], axis=1)
