"""The level of a live signal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import gain_of

__all__ = ["RunningLevel"]

Sums = tuple[float, float]  # energy and number of samples


@dataclass(frozen=True)
class RunningLevel:
    """The level of each channel so far, hop by hop.

    The level is defined as in `audio.measure_levels`: the power of the samples above the mean power. Audio beyond the
    horizon fades out. An instance is immutable; `update` returns a new one.

    Attributes:
        keep: Factor by which each hop reduces the previous sums.
        of_all: Sums over all samples, per channel.
        of_active: Sums over the samples above the mean power, per channel.
    """

    keep: float
    of_all: tuple[Sums, ...]
    of_active: tuple[Sums, ...]

    @classmethod
    def silent(cls, channels: int, horizon_hops: float) -> RunningLevel:
        """Return the level before the first hop."""
        none = ((0.0, 0.0),) * channels
        return cls(1 - 1 / horizon_hops, none, none)

    def update(self, hops: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningLevel]:
        """Add hops to the level.

        Args:
            hops: `(channels, hops, samples)`.

        Returns:
            The gain that brings each hop to the level the model was trained at, `(channels, hops)`, and the new
            level.
        """
        power = np.square(hops, dtype=np.float64)
        energy = np.add.reduce(power, axis=2).tolist()
        # A step has few hops and starts with a cold cache: loops over them are faster than calls of numpy.
        of_all = self._running(self.of_all, energy, [[hops.shape[2]] * hops.shape[1]] * hops.shape[0])
        mean = np.array([[energy / samples for energy, samples in channel] for channel in of_all])
        active = power > mean[..., None]
        power *= active
        energy, samples = np.add.reduce(power, axis=2).tolist(), np.add.reduce(active, axis=2).tolist()
        of_active = self._running(self.of_active, energy, samples)
        # No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
        squares = [[energy / max(samples, 1.0) for energy, samples in channel] for channel in of_active]
        after = RunningLevel(self.keep, tuple(sums[-1] for sums in of_all), tuple(sums[-1] for sums in of_active))
        return gain_of(np.sqrt(np.maximum(squares, mean))).astype(np.float32), after

    def _running(
        self, before: Sequence[Sums], energy: Sequence[Sequence[float]], samples: Sequence[Sequence[float]]
    ) -> list[list[Sums]]:
        """Return the sums after each hop, per channel.

        Args:
            before: Sums before the first hop, per channel.
            energy: Energy that each hop adds, `[channel][hop]`.
            samples: Samples that each hop adds, `[channel][hop]`.
        """
        running = []
        for (energy_sum, samples_sum), *added in zip(before, energy, samples, strict=True):
            sums = []
            for more_energy, more_samples in zip(*added, strict=True):
                energy_sum = self.keep * energy_sum + more_energy
                samples_sum = self.keep * samples_sum + more_samples
                sums.append((energy_sum, samples_sum))
            running.append(sums)
        return running
