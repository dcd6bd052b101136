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

from frcrn_accel.adapters.fading import Fader, fade_in, ramp_samples
from frcrn_accel.adapters.playout import DelayLine, Playout
from frcrn_accel.adapters.recovery import TRUSTED_AFTER_S, Recovery
from frcrn_accel.arguments import real_number
from frcrn_accel.audio import MAX_SAMPLE_RATE_HZ, whole_hz
from frcrn_accel.errors import AudioError
from frcrn_accel.streaming import Stream

__all__ = ["HEADROOM_S", "BackgroundStream"]

HEADROOM_S = 0.04  # two steps of the model: one is computed while the next fills
_MAX_BACKLOG_S = 1.0
_SHORT_CHUNK_S = 0.01  # the headroom is meant for these
_MIN_RATE_HZ = 1_000  # of audio that comes out unprocessed; streams begin at 8 kHz

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Run:
    """A signal from its start, or from the last reset of its stream.

    Attributes:
        stream: The stream; the worker uses it.
        dry: The unprocessed signal, with the delay of the output.
        denoised: The output of the worker.
        error: What the engine raised; nothing more is computed then.
        is_over: Whether the caller knows that nothing more is computed.
    """

    stream: Stream
    dry: DelayLine
    denoised: Playout
    error: BaseException | None = None
    is_over: bool = False


