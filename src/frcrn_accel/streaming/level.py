"""The level of a signal that is still coming in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import gain_of

__all__ = ["RunningLevel"]

Sums = tuple[float, float]  # energy, and number of samples


@dataclass(frozen=True)
class RunningLevel:
    """The gain that brings each channel to the level the model was trained at, hop by hop.

    The rule of `audio.measure_levels`, on what has been heard so far: the power of the samples above the mean power.
    What is longer ago than the horizon counts less and less. It is a value: to hear more gives another one.

    Attributes:
        keep: What is kept of the sums with each hop.
        of_all: Sums of all samples, for each channel.
        of_active: Of those above the mean power.
    """

    keep: float
    of_all: tuple[Sums, ...]
    of_active: tuple[Sums, ...]

    @classmethod
    def of_silence(cls, channels: int, horizon_hops: float) -> RunningLevel:
        """That of so many channels before the first hop."""
        none = ((0.0, 0.0),) * channels
        return cls(1 - 1 / horizon_hops, none, none)

    def heard(self, hops: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningLevel]:
        """Hear hops, `(channels, hops, samples)`: the gain for each, `(channels, hops)`, and the level after them.

        There are few hops in a step, and its cache is cold: a call of numpy costs more than a loop over them.
        """
        power = np.square(hops, dtype=np.float64)
        energy = np.add.reduce(power, axis=2).tolist()
        of_all = self._running(self.of_all, energy, [[hops.shape[2]] * hops.shape[1]] * hops.shape[0])
        mean = np.array([[energy / samples for energy, samples in channel] for channel in of_all])
        active = power > mean[..., None]
        power *= active
        energy, samples = np.add.reduce(power, axis=2).tolist(), np.add.reduce(active, axis=2).tolist()
        of_active = self._running(self.of_active, energy, samples)
        # Where none is above the mean power (a square wave) that is the level: the energy is 0.
        squares = [[energy / max(samples, 1.0) for energy, samples in channel] for channel in of_active]
        after = RunningLevel(self.keep, tuple(sums[-1] for sums in of_all), tuple(sums[-1] for sums in of_active))
        return gain_of(np.sqrt(np.maximum(squares, mean))).astype(np.float32), after

    def _running(
        self, before: Sequence[Sums], energy: Sequence[Sequence[float]], samples: Sequence[Sequence[float]]
    ) -> list[list[Sums]]:
        """For each channel the sums after each hop, from those before and what hops add."""
        running = []
        for (energy_sum, samples_sum), *added in zip(before, energy, samples, strict=True):
            sums = []
            for more_energy, more_samples in zip(*added, strict=True):
                energy_sum = self.keep * energy_sum + more_energy
                samples_sum = self.keep * samples_sum + more_samples
                sums.append((energy_sum, samples_sum))
            running.append(sums)
        return running
