"""The level of a signal that is still coming in."""

from __future__ import annotations

from collections.abc import Sequence
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
        # Energy and number of samples: of all, and of the active ones. Replaced, never changed in place.
        self._sums = np.zeros((4, channels))

    def gains(self, hops: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hear hops, `(channels, hops, samples)`; the gain for each, `(channels, hops)`."""
        power = np.square(hops, dtype=np.float64)
        energy, samples = self._running([power.sum(axis=2), np.full(hops.shape[:2], hops.shape[2])], 0)
        mean = energy / samples
        active = power > mean[..., None]
        counts = np.count_nonzero(active, axis=2)
        energy, samples = self._running([np.sum(power, axis=2, where=active), counts], 2)
        # Samples at the mean power (a square wave) are not above it.
        level = np.sqrt(np.where(samples > 0, np.maximum(energy / np.maximum(samples, 1), mean), mean))
        result: NDArray[np.float32] = gain_of(level).astype(np.float32)
        return result

    def _running(self, of_hops: Sequence[NDArray[Any]], first: int) -> NDArray[np.float64]:
        """Two of the sums after each hop, `(2, channels, hops)`, from what the hops add, `(channels, hops)` each."""
        added = np.stack(of_hops)
        sums = np.empty(added.shape)
        total = self._sums[first : first + 2]
        for hop in range(added.shape[2]):
            total = total * self._keep + added[..., hop]
            sums[..., hop] = total
        self._sums = np.concatenate([self._sums[:first], total, self._sums[first + 2 :]])
        return sums
