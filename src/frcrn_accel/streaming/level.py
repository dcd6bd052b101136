"""The level of a signal that is still coming in."""

from __future__ import annotations

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

    def gain(self, hop: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hear a hop, `(channels, samples)`; the gain for it, `(channels,)`."""
        power = np.square(hop, dtype=np.float64)
        sums = self._sums * self._keep
        sums[0] += power.sum(axis=1)
        sums[1] += hop.shape[1]
        mean = sums[0] / sums[1]
        active = power > mean[:, None]
        sums[2] += np.sum(power, axis=1, where=active)
        sums[3] += np.count_nonzero(active, axis=1)
        self._sums = sums
        # Samples at the mean power (a square wave) are not above it.
        level = np.sqrt(np.where(sums[3] > 0, np.maximum(sums[2] / np.maximum(sums[3], 1), mean), mean))
        result: NDArray[np.float32] = gain_of(level).astype(np.float32)
        return result
