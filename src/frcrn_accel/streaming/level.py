"""The level of a live signal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import CEILING_FRAMES, burst_ceiling_of, ceiling_of, gain_of, is_event_only

__all__ = ["RunningLevel"]

_ONSET_HOPS = 25
_ONSET_LOUDEST = 5
_ONSET_SHARE = 0.25  # the loudest 0.1 s of ordinary speech is up to 6 dB above its level
_GROWTH = 5.0  # what has only begun beside an event may become 7 dB louder
_LINE_DB = 2.0
_LOWEST_DB = -130.0
_LINES = 76  # up to 20 dB above full scale
_LINE_POWERS = np.append(10 ** ((_LOWEST_DB + _LINE_DB * np.arange(_LINES)) / 10), np.inf)
_LITTLE, _MUCH = 0.5, 1.5  # dB: events that change the level by less count fully, by more not at all
_CEILING_PACE = 13  # the ceiling falls by 3 dB while what was below it fades by 39 dB
_TINY_POWER = 1e-15


@dataclass(frozen=True, eq=False)
class _Channel:
    """The level of one channel.

    Attributes:
        recent: Powers of the last hops, at most two seconds.
        ceiling: The highest ceiling of two seconds so far, fading.
        sums: For each ceiling on a grid the sums over the hops up to it, `(4, ceilings)`: energy, samples, and both
            for the samples above the mean power.
    """

    recent: NDArray[np.float64]
    ceiling: float
    sums: NDArray[np.float64]


_SILENT = _Channel(np.zeros(0), 0.0, np.zeros((4, len(_LINE_POWERS))))


@dataclass(frozen=True)
class RunningLevel:
    """The level of each channel so far, hop by hop.

    It is the RMS of the samples above the mean power so far, where older audio fades out. Events are left out by the
    rule of `audio.measure_levels`: hops above a ceiling do not count. The ceiling becomes known only as the signal
    arrives. The level is therefore tracked for a grid of ceilings at once, and that of the current ceiling is used,
    as if the event had not happened. If the rest is too quiet to be speech, all hops count, as in a file, until
    something louder begins.

    While the last half second is much louder than that level, the level comes from its loudest tenth of a second:
    speech, or shouting, may have begun. After a shorter event, the level falls back.

    An instance is immutable; `update` returns a new one.

    Attributes:
        keep: Factor by which each hop reduces the previous sums.
        channels: The state of each channel.
    """

    keep: float
    channels: tuple[_Channel, ...]

    @classmethod
    def silent(cls, channels: int, horizon_hops: float) -> RunningLevel:
        """Return the level before the first hop."""
        return cls(1 - 1 / horizon_hops, (_SILENT,) * channels)

    def update(self, hops: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningLevel]:
        """Add hops to the level.

        Args:
            hops: `(channels, hops, samples)`.

        Returns:
            The gain that brings each hop to the level the model was trained at, `(channels, hops)`, and the new
            level.
        """
        powers = np.empty(hops.shape[:2])
        after = []
        for row, (channel, of_channel) in enumerate(zip(self.channels, hops, strict=True)):
            for column, hop in enumerate(of_channel):
                powers[row, column], channel = self._updated(channel, hop)
            after.append(channel)
        return gain_of(np.sqrt(powers)).astype(np.float32), RunningLevel(self.keep, tuple(after))

    def _updated(self, channel: _Channel, hop: NDArray[np.float32]) -> tuple[float, _Channel]:
        """Return the power of active speech after one more hop, and the new state of its channel."""
        squares = np.sort(np.square(hop, dtype=np.float64))
        energies = np.concatenate([[0.0], np.cumsum(squares)])
        samples, energy = len(hop), energies[-1]
        power = float(energy / samples)
        recent = np.append(channel.recent[1 - CEILING_FRAMES :], power)
        ceiling = self.keep ** (1 / _CEILING_PACE) * channel.ceiling
        if len(recent) == CEILING_FRAMES:
            known = ceiling = max(ceiling, float(ceiling_of(recent)))
        else:
            known = float(burst_ceiling_of(recent))  # an event that is not over yet may raise it
        first = int(np.searchsorted(_LINE_POWERS, power))  # of the lines that the hop is not above
        sums = channel.sums.copy()
        counted = sums[:, first:]
        counted *= self.keep
        counted[:2] += [[energy], [samples]]
        mean = sums[0] / np.maximum(sums[1], 1)
        quiet = np.searchsorted(squares, mean[first:], side="right")
        counted[2] += energy - energies[quiet]
        counted[3] += samples - quiet
        # No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
        levels = np.maximum(sums[2] / np.maximum(sums[3], 1), mean)
        onset = _ONSET_SHARE / _ONSET_LOUDEST * float(np.sum(np.sort(recent[-_ONSET_HOPS:])[-_ONSET_LOUDEST:]))
        return max(_level_below(known, levels, onset), onset), _Channel(recent, ceiling, sums)


def _level_below(ceiling: float, levels: NDArray[np.float64], onset: float) -> float:
    """Return the level below a ceiling; that of all hops if it is nearly the same, or if all else is too quiet.

    Args:
        ceiling: The ceiling.
        levels: The levels below each line.
        onset: The level of what may have begun within the last half second.
    """
    all_of_it = float(levels[-1])
    position = (10 * np.log10(max(ceiling, _TINY_POWER)) - _LOWEST_DB) / _LINE_DB
    line = int(np.clip(position, 0, _LINES - 1))
    below = _between(float(levels[line]), float(levels[line + 1]), float(np.clip(position - line, 0, 1)))
    if is_event_only(all_of_it, _GROWTH * max(below, onset)):
        return all_of_it
    change_db = 10 * np.log10(max(all_of_it, _TINY_POWER) / max(below, _TINY_POWER))
    return _between(all_of_it, below, float(np.clip((change_db - _LITTLE) / (_MUCH - _LITTLE), 0, 1)))


def _between(first: float, second: float, share: float) -> float:
    """Interpolate between two powers, in dB; return the larger one if the other is zero."""
    if min(first, second) <= 0 or share in (0, 1):
        return second if share == 1 or (share > 0 and second > first) else first
    return float(first ** (1 - share) * second**share)
