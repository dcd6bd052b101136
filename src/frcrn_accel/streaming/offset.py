"""The constant offset of a live signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import offset_matters
from frcrn_accel.streaming.trailing import trailing

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
        averages: Running mean and mean power of the samples of each channel, offset included: `(2, channels)`. Older
            hops count less.
        offsets: Offset that was removed from the last sample of each channel.
    """

    recent: NDArray[np.float64]
    averages: NDArray[np.float64]
    offsets: NDArray[np.float64]

    @classmethod
    def none(cls, channels: int) -> RunningOffset:
        """Return the offset before the first hop."""
        return cls(np.zeros((channels, 0)), np.zeros((2, channels)), np.zeros(channels))

    def taken_out(self, audio: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningOffset]:
        """Remove the offset from hops.

        Args:
            audio: `(channels, hops, samples)`.

        Returns:
            The hops without the offset, and the state after them.
        """
        hops, samples = audio.shape[1:]
        own = np.array(
            [np.add.reduce(audio, axis=2, dtype=np.float64), np.einsum("chs,chs->ch", audio, audio, dtype=np.float64)]
        )
        own /= samples
        number = np.minimum(self.recent.shape[1] + np.arange(1, hops + 1), _HORIZON_HOPS)
        averages = np.empty_like(own)
        before = self.averages
        for hop in range(hops):
            averages[..., hop] = before = before + (own[..., hop] - before) / number[hop]
        means, powers = averages
        history = np.concatenate([self.recent[:, 1 - _RECENT_HOPS :], own[0]], axis=1)
        medians = np.empty_like(means)
        for new, recent in trailing(history, hops, _RECENT_HOPS):
            medians[:, new] = np.sort(recent)[..., recent.shape[2] // 2]
        found = np.minimum(np.maximum(means, np.minimum(medians, 0)), np.maximum(medians, 0))
        offsets = self._offsets(found, powers - means**2, (number / _HORIZON_HOPS) ** 2)
        after = RunningOffset(history[:, -_RECENT_HOPS:], averages[..., -1].copy(), offsets[:, -1].copy())
        if not (self.offsets.any() or offsets.any()):
            return audio, after
        first = self.offsets if self.recent.size else offsets[:, 0]
        starts = np.concatenate([first[:, None], offsets[:, :-1]], axis=1)
        fade = np.arange(1, samples + 1) / samples
        faded = starts[..., None] + (offsets - starts)[..., None] * fade
        return audio - faded.astype(np.float32), after

    def _offsets(
        self, found: NDArray[np.float64], rest: NDArray[np.float64], evidence: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the offset to remove from each hop, `(channels, hops)`.

        Args:
            found: The offset up to each hop.
            rest: The power without it.
            evidence: How certain it is, from 0 to 1, `(hops,)`.
        """
        offsets = np.zeros_like(found)
        begins = offset_matters(found, rest, evidence)
        before = self.offsets
        if before.any() or begins.any():
            stays = offset_matters(found, rest, _STAY * evidence)
            for hop in range(found.shape[1]):
                matters = np.where(before == 0, begins[:, hop], stays[:, hop])
                offsets[:, hop] = before = np.where(matters, found[:, hop], 0.0)
        return offsets
