"""The level of a signal that is still coming in."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import gain_of

__all__ = ["RunningLevel"]


class RunningLevel:
    """The gain that brings each channel to the level the model was trained at, hop by hop.

    The rule of `audio.measure_levels`, on what has been heard so far: the power of the samples above the mean power.
    What is longer ago than the horizon counts less and less. A shallow copy has heard the same and hears on alone.

    Args:
        channels: Number of channels.
        horizon_hops: The horizon.
    """

    def __init__(self, channels: int, horizon_hops: float) -> None:
        self._keep = 1 - 1 / horizon_hops
        # Energy and number of samples, `(2, channels)`. Replaced, never changed in place.
        self._all = self._active = np.zeros((2, channels))

    def gains(self, hops: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hear hops, `(channels, hops, samples)`; the gain for each, `(channels, hops)`."""
        power = np.square(hops, dtype=np.float64)
        energy, samples = sums = self._running(self._all, power.sum(axis=2), np.full(hops.shape[:2], hops.shape[2]))
        self._all = sums[..., -1]
        mean = energy / samples
        active = power > mean[..., None]
        of_active = np.einsum("chs,chs->ch", power, active)
        energy, samples = sums = self._running(self._active, of_active, np.count_nonzero(active, axis=2))
        self._active = sums[..., -1]
        # Samples at the mean power (a square wave) are not above it.
        level = np.sqrt(np.where(samples > 0, np.maximum(energy / np.maximum(samples, 1), mean), mean))
        result: NDArray[np.float32] = gain_of(level).astype(np.float32)
        return result

    def _running(self, before: NDArray[np.float64], *of_hops: NDArray[Any]) -> NDArray[np.float64]:
        """Sums after each hop, `(2, channels, hops)`, from those before and what hops add, `(channels, hops)`."""
        of_new, of_before = _kept(self._keep, of_hops[0].shape[1])
        sums: NDArray[np.float64] = np.array(of_hops) @ of_new + before[..., None] * of_before
        return sums


@lru_cache(maxsize=64)
def _kept(keep: float, hops: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is kept after each hop: of each of them, `(hops, hops)`, and of what was before, `(hops,)`."""
    number = np.arange(hops, dtype=np.float64)
    passed = np.maximum(number - number[:, None], 0)
    return np.triu(np.power(keep, passed)), np.power(keep, number + 1)
