"""A stream that can be turned off and on while it runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike

from frcrn_accel.adapters.fading import Fader, ramp_samples
from frcrn_accel.adapters.playout import DelayLine, Playout, Samples
from frcrn_accel.adapters.recovery import Recovery, is_interrupt
from frcrn_accel.errors import AudioError, EngineError
from frcrn_accel.streaming import Stream

__all__ = ["SwitchedStream"]


class SwitchedStream:
    """A stream that can be turned off and on without a jump in time or a click.

    While it is off, nothing is computed, and the unprocessed signal is returned with the latency of the stream. When
    it is turned on, the stream is reset, and the unprocessed signal bridges the latency. The same happens when the
    engine fails, whatever it raises: a call with noise is better than no call. The stream is tried again after 1 s
    of audio, then after 2, 4 and so on, up to 30 s, see `Recovery`. Every change is a ramp of 20 ms.

    Args:
        stream: A new stream. Nothing else may use it.
        dry: Delay line with the unprocessed signal so far, of as many channels; None to start with silence.
        dtype: Dtype of the signal.

    Attributes:
        stream: The stream.
        enabled: Whether to denoise. Any thread may change it; it takes effect with the next chunk.
    """

    def __init__(self, stream: Stream, dry: DelayLine | None = None, dtype: DTypeLike = np.int16) -> None:
        ramp = ramp_samples(stream.sample_rate_hz)
        self.stream = stream
        self.enabled = True
        self._was_enabled = True
        self._is_on = True
        self._fader = Fader(stream.channels, ramp)
        self._recovery = Recovery(stream.sample_rate_hz)
        self._dtype = dtype
        self._dry = DelayLine(stream.channels, 0, dtype, ramp=ramp) if dry is None else dry
        self._dry.lengthen(stream.latency_samples)
        late = 0 if dry is None else stream.latency_samples
        self._denoised = Playout(stream.channels, late, late, dtype, fader=self._fader)

    @property
    def is_denoising(self) -> bool:
        """Whether it is on and the engine works."""
        return self._is_on

    def process(self, chunk: Samples) -> Samples:
        """Take in the next samples, `(channels, samples)`, and return as many.

        Raises:
            AudioError: The number of channels is not that of the stream. The stream is unchanged.
        """
        if len(chunk) != self.stream.channels:
            raise AudioError(f"the stream has {self.stream.channels} channel(s), the chunk has {len(chunk)}")
        enabled = self.enabled
        if enabled != self._was_enabled or (enabled and not self._is_on and self._recovery.is_due):
            self._is_on = enabled and self._reset()
            self._was_enabled = enabled
        dry = self._dry.exchange(chunk)
        self._is_on = self._is_on and self._compute(chunk)
        self._recovery.advance(chunk.shape[1], denoising=self._is_on)
        return self._denoised.take(dry) if self._is_on else self._fader.join(dry, dry[:, :0], 0)

    def give_up(self, reason: str) -> None:
        """Return the signal unprocessed for now, as after a failure of the engine.

        Args:
            reason: For the log.
        """
        self._note(EngineError(reason))
        self._is_on = False

    def restart(self) -> None:
        """Start a new signal with silence; nothing of the previous one is returned."""
        ramp = ramp_samples(self.stream.sample_rate_hz)
        self._dry = DelayLine(self.stream.channels, self.stream.latency_samples, self._dtype, ramp=ramp)
        self._fader = Fader(self.stream.channels, ramp)
        self._is_on = self._is_on and self._reset()

    def _reset(self) -> bool:
        """Reset the stream; return whether that worked."""
        try:
            self.stream.reset()
        except BaseException as error:
            self._note(error)
            return False
        delay = self.stream.latency_samples
        self._denoised = Playout(self.stream.channels, delay, delay, self._dtype, fader=self._fader)
        return True

    def _compute(self, chunk: Samples) -> bool:
        """Denoise samples; return whether that worked."""
        try:
            self._denoised.put(self.stream.process(chunk))
        except BaseException as error:
            self._note(error)
            return False
        return True

    def _note(self, error: BaseException) -> None:
        if is_interrupt(error):
            raise error
        self._recovery.fail("the engine failed", error)
