"""A filter for the audio of a Pipecat transport."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from frcrn_accel.adapters.switched import SwitchedStream
from frcrn_accel.audio import check_attenuation_limit
from frcrn_accel.denoiser import Denoiser, StreamOptions
from frcrn_accel.errors import MissingExtraError
from frcrn_accel.pcm import from_pcm, to_pcm
from frcrn_accel.streaming import Averaging

try:
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame, FilterUpdateSettingsFrame
except ImportError as error:
    raise MissingExtraError("The filter for Pipecat", "pipecat", error) from error

__all__ = ["FrcrnFilter"]

_SETTING = "attenuation_limit_db"


class FrcrnFilter(BaseAudioFilter):
    """Denoises what a Pipecat transport receives (`audio_in_filter`) or sends (`audio_out_filter`).

    >>> params = TransportParams(audio_in_enabled=True, audio_in_filter=FrcrnFilter(denoiser))

    Audio is 16-bit samples; `filter` returns as many bytes as it takes, `latency_s` behind. Loading the model and
    computing happen in one thread of the filter, in order, so the event loop never waits.

    A `FilterEnableFrame` turns the filter off and on. While it is off nothing is computed, and the unprocessed audio
    has the same delay, so that nothing jumps. A `FilterUpdateSettingsFrame` changes `{"attenuation_limit_db": 12.0}`;
    None removes the limit. If the engine fails, the error is logged and the filter is off until it is enabled again.

    Pipecat starts a filter with the transport's sample rate and stops it at the end. It can be started again, with
    another rate too. A filter denoises one signal: create one per transport; they can share a denoiser.

    Args:
        denoiser: The denoiser; any number of filters share it. It stays open when the filter is stopped.
        channels: Channels of the transport, which Pipecat does not report to filters.
        step_s, lookahead_s, averaging, gain_db: See `Denoiser.stream`.

    Raises:
        ValueError: `step_s` or `gain_db` is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        channels: int = 1,
        step_s: float = 0.02,
        lookahead_s: float | None = None,
        averaging: Averaging | None = None,
        gain_db: float | None = None,
    ) -> None:
        self._denoiser = denoiser
        self._channels = channels
        self._options = StreamOptions(step_s=step_s, lookahead_s=lookahead_s, averaging=averaging, gain_db=gain_db)
        self._attenuation_limit_db = denoiser.attenuation_limit_db
        self._enabled = True
        self._switched: SwitchedStream | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._rest = b""  # of a sample whose other bytes have not come yet

    @property
    def enabled(self) -> bool:
        """Whether it denoises: as set by the last `FilterEnableFrame`, or False after the engine failed."""
        return self._enabled if self._switched is None else self._switched.enabled

    @property
    def attenuation_limit_db(self) -> float | None:
        """Most that noise is attenuated, dB, as set by the last `FilterUpdateSettingsFrame`; None for no limit."""
        return self._attenuation_limit_db if self._switched is None else self._switched.stream.attenuation_limit_db

    @property
    def latency_s(self) -> float | None:
        """Delay of the output behind the input, s, which is constant; None before the start."""
        return None if self._switched is None else self._switched.stream.latency_s

    async def start(self, sample_rate: int) -> None:
        """Start a signal.

        Args:
            sample_rate: Rate of the signal, 8,000 to 192,000 Hz.

        Raises:
            AudioError, BackendUnavailable, ValueError: See `Denoiser.stream`.
        """
        await self.stop()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="frcrn-accel")
        try:
            switched = await asyncio.get_running_loop().run_in_executor(self._worker, self._open, sample_rate)
        except BaseException:
            await self.stop()
            raise
        switched.enabled = self._enabled
        switched.stream.attenuation_limit_db = self._attenuation_limit_db
        self._rest = b""
        self._switched = switched

    async def stop(self) -> None:
        """End the signal and drop what is still inside. Without a start it does nothing."""
        worker, self._worker, self._switched = self._worker, None, None
        if worker is not None:
            worker.shutdown(wait=False, cancel_futures=True)
            # The denoiser may be closed after this, so nothing may be computing then.
            await asyncio.get_running_loop().run_in_executor(None, worker.shutdown)

    async def process_frame(self, frame: FilterControlFrame) -> None:
        """Handle a `FilterEnableFrame` or `FilterUpdateSettingsFrame`, also before the start; ignore other frames.

        Raises:
            ValueError: A setting is not `attenuation_limit_db`, or its value is negative.
        """
        if isinstance(frame, FilterEnableFrame):
            self._enabled = frame.enable
            if self._switched is not None:
                self._switched.enabled = frame.enable
        elif isinstance(frame, FilterUpdateSettingsFrame):
            unknown = sorted(set(frame.settings) - {_SETTING})
            if unknown:
                raise ValueError(f"unknown filter setting {unknown[0]!r}; the only setting is {_SETTING!r}")
            if _SETTING in frame.settings:
                self._limit_attenuation(frame.settings[_SETTING])

    async def filter(self, audio: bytes) -> bytes:
        """Denoise the next samples.

        Args:
            audio: 16-bit samples, channels interleaved, of any length.

        Returns:
            As many samples. The bytes of a sample that is not whole are kept for the next call.

        Raises:
            RuntimeError: The filter is not started.
        """
        if self._worker is None or self._switched is None:
            raise RuntimeError("this filter is not started: await start(sample_rate) first, as transports do")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._filter, self._switched, audio)

    def _open(self, sample_rate: int) -> SwitchedStream:
        """Open a stream, in the worker."""
        return SwitchedStream(self._options.open(self._denoiser, sample_rate, channels=self._channels))

    def _filter(self, switched: SwitchedStream, audio: bytes) -> bytes:
        """Denoise samples, in the worker."""
        audio = self._rest + audio
        whole = len(audio) - len(audio) % (2 * self._channels)
        self._rest = audio[whole:]
        return to_pcm(switched.process(from_pcm(audio[:whole], self._channels)))

    def _limit_attenuation(self, limit_db: float | None) -> None:
        check_attenuation_limit(limit_db)
        self._attenuation_limit_db = limit_db
        if self._switched is not None:
            self._switched.stream.attenuation_limit_db = limit_db
