"""The level of a live signal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import CEILING_FRAMES, SILENCE_LEVEL, burst_ceiling_of, ceiling_of, gain_of, is_event_only
from frcrn_accel.streaming.trailing import trailing

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
_NO_CEILING = 1e30
# The loudest part is yet to come: after the first hop, the level of a signal rises by this much on average.
_RISE_DB = 5.0
_RISE_HOPS = 30
_HORIZON_HOPS = 1000.0  # 20 s
_BURST_HOPS = 25  # in a shorter signal, the first word looks like a burst


@dataclass(frozen=True, eq=False)
class RunningLevel:
    """The level of each channel so far, hop by hop.

    It is the RMS of the samples above the mean power so far, where older audio fades out. Events are left out by the
    rule of `audio.measure_levels`: hops above a ceiling do not count. The ceiling becomes known only as the signal
    arrives. The level is therefore tracked for a grid of ceilings at once, and that of the current ceiling is used,
    as if the event had not happened. If the rest is too quiet to be speech, all hops count, as in a file, until
    something louder begins.

    While the last half second is much louder than that level, the level comes from its loudest tenth of a second:
    speech, or shouting, may have begun. After a shorter event, the level falls back.

    At the start of a signal, the level is raised by 5 dB, which fades over 0.6 s of sound: the loudest part is yet
    to come, and the first few hops are quieter than the whole signal, on average by that much.

    An instance is immutable; `update` returns a new one.

    Attributes:
        keep: Factor by which each hop reduces the previous sums.
        recent: Powers of the last hops, at most two seconds, `(channels, hops)`.
        ceiling: The highest ceiling of two seconds so far, fading, `(channels,)`.
        counted: Of the hops up to each ceiling on a grid, `(3, channels, ceilings)`: energy, number of samples, and
            number of samples in hops that are not silent.
        active: Energy and number of their samples above the mean power, `(2, channels, ceilings)`.
    """

    keep: float
    recent: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    counted: NDArray[np.float64]
    active: NDArray[np.float64]

    @classmethod
    def silent(cls, channels: int, horizon_hops: float = _HORIZON_HOPS) -> RunningLevel:
        """Return the level before the first hop."""
        sums = np.zeros((3, channels, len(_LINE_POWERS)))
        return cls(1 - 1 / horizon_hops, np.zeros((channels, 0)), np.zeros(channels), sums, sums[:2])

    def update(self, hops: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningLevel]:
        """Add hops to the level.

        Args:
            hops: `(channels, hops, samples)`.

        Returns:
            The gain that brings each hop to the level the model was trained at, `(channels, hops)`, and the new
            level.
        """
        channels, count, samples = hops.shape
        squares = np.sort(np.square(hops, dtype=np.float64))
        energies = np.zeros((channels, count, samples + 1))  # of the 0, 1, 2, ... quietest samples
        np.cumsum(squares, axis=2, out=energies[..., 1:])
        power = energies[..., -1:] / samples
        sizes = np.full(power.shape, samples)
        total = np.array([energies[..., -1:], sizes, sizes * (power > SILENCE_LEVEL**2)])
        history = np.concatenate([self.recent, power[..., 0]], axis=1)
        is_below = power <= _LINE_POWERS
        keep = np.where(is_below, self.keep, 1.0)
        counted = _running_sums(self.counted, keep, is_below * total)
        mean = counted[0] / np.maximum(counted[1], 1)
        quiet = np.empty((2, *mean.shape))
        each = list(product(range(channels), range(count)))
        for hop in each:
            rank = squares[hop].searchsorted(mean[hop], side="right")
            quiet[0][hop], quiet[1][hop] = energies[hop][rank], rank
        active = _running_sums(self.active, keep, is_below * (total[:2] - quiet))
        # No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
        levels = np.maximum(active[0] / np.maximum(active[1], 1), mean)
        rises = 10 ** (_RISE_DB / 10 * np.exp(-counted[2] / samples / _RISE_HOPS))
        levels *= rises
        known, ceiling = self._ceilings(history, count)
        onsets = _onsets(history, count) * rises[..., -1]
        level = np.empty((channels, count))
        for hop in each:
            onset = float(onsets[hop])
            level[hop] = max(_level_below(float(known[hop]), levels[hop], onset), onset)
        recent = history[:, 1 - CEILING_FRAMES :]
        after = RunningLevel(self.keep, recent, ceiling, counted[:, :, -1].copy(), active[:, :, -1].copy())
        return gain_of(np.sqrt(level)).astype(np.float32), after

    def _ceilings(self, history: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ceiling at each of the last hops, `(channels, count)`, and the one to go on from.

        Args:
            history: Powers of hops, `(channels, hops)`: those of `recent`, and `count` new ones.
            count: Number of new hops.
        """
        known = np.empty((len(history), count))
        known_from = count  # in the first two seconds of a signal, there is only that of a burst
        for new, powers in trailing(history, count, CEILING_FRAMES):
            if powers.shape[2] < _BURST_HOPS:
                known[:, new] = _NO_CEILING
            elif powers.shape[2] < CEILING_FRAMES:
                known[:, new] = burst_ceiling_of(powers)  # may still rise during an event
            else:
                known[:, new], known_from = ceiling_of(powers), new.start
        fading = self.keep ** (1 / _CEILING_PACE)
        ceiling = self.ceiling
        for hop in range(known_from, count):
            known[:, hop] = ceiling = np.maximum(fading * ceiling, known[:, hop])
        return known, ceiling


def _onsets(history: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the level of what may have begun within the last half second, at each of the last `count` hops."""
    onsets = np.empty((len(history), count))
    for new, powers in trailing(history, count, _ONSET_HOPS):
        loudest = np.sort(powers)[..., -_ONSET_LOUDEST:]
        onsets[:, new] = _ONSET_SHARE / _ONSET_LOUDEST * loudest.sum(axis=2)
    return onsets


def _running_sums(
    before: NDArray[np.float64], keep: NDArray[np.float64], added: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return `(sums, channels, hops, ceilings)`: what is there before each hop times `keep`, plus what it adds."""
    sums = np.empty_like(added)
    for hop in range(added.shape[2]):
        before = np.multiply(before, keep[:, hop], out=sums[:, :, hop])
        before += added[:, :, hop]
    return sums


def _level_below(ceiling: float, levels: NDArray[np.float64], onset: float) -> float:
    """Return the level below a ceiling; that of all hops if it is nearly the same, or if all else is too quiet.

    Args:
        ceiling: The ceiling.
        levels: The levels below each line.
        onset: The level of what may have begun within the last half second.
    """
    all_of_it = float(levels[-1])
    position = (10 * math.log10(max(ceiling, _TINY_POWER)) - _LOWEST_DB) / _LINE_DB
    line = min(max(int(position), 0), _LINES - 1)
    below = _between(float(levels[line]), float(levels[line + 1]), position - line)
    if is_event_only(all_of_it, _GROWTH * max(below, onset)):
        return all_of_it
    change_db = 10 * math.log10(max(all_of_it, _TINY_POWER) / max(below, _TINY_POWER))
    return _between(all_of_it, below, (change_db - _LITTLE) / (_MUCH - _LITTLE))


def _between(first: float, second: float, share: float) -> float:
    """Interpolate between two powers, in dB, from a share of 0 to 1; return the larger one if the other is zero."""
    if share <= 0:
        return first
    if share >= 1:
        return second
    if min(first, second) <= 0:
        return max(first, second)
    return float(first ** (1 - share) * second**share)
