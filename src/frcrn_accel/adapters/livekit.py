"""A processor for the frames of a LiveKit audio stream."""

from __future__ import annotations

import logging

from frcrn_accel.adapters.background import HEADROOM_S, BackgroundStream
from frcrn_accel.audio import check_attenuation_limit
from frcrn_accel.denoiser import Denoiser, StreamOptions
from frcrn_accel.errors import MissingExtraError
from frcrn_accel.high_band import HighBandMode
from frcrn_accel.pcm import from_pcm, to_pcm
from frcrn_accel.streaming import Averaging, Stream

try:
    from livekit.rtc import AudioFrame, FrameProcessor
except ImportError as error:
    raise MissingExtraError("The processor for LiveKit", "livekit", error) from error

__all__ = ["FrcrnProcessor"]

_log = logging.getLogger(__name__)


class FrcrnProcessor(FrameProcessor[AudioFrame]):
    """Denoises what a LiveKit `AudioStream` receives.

    >>> stream = rtc.AudioStream(track, noise_cancellation=FrcrnProcessor(denoiser))

    LiveKit calls a processor for each frame on the event loop and does not await it, so computing there would block
    everything else. Instead a frame is handed to a thread of this processor, and a frame of the same rate, channels
    and length is returned at once. It is `latency_s` behind: the latency of the stream plus `headroom_s`, the time
    that the thread has, plus the excess of the longest frame over 10 ms. Audio that is not denoised by then is
    returned unprocessed, with the same delay, and counted in `late_s`.

    No failure ends a call or its audio. If the engine fails, or no stream can be opened, the error is logged, and the
    audio is returned unprocessed with the same delay. A retry follows after 1 s of audio, then after 2, 4 and so on,
    up to 30 s. See `BackgroundStream`.

    LiveKit bypasses a processor whose `enabled` is False, without the delay. So the audio jumps ahead by the latency
    when it is disabled, and fades to as much silence when it is enabled. Set `bypassed` instead to get the original
    signal without a jump. Every other change is a ramp of 20 ms.

    A frame of another rate or number of channels starts a new signal, for which the thread opens another stream. So
    does another track, which LiveKit reports to the processor. A processor denoises one track at a time: create one
    for each `AudioStream`.

    Args:
        denoiser: The denoiser; any number of processors share it. It stays open when the processor is closed. The
            first stream of a denoiser loads its model here: create the processor before calls arrive, or in a
            thread.
        sample_rate: Rate of the stream, as given to `AudioStream`.
        num_channels: Channels of the stream, as given to `AudioStream`.
        headroom_s: Time for the thread to compute, and to absorb frames that arrive in bursts.
        step_s, lookahead_s, averaging, gain_db, high_band: See `Denoiser.stream`.

    Raises:
        AudioError: The rate or the number of channels is out of range.
        BackendUnavailable: The denoiser's backend has no streams.
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sample_rate: int = 48_000,
        num_channels: int = 1,
        headroom_s: float = HEADROOM_S,
        step_s: float = 0.02,
        lookahead_s: float | None = None,
        averaging: Averaging | None = None,
        gain_db: float | None = None,
        high_band: HighBandMode | None = None,
    ) -> None:
        options = StreamOptions(
            step_s=step_s, lookahead_s=lookahead_s, averaging=averaging, gain_db=gain_db, high_band=high_band
        )

        def open_stream(sample_rate_hz: int, channels: int) -> Stream:
            return options.open(denoiser, sample_rate_hz, channels=channels)

        self._attenuation_limit_db = denoiser.attenuation_limit_db
        self._enabled = True
        self._has_failed = False
        self._publication: tuple[str, str] | None = None
        self._background = BackgroundStream(open_stream, headroom_s=headroom_s)
        self._background.open(sample_rate, num_channels)

    @property
    def enabled(self) -> bool:
        """Whether LiveKit calls this processor."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value and not self._enabled:
            self._background.restart(bypassed=True)
        self._enabled = value

    @property
    def bypassed(self) -> bool:
        """Whether the unprocessed signal is returned, with the delay of the denoised one."""
        return not self._background.enabled

    @bypassed.setter
    def bypassed(self, value: bool) -> None:
        self._background.enabled = not value

    @property
    def attenuation_limit_db(self) -> float | None:
        """Maximum noise attenuation, dB, see `Stream.attenuation_limit_db`; it can be changed at any time.

        Raises:
            ValueError: It is negative or NaN.
        """
        return self._attenuation_limit_db

    @attenuation_limit_db.setter
    def attenuation_limit_db(self, limit_db: float | None) -> None:
        check_attenuation_limit(limit_db)
        self._attenuation_limit_db = limit_db

    @property
    def latency_s(self) -> float | None:
        """Delay of the output behind the input, headroom included, s; None while a stream is being opened."""
        return self._background.latency_s

    @property
    def late_s(self) -> float:
        """Duration of the audio that was returned unprocessed because it was not denoised in time, s."""
        return self._background.late_s

    def wait(self) -> None:
        """Wait until all frames so far are computed: for tests, and for tracks that are not live."""
        self._background.wait()

    # LiveKit's `AudioStream` and `Track` call the following methods by these names.

    def _on_stream_info_updated(self, *, room_name: str, participant_identity: str, publication_sid: str) -> None:
        """Start a new signal where the audio of another track begins."""
        publication = (participant_identity, publication_sid)
        if self._publication is not None and publication != self._publication:
            self._background.restart()
        self._publication = publication

    def _process(self, frame: AudioFrame) -> AudioFrame:
        """Take in a frame and return one at once: the frame itself after `_close`, or if anything fails."""
        try:
            return self._exchange(frame)
        except Exception as error:  # LiveKit would log it for each frame
            if not self._has_failed:
                _log.warning("frames are returned unprocessed: %s", error, exc_info=error)
            self._has_failed = True
            return frame

    def _exchange(self, frame: AudioFrame) -> AudioFrame:
        if self._background.stream is not None:
            self._background.stream.attenuation_limit_db = self._attenuation_limit_db
        samples = from_pcm(frame.data, frame.num_channels)[:, : frame.samples_per_channel]
        out = to_pcm(self._background.process(samples, frame.sample_rate))
        return AudioFrame(
            out, frame.sample_rate, frame.num_channels, frame.samples_per_channel, userdata=frame.userdata
        )

    def _close(self) -> None:
        """End the thread once its current call returns. Closing twice is allowed."""
        self._background.close()
