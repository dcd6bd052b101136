"""A filter for the audio of a Pipecat transport."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from frcrn_accel.adapters.playout import from_pcm, to_pcm
from frcrn_accel.adapters.switched import SwitchedStream
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.errors import MissingExtraError
from frcrn_accel.streaming import Averaging

try:
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame, FilterUpdateSettingsFrame
except ImportError as error:
    raise MissingExtraError("The filter for Pipecat", "pipecat", error) from error

__all__ = ["FrcrnFilter"]

_SETTING = "attenuation_limit_db"


class FrcrnFilter(BaseAudioFilter):
    """Denoises what a Pipecat transport receives (`audio_in_filter`), or what it sends (`audio_out_filter`).

    >>> params = TransportParams(audio_in_enabled=True, audio_in_filter=FrcrnFilter(denoiser))

    Audio is 16-bit samples; as many bytes come out as go in, `latency_s` later. All computing, and loading what the
    denoiser needs for streams, is done in one thread of this filter, in order: the event loop is never kept waiting.

    A `FilterEnableFrame` turns it off and on; off, nothing is computed and the audio goes on as it came, equally
    late, so that nothing jumps. A `FilterUpdateSettingsFrame` changes `{"attenuation_limit_db": 12.0}`; None takes
    the limit away. If the engine fails, that is logged and the filter is off until it is enabled again.

    Pipecat starts a filter with the transport's sample rate and stops it at the end; then it may be started again,
    with another rate too. A filter is one signal: make one for each transport, all with one denoiser.

    Args:
        denoiser: Any number of filters share it. It stays open when the filter is stopped.
        channels: Channels of the transport, which Pipecat does not tell filters.
        step_s: See `Denoiser.stream`, as for the others.
        lookahead_s: How far the model looks ahead.
        averaging: What stands for the means over the whole signal.
        gain_db: Gain to the model's level, where it is known.
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
        self._step_s = step_s
        self._lookahead_s = lookahead_s
        self._averaging = averaging
        self._gain_db = gain_db
        self._attenuation_limit_db = denoiser.attenuation_limit_db
        self._enabled = True
        self._switched: SwitchedStream | None = None
        self._worker: ThreadPoolExecutor | None = None

    @property
    def enabled(self) -> bool:
        """Whether it denoises: as the last `FilterEnableFrame` said, or False since the engine failed."""
        return self._enabled if self._switched is None else self._switched.enabled

    @property
    def latency_s(self) -> float | None:
        """How far the output lies behind the input, the same all the time; None before the start."""
        return None if self._switched is None else self._switched.stream.latency_s

    async def start(self, sample_rate: int) -> None:
        """Begin a signal.

        Args:
            sample_rate: Its rate, 8,000 to 192,000 Hz.

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
        self._switched = switched

    async def stop(self) -> None:
        """End the signal; what is still inside is not given out. Before a start it does nothing."""
        worker, self._worker, self._switched = self._worker, None, None
        if worker is not None:
            worker.shutdown(wait=False, cancel_futures=True)
            # The denoiser may be closed after this, so nothing may be computing then.
            await asyncio.get_running_loop().run_in_executor(None, worker.shutdown)

    async def process_frame(self, frame: FilterControlFrame) -> None:
        """Take a `FilterEnableFrame` or a `FilterUpdateSettingsFrame`, before the start too; others are not for it.

        Raises:
            ValueError: Another setting than `attenuation_limit_db`, or its value is negative.
        """
        if isinstance(frame, FilterEnableFrame):
            self._enabled = frame.enable
            if self._switched is not None:
                self._switched.enabled = frame.enable
        elif isinstance(frame, FilterUpdateSettingsFrame):
            unknown = sorted(set(frame.settings) - {_SETTING})
            if unknown:
                raise ValueError(f"unknown filter setting {unknown[0]!r}: there is {_SETTING!r}")
            if _SETTING in frame.settings:
                self._limit_attenuation(frame.settings[_SETTING])

    async def filter(self, audio: bytes) -> bytes:
        """Denoise the next samples.

        Args:
            audio: 16-bit samples, channels interleaved, any number of them.

        Returns:
            As many bytes.

        Raises:
            AudioError: The bytes are no whole number of samples.
            RuntimeError: The filter is not started.
        """
        if self._worker is None or self._switched is None:
            raise RuntimeError("this filter is not started: await start(sample_rate) first, as transports do")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._filter, self._switched, audio)

    def _open(self, sample_rate: int) -> SwitchedStream:
        """In the worker."""
        stream = self._denoiser.stream(
            sample_rate,
            channels=self._channels,
            step_s=self._step_s,
            lookahead_s=self._lookahead_s,
            averaging=self._averaging,
            gain_db=self._gain_db,
        )
        return SwitchedStream(stream)

    def _filter(self, switched: SwitchedStream, audio: bytes) -> bytes:
        """In the worker."""
        return to_pcm(switched.process(from_pcm(audio, self._channels)))

    def _limit_attenuation(self, limit_db: float | None) -> None:
        if limit_db is not None and not limit_db >= 0:
            raise ValueError(f"{_SETTING} must be 0 or more, got {limit_db}")
        self._attenuation_limit_db = limit_db
        if self._switched is not None:
            self._switched.stream.attenuation_limit_db = limit_db