class BackgroundStream:
    """A live signal that is denoised in its own thread. `process` waits neither for the thread nor for a model.

    The output is `latency_s` behind the input: the latency of the stream plus a headroom, which is the time that
    the thread has, plus the excess of the longest chunk over 10 ms. Samples that the thread has not computed by then
    are returned unprocessed, in their place in time, and counted in `late_s`. If the thread falls more than a second
    behind, the backlog is dropped and the stream starts again. If the engine fails, whatever it raises, the signal
    is returned unprocessed, and the stream is tried again after 1 s of audio, then after 2, 4 and so on, up to 30
    s. Between denoised and unprocessed samples there is a ramp of 20 ms.

    Call all methods from one thread.

    >>> background = BackgroundStream(lambda rate_hz, channels: denoiser.stream(rate_hz, channels=channels))
    >>> background.open(48_000, channels=1)
    >>> denoised = background.process(samples, 48_000)
    >>> background.close()

    Args:
        open_stream: Called with a rate in Hz and a number of channels; returns a new stream.
        headroom_s: Time for the worker to compute, and to absorb calls that arrive in bursts.

    Attributes:
        enabled: Whether to denoise. While it is False, nothing is computed, and the unprocessed signal is returned
            with the same delay.

    Raises:
        ValueError: The headroom is negative, infinite or NaN.
    """

    def __init__(self, open_stream: Callable[[int, int], Stream], *, headroom_s: float = HEADROOM_S) -> None:
        if not 0 <= real_number("headroom_s", headroom_s) < math.inf:
            raise ValueError(f"headroom_s must be 0 or more and finite, got {headroom_s}")
        self._open_stream = open_stream
        self._headroom_s = headroom_s
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="frcrn-accel")
        self.enabled = True
        self._format = (0, 0)  # rate and channels
        self._opening: Future[Stream] | None = None
        self._run: _Run | None = None
        self._pending: deque[tuple[Future[None], int]] = deque()  # with the number of samples
        self._late_s = 0.0
        self._kept_up_samples: float = math.inf  # since the backlog was dropped last
        self._delay_s = headroom_s
        self._bridge = DelayLine(1, 0)  # the signal while its stream is being opened
        self._fader = Fader(1, 0)
        self._recovery = Recovery(0)
        self._risen: int | None = None  # samples of the ramp that a restarted signal begins with; None after it
        self._was_bypassed = False  # whether the caller used the signal itself until now
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
        stream = self._open_stream(sample_rate_hz, channels)
        self._start_format(sample_rate_hz, channels)
        self._begin(stream)

    def process(self, samples: NDArray[np.int16], sample_rate_hz: int) -> NDArray[np.int16]:
        """Take in the next samples and return as many, at once.

        A change of the rate or of the number of channels starts a new signal, for which the worker opens a stream.
        Until the stream is open, the unprocessed signal is returned, with about the delay of the previous signal,
        whose end comes out at the new rate. If the stream cannot be opened, the error is logged, and opening it is
        tried again as after a failure of the engine.

        Args:
            samples: `int16 (channels, samples)`.
            sample_rate_hz: Rate of the samples.

        Raises:
            AudioError: The rate is not a whole number of 1,000 to 192,000 Hz. Nothing is changed.
            RuntimeError: It is closed.
        """
        if self._is_closed:
            raise RuntimeError("this processor is closed: create a new one")
        if (sample_rate_hz, len(samples)) != self._format:
            self._change_format(sample_rate_hz, len(samples))
        self._kept_up_samples += samples.shape[1]
        samples = self._ramped_up(samples)
        self._receive_stream()
        denoising = self._run is not None and self._keeps_up(self._run)
        self._recovery.advance(samples.shape[1], denoising=denoising)
        run = self._run  # `_keeps_up` may have begun another
        if run is None:
            dry = self._bridge.exchange(samples)
            return self._fader.join(dry, dry[:, :0], 0)
        self._make_room(run, samples.shape[1])
        dry = run.dry.exchange(samples)
        if not denoising:
            return self._fader.join(dry, dry[:, :0], 0)
        self._pending.append((self._worker.submit(self._compute, run, samples), samples.shape[1]))
        return run.denoised.take(dry)

    def restart(self, *, bypassed: bool = False) -> None:
        """Start a new signal of the same rate and channels; the previous one fades out.

        Args:
            bypassed: Until now, the caller has used the signal itself, without the delay: that fades out instead.
        """
        if bypassed:
            self._was_bypassed = True
        else:
            self._fader.cut()
        self._risen = 0
        if self._run is None:
            self._bridge = DelayLine(self._format[1], self._bridge.delay_samples, ramp=ramp_samples(self._format[0]))
        else:
            self._reset(None)

    def wait(self) -> None:
        """Wait until everything taken in so far is computed: for tests, and for audio that is not live."""
        if not self._is_closed:
            self._worker.submit(int).result()

    def close(self) -> None:
        """End the worker once its current call returns. Closing twice is allowed."""
        self._is_closed = True
        self._end_run()
        self._worker.shutdown(wait=False, cancel_futures=True)

    # In the worker:

    def _compute(self, run: _Run, samples: NDArray[np.int16]) -> None:
        """Denoise samples."""
        if run is not self._run or run.error is not None:
            return
        try:
            run.denoised.put(run.stream.process(samples))
        except BaseException as error:  # also the exit of an engine must not end a call
            run.error = error

    def _restart_stream(self, run: _Run) -> None:
        try:
            run.stream.reset()
        except BaseException as error:
            run.error = error

    # In the caller's thread:

    def _start_format(self, sample_rate_hz: int, channels: int) -> None:
        self._format = (sample_rate_hz, channels)
        self._fader = Fader(channels, ramp_samples(sample_rate_hz))
        self._recovery = Recovery(sample_rate_hz)
        self._opening = None

    def _change_format(self, sample_rate_hz: int, channels: int) -> None:
        """Continue at another rate or with other channels, unprocessed; what was delayed comes out first."""
        if not _MIN_RATE_HZ <= whole_hz(sample_rate_hz) <= MAX_SAMPLE_RATE_HZ:
            raise AudioError(f"sample rate must be {_MIN_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz, got {sample_rate_hz}")
        before, (rate_hz, _) = self._bridge if self._run is None else self._run.dry, self._format
        fader = self._fader
        self._end_run()
        self._start_format(sample_rate_hz, channels)
        self._fader.continue_from(fader)
        ramp = ramp_samples(sample_rate_hz)
        # There is no rate before the first samples, and nothing is inside.
        self._bridge = before.converted(rate_hz or sample_rate_hz, sample_rate_hz, channels, ramp=ramp)
        self._bridge.lengthen(math.ceil(self._delay_s * sample_rate_hz))

    def _ramped_up(self, samples: NDArray[np.int16]) -> NDArray[np.int16]:
        """Return samples with the ramp at the beginning of a restarted signal."""
        if self._was_bypassed and samples.shape[1]:
            self._fader.leave(samples)
            self._was_bypassed = False
        if self._risen is None:
            return samples
        ramp, done = ramp_samples(self._format[0]), self._risen
        self._risen = done + samples.shape[1] if done + samples.shape[1] < ramp else None
        return fade_in(samples, done, ramp)

    def _receive_stream(self) -> None:
        """Take over a stream that was opened in the worker, and have one opened where there is none."""
        if self._opening is not None and self._opening.done():
            opening, self._opening = self._opening, None
            error = opening.exception()
            if error is None:
                self._begin(opening.result(), self._bridge)
            else:
                self._recovery.fail("no stream for this audio", error)
        if self._run is None and self._opening is None and self._recovery.is_due:
            self._opening = self._worker.submit(self._open_stream, *self._format)

    def _keeps_up(self, run: _Run) -> bool:
        """Return whether to denoise the next samples; first reset the stream if it has to start again."""
        backlog = self._backlog_samples()
        if run.error is not None and not run.is_over:
            run.is_over = True
            self._recovery.fail("the engine failed", run.error)
        if not self.enabled:
            run.is_over = True
            return False
        if run.is_over:
            if not self._recovery.is_due or backlog:
                return False
            self._reset(run.dry)
        elif backlog > _MAX_BACKLOG_S * run.stream.sample_rate_hz:
            # An engine that is always too slow is reported once, not every second.
            level = logging.DEBUG if self._kept_up_samples < TRUSTED_AFTER_S * self._format[0] else logging.WARNING
            _log.log(level, "denoising is more than %g s behind: dropping the backlog", _MAX_BACKLOG_S)
            self._kept_up_samples = 0
            self._reset(run.dry)
        return True

    def _begin(self, stream: Stream, dry: DelayLine | None = None) -> _Run:
        delay = stream.latency_samples + self._headroom_samples(stream)
        silence = stream.latency_samples if dry is None else 0
        if dry is None:
            dry = DelayLine(stream.channels, delay, ramp=ramp_samples(stream.sample_rate_hz))
        dry.lengthen(delay)
        delay = dry.delay_samples
        self._delay_s = delay / stream.sample_rate_hz
        denoised = Playout(
            stream.channels,
            hold=delay - silence,
            drop=stream.latency_samples,  # its silence: the unprocessed signal is returned instead
            silence=silence,
            fader=self._fader,
        )
        self._run = _Run(stream, dry, denoised)
        return self._run

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
        new = self._begin(run.stream, dry)
        self._pending.append((self._worker.submit(self._restart_stream, new), 0))

    def _end_run(self) -> None:
        """End the run; the worker skips what it has not computed of it."""
        if self._run is not None:
            self._late_s += _late_s(self._run)
            self._run = None
        self._pending.clear()

    def _backlog_samples(self) -> int:
        """Count the samples that the worker has not computed."""
        while self._pending and self._pending[0][0].done():
            self._pending.popleft()
        return sum(samples for _, samples in self._pending)

    def _headroom_samples(self, stream: Stream) -> int:
        return math.ceil(self._headroom_s * stream.sample_rate_hz)


def _late_s(run: _Run) -> float:
    return run.denoised.late_samples / run.stream.sample_rate_hz
