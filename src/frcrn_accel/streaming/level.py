"""The level of a live signal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import CEILING_FRAMES, EVENT_FRAMES, HEADROOM, STEEPNESS, gain_of

__all__ = ["RunningLevel"]

_OFFSET_HOPS = 50
_ONSET_HOPS = 25
_ONSET_LOUDEST = 5
_ONSET_SHARE = 0.25  # the loudest 0.1 s of ordinary speech is up to 6 dB above its level


class _Hop(NamedTuple):
    """A hop, or the weighted sum of many."""

    power: float = 0.0
    energy: float = 0.0
    samples: float = 0.0
    active_energy: float = 0.0  # of the samples above the mean power
    active_samples: float = 0.0


@dataclass(frozen=True)
class _Channel:
    """The level of one channel.

    Attributes:
        offset: Running mean of the samples: its sum and weight.
        recent: The last hops, at most two seconds. Their weights are not final yet.
        past: The sum of the hops before.
        ceiling: The highest ceiling of two seconds so far, fading.
    """

    offset: tuple[float, float] = (0.0, 0.0)
    recent: tuple[_Hop, ...] = ()
    past: _Hop = _Hop()  # noqa: RUF009 - immutable
    ceiling: float = 0.0


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
        past, ceiling = channel.past, channel.ceiling
        before = channel.recent
        if len(before) == CEILING_FRAMES:
            past = _sum(before[:1], ceiling, past, self.keep)
            before = before[1:]
        powers = [power, *(some.power for some in before)]
        loudest = sorted(powers, reverse=True)
        highest = max(self.keep * ceiling, HEADROOM * loudest[min(EVENT_FRAMES, len(loudest) // 2)])
        known = _sum((*before, _Hop(power, energy, samples)), highest, past)
        mean = known.energy / known.samples
        active = squares[squares > mean]
        active_energy, active_samples = float(np.add.reduce(active)), len(active)
        weight = _weight(power, highest)
        active_sum = known.active_samples + weight * active_samples
        # No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
        level = max((known.active_energy + weight * active_energy) / active_sum if active_sum else 0.0, mean)
        onset = _ONSET_SHARE * sum(sorted([power, *powers[1:][1 - _ONSET_HOPS :]], reverse=True)[:_ONSET_LOUDEST])
        recent = (*before, _Hop(power, energy, samples, active_energy, active_samples))
        is_full = len(recent) == CEILING_FRAMES  # a ceiling of fewer hops may be that of an event
        state = _Channel(offset, recent, past, highest if is_full else 0.0)
        return max(level, onset / _ONSET_LOUDEST), state


def _sum(hops: tuple[_Hop, ...], ceiling: float, start: _Hop, keep: float = 1.0) -> _Hop:
    """Return the weighted sum of hops, added to `keep` times `start`."""
    energy, samples = keep * start.energy, keep * start.samples
    active_energy, active_samples = keep * start.active_energy, keep * start.active_samples
    for power, hop_energy, hop_samples, hop_active_energy, hop_active_samples in hops:
        weight = 1.0 if power <= ceiling else _weight(power, ceiling)
        energy += weight * hop_energy
        samples += weight * hop_samples
        active_energy += weight * hop_active_energy
        active_samples += weight * hop_active_samples
    return _Hop(0.0, energy, samples, active_energy, active_samples)


def _weight(power: float, ceiling: float) -> float:
    """Return the weight of audio of this power; see `audio.measure_levels`."""
    return 1.0 if power <= ceiling else float((ceiling / power) ** STEEPNESS)
