"""Live audio from any source to any sink, with levels and speed. Independent of a sound card."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.adapters.switched import SwitchedStream
from frcrn_accel.streaming import Stream

__all__ = [
    "FLOOR_DB",
    "Block",
    "Feed",
    "LevelMeter",
    "LiveStatus",
    "Sink",
    "aligned",
    "denoise_live",
    "first_samples",
]

FLOOR_DB = -90.0  # below the noise of 16 bits
_METER_HORIZON_S = 0.3  # that of a VU meter
_FACTOR_HORIZON_S = 1.0

Block = NDArray[np.float32]  # (channels, samples), full scale at 1.0
Sink = Callable[[Block], object]


class Feed:
    """A queue of blocks from the callback of a sound card, which must not wait, to a loop in another thread.

    Iterate over it to receive the blocks; iterating ends when the feed is closed.

    Args:
        max_blocks: Maximum number of blocks that wait; further blocks are dropped and counted.
        patience_s: Close the feed after this time without a block: not every sound card reports that it is gone.

    Attributes:
        is_closed: Whether the feed takes no more blocks.
        lost_samples: Samples of each channel that were dropped.
        overflows: Number of overruns that the sound card reported.
    """

    def __init__(self, max_blocks: int, patience_s: float = 5.0) -> None:
        self._max_blocks = max_blocks
        self._patience_s = patience_s
        self._blocks: SimpleQueue[Block | None] = SimpleQueue()  # safe in a signal handler, unlike `Queue`
        self.is_closed = False
        self.lost_samples = 0
        self.overflows = 0

    def put(self, block: Block) -> None:
        """Append a copy of a block, `float32 (channels, samples)`, without waiting; after `close`, drop it."""
        if self.is_closed:
            return
        if self._blocks.qsize() >= self._max_blocks:
            self.lost_samples += block.shape[1]
        else:
            self._blocks.put(block.copy())  # a sound card reuses its buffer

    def close(self) -> None:
        """Take no more blocks; those that wait can still be read. Any thread or signal handler may call this."""
        self.is_closed = True
        self._blocks.put(None)

    def __iter__(self) -> Iterator[Block]:
        """Yield the blocks, waiting for each."""
        try:
            while (block := self._blocks.get(timeout=self._patience_s)) is not None:
                yield block
        except Empty:
            self.is_closed = True


class LevelMeter:
    """RMS level of a signal over all its channels, averaged exponentially over 0.3 s.

    Args:
        sample_rate_hz: Rate of the signal.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self._horizon_samples = _METER_HORIZON_S * sample_rate_hz
        self._power = 0.0

    def update(self, block: Block) -> None:
        """Take in `(channels, samples)`."""
        if block.size:
            keep = math.exp(-block.shape[1] / self._horizon_samples)
            power = float(np.mean(np.square(block, dtype=np.float64)))
            self._power = keep * self._power + (1 - keep) * power

    @property
    def level_db(self) -> float:
        """The level, dB relative to a full-scale square wave; at least `FLOOR_DB`."""
        return max(10 * math.log10(self._power), FLOOR_DB) if self._power > 0 else FLOOR_DB


class LiveStatus:
    """Levels and speed of live audio.

    Args:
        sample_rate_hz: Rate of the signal.

    Attributes:
        sample_rate_hz: Rate of the signal.
        input_level: Level of the input.
        output_level: Level of the output.
        audio_s: Duration of the audio denoised so far.
        processing_s: Time that denoising took so far.
        unprocessed_s: Duration of the audio that came out as it came in, because the engine failed.
        real_time_factor: Processing time over audio time in about the last second; 0 before the first chunk.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.input_level = LevelMeter(sample_rate_hz)
        self.output_level = LevelMeter(sample_rate_hz)
        self.audio_s = 0.0
        self.processing_s = 0.0
        self.unprocessed_s = 0.0
        self.real_time_factor = 0.0

    @property
    def mean_real_time_factor(self) -> float:
        """Processing time over audio time since the start; NaN without audio."""
        return self.processing_s / self.audio_s if self.audio_s else math.nan

    def update(self, chunk: Block, denoised: Block, processing_s: float) -> None:
        """Add a chunk, its result, both `(channels, samples)`, and the time that it took."""
        self.input_level.update(chunk)
        self.output_level.update(denoised)
        chunk_s = chunk.shape[1] / self.sample_rate_hz
        if chunk_s:
            first = not self.audio_s
            keep = 0.0 if first else math.exp(-chunk_s / _FACTOR_HORIZON_S)
            self.real_time_factor = keep * self.real_time_factor + (1 - keep) * processing_s / chunk_s
        self.audio_s += chunk_s
        self.processing_s += processing_s


def denoise_live(
    chunks: Iterable[Block],
    stream: Stream,
    sinks: Sequence[Sink],
    status: LiveStatus,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Denoise chunks until they end, and return the rest of the output, too.

    If the engine fails, whatever it raises, the signal comes out as it came in, with the same delay, and the stream
    is tried again, see `SwitchedStream`: a recording is not lost. Samples that are not finite count as silence.

    >>> status = LiveStatus(stream.sample_rate_hz)
    >>> denoise_live(chunks, stream, [aligned(write, stream.latency_samples)], status)

    Args:
        chunks: `float32 (channels, samples)` each, of any length.
        stream: A new stream of the same rate and channels.
        sinks: Called with each chunk of the result, which begins with `latency_samples` of silence.
        status: Updated after each chunk, for another thread to show.
        clock: Returns the time, s.

    Raises:
        AudioError: The number of channels of a chunk is not that of the stream.
    """
    switched = SwitchedStream(stream, dtype=np.float32)
    for chunk in chunks:
        finite = np.where(np.isfinite(chunk), chunk, np.float32(0))
        began = clock()
        denoised = switched.process(finite)
        status.update(finite, denoised, clock() - began)
        if not switched.is_denoising:
            status.unprocessed_s += chunk.shape[1] / status.sample_rate_hz
        for sink in sinks:
            sink(denoised)
    rest = switched.process(np.zeros((stream.channels, stream.latency_samples), np.float32))
    for sink in sinks:
        sink(rest)


def first_samples(chunks: Iterable[Block], samples: int) -> Iterator[Block]:
    """Yield chunks up to a number of samples; the last chunk is cut, and no further one is requested."""
    left = samples
    if left <= 0:
        return
    for chunk in chunks:
        yield chunk[:, :left]
        left -= min(left, chunk.shape[1])
        if not left:
            return


def aligned(sink: Sink, latency_samples: int) -> Sink:
    """Wrap a sink so that it skips the first samples: what it gets is then aligned with the input."""
    left = latency_samples

    def keep(block: Block) -> None:
        nonlocal left
        skipped = min(left, block.shape[1])
        left -= skipped
        if skipped < block.shape[1]:
            sink(block[:, skipped:])

    return keep
