"""A processor for the frames of a LiveKit audio stream."""

from __future__ import annotations

from frcrn_accel.adapters.background import HEADROOM_S, BackgroundStream
from frcrn_accel.adapters.playout import from_pcm, to_pcm
from frcrn_accel.audio import check_attenuation_limit
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.errors import MissingExtraError
from frcrn_accel.streaming import Averaging, Stream

try:
    from livekit.rtc import AudioFrame, FrameProcessor
except ImportError as error:
    raise MissingExtraError("The processor for LiveKit", "livekit", error) from error

__all__ = ["FrcrnProcessor"]


class FrcrnProcessor(FrameProcessor[AudioFrame]):
    """Denoises what a LiveKit `AudioStream` receives.

    >>> stream = rtc.AudioStream(track, noise_cancellation=FrcrnProcessor(denoiser))

    LiveKit calls a processor once for each frame (10 ms), not awaited, on the event loop: whatever it computed there
    all else would wait for. So a frame is handed to a thread of this processor, and at once a frame of the same
    rate, channels and length is given back, `latency_s` behind: the latency of the stream and `headroom_s`, the time
    that the thread has. Where that was not enough, frames are given back as they came, equally late; `late_s` counts
    them. See `BackgroundStream`.

    LiveKit goes round a processor whose `enabled` is False: its frames are not late. So the time jumps ahead by the
    latency when it is turned off, and as much silence comes when it is turned on, which begins a new signal. To hear
    the signal as it came without a jump, set `attenuation_limit_db` to 0.

    A frame of another rate or number of channels is another signal, and so is another track (LiveKit tells the
    processor): for that the thread makes another stream.

    Args:
        denoiser: Any number of processors share it. It stays open when the processor is closed. The first stream of
            a denoiser loads what streams need, here: make the processor before calls come in, or in a thread.
        sample_rate: Rate of the stream, as given to `AudioStream`.
        num_channels: Its channels, as given to `AudioStream`.
        headroom_s: The time that the thread has, for computing and for frames that come in bursts.
        step_s: See `Denoiser.stream`, as for the others.
        lookahead_s: How far the model looks ahead.
        averaging: What stands for the means over the whole signal.
        gain_db: Gain to the model's level, where it is known.

    Raises:
        AudioError: The rate or the number of channels is out of range.
        BackendUnavailable: The denoiser's backend has no streams.
        ValueError: An argument is out of its range.
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
    ) -> None:
        def open_stream(sample_rate_hz: int, channels: int) -> Stream:
            return denoiser.stream(
                sample_rate_hz,
                channels=channels,
                step_s=step_s,
                lookahead_s=lookahead_s,
                averaging=averaging,
                gain_db=gain_db,
            )

        self._attenuation_limit_db = denoiser.attenuation_limit_db
        self._enabled = True
        self._publication: tuple[str, str] | None = None
        self._background = BackgroundStream(open_stream, headroom_s=headroom_s)
        self._background.open(sample_rate, num_channels)

    @property
    def enabled(self) -> bool:
        """Whether LiveKit is to call it."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value and not self._enabled:
            self._background.restart()
        self._enabled = value

    @property
    def attenuation_limit_db(self) -> float | None:
        """At most this much noise is taken away, see `Stream.attenuation_limit_db`; may be changed at any time.

        Raises:
            ValueError: It is negative.
        """
        return self._attenuation_limit_db

    @attenuation_limit_db.setter
    def attenuation_limit_db(self, limit_db: float | None) -> None:
        check_attenuation_limit(limit_db)
        self._attenuation_limit_db = limit_db

    @property
    def latency_s(self) -> float | None:
        """How far the output lies behind the input, headroom included; None while a stream is being made."""
        return self._background.latency_s

    @property
    def late_s(self) -> float:
        """How much audio was given back as it came because it was not denoised in time."""
        return self._background.late_s

    # The names with _ are LiveKit's: what its `AudioStream` and `Track` call.

    def _on_stream_info_updated(self, *, room_name: str, participant_identity: str, publication_sid: str) -> None:
        """Begin anew where the audio of another track begins."""
        publication = (participant_identity, publication_sid)
        if self._publication is not None and publication != self._publication:
            self._background.restart()
        self._publication = publication

    def _process(self, frame: AudioFrame) -> AudioFrame:
        """Take in a frame and give one back at once.

        Raises:
            AudioError: The rate or the number of channels is out of range; LiveKit logs that, and what any other
                error is, and passes the frame as it came.
            RuntimeError: The processor is closed.
        """
        if self._background.stream is not None:
            self._background.stream.attenuation_limit_db = self._attenuation_limit_db
        samples = from_pcm(frame.data, frame.num_channels)[:, : frame.samples_per_channel]
        out = to_pcm(self._background.process(samples, frame.sample_rate))
        return AudioFrame(
            out, frame.sample_rate, frame.num_channels, frame.samples_per_channel, userdata=frame.userdata
        )

    def _close(self) -> None:
        """End the thread, after what it is at; again it does nothing."""
        self._background.close()
