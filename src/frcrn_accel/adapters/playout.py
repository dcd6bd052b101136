"""Samples in their place in time, when a worker computes them and somebody who cannot wait takes them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from frcrn_accel.errors import AudioError

__all__ = ["DelayLine", "Playout", "from_pcm", "to_pcm"]

Samples = NDArray[Any]  # (channels, samples), any dtype: nothing is computed with them here


class DelayLine:
    """Gives out what it was given, so many samples later; at first zeros.

    Args:
        channels: Channels of the signal.
        samples: The delay.
        dtype: Of the signal.
    """

    def __init__(self, channels: int, samples: int, dtype: DTypeLike = np.int16) -> None:
        self._inside: Samples = np.zeros((channels, samples), dtype)

    def exchange(self, samples: Samples) -> Samples:
        """Take in `(channels, samples)` and give as many out."""
        joined = np.concatenate([self._inside, samples], axis=1)
        out, self._inside = joined[:, : samples.shape[1]], joined[:, samples.shape[1] :]
        return out


class Playout:
    """Takes in what a worker has computed, and gives out so many samples whenever they are asked for.

    Whoever asks never waits: for samples that are not there yet, others are given, and when they do come they are
    dropped, so that all that follows is in its place in time again. One thread puts, one takes.

    Args:
        channels: Channels of the signal.
        hold: So many samples are given from the fallback at first: the time that the worker has.
        drop: So many of the first samples that are put are dropped.
        dtype: Of the signal.
    """

    def __init__(self, channels: int, hold: int = 0, drop: int = 0, dtype: DTypeLike = np.int16) -> None:
        self._lock = threading.Lock()
        self._ready: Samples = np.zeros((channels, 0), dtype)
        self._hold = hold
        self._drop = drop
        self._late_samples = 0

    @property
    def late_samples(self) -> int:
        """Samples that were not there when they were asked for."""
        return self._late_samples

    def put(self, samples: Samples) -> None:
        """Append `(channels, samples)`."""
        with self._lock:
            dropped = min(self._drop, samples.shape[1])
            self._drop -= dropped
            self._ready = np.concatenate([self._ready, samples[:, dropped:]], axis=1)

    def take(self, fallback: Samples) -> Samples:
        """As many samples as `fallback` has, `(channels, samples)`: for those not there, its own."""
        count = fallback.shape[1]
        with self._lock:
            held = min(self._hold, count)
            self._hold -= held
            there = self._ready[:, : count - held]
            self._ready = self._ready[:, there.shape[1] :]
            missing = count - held - there.shape[1]
            self._drop += missing
            self._late_samples += missing
        return np.concatenate([fallback[:, :held], there, fallback[:, count - missing :]], axis=1)


def from_pcm(pcm: bytes | bytearray | memoryview, channels: int) -> NDArray[np.int16]:
    """16-bit samples in the machine's order, channels interleaved, as `int16 (channels, samples)`.

    Raises:
        AudioError: The bytes are no whole number of samples.
    """
    size = memoryview(pcm).nbytes
    if size % (2 * channels):
        raise AudioError(f"{size} bytes are no whole number of 16-bit samples in {channels} channel(s)")
    return np.ascontiguousarray(np.frombuffer(pcm, np.int16).reshape(-1, channels).T)


def to_pcm(samples: Samples) -> bytes:
    """The way back."""
    return np.ascontiguousarray(samples.T).tobytes()
