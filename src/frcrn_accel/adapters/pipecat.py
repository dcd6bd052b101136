"""A filter for the audio of a Pipecat transport."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from frcrn_accel.adapters.fading import ramp_samples
from frcrn_accel.adapters.playout import DelayLine
from frcrn_accel.adapters.recovery import Recovery
from frcrn_accel.adapters.switched import SwitchedStream
from frcrn_accel.arguments import real_number, shown, whole_number
from frcrn_accel.audio import check_attenuation_limit, check_channels, check_format, whole_hz
from frcrn_accel.denoiser import Denoiser, StreamOptions
from frcrn_accel.errors import AudioError, MissingExtraError
from frcrn_accel.high_band import HighBandMode
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.pcm import from_pcm, to_pcm
from frcrn_accel.streaming import Averaging, Stream

try:
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame, FilterUpdateSettingsFrame
except ImportError as error:
    raise MissingExtraError("The filter for Pipecat", "pipecat", error) from error

__all__ = ["FrcrnFilter"]

_SETTING = "attenuation_limit_db"
_MAX_LATE_S = 1.0

_log = logging.getLogger(__name__)


class FrcrnFilter(BaseAudioFilter):
    """Denoises what a Pipecat transport receives (`audio_in_filter`) or sends (`audio_out_filter`).

    >>> params = TransportParams(audio_in_enabled=True, audio_in_filter=FrcrnFilter(denoiser))

    Audio is 16-bit samples; `filter` returns as many bytes as it takes, `latency_s` behind. Loading the model and
    computing happen in one thread of the filter, in order, so the event loop never waits.

    A `FilterEnableFrame` turns the filter off and on. While it is off nothing is computed, and the unprocessed audio
    has the same delay, so that nothing jumps. A `FilterUpdateSettingsFrame` changes `{"attenuation_limit_db": 12.0}`;
    None removes the limit. Every change is a ramp of 20 ms.

    No failure ends a call. If the engine fails, or falls a second behind, or no stream can be opened at the start,
    the error is logged, and the audio is returned unprocessed. A retry follows after 1 s of audio, then after 2, 4
    and so on, up to 30 s.

    Pipecat does not report pauses to filters, and the last `latency_s` of an utterance are still inside the filter
    when its last chunk has arrived. A chunk that arrives more than `pause_s` after the end of the previous one
    therefore starts a new signal with silence: what was inside is dropped, and does not come out at the start of the
    next utterance. So a bot's utterance (`audio_out_filter`) loses its last `latency_s`, unless it ends with as much
    silence.

    Pipecat starts a filter with the transport's sample rate and stops it at the end. It can be started again, with
    another rate too. A filter denoises one signal: create one per transport; they can share a denoiser. A filter that
    is started twice without a stop logs an error, and returns the audio of both unprocessed.

    Args:
        denoiser: The denoiser; any number of filters share it. It stays open when the filter is stopped.
        channels: Channels of the transport, which Pipecat does not report to filters.
        pause_s: Time without audio after which a new signal starts; infinity for never, where audio arrives in
            bursts of which nothing may be lost.
        step_s, lookahead_s, averaging, gain_db, high_band: See `Denoiser.stream`.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        channels: int = 1,
        pause_s: float = 0.5,
        step_s: float = 0.02,
        lookahead_s: float | None = None,
        averaging: Averaging | None = None,
        gain_db: float | None = None,
        high_band: HighBandMode | None = None,
    ) -> None:
        self._denoiser = denoiser
        self._channels = channels
        self._options = StreamOptions(
            step_s=step_s, lookahead_s=lookahead_s, averaging=averaging, gain_db=gain_db, high_band=high_band
        )
        self._options.check(denoiser)
        self._attenuation_limit_db = denoiser.attenuation_limit_db
        if whole_number("channels", channels) < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        check_channels(channels)
        if not real_number("pause_s", pause_s) > 0:
            raise ValueError(f"pause_s must be above 0, got {pause_s}")
        self._pause_s = pause_s
        self._quiet_since_s = math.inf
        self._enabled = True
        self._signal: _Signal | None = None
        self._users = 0  # transports that have started it and not stopped it
        self._has_warned = False

    @property
    def enabled(self) -> bool:
        """Whether denoising is turned on, as set by the last `FilterEnableFrame`."""
        return self._enabled

    @property
    def is_denoising(self) -> bool:
        """Whether the returned audio is denoised: the filter is started and enabled, and the engine works."""
        switched = self._switched
        return switched is not None and switched.is_denoising

    @property
    def attenuation_limit_db(self) -> float | None:
        """Maximum noise attenuation, dB, as set by the last `FilterUpdateSettingsFrame`; None for no limit."""
        return self._attenuation_limit_db

    @property
    def latency_s(self) -> float | None:
        """Delay of the output behind the input, s, which is constant; None before the start and without a stream."""
        return None if self._switched is None else self._switched.stream.latency_s

    @property
    def _switched(self) -> SwitchedStream | None:
        return None if self._signal is None else self._signal.switched

    async def start(self, sample_rate: int) -> None:
        """Start a signal. If its stream cannot be opened, that is logged, and the audio is returned unprocessed.

        Args:
            sample_rate: Rate of the signal, 8,000 to 192,000 Hz.
        """
        self._users += 1
        if self._users > 1:
            _log.error("a filter denoises one signal, and this one was started twice: create one for each transport")
            await self._end()
            return
        signal = _Signal(self._channels, sample_rate, lambda: self._open(sample_rate))
        signal.enabled = self._enabled
        self._signal, self._quiet_since_s = signal, math.inf
        await asyncio.wrap_future(signal.begin())

    async def stop(self) -> None:
        """End the signal and drop what is still inside. Without a start it does nothing."""
        self._users = max(0, self._users - 1)
        await self._end()

    async def _end(self) -> None:
        signal, self._signal = self._signal, None
        if signal is not None:
            # The denoiser may be closed after this, so nothing may be computing then.
            await asyncio.get_running_loop().run_in_executor(None, signal.close)

    async def process_frame(self, frame: FilterControlFrame) -> None:
        """Handle a `FilterEnableFrame` or `FilterUpdateSettingsFrame`, also before the start; ignore other frames.

        Settings other than `attenuation_limit_db`, and values that are negative, NaN or no numbers, are logged and
        change nothing. An error would end the task of an output transport, and with it the sound.
        """
        if isinstance(frame, FilterEnableFrame):
            self._enabled = bool(frame.enable)
            if self._signal is not None:
                self._signal.enabled = self._enabled
        elif isinstance(frame, FilterUpdateSettingsFrame):
            try:
                self._update_settings(frame.settings)
            except ValueError as error:
                _log.error("filter settings are not changed: %s", error)

    async def filter(self, audio: bytes) -> bytes:
        """Denoise the next samples.

        A failure is not raised, because the transport would end its call: it is logged, and the audio is returned
        unprocessed.

        Args:
            audio: 16-bit samples, channels interleaved, of any length.

        Returns:
            As many samples. The bytes of an incomplete sample are kept for the next call. Before the start, after the
            stop, and for anything but bytes, what was given.
        """
        signal, now_s = self._signal, asyncio.get_running_loop().time()
        if signal is None or not isinstance(audio, bytes | bytearray | memoryview):
            if not self._has_warned:
                reason = "the filter is not started" if signal is None else f"got {type(audio).__name__}, not bytes"
                _log.warning("%s: audio is returned unprocessed", reason)
                self._has_warned = True
            return audio
        pcm = bytes(audio)
        paused = now_s - self._quiet_since_s > self._pause_s
        try:
            # A call that is cancelled is computed all the same: it may end within a sample, whose rest comes next.
            return await asyncio.shield(asyncio.wrap_future(signal.submit(pcm, paused=paused)))
        finally:
            duration_s = len(pcm) / (2 * self._channels * signal.sample_rate_hz)
            self._quiet_since_s = asyncio.get_running_loop().time() + duration_s

    def _open(self, sample_rate: int) -> Stream:
        """Open a stream, in a thread."""
        stream = self._options.open(self._denoiser, sample_rate, channels=self._channels)
        stream.attenuation_limit_db = self._attenuation_limit_db
        return stream

    def _update_settings(self, settings: object) -> None:
        if not isinstance(settings, Mapping):
            raise ValueError(f"they must be a mapping, got {shown(settings)}")
        unknown = [name for name in settings if name != _SETTING]
        if unknown:
            raise ValueError(f"unknown filter setting {shown(unknown[0])}; the only setting is {_SETTING!r}")
        if _SETTING in settings:
            limit_db = settings[_SETTING]
            check_attenuation_limit(limit_db)
            self._attenuation_limit_db = limit_db
            if self._signal is not None:
                self._signal.limit_attenuation(limit_db)


