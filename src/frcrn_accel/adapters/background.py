"""A stream that computes in its own thread, for a caller that must not wait."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.adapters.playout import DelayLine, Playout
from frcrn_accel.streaming import Stream

__all__ = ["HEADROOM_S", "BackgroundStream"]

HEADROOM_S = 0.04  # two steps of the model: one is computed while the next fills
_MAX_BACKLOG_S = 1.0
_SHORT_CHUNK_S = 0.01  # the headroom is meant for these

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Run:
    """A signal from its start, or from the last reset of its stream.

    Attributes:
        stream: The stream; the worker uses it.
        dry: The unprocessed signal, with the delay of the output.
        denoised: The output of the worker.
        failed: Whether the engine failed; nothing more is computed then.
    """

    stream: Stream
    dry: DelayLine
    denoised: Playout
    failed: bool = False


class BackgroundStream:
    """A live signal that is denoised in its own thread. `process` waits neither for the thread nor for a model.

    The output is `latency_s` behind the input: the latency of the stream plus a headroom, which is the time that the
    thread has, plus what the longest chunk is longer than 10 ms. Samples that it has not computed by
    then are returned unprocessed, in their place in time, and
    counted in `late_s`. If the thread falls more than a second behind, the backlog is dropped and the stream starts
    again. If the engine fails, the rest of the signal is returned unprocessed.

    Call all methods from one thread.

    >>> background = BackgroundStream(lambda rate_hz, channels: denoiser.stream(rate_hz, channels=channels))
    >>> background.open(48_000, channels=1)
    >>> denoised = background.process(samples, 48_000)
    >>> background.close()

    Args:
        open_stream: Called with a rate in Hz and a number of channels; returns a new stream.
        headroom_s: Time for the worker to compute, and to absorb calls that arrive in bursts.

    Raises:
        ValueError: The headroom is negative.
    """

    def __init__(self, open_stream: Callable[[int, int], Stream], *, headroom_s: float = HEADROOM_S) -> None:
        if not headroom_s >= 0:
            raise ValueError(f"headroom_s must be 0 or more, got {headroom_s}")
        self._open_stream = open_stream
        self._headroom_s = headroom_s
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="frcrn-accel")
        self._format: tuple[int, int] | None = None
        self._opening: Future[Stream] | None = None
        self._run: _Run | None = None
        self._pending: deque[tuple[Future[None], int]] = deque()  # with the number of samples
        self._late_s = 0.0
        self._delay_s = headroom_s
        self._bridge = DelayLine(1, 0)  # the signal while its stream is being opened
        self._is_closed = False

    @property
    def stream(self) -> Stream | None:
        """The stream; None while it is being opened."""
        return None if self._run is None else self._run.stream

    @property
    def latency_s(self) -> float | None:
        """Delay of the output behind the input, s; None while the stream is being opened."""
        if self._run is None:
            return None
        return self._run.dry.delay_samples / self._run.stream.sample_rate_hz

    @property
    def late_s(self) -> float:
        """Duration of the audio that was returned unprocessed because it was not denoised in time, s."""
        return self._late_s + (0.0 if self._run is None else _late_s(self._run))

    def open(self, sample_rate_hz: int, channels: int) -> None:
        """Open the stream now, in the calling thread.

        Raises:
            AudioError, BackendUnavailable, ValueError: See `Denoiser.stream`.
        """
        self._format = (sample_rate_hz, channels)
        self._begin(self._open_stream(sample_rate_hz, channels))

    def process(self, samples: NDArray[np.int16], sample_rate_hz: int) -> NDArray[np.int16]:
        """Take in the next samples and return as many, at once.

        A change of the rate or of the number of channels starts a new signal: the worker opens a stream for it, and
        the unprocessed signal is returned until that is done, with about
        the delay of the signal before. If it fails, the error is logged, and the signal stays
        unprocessed.

        Args:
            samples: `int16 (channels, samples)`.
            sample_rate_hz: Rate of the samples.

        Raises:
            RuntimeError: It is closed.
        """
        if self._is_closed:
            raise RuntimeError("this processor is closed: create a new one")
        backlog = self._backlog_samples()
        if (sample_rate_hz, len(samples)) != self._format:
            self._bridge = DelayLine(len(samples), math.ceil(self._delay_s * sample_rate_hz))
            self._end_run()
            self._format = (sample_rate_hz, len(samples))
            self._opening = self._worker.submit(self._open_stream, *self._format)
        if self._opening is not None and self._opening.done():
            opening, self._opening = self._opening, None
            try:
                self._begin(opening.result(), self._bridge)
            except Exception:  # of the rate, or whatever a backend raises: a call goes on
                _log.exception("no stream for this audio: it is returned unprocessed")
        if self._run is None:
            return self._bridge.exchange(samples)
        if backlog > _MAX_BACKLOG_S * sample_rate_hz:
            _log.warning("denoising is more than %g s behind: dropping the backlog", _MAX_BACKLOG_S)
            self._reset(self._run.dry)
        run = self._run
        self._make_room(run, samples.shape[1])
        dry = run.dry.exchange(samples)
        if run.failed:
            return dry
        self._pending.append((self._worker.submit(self._compute, run, samples), samples.shape[1]))
        return run.denoised.take(dry)

    def restart(self) -> None:
        """Start a new signal of the same rate and channels; nothing of the previous one is returned."""
        if self._run is not None:
            self._reset(None)

    def wait(self) -> None:
        """Wait until everything taken in so far is computed: for tests, and for audio that is not live."""
        self._worker.submit(int).result()

    def close(self) -> None:
        """End the worker once its current call returns. Closing twice is allowed."""
        self._is_closed = True
        self._end_run()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _compute(self, run: _Run, samples: NDArray[np.int16]) -> None:
        """Denoise samples, in the worker."""
        if run is not self._run or run.failed:
            return
        try:
            run.denoised.put(run.stream.process(samples))
        except Exception:  # whatever a backend raises: a call goes on
            _log.exception("the engine failed: denoising is off for the rest of this signal")
            run.failed = True

    def _begin(self, stream: Stream, dry: DelayLine | None = None) -> None:
        delay = stream.latency_samples + self._headroom_samples(stream)
        if dry is not None:
            dry.lengthen(delay)
            delay = dry.delay_samples
        self._delay_s = delay / stream.sample_rate_hz
        self._run = _Run(
            stream,
            DelayLine(stream.channels, delay) if dry is None else dry,
            # A stream starts with silence; after a reset the unprocessed signal takes its place.
            Playout(stream.channels, hold=delay, drop=stream.latency_samples),
        )

    def _make_room(self, run: _Run, samples: int) -> None:
        """Lengthen the delay for a longer chunk: its beginning waits for its end before it can be computed."""
        rate_hz = run.stream.sample_rate_hz
        longer = max(0, samples - math.ceil(_SHORT_CHUNK_S * rate_hz))
        short = run.stream.latency_samples + self._headroom_samples(run.stream) + longer - run.dry.delay_samples
        if short > 0:
            run.dry.lengthen(run.dry.delay_samples + short)
            run.denoised.lengthen(short)
            self._delay_s = run.dry.delay_samples / rate_hz

    def _reset(self, dry: DelayLine | None) -> None:
        run = self._run
        assert run is not None
        self._end_run()
        self._pending.append((self._worker.submit(run.stream.reset), 0))
        self._begin(run.stream, dry)

    def _end_run(self) -> None:
        """Make the worker skip what it still has of this run."""
        if self._run is not None:
            self._late_s += _late_s(self._run)
            self._run = None
        self._pending.clear()

    def _backlog_samples(self) -> int:
        """Count the samples that the worker has not computed; raise here what it raised."""
        while self._pending and self._pending[0][0].done():
            self._pending.popleft()[0].result()
        return sum(samples for _, samples in self._pending)

    def _headroom_samples(self, stream: Stream) -> int:
        return math.ceil(self._headroom_s * stream.sample_rate_hz)


def _late_s(run: _Run) -> float:
    return run.denoised.late_samples / run.stream.sample_rate_hz
