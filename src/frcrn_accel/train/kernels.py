"""Triton kernels of the filter of an FSMN layer, on rows of channels.

A tensor `(batch, length, others, channels)` is read as rows: position `l` of column `o` of an example is its row
`l * others + o`. A program computes `LENGTH` positions of `COLUMNS` columns, so that the 20 positions that a filter
needs are read from the cache of a multiprocessor after the first time. Taps are `(TAPS, 4 * channels)`.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(length, others, LENGTH: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the example of a program, and the positions and columns of its rows."""
    tiles = tl.cdiv(length, LENGTH)
    program = tl.program_id(0)
    row = tl.arange(0, LENGTH * COLUMNS)
    position = program % tiles * LENGTH + row // COLUMNS
    column = tl.program_id(1) * COLUMNS + row % COLUMNS
    return program // tiles, position, column


@triton.jit
def _load(source, example, position, column, length, others, width, first, channel, channels):
    """Load rows from channel `first` on, `(rows, channels)`; zeros outside of the signal."""
    inside = (position >= 0) & (position < length) & (column < others)
    row = (example.to(tl.int64) * length + position) * others + column
    where = source + row[:, None] * width + first + channel[None, :]
    return tl.load(where, mask=inside[:, None] & (channel < channels)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _store(target, value, example, position, column, length, others, width, first, channel, channels):
    inside = (position < length) & (column < others)
    row = (example.to(tl.int64) * length + position) * others + column
    where = target + row[:, None] * width + first + channel[None, :]
    tl.store(where, value.to(target.dtype.element_ty), mask=inside[:, None] & (channel < channels)[None, :])


@triton.jit
def _tap(taps, group, tap, channel, channels):
    return tl.load(taps + (tap * 4 + group) * channels + channel, mask=channel < channels, other=0.0)[None, :]


@triton.jit
def filter_forward(
    x,
    projected,
    taps,
    y,
    length,
    others,
    channels,
    TAPS: tl.constexpr,
    LENGTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Filter the four parts of `projected`, and add them to `x`: see `Operators.memory`."""
    example, position, column = _tile(length, others, LENGTH, COLUMNS)
    channel = tl.arange(0, CHANNELS)
    x_re = _load(x, example, position, column, length, others, 2 * channels, 0, channel, channels)
    x_im = _load(x, example, position, column, length, others, 2 * channels, channels, channel, channels)
    y_re, y_im = x_re - x_im, x_re + x_im
    for tap in range(TAPS):
        then = position - (TAPS - 1 - tap)
        for group in tl.static_range(4):
            part = _load(
                projected, example, then, column, length, others, 4 * channels, group * channels, channel, channels
            )
            part *= _tap(taps, group, tap, channel, channels)
            if group == 0 or group == 3:
                y_re += part
            else:
                y_im += part
    _store(y, y_re, example, position, column, length, others, 2 * channels, 0, channel, channels)
    _store(y, y_im, example, position, column, length, others, 2 * channels, channels, channel, channels)


@triton.jit
def filter_backward(
    dy,
    taps,
    dx,
    dprojected,
    length,
    others,
    channels,
    TAPS: tl.constexpr,
    LENGTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Compute the gradients of `x` and of `projected`."""
    example, position, column = _tile(length, others, LENGTH, COLUMNS)
    channel = tl.arange(0, CHANNELS)
    d_re = _load(dy, example, position, column, length, others, 2 * channels, 0, channel, channels)
    d_im = _load(dy, example, position, column, length, others, 2 * channels, channels, channel, channels)
    _store(dx, d_re + d_im, example, position, column, length, others, 2 * channels, 0, channel, channels)
    _store(dx, d_im - d_re, example, position, column, length, others, 2 * channels, channels, channel, channels)
    d0 = tl.zeros((LENGTH * COLUMNS, CHANNELS), tl.float32)
    d1 = tl.zeros((LENGTH * COLUMNS, CHANNELS), tl.float32)
    d2 = tl.zeros((LENGTH * COLUMNS, CHANNELS), tl.float32)
    d3 = tl.zeros((LENGTH * COLUMNS, CHANNELS), tl.float32)
    for tap in range(TAPS):
        then = position + (TAPS - 1 - tap)
        d_re = _load(dy, example, then, column, length, others, 2 * channels, 0, channel, channels)
        d_im = _load(dy, example, then, column, length, others, 2 * channels, channels, channel, channels)
        d0 += d_re * _tap(taps, 0, tap, channel, channels)
        d1 += d_im * _tap(taps, 1, tap, channel, channels)
        d2 += d_im * _tap(taps, 2, tap, channel, channels)
        d3 += d_re * _tap(taps, 3, tap, channel, channels)
    width = 4 * channels
    _store(dprojected, d0, example, position, column, length, others, width, 0, channel, channels)
    _store(dprojected, d1, example, position, column, length, others, width, channels, channel, channels)
    _store(dprojected, d2, example, position, column, length, others, width, 2 * channels, channel, channels)
    _store(dprojected, d3, example, position, column, length, others, width, 3 * channels, channel, channels)


@triton.jit
def filter_backward_taps(
    projected,
    dy,
    sums,
    length,
    others,
    channels,
    TAPS: tl.constexpr,
    LENGTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sum the gradients of the taps over the rows of a program; `sums` is `(programs, TAPS, 4 * channels)`."""
    example, position, column = _tile(length, others, LENGTH, COLUMNS)
    channel = tl.arange(0, CHANNELS)
    d_re = _load(dy, example, position, column, length, others, 2 * channels, 0, channel, channels)
    d_im = _load(dy, example, position, column, length, others, 2 * channels, channels, channel, channels)
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    to = sums + program.to(tl.int64) * 4 * channels * TAPS
    for tap in range(TAPS):
        then = position - (TAPS - 1 - tap)
        for group in tl.static_range(4):
            part = _load(
                projected, example, then, column, length, others, 4 * channels, group * channels, channel, channels
            )
            if group == 0 or group == 3:
                part *= d_re
            else:
                part *= d_im
            where = to + (tap * 4 + group) * channels + channel
            tl.store(where, tl.sum(part, axis=0), mask=channel < channels)