class _Signal:
    """State of a filter from start to stop. One thread computes; another opens the stream.

    Args:
        channels: Number of channels.
        sample_rate_hz: Rate.
        open_stream: Opens the stream.
    """

    def __init__(self, channels: int, sample_rate_hz: int, open_stream: Callable[[], Stream]) -> None:
        self.sample_rate_hz = _rate_or_usual(sample_rate_hz)
        self.switched: SwitchedStream | None = None
        self.enabled = True
        self._channels = channels
        self._open_stream = open_stream
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="frcrn-accel")
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="frcrn-accel-open")
        self._opening: Future[Stream] | None = None
        self._recovery = Recovery(self.sample_rate_hz)
        self._before = DelayLine(channels, 0, ramp=ramp_samples(self.sample_rate_hz))  # while there is no stream
        self._late_s = 0.0  # by which computing is behind the audio
        self._rest = b""  # of a sample whose other bytes have not arrived yet
        self._is_closed = False

    def begin(self) -> Future[None]:
        """Open the stream; the future is done once it is open, or could not be opened."""
        self._opening = self._opener.submit(self._open_stream)
        return self._worker.submit(self._receive_stream, wait=True)

    def submit(self, pcm: bytes, *, paused: bool) -> Future[bytes]:
        """Denoise the next samples in the worker; if the worker has ended, return them unprocessed."""
        try:
            return self._worker.submit(self._filter, pcm, paused)
        except RuntimeError:  # the worker has ended since the caller looked
            done: Future[bytes] = Future()
            done.set_result(pcm)
            return done

    def limit_attenuation(self, limit_db: float | None) -> None:
        """Set the limit of the stream, if there is one yet."""
        if self.switched is not None:
            self.switched.stream.attenuation_limit_db = limit_db

    def close(self) -> None:
        """End the threads and wait until they have ended. Calls that still wait get their samples unprocessed."""
        self._is_closed = True
        self._worker.shutdown()
        self._opener.shutdown()

    def _filter(self, pcm: bytes, paused: bool) -> bytes:
        if self._is_closed:
            return pcm
        pcm = self._rest + pcm
        whole = len(pcm) - len(pcm) % (2 * self._channels)
        self._rest = pcm[whole:]
        samples = from_pcm(pcm[:whole], self._channels)
        self._receive_stream(wait=False)
        if self.switched is None:
            self._recovery.advance(samples.shape[1], denoising=False)
            return to_pcm(self._before.exchange(samples))
        if paused:
            self.switched.restart()
        self.switched.enabled = self.enabled
        began_s = time.monotonic()
        out = self.switched.process(samples)
        took_s = time.monotonic() - began_s
        # The transport waits for each chunk: an engine that is too slow would delay the call more and more.
        self._late_s = max(0.0, self._late_s + took_s - samples.shape[1] / self.sample_rate_hz)
        if self._late_s > _MAX_LATE_S and self.switched.is_denoising:
            self.switched.give_up(f"it is more than {_MAX_LATE_S:g} s behind")
        return to_pcm(out)

    def _receive_stream(self, *, wait: bool) -> None:
        if self.switched is not None:
            return
        if self._opening is not None and (wait or self._opening.done()):
            opening, self._opening = self._opening, None
            error = opening.exception()
            if error is None:
                self.switched = SwitchedStream(opening.result(), None if wait else self._before)
            else:
                self._recovery.fail("no stream for this audio", error)
        if self.switched is None and self._opening is None and self._recovery.is_due:
            self._opening = self._opener.submit(self._open_stream)


def _rate_or_usual(sample_rate: object) -> int:
    """Return a rate to count time with: that of the transport, or the model's if opening a stream will refuse it."""
    try:
        rate_hz = whole_hz(sample_rate)
        check_format(rate_hz, 1)
    except AudioError:
        return SAMPLE_RATE_HZ
    return rate_hz
