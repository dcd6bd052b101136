"""Samples in their place in time, between a worker that computes them and a caller that cannot wait."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from frcrn_accel.adapters.fading import Fader, mirrored_fade, restored, with_channels
from frcrn_accel.streaming.resampling import StreamResampler, reach_samples

__all__ = ["DelayLine", "Playout", "Samples"]

Samples = NDArray[Any]  # (channels, samples); of any dtype, since samples are mostly moved here


class DelayLine:
    """Delay a signal by a number of samples; zeros come out first.

    Args:
        channels: Channels of the signal.
        samples: The delay.
        dtype: Dtype of the signal.
        ramp: Samples over which the signal fades at a gap, see `lengthen`.
    """

    def __init__(self, channels: int, samples: int, dtype: DTypeLike = np.int16, *, ramp: int = 0) -> None:
        self._inside: Samples = np.zeros((channels, samples), dtype)
        self._returned: Samples = self._inside[:, :0]  # the last ones, at most a ramp
        self._ramp = ramp

    @property
    def delay_samples(self) -> int:
        """The delay."""
        return int(self._inside.shape[1])

    def lengthen(self, samples: int) -> None:
        """Make the delay at least this long; a gap of silence, faded at both ends, comes out for the difference."""
        short = samples - self.delay_samples
        if short > 0:
            length = min(self._ramp, short)
            gap = np.zeros((len(self._inside), short), np.float32)
            gap[:, :length] += mirrored_fade(self._returned, length)
            gap[:, short - length :] += mirrored_fade(self._inside[:, :length][:, ::-1], length)[:, ::-1]
            self._inside = np.concatenate([restored(gap, self._inside.dtype), self._inside], axis=1)

    def exchange(self, samples: Samples) -> Samples:
        """Take in `(channels, samples)` and return an array of the same shape."""
        joined = np.concatenate([self._inside, samples], axis=1)
        out, self._inside = joined[:, : samples.shape[1]], joined[:, samples.shape[1] :]
        returned = np.concatenate([self._returned, out[:, max(0, out.shape[1] - self._ramp) :]], axis=1)
        self._returned = returned[:, max(0, returned.shape[1] - self._ramp) :]
        return out

    def converted(self, from_hz: int, to_hz: int, channels: int, *, ramp: int) -> DelayLine:
        """Return a delay line with what is inside this one, at another rate or with other channels."""
        line = DelayLine(channels, 0, self._inside.dtype, ramp=ramp)
        returned = round(self._returned.shape[1] * to_hz / from_hz)
        inside = round(self._inside.shape[1] * to_hz / from_hz)
        # Mirror the signal at both ends: a step there would ring.
        joined = np.concatenate([self._returned, self._inside], axis=1).astype(np.float32)
        if joined.shape[1] > 1:
            margin = min(joined.shape[1] - 1, from_hz // 100)
            joined = np.pad(joined, ((0, 0), (margin, margin)), mode="reflect", reflect_type="odd")
            resampler = StreamResampler(from_hz, to_hz, len(joined))
            resampler.write(np.pad(joined, ((0, 0), (0, reach_samples(from_hz, to_hz)))))
            resampled = resampler.read(resampler.ready)[:, round(margin * to_hz / from_hz) :]
            resampled = with_channels(resampled[:, : returned + inside], channels)
            whole = restored(resampled, self._inside.dtype)
            line._returned, line._inside = whole[:, :returned], whole[:, returned:]
        return line


class Playout:
    """A queue of computed samples whose reader never waits.

    Where samples are missing, `take` returns those of a fallback instead. Samples that arrive after their turn are
    dropped, so that the following ones are in their place in time again. One thread puts, one takes.

    Args:
        channels: Channels of the signal.
        hold: Number of samples taken from the fallback at the start: the time that the worker has.
        drop: Number of samples dropped at the start.
        dtype: Dtype of the signal.
        silence: Number of zeros that are ready at the start.
        fader: Joins computed samples and those of the fallback; by default there are no ramps.
    """

    def __init__(
        self,
        channels: int,
        hold: int = 0,
        drop: int = 0,
        dtype: DTypeLike = np.int16,
        *,
        silence: int = 0,
        fader: Fader | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._ready: Samples = np.zeros((channels, silence), dtype)
        self._hold = hold
        self._drop = drop
        self._late_samples = 0
        self._fader = fader or Fader(channels, 0)

    @property
    def late_samples(self) -> int:
        """Number of samples that were missing when they were taken."""
        return self._late_samples

    def lengthen(self, samples: int) -> None:
        """Take this many more samples from the fallback before the next one: the delay grows."""
        with self._lock:
            self._hold += samples

    def put(self, samples: Samples) -> None:
        """Append `(channels, samples)`."""
        with self._lock:
            dropped = min(self._drop, samples.shape[1])
            self._drop -= dropped
            self._ready = np.concatenate([self._ready, samples[:, dropped:]], axis=1)

    def take(self, fallback: Samples) -> Samples:
        """Return the next samples, in the shape of `fallback`, with its samples in place of missing ones."""
        count = fallback.shape[1]
        with self._lock:
            held = min(self._hold, count)
            self._hold -= held
            ready = self._ready[:, : count - held]
            self._ready = self._ready[:, ready.shape[1] :]
            missing = count - held - ready.shape[1]
            self._drop += missing
            self._late_samples += missing
        return self._fader.join(fallback, ready, held)
