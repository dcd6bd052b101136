"""The level of a live signal."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import (
    CEILING_FRAMES,
    HIGHEST_CEILING,
    SILENCE_LEVEL,
    burst_ceiling_of,
    burst_of,
    ceiling_of,
    gain_of,
    is_event_only,
)
from frcrn_accel.streaming.trailing import trailing_max

__all__ = ["RunningLevel"]

_ONSET_HOPS = 25
_ONSET_LOUDEST = 5
_ONSET_SHARE = 0.25  # the loudest 0.1 s of ordinary speech is up to 6 dB above its level
_GROWTH = 5.0  # what has only begun beside an event may become 7 dB louder
_LINE_DB = 2.0
_LOWEST_DB = -130.0
_LINES = 76  # up to 20 dB above full scale
_LINE_POWERS = np.append(10 ** ((_LOWEST_DB + _LINE_DB * np.arange(_LINES)) / 10), np.inf)
_LINE_LIST: list[float] = _LINE_POWERS.tolist()
_LITTLE, _MUCH = 0.5, 1.5  # dB: events that change the level by less count fully, by more not at all
_CEILING_PACE = 13  # the ceiling falls by 3 dB while what was below it fades by 39 dB
_TINY_POWER = 1e-15
_NO_CEILING = 1e30
# The loudest part is yet to come: after the first hop, the level of a signal rises by this much on average.
_RISE_DB = 5.0
_RISE_HOPS = 30
_HORIZON_HOPS = 1000.0  # 20 s
_BURST_HOPS = 25  # in a shorter signal, the first word looks like a burst
_OVER_HOPS = 45  # 0.9 s after an event, it is clear that nothing as loud follows
_PAST_HOPS = 73  # the event itself and what followed
_CUTS = 8  # more are too long ago to matter
_OUTSTANDING = 10.0  # 10 dB above what follows and what was before: words are often 6 dB above both


@dataclass(frozen=True, eq=False)
class RunningLevel:
    """The level of each channel so far, hop by hop.

    It is the RMS of the samples above the mean power so far, where older audio fades out. Events are left out by the
    rule of `audio.measure_levels`: hops above a ceiling do not count. The ceiling becomes known only as the signal
    arrives. The level is therefore tracked for a grid of ceilings at once, and that of the current ceiling is used,
    as if the event had not happened. If the rest is too quiet to be speech, all hops count, as in a file, until
    something louder begins.

    Parts of a burst may be below the ceiling: what swells or dies away, and all of it in the first two seconds. So
    0.9 s after it, when it is clear that it was one (`audio.burst_of`), everything since is computed again as if it
    had never been. If audio of its loudness follows later, it was speech, and counts again.

    While the last half second is much louder than that level, the level comes from its loudest tenth of a second:
    speech, or shouting, may have begun. After a shorter event, the level falls back.

    At the start of a signal, the level is raised by 5 dB, which fades over 0.6 s of sound: the loudest part is yet
    to come, and the first few hops are quieter than the whole signal, on average by that much.

    An instance is immutable; `update` returns a new one.

    Attributes:
        keep: Factor by which each hop reduces the previous sums.
        channels: What is known of each channel.
    """

    keep: float
    channels: tuple[_Channel, ...]

    @classmethod
    def silent(cls, channels: int, horizon_hops: float = _HORIZON_HOPS) -> RunningLevel:
        """Return the level before the first hop."""
        state = _State(np.zeros((2, 0)), 0.0, np.zeros((5, len(_LINE_POWERS))), (0.0, 0.0))
        return cls(1 - 1 / horizon_hops, channels * (_Channel(state, (), ()),))

    def update(self, hops: NDArray[np.float32]) -> tuple[NDArray[np.float32], RunningLevel]:
        """Add hops to the level.

        Args:
            hops: `(channels, hops, samples)`.

        Returns:
            The gain that brings each hop to the level the model was trained at, `(channels, hops)`, and the new
            level.
        """
        powers = np.empty(hops.shape[:2])
        channels = []
        for channel, audio, power in zip(self.channels, hops.copy(), powers, strict=True):
            channels.append(channel.plus(_Hops.of(audio), self.keep, power))
        return gain_of(np.sqrt(powers)).astype(np.float32), RunningLevel(self.keep, tuple(channels))


class _Hops(NamedTuple):
    """Hops of a channel.

    Attributes:
        audio: `(hops, samples)`.
        squares: Of the samples of each hop, from the smallest on.
        energies: Of the 0, 1, 2, ... smallest samples of each hop, `(hops, samples + 1)`.
        loudness: Power and largest square of each hop, `(2, hops)`.
    """

    audio: NDArray[np.float32]
    squares: NDArray[np.float64]
    energies: NDArray[np.float64]
    loudness: NDArray[np.float64]

    @classmethod
    def of(cls, audio: NDArray[np.float32]) -> _Hops:
        """Return hops with what is computed from them alone."""
        count, samples = audio.shape
        squares = np.square(audio, dtype=np.float64)
        squares.sort(axis=1)
        energies = np.zeros((count, samples + 1))
        np.cumsum(squares, axis=1, out=energies[:, 1:])
        loudness = np.empty((2, count))
        np.divide(energies[:, -1], samples, out=loudness[0])
        loudness[1] = squares[:, -1]
        return cls(audio, squares, energies, loudness)

    def part(self, first: int, stop: int) -> _Hops:
        """Return some of the hops."""
        some = slice(first, stop)
        return _Hops(self.audio[some], self.squares[some], self.energies[some], self.loudness[:, some])


class _State(NamedTuple):
    """The sums and recent powers of a channel before a hop.

    Attributes:
        recent: `_Hops.loudness` of the last hops, at most two seconds, `(2, hops)`.
        ceiling: The highest ceiling of two seconds so far, fading.
        sums: Of the hops up to each ceiling on a grid, `(5, ceilings)`: energy, number of samples, number of samples
            in hops that are not silent, and energy and number of the samples above the mean power.
        highest: The largest values of `recent` of all older hops than those in `_Channel.past`, fading.
    """

    recent: NDArray[np.float64]
    ceiling: float
    sums: NDArray[np.float64]
    highest: tuple[float, float]


class _Past(NamedTuple):
    """A hop of the last one and a half seconds, `(samples,)`, and the state before it."""

    audio: NDArray[np.float32]
    state: _State


class _Cut(NamedTuple):
    """A burst that does not count.

    Attributes:
        measure: In which of the two measures in `_Hops.loudness` it stood out.
        height: Its largest value of that measure.
        sums: What it has added to the sums, `(5, ceilings)`; fades like them.
    """

    measure: int
    height: float
    sums: NDArray[np.float64]


class _Burst(NamedTuple):
    """A burst that has become clear.

    Attributes:
        hop: The new hop at which it has.
        measure: See `_Cut`.
        start: Its first hop, counted from the new one: negative.
        stop: The first hop after it.
    """

    hop: int
    measure: int
    start: int
    stop: int


class _Channel(NamedTuple):
    """The level of one channel, with enough of the past to take a burst back.

    Attributes:
        state: Its present state.
        past: The last hops, at most one and a half seconds, without those of bursts.
        cuts: The bursts that do not count.
    """

    state: _State
    past: tuple[_Past, ...]
    cuts: tuple[_Cut, ...]

    def plus(self, hops: _Hops, keep: float, powers: NDArray[np.float64]) -> _Channel:
        """Add hops, and write the power of active speech at each to `powers`; return what is known after them."""
        channel, first, count = self, 0, len(hops.audio)
        while first < count:
            left = hops.part(first, count) if first else hops
            history = np.concatenate([channel.state.recent, left.loudness], axis=1)
            loudest = trailing_max(history, len(left.audio), CEILING_FRAMES)
            burst = channel._next_burst(history, loudest)
            stop = count if burst is None else first + burst.hop
            if stop > first:
                some = left if stop == count else left.part(0, stop - first)
                channel = channel._plus(some, history, loudest[0].tolist(), keep, powers[first:stop])
            if burst is not None:
                channel = channel._without(burst, keep)
            first = stop
        return channel

    def _plus(
        self,
        hops: _Hops,
        history: NDArray[np.float64],
        loudest: list[float],
        keep: float,
        powers: NDArray[np.float64],
    ) -> _Channel:
        """Do what `plus` does for hops at which no burst becomes clear.

        Args:
            hops: The hops.
            history: The loudness of recent hops, of these, and maybe of later ones.
            loudest: The largest power of the two seconds up to each hop.
            keep: See `RunningLevel`.
            powers: Where to write the power of active speech at each hop.
        """
        count, samples = hops.audio.shape
        old = self.state.recent.shape[1]
        fading = keep ** (1 / _CEILING_PACE)
        state, past = self.state, list(self.past)
        cuts = [cut._replace(sums=cut.sums.copy()) for cut in self.cuts]
        all_sums = np.empty((count, *state.sums.shape))
        for hop, sums in enumerate(all_sums):
            past.append(_Past(hops.audio[hop], state))
            line = _add_hop(state.sums, keep, hops.squares[hop], hops.energies[hop], sums)
            last = old + hop + 1
            ceiling, highest_ceiling = _ceiling(
                history[0, max(last - CEILING_FRAMES, 0) : last], loudest[hop], fading * state.ceiling
            )
            highest = state.highest
            if len(past) > _PAST_HOPS:
                loudness = history[:, last - 1 - _PAST_HOPS].tolist()
                highest = max(keep * highest[0], loudness[0]), max(keep * highest[1], loudness[1])
                for cut in cuts:
                    cut.sums[:, line:] *= keep
                for cut in [cut for cut in cuts if _OUTSTANDING * loudness[cut.measure] > cut.height]:
                    cuts.remove(cut)
                    sums += cut.sums
                    past = [_Past(audio, of._replace(sums=of.sums + cut.sums)) for audio, of in past]
            state = _State(history[:, max(last + 1 - CEILING_FRAMES, 0) : last], highest_ceiling, sums, highest)
            begun = history[0, max(last - _ONSET_HOPS, 0) : last]
            powers[hop] = _power(sums, samples, ceiling, begun, loudest[hop])
        return _Channel(state, tuple(past[-_PAST_HOPS:]), tuple(cuts))

    def _next_burst(self, history: NDArray[np.float64], loudest: NDArray[np.float64]) -> _Burst | None:
        """Return the first burst that becomes clear at one of the new hops.

        Args:
            history: The loudness of recent hops and the new ones.
            loudest: The largest of the two seconds up to each new hop, `(2, new hops)`.
        """
        count = loudest.shape[1]
        is_louder = loudest > _OUTSTANDING * trailing_max(history, count, _OVER_HOPS)
        if not is_louder.any():
            return None
        for hop, measure in np.argwhere(is_louder.T).tolist():
            now = history.shape[1] - count + hop
            recent = history[:, max(now + 1 - CEILING_FRAMES, 0) : now + 1]
            length = recent.shape[1]
            loudest_age = length - 1 - int(recent[measure].argmax())
            known = min(len(self.past) + hop, _PAST_HOPS)
            if not _OVER_HOPS <= loudest_age <= known:
                continue
            if loudest[measure, hop] <= _OUTSTANDING * self.state.highest[measure]:
                continue
            part = burst_of(*recent)
            if part is not None and part.stop <= length - _OVER_HOPS and part.start >= length - 1 - known:
                return _Burst(hop, measure, part.start - length + 1, part.stop - length + 1)
        return None

    def _without(self, burst: _Burst, keep: float) -> _Channel:
        """Return what is known if a burst had never been."""
        height = float(self.state.recent[burst.measure, burst.start : burst.stop].max())
        base = _Channel(self.past[burst.start].state, self.past[: burst.start], ())
        later = _Hops.of(np.stack([hop.audio for hop in self.past[burst.stop :]]))
        history = np.concatenate([base.state.recent, later.loudness], axis=1)
        count = len(later.audio)
        loudest = trailing_max(history, count, CEILING_FRAMES)
        clean = base._plus(later, history, loudest[0].tolist(), keep, np.empty(count))
        cut = _Cut(burst.measure, height, self.state.sums - clean.state.sums)
        return clean._replace(cuts=(*self.cuts, cut)[-_CUTS:])


def _ceiling(recent: NDArray[np.float64], loudest: float, before: float) -> tuple[float, float]:
    """Return the ceiling at a hop, and the highest one of two seconds so far.

    Args:
        recent: Powers of the hops of up to two seconds, up to this one.
        loudest: The largest of them.
        before: The highest ceiling up to the previous hop, faded.
    """
    if len(recent) < _BURST_HOPS:
        return _NO_CEILING, 0.0
    if len(recent) < CEILING_FRAMES:  # only that of a burst: others may still rise during an event
        return float(burst_ceiling_of(recent)), 0.0
    if HIGHEST_CEILING * loudest > before:
        before = max(before, float(ceiling_of(recent)))
    return before, before


def _add_hop(
    before: NDArray[np.float64],
    keep: float,
    squares: NDArray[np.float64],
    energies: NDArray[np.float64],
    after: NDArray[np.float64],
) -> int:
    """Add a hop to the sums of the ceilings that it is not above.

    Args:
        before: The sums of a channel, `(5, ceilings)`.
        keep: See `RunningLevel`.
        squares: See `_Hops`, `(samples,)`.
        energies: See `_Hops`, `(samples + 1,)`.
        after: Where to write the new sums.

    Returns:
        The first ceiling that it is not above.
    """
    samples, energy = len(squares), float(energies[-1])
    power = energy / samples
    line = bisect_left(_LINE_LIST, power)
    after[:, :line] = before[:, :line]
    part = np.multiply(before[:, line:], keep, out=after[:, line:])
    is_sound = power > SILENCE_LEVEL**2
    part[:3] += np.array([[energy], [samples], [samples if is_sound else 0]])
    quiet = squares.searchsorted(part[0] / part[1], side="right")
    added = np.empty((2, len(quiet)))
    np.subtract(energy, energies.take(quiet), out=added[0])
    np.subtract(samples, quiet, out=added[1])
    part[3:] += added
    return line


def _power(
    sums: NDArray[np.float64], samples: int, ceiling: float, recent: NDArray[np.float64], loudest: float
) -> float:
    """Return the power of active speech: below a ceiling, or of all hops if that is nearly the same or too quiet.

    Args:
        sums: The sums of a channel, `(5, ceilings)`.
        samples: Number of samples in a hop.
        ceiling: The ceiling.
        recent: Powers of the last half second, in which something may have begun.
        loudest: The largest power of two seconds.
    """
    level, rise = _level_and_rise(sums[:, -1].tolist(), samples)
    position = (10 * math.log10(max(ceiling, _TINY_POWER)) - _LOWEST_DB) / _LINE_DB
    line = min(max(int(position), 0), _LINES - 1)
    if sums[1, line] < sums[1, -1]:  # else there are no hops above the ceiling
        below, above = (_level_and_rise(at, samples)[0] for at in sums[:, line : line + 2].T.tolist())
        below = _between(below, above, position - line)
        if not is_event_only(level, _GROWTH * max(below, _onset(recent, rise))):
            change_db = 10 * math.log10(max(level, _TINY_POWER) / max(below, _TINY_POWER))
            level = _between(level, below, (change_db - _LITTLE) / (_MUCH - _LITTLE))
    return level if _ONSET_SHARE * loudest * rise <= level else max(level, _onset(recent, rise))


def _onset(recent: NDArray[np.float64], rise: float) -> float:
    """Return the power of what may have begun within the last half second."""
    loudest = 0.0
    for power in sorted(recent.tolist())[-_ONSET_LOUDEST:]:
        loudest += power
    return _ONSET_SHARE / _ONSET_LOUDEST * loudest * rise


def _level_and_rise(sums: list[float], samples: int) -> tuple[float, float]:
    """Return the level below a ceiling as a power, raised at the start of the signal, and by how much it is."""
    energy, number, number_of_sound, active_energy, active_number = sums
    # No sample is above the mean power in a square wave: its active energy is 0, and the mean is the level.
    level = max(active_energy / max(active_number, 1), energy / max(number, 1))
    rise = 10 ** (_RISE_DB / 10 * math.exp(-number_of_sound / samples / _RISE_HOPS))
    return level * rise, rise


def _between(first: float, second: float, share: float) -> float:
    """Interpolate between two powers, in dB, from a share of 0 to 1; return the larger one if the other is zero."""
    if share <= 0:
        return first
    if share >= 1:
        return second
    if min(first, second) <= 0:
        return max(first, second)
    return float(first ** (1 - share) * second**share)
