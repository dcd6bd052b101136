"""A stream for a caller that must not wait: it computes in a thread of its own."""

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
from frcrn_accel.errors import EngineError
from frcrn_accel.streaming import Stream

__all__ = ["HEADROOM_S", "BackgroundStream"]

HEADROOM_S = 0.04  # two steps of the model: one that is being computed while the next one fills
_MAX_BACKLOG_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Run:
    """A signal from its beginning, or from where the stream began anew.

    Attributes:
        stream: What computes, in the worker.
        as_it_came: The signal, as late as it is given out.
        denoised: What the worker has computed.
        failed: The engine failed; nothing more is computed.
    """

    stream: Stream
    as_it_came: DelayLine
    denoised: Playout
    failed: bool = False


class BackgroundStream:
    """A live signal that is denoised in a thread of its own: no call here waits for the thread, or for a model.

    What goes in comes out `latency_s` later: the latency of the stream and a headroom, which is the time that the
    thread has. What it has not computed by then is given out as it came, in its place in time, and counted. If it
    falls more than a second behind, what waits is given up and the stream begins anew. If the engine fails, the
    signal goes on as it came.

    All methods are for one thread.

    Args:
        open_stream: Makes a stream, of a rate in Hz and a number of channels.
        headroom_s: The time that the worker has, for computing and for calls that come in bursts.

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
        self._pending: deque[tuple[Future[None], int]] = deque()  # with their samples
        self._late_s = 0.0
        self._is_closed = False

    @property
    def stream(self) -> Stream | None:
        """The stream; None until there is one."""
        return None if self._run is None else self._run.stream

    @property
    def latency_s(self) -> float | None:
        """How far the output lies behind the input; None until there is a stream."""
        if self._run is None:
            return None
        stream = self._run.stream
        return (stream.latency_samples + self._headroom_samples(stream)) / stream.sample_rate_hz

    @property
    def late_s(self) -> float:
        """How much audio was given out as it came because it was not denoised in time."""
        return self._late_s + (0.0 if self._run is None else _late_s(self._run))

    def open(self, sample_rate_hz: int, channels: int) -> None:
        """Make the stream now, in this thread, and wait for it.

        Raises:
            AudioError, BackendUnavailable, ValueError: See `Denoiser.stream`.
        """
        self._format = (sample_rate_hz, channels)
        self._begin(self._open_stream(sample_rate_hz, channels))

    def process(self, samples: NDArray[np.int16], sample_rate_hz: int) -> NDArray[np.int16]:
        """Take in the next samples and give as many out, at once.

        Another rate, or another number of channels, than before is another signal: the worker makes a stream for it,
        and until that is there silence is given out.

        Args:
            samples: `int16 (channels, samples)`.
            sample_rate_hz: Their rate.

        Raises:
            AudioError, BackendUnavailable: There is no stream for this rate and these channels.
            RuntimeError: It is closed.
        """
        if self._is_closed:
            raise RuntimeError("this processor is closed: make a new one")
        backlog = self._backlog_samples()
        if (sample_rate_hz, len(samples)) != self._format:
            self._end_run()
            self._format = (sample_rate_hz, len(samples))
            self._opening = self._worker.submit(self._open_stream, *self._format)
        if self._opening is not None:
            if not self._opening.done():
                return np.zeros_like(samples)
            self._begin(self._opening.result())
            self._opening = None
        assert self._run is not None
        if backlog > _MAX_BACKLOG_S * sample_rate_hz:
            _log.warning("denoising is more than %g s behind: it begins anew", _MAX_BACKLOG_S)
            self._begin_anew(self._run.as_it_came)
        run = self._run
        as_it_came = run.as_it_came.exchange(samples)
        if run.failed:
            return as_it_came
        self._pending.append((self._worker.submit(self._compute, run, samples), samples.shape[1]))
        return run.denoised.take(as_it_came)

    def restart(self) -> None:
        """What comes next is another signal, of the same rate and channels: nothing of this one is given out."""
        if self._run is not None:
            self._begin_anew(None)

    def close(self) -> None:
        """End the worker, after what it is at; again it does nothing."""
        self._is_closed = True
        self._end_run()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _compute(self, run: _Run, samples: NDArray[np.int16]) -> None:
        """In the worker."""
        if run is not self._run or run.failed:
            return
        try:
            run.denoised.put(run.stream.process(samples))
        except EngineError:
            _log.exception("denoising is off for this signal: the engine failed")
            run.failed = True

    def _begin(self, stream: Stream, as_it_came: DelayLine | None = None) -> None:
        delay = stream.latency_samples + self._headroom_samples(stream)
        self._run = _Run(
            stream,
            as_it_came or DelayLine(stream.channels, delay),
            # What a stream gives at first is silence; here it is what came before, if something did.
            Playout(stream.channels, hold=delay, drop=stream.latency_samples),
        )

    def _begin_anew(self, as_it_came: DelayLine | None) -> None:
        run = self._run
        assert run is not None
        self._end_run()
        self._pending.append((self._worker.submit(run.stream.reset), 0))
        self._begin(run.stream, as_it_came)

    def _end_run(self) -> None:
        """The worker passes over what it has of this run."""
        if self._run is not None:
            self._late_s += _late_s(self._run)
            self._run = None
        self._pending.clear()

    def _backlog_samples(self) -> int:
        """What the worker has still to do; what it raised is raised here."""
        while self._pending and self._pending[0][0].done():
            self._pending.popleft()[0].result()
        return sum(samples for _, samples in self._pending)

    def _headroom_samples(self, stream: Stream) -> int:
        return math.ceil(self._headroom_s * stream.sample_rate_hz)


def _late_s(run: _Run) -> float:
    return run.denoised.late_samples / run.stream.sample_rate_hz
