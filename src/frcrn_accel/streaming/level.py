"""The level of a live signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import CEILING_FRAMES, EVENT_FRAMES, HEADROOM, gain_of, is_event_only

__all__ = ["RunningLevel"]

Sums = tuple[float, float]  # energy and number of samples
_NOTHING: Sums = (0.0, 0.0)
_OFFSET_HOPS = 50
_ONSET_HOPS = 25
_ONSET_LOUDEST = 5
_ONSET_SHARE = 0.25  # the loudest 0.1 s of ordinary speech is up to 6 dB above its level


@dataclass(frozen=True)
class _Channel:
    """The level of one channel. Sums are `(all samples, samples above the mean power)`.

    Attributes:
        offset: Running mean of the samples: its sum and weight.
        recent: Powers of the last hops, at most two seconds.
        ceiling: The highest ceiling of two seconds so far, fading.
        plain: Sums in which all hops count.
        robust: Sums in which hops above the ceiling count less.
    """

    offset: Sums = _NOTHING
    recent: tuple[float, ...] = ()
    ceiling: float = 0.0
    plain: tuple[Sums, Sums] = (_NOTHING, _NOTHING)
    robust: tuple[Sums, Sums] = (_NOTHING, _NOTHING)


@dataclass(frozen=True)
class RunningLevel:
    """The level of each channel so far, hop by hop.

    The rule is that of `audio.measure_levels`, for what is known so far: audio beyond the horizon fades out. While
    the last half second is much louder than that level, its loudest tenth of a second counts: somebody may have begun
    to speak, or to shout. After an event that was shorter, the level is back. An instance is immutable; `update`
    returns a new one.

    Attributes:
        keep: Factor by which each hop reduces the previous sums.
        channels: The state of each channel.
    """

    keep: float
    channels: tuple[_Channel, ...]

    @classmethod
    def silent(cls, channels: int, horizon_hops: float) -> RunningLevel:
        """Return the level before the first hop."""
        return cls(1 - 1 / horizon_hops, (_Channel(),) * channels)

    def update(self, hops: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningLevel]:
        """Add hops to the level.

        Args:
            hops: `(channels, hops, samples)`.

        Returns:
            The gain that brings each hop to the level the model was trained at, `(channels, hops)`, and the new
            level.
        """
        squares = np.empty(hops.shape[:2])
        after = []
        for row, (channel, of_channel) in enumerate(zip(self.channels, hops, strict=True)):
            for column, hop in enumerate(of_channel):
                squares[row, column], channel = self._updated(channel, hop)
            after.append(channel)
        return gain_of(np.sqrt(squares)).astype(np.float32), RunningLevel(self.keep, tuple(after))

    def _updated(self, channel: _Channel, hop: NDArray[np.float32]) -> tuple[float, _Channel]:
        """Return the power of active speech after one more hop, and the new state of its channel."""
        # A step has few hops and starts with a cold cache: plain numbers are faster than calls of numpy.
        samples = len(hop)
        keep = 1 - 1 / _OFFSET_HOPS
        offset = (keep * channel.offset[0] + float(np.add.reduce(hop)) / samples, keep * channel.offset[1] + 1)
        squares = np.square(hop - np.float32(offset[0] / offset[1]), dtype=np.float64)
        energy = float(np.add.reduce(squares))
        power = energy / samples
        recent = (*channel.recent[1 - CEILING_FRAMES :], power)
        ceiling = HEADROOM * sorted(recent, reverse=True)[min(EVENT_FRAMES, len(recent) // 2)]
        highest = max(self.keep * channel.ceiling, ceiling)
        carried = highest if len(recent) == CEILING_FRAMES else 0.0
        plain, of_plain = self._added(channel.plain, squares, energy, 1.0, 1.0)
        weight = _weight(power, highest)
        known = channel.robust[1]
        # What was counted before the ceiling was known counts less now.
        past = _weight(known[0] / known[1], highest) if known[1] else 1.0
        robust, of_robust = self._added(channel.robust, squares, energy, weight, past)
        level = of_plain if is_event_only(of_plain, of_robust) else of_robust
        loudest = sorted(recent[-_ONSET_HOPS:], reverse=True)[:_ONSET_LOUDEST]
        onset = _ONSET_SHARE * sum(loudest) / _ONSET_LOUDEST
        return max(level, onset), _Channel(offset, recent, carried, plain, robust)

    def _added(
        self, sums: tuple[Sums, Sums], squares: NDArray[np.float64], energy: float, weight: float, past: float
    ) -> tuple[tuple[Sums, Sums], float]:
        """Add a hop to sums, and return them with the power of the active samples."""
        keep = self.keep * past
        (all_energy, all_samples), (active_energy, active_samples) = sums
        all_energy = keep * all_energy + weight * energy
        all_samples = keep * all_samples + weight * len(squares)
        mean = all_energy / all_samples if all_samples else 0.0
        active = squares[squares > mean]
        active_energy = keep * active_energy + weight * float(np.add.reduce(active))
        active_samples = keep * active_samples + weight * len(active)
        # No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
        level = max(active_energy / active_samples if active_samples else 0.0, mean)
        return ((all_energy, all_samples), (active_energy, active_samples)), level


def _weight(power: float, ceiling: float) -> float:
    """Return the weight of audio of this power; see `audio.measure_levels`."""
    return 1.0 if power <= ceiling else (ceiling / power) ** 2
