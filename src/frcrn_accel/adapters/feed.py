"""Live audio from wherever it comes to wherever it goes, and how it does. No sound card in here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

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

FLOOR_DB = -90.0  # below the noise of 16 bits there is nothing to show
_METER_HORIZON_S = 0.3  # that of a VU meter
_FACTOR_HORIZON_S = 1.0

Block = NDArray[np.float32]  # (channels, samples), full scale at 1.0
Sink = Callable[[Block], object]


class Feed:
    """Blocks on their way from a sound card's callback, which must not wait, to a loop in another thread.

    Args:
        max_blocks: So many may wait; what comes then is lost, and counted.
        patience_s: After so long without a block the feed closes: not every sound card tells that it is gone.

    Attributes:
        is_closed: Whether no more blocks are taken.
        lost_samples: Samples of each channel that were lost.
        overflows: How often the sound card said that it lost some itself.
    """

    def __init__(self, max_blocks: int, patience_s: float = 5.0) -> None:
        self._max_blocks = max_blocks
        self._patience_s = patience_s
        self._blocks: SimpleQueue[Block | None] = SimpleQueue()  # the one queue that a signal handler may put into
        self.is_closed = False
        self.lost_samples = 0
        self.overflows = 0

    def put(self, block: Block) -> None:
        """Hand over a block, `float32 (channels, samples)`, at once; after `close` it is dropped."""
        if self.is_closed:
            return
        if self._blocks.qsize() >= self._max_blocks:
            self.lost_samples += block.shape[1]
        else:
            self._blocks.put(block)

    def close(self) -> None:
        """No more blocks come: iterating ends with those that are there. From any thread, and a signal handler."""
        self.is_closed = True
        self._blocks.put(None)

    def __iter__(self) -> Iterator[Block]:
        """The blocks, waiting for each."""
        try:
            while (block := self._blocks.get(timeout=self._patience_s)) is not None:
                yield block
        except Empty:
            self.is_closed = True


class LevelMeter:
    """How loud a signal is: RMS over all channels, what is longer ago counting less and less.

    Args:
        sample_rate_hz: Rate of the signal.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self._horizon_samples = _METER_HORIZON_S * sample_rate_hz
        self._power = 0.0

    def hear(self, block: Block) -> None:
        """Take in `(channels, samples)`."""
        if block.size:
            keep = math.exp(-block.shape[1] / self._horizon_samples)
            power = float(np.mean(np.square(block, dtype=np.float64)))
            self._power = keep * self._power + (1 - keep) * power

    @property
    def level_db(self) -> float:
        """In dB of full scale, a full-scale square wave being 0 dB; not less than `FLOOR_DB`."""
        return max(10 * math.log10(self._power), FLOOR_DB) if self._power > 0 else FLOOR_DB


class LiveStatus:
    """How live audio does.

    Args:
        sample_rate_hz: Rate of the signal.

    Attributes:
        sample_rate_hz: The argument.
        heard: Level of what comes in.
        denoised: Level of what goes out.
        audio_s: How much audio was denoised.
        processing_s: How long that took.
        real_time_factor: Processing time over audio time of late, about the last second; 0 before the first chunk.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.heard = LevelMeter(sample_rate_hz)
        self.denoised = LevelMeter(sample_rate_hz)
        self.audio_s = 0.0
        self.processing_s = 0.0
        self.real_time_factor = 0.0

    @property
    def mean_real_time_factor(self) -> float:
        """Processing time over audio time, of all; not a number if there was no audio."""
        return self.processing_s / self.audio_s if self.audio_s else math.nan

    def update(self, heard: Block, denoised: Block, processing_s: float) -> None:
        """Take note of a chunk, `(channels, samples)`, and of how long it took."""
        self.heard.hear(heard)
        self.denoised.hear(denoised)
        chunk_s = heard.shape[1] / self.sample_rate_hz
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
    """Denoise chunks as they come, until there are no more; then give out what is still in the stream.

    Args:
        chunks: `float32 (channels, samples)` each, of any length.
        stream: Fresh, of the same rate and channels. It is flushed at the end.
        sinks: Called with each chunk of the result: `latency_samples` later than what came in, and so much longer.
        status: Kept up to date, for another thread to show.
        clock: Gives seconds.

    Raises:
        AudioError: A chunk is not finite, or has other channels.
        EngineError: The engine failed.
    """
    for chunk in chunks:
        began = clock()
        denoised = stream.process(chunk)
        status.update(chunk, denoised, clock() - began)
        for sink in sinks:
            sink(denoised)
    rest = stream.flush()
    for sink in sinks:
        sink(rest)


def first_samples(chunks: Iterable[Block], samples: int) -> Iterator[Block]:
    """Chunks until so many samples have come; the last one is cut, and no more is waited for."""
    left = samples
    if left <= 0:
        return
    for chunk in chunks:
        yield chunk[:, :left]
        left -= min(left, chunk.shape[1])
        if not left:
            return


def aligned(sink: Sink, latency_samples: int) -> Sink:
    """A sink that leaves out the first samples, so that what it keeps is in time with what came in."""
    left = latency_samples

    def keep(block: Block) -> None:
        nonlocal left
        skipped = min(left, block.shape[1])
        left -= skipped
        if skipped < block.shape[1]:
            sink(block[:, skipped:])

    return keep
