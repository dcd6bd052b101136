"""The constant offset of a live signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import offset_matters

__all__ = ["RunningOffset"]

_HORIZON_HOPS = 50  # a second
_RECENT_HOPS = 60  # more than twice those that a bang of half a second touches
_STAY = 4.0  # an offset that is being removed stays removed down to a quarter of the power at which it matters


@dataclass(frozen=True, eq=False)
class RunningOffset:
    """The constant offset of each channel so far, hop by hop.

    In files, an offset is removed if it matters to the model. Here, the offset of the last second is removed as soon
    as it is clear that it is an offset and not a low tone. In the first second, the shorter the signal so far, the
    larger it has to be. A bang of up to half a second can have a large mean of its own, so the offset is also the
    median of the means of the hops; of the two, the smaller counts. Each hop fades from the previous offset to its
    own. A signal without an offset is unchanged, bit for bit. An instance is immutable; `taken_out` returns a new
    one.

    Attributes:
        recent: Means of the last hops, of up to 1.2 s: `(channels, hops)`.
        means: Mean of the samples of each channel, in which older hops fade.
        powers: Mean power of the samples of each channel, with the offset.
        offsets: Offset that was removed from the last sample of each channel.
    """

    recent: NDArray[np.float64]
    means: NDArray[np.float64]
    powers: NDArray[np.float64]
    offsets: NDArray[np.float64]

    @classmethod
    def none(cls, channels: int) -> RunningOffset:
        """Return the offset before the first hop."""
        return cls(np.zeros((channels, 0)), np.zeros(channels), np.zeros(channels), np.zeros(channels))

    def taken_out(self, audio: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningOffset]:
        """Remove the offset from hops.

        Args:
            audio: `(channels, hops, samples)`.

        Returns:
            The hops without the offset, and the state after them.
        """
        samples = audio.shape[2]
        fade = np.arange(1, samples + 1) / samples
        hop_means = np.add.reduce(audio, axis=2, dtype=np.float64) / samples
        hop_powers = np.einsum("chs,chs->ch", audio, audio, dtype=np.float64) / samples
        out, after = audio, self
        for hop in range(audio.shape[1]):
            before = after
            after = before._updated(hop_means[:, hop], hop_powers[:, hop])
            if before.offsets.any() or after.offsets.any():
                out = audio.copy() if out is audio else out
                start = before.offsets if before.recent.size else after.offsets
                faded = start[:, None] + (after.offsets - start)[:, None] * fade
                out[:, hop] -= faded.astype(np.float32)
        return out, after

    def _updated(self, means: NDArray[np.float64], powers: NDArray[np.float64]) -> RunningOffset:
        """Return the offset after one more hop."""
        recent = np.concatenate([self.recent[:, 1 - _RECENT_HOPS :], means[:, None]], axis=1)
        hops = min(recent.shape[1], _HORIZON_HOPS)
        means = self.means + (means - self.means) / hops
        powers = self.powers + (powers - self.powers) / hops
        medians = np.sort(recent, axis=1)[:, recent.shape[1] // 2]
        found = np.where(means * medians > 0, np.sign(means) * np.minimum(np.abs(means), np.abs(medians)), 0.0)
        evidence = (hops / _HORIZON_HOPS) ** 2 * np.where(self.offsets == 0, 1.0, _STAY)
        matters = offset_matters(found, powers - means**2, evidence)
        return RunningOffset(recent, means, powers, np.where(matters, found, 0.0))
