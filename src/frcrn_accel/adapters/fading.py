"""Joints between denoised and unprocessed samples that do not click."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fader", "fade_in", "mirrored_fade", "ramp_samples", "restored", "with_channels"]

_RAMP_S = 0.02

Samples = NDArray[Any]  # (channels, samples)


def ramp_samples(sample_rate_hz: int) -> int:
    """Return the length of a ramp, 20 ms."""
    return math.ceil(_RAMP_S * sample_rate_hz)


def fade_in(samples: Samples, done: int, ramp: int) -> Samples:
    """Fade in samples `(channels, samples)` linearly over a ramp, of which the first `done` samples are over."""
    return restored(samples * _rise(done, samples.shape[1], ramp), samples.dtype)


def mirrored_fade(samples: Samples, length: int) -> Samples:
    """Continue a signal with its last samples backwards, fading to zero over `length`: `(channels, length)`."""
    last = samples[:, max(0, samples.shape[1] - length) :][:, ::-1]
    faded = last * (1 - np.arange(1, last.shape[1] + 1) / (last.shape[1] + 1)).astype(np.float32)
    return np.pad(faded, ((0, 0), (0, length - last.shape[1])))


def restored(samples: Samples, dtype: np.dtype[Any]) -> Samples:
    """Convert computed samples to the dtype of a signal: integers are rounded and kept within their range."""
    if not np.issubdtype(dtype, np.integer):
        return samples.astype(dtype)
    limits = np.iinfo(dtype)
    return np.rint(samples).clip(limits.min, limits.max).astype(dtype)


def with_channels(samples: Samples, channels: int) -> Samples:
    """Return samples with another number of channels: a copy of the only one, or the mean, in each."""
    if len(samples) == channels:
        return samples
    return np.repeat(samples.mean(axis=0, keepdims=True, dtype=np.float32), channels, axis=0)


class Fader:
    """Join the denoised parts of a signal to its unprocessed parts, with a ramp at each joint.

    Where denoised samples begin, their share rises to 1. Where they end, there are none left to fade out: the last
    differences between the output and the unprocessed signal are repeated backwards and fade out instead. So there is
    no step, and no delay for looking ahead.

    A new fader expects denoised samples first; they begin without a ramp.

    Args:
        channels: Channels of the signal.
        ramp: Samples of a ramp; 0 for none.
    """

    def __init__(self, channels: int, ramp: int) -> None:
        self._ramp = ramp
        self._risen = ramp
        self._differences: Samples = np.zeros((channels, 0), np.float32)  # the last ones, at most a ramp
        self._returned: Samples = self._differences
        self._tail: Samples = self._differences  # what is still to fade out

    def join(self, dry: Samples, wet: Samples, first: int) -> Samples:
        """Return the next samples.

        Args:
            dry: The unprocessed signal, `(channels, samples)`.
            wet: Denoised samples for its part from `first` on, at most as many as there are.
            first: Where the denoised samples begin.
        """
        last = first + wet.shape[1]
        parts = [
            self._passed(dry[:, :first]),
            self._replaced(dry[:, first:last], wet),
            self._passed(dry[:, last:]),
        ]
        return np.concatenate(parts, axis=1)

    def cut(self) -> None:
        """Fade out what was returned last: another signal, which starts with silence, follows."""
        self._tail, self._risen = mirrored_fade(self._returned, self._ramp), 0

    def leave(self, samples: Samples) -> None:
        """Fade out the next samples of the signal, which the caller itself has returned so far: silence follows."""
        samples = samples[:, : self._ramp]
        self._tail = samples * (1 - _rise(0, samples.shape[1], samples.shape[1]))
        self._risen = 0

    def continue_from(self, previous: Fader) -> None:
        """Fade out the denoised part of what another fader returned, at another rate or with other channels."""
        differences = with_channels(previous._differences, len(self._differences))
        if differences.shape[1]:
            places, times = np.linspace(0, 1, differences.shape[1]), np.linspace(0, 1, self._ramp)
            self._differences = np.array([np.interp(times, places, row) for row in differences], np.float32)

    def _passed(self, dry: Samples) -> Samples:
        if not dry.shape[1]:
            return dry
        if self._risen:
            self._tail, self._risen = mirrored_fade(self._differences, self._ramp), 0
        if not self._tail.shape[1]:
            self._remember(dry, None)
            return dry
        return self._added(dry, np.zeros(dry.shape, np.float32))

    def _replaced(self, dry: Samples, wet: Samples) -> Samples:
        if not dry.shape[1]:
            return dry
        done, self._risen = self._risen, min(self._ramp, self._risen + dry.shape[1])
        if done == self._ramp and not self._tail.shape[1]:
            ramp = max(self._ramp, 1)
            self._remember(wet, wet[:, -ramp:].astype(np.float32) - dry[:, -ramp:])
            return wet
        return self._added(dry, (wet.astype(np.float32) - dry) * _rise(done, dry.shape[1], self._ramp))

    def _added(self, dry: Samples, differences: Samples) -> Samples:
        count = min(dry.shape[1], self._tail.shape[1])
        differences[:, :count] += self._tail[:, :count]
        self._tail = self._tail[:, count:]
        out = restored(dry + differences, dry.dtype)
        self._remember(out, differences)
        return out

    def _remember(self, returned: Samples, differences: Samples | None) -> None:
        if differences is None:
            differences = np.zeros((len(returned), min(returned.shape[1], self._ramp)), np.float32)
        self._differences = _last(self._differences, differences, self._ramp)
        self._returned = _last(self._returned, returned, self._ramp)


def _last(before: Samples, new: Samples, count: int) -> Samples:
    if new.shape[1] < count:
        new = np.concatenate([before, new], axis=1)
    return new[:, max(0, new.shape[1] - count) :]


def _rise(done: int, count: int, ramp: int) -> Samples:
    return np.minimum(np.arange(done + 1, done + count + 1) / (ramp + 1), 1).astype(np.float32)
