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
_BANG_HOPS = 30  # a bang of half a second touches 26
_STAY = 4.0  # an offset that is being removed stays removed down to a quarter of the power at which it matters


@dataclass(frozen=True, eq=False)
class RunningOffset:
    """The constant offset of each channel so far, hop by hop.

    In files, an offset is removed if it matters to the model. Here, the offset of the last second is removed as soon
    as it is clear that it is an offset and not a low tone. In the first second, the shorter the signal so far, the
    larger it has to be. A bang of up to half a second can have a large mean of its own, so the offset is at most
    the median of the means of the hops. In the first 1.2 s, a bang can be more than half of them: there, if the 30th
    largest mean is less than half of the median, it is the limit. Each hop fades from the previous offset to its
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
        own = np.empty((2, *audio.shape[:2]))
        np.add.reduce(audio, axis=2, dtype=np.float64, out=own[0])
        np.einsum("chs,chs->ch", audio, audio, dtype=np.float64, out=own[1])
        own /= samples
        number = [min(self.recent.shape[1] + hop, _HORIZON_HOPS) for hop in range(1, hops + 1)]
        averages = np.empty_like(own)
        before = self.averages
        for hop in range(hops):
            averages[..., hop] = before = before + (own[..., hop] - before) / number[hop]
        means, powers = averages
        history = np.concatenate([self.recent[:, 1 - _RECENT_HOPS :], own[0]], axis=1)
        rest = powers - means**2
        evidence = (np.array(number) / _HORIZON_HOPS) ** 2
        offsets = self.offsets[:, None]
        # What is found is at most the mean, so nearly always there is nothing to look for.
        is_possible = self.offsets.any() or offset_matters(means, rest, evidence).any()
        if is_possible:
            offsets = self._offsets(_common(means, history), rest, evidence)
        after = RunningOffset(history[:, -_RECENT_HOPS:], before, offsets[:, -1].copy())
        if not (is_possible and (self.offsets.any() or offsets.any())):
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


def _common(means: NDArray[np.float64], history: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the part of the means that is no bang, `(channels, hops)`.

    Args:
        means: Mean of the last second at each new hop, `(channels, hops)`.
        history: Means of single hops, the new ones last.
    """
    found = np.empty_like(means)
    for new, recent in trailing(history, means.shape[1], _RECENT_HOPS):
        ranked, length = np.sort(recent), recent.shape[2]
        median = ranked[..., length // 2]
        lower, upper = ranked[..., min(_BANG_HOPS, length - 1)], ranked[..., max(length - _BANG_HOPS, 0)]
        in_most = np.where(median > 0, np.maximum(upper, 0), np.minimum(lower, 0))
        bound = np.where(2 * np.abs(in_most) < np.abs(median), in_most, median)
        found[:, new] = np.minimum(np.maximum(means[:, new], np.minimum(bound, 0)), np.maximum(bound, 0))
    return found
