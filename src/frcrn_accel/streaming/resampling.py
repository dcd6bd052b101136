"""Resample a live signal, with a delay that is known exactly.

The delay of a general resampler depends on how it cuts the signal into blocks internally, and differs between
versions of a library. A stream promises a constant delay, so it uses a filter whose reach is known: a windowed sinc
(J. O. Smith, "Digital Audio Resampling", https://ccrma.stanford.edu/~jos/resample/), with linear phase. An output
sample needs the input up to `reach` samples after its own position, and nothing else.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["StreamResampler", "reach_samples"]

_HALF_WIDTH = 64  # of the filter, in samples of the lower rate: 4 ms at 16 kHz
_BAND = 0.9625  # where the filter has -6 dB, as a share of half the lower rate; flat to 0.92, 90 dB down from 1.005
_KAISER_BETA = 8.96  # 90 dB
_FEW_PHASES = 16
_PERIODS = 16  # of the phase, in a block of output samples: more would multiply by more zeros
_PRODUCTS = 200_000  # in a product of matrices: BLAS would wake threads for more, and they wait longer than it takes
_ROWS = 256  # of windows and filters that are copied at a time: few enough for the cache
_TABLE_PHASES = 512  # for rates with more phases, the filter is interpolated linearly: an error of -110 dB


def reach_samples(from_hz: int, to_hz: int) -> int:
    """Return how far a filter reaches to each side of an output sample, in samples of its input."""
    return 0 if from_hz == to_hz else math.ceil(_HALF_WIDTH * max(1, from_hz / to_hz))


class StreamResampler:
    """A resampler for blocks of a live signal.

    Output sample `n` is the signal at time `n / to_hz`. It can be read once the input has arrived up to
    `reach_samples` samples after that time. Before its start, the signal is zero.

    The result of `read` depends on the numbers of samples read, and not on how they were written.

    Args:
        from_hz: Input rate.
        to_hz: Output rate. If the rates are equal, samples are returned unchanged.
        channels: Number of channels.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        common = math.gcd(from_hz, to_hz)
        self._to, self._from = to_hz // common, from_hz // common
        self._reach = reach_samples(from_hz, to_hz)
        self._taps = max(2 * self._reach, 1)
        # The input from the first sample that the next output sample needs.
        self._held = np.zeros((channels, max(self._reach - 1, 0)), np.float32)
        self._written: list[NDArray[np.float32]] = []
        self._samples = self._held.shape[1]
        self._phase = 0  # of the next output sample after an input sample, in units of 1 / `_to`

    def write(self, block: NDArray[np.float32]) -> None:
        """Append `(channels, samples)` of any length."""
        self._written.append(block)
        self._samples += block.shape[1]

    @property
    def ready(self) -> int:
        """The number of samples that can be read."""
        positions = self._samples - self._taps + 1
        return max(-((self._phase - positions * self._to) // self._from), 0)

    def read(self, count: int) -> NDArray[np.float32]:
        """Return the next `count` samples, at most `ready`, as `(channels, count)`."""
        if self._written:
            self._held = np.concatenate([self._held, *self._written], axis=1)
            self._written = []
        used, next_phase = divmod(self._phase + count * self._from, self._to)
        if self._reach == 0:
            out = self._held[:, :count]
        else:
            out = np.empty((len(self._held), count), np.float32)
            # A channel at a time: the result does not depend on the number of channels, and the memory stays small.
            for held, row in zip(self._held, out, strict=True):
                if self._to > _FEW_PHASES:
                    self._interpolate(held, row)
                else:
                    self._multiply(held, row)
        self._phase = next_phase
        self._held = self._held[:, used:]
        self._samples -= used
        return out

    def _interpolate(self, held: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Compute the next samples of a channel, each with a filter of its own."""
        windows = sliding_window_view(held, self._taps)
        starts, phases = np.divmod(self._phase + np.arange(len(out)) * self._from, self._to)
        for first in range(0, len(out), _ROWS):
            rows = slice(first, first + _ROWS)
            np.einsum("nt,nt->n", windows[starts[rows]], _filters(self._from, self._to, phases[rows]), out=out[rows])

    def _multiply(self, held: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Compute the next samples of a channel as products of matrices: the phase repeats every `_to` samples."""
        filters = _block(self._from, self._to, self._phase)
        width, outputs = filters.shape
        inputs = _PERIODS * self._from
        blocks, rest = divmod(len(out), outputs)
        # Rows of `inputs` new samples each, which overlap.
        rows = np.ndarray((blocks, width), np.float32, held, strides=(inputs * held.itemsize, held.itemsize))
        whole = out[: blocks * outputs].reshape(blocks, outputs)
        rows_at_a_time = max(_PRODUCTS // filters.size, 1)
        for first in range(0, blocks, rows_at_a_time):
            part = slice(first, first + rows_at_a_time)
            np.dot(rows[part], filters, out=whole[part])
        if rest:
            last = held[blocks * inputs :][:width]
            np.dot(last, filters[: len(last), :rest], out=out[blocks * outputs :])


def _filters(from_ratio: int, to_ratio: int, phases: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the filter of each phase, `(len(phases), taps)`."""
    if to_ratio <= _TABLE_PHASES:
        return _table(from_ratio, to_ratio, to_ratio)[phases]
    table = _table(from_ratio, to_ratio, _TABLE_PHASES)
    rows, rest = np.divmod(phases * _TABLE_PHASES, to_ratio)
    share = (rest / to_ratio).astype(np.float32)[:, None]
    between: NDArray[np.float32] = table[rows] * (1 - share) + table[rows + 1] * share
    return between


@lru_cache(maxsize=64)
def _block(from_ratio: int, to_ratio: int, first_phase: int) -> NDArray[np.float32]:
    """Return the filters of the next `_PERIODS * to_ratio` samples, `(input samples, output samples)`."""
    table = _table(from_ratio, to_ratio, to_ratio)
    taps = table.shape[1]
    places = [divmod(first_phase + at * from_ratio, to_ratio) for at in range(_PERIODS * to_ratio)]
    block = np.zeros((places[-1][0] + taps, len(places)), np.float32)
    for output, (start, phase) in enumerate(places):
        block[start : start + taps, output] = table[phase]
    return block


@lru_cache(maxsize=16)
def _table(from_ratio: int, to_ratio: int, phases: int) -> NDArray[np.float32]:
    """Return filters for equally spaced phases, and for the first phase of the next sample: `(phases + 1, taps)`."""
    reach = reach_samples(from_ratio, to_ratio)
    distance = np.arange(1 - reach, reach + 1) - np.arange(phases + 1)[:, None] / phases  # in input samples
    distance *= min(1.0, to_ratio / from_ratio)  # in samples of the lower rate
    inside = np.clip(1 - (distance / _HALF_WIDTH) ** 2, 0, None)
    table = np.sinc(_BAND * distance) * np.i0(_KAISER_BETA * np.sqrt(inside)) * (np.abs(distance) <= _HALF_WIDTH)
    table /= table.sum(axis=1, keepdims=True)  # a constant stays one, in each phase
    return table.astype(np.float32)
