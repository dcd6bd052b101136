"""A stream that can be turned off and on while it runs."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.adapters.playout import DelayLine, Playout
from frcrn_accel.streaming import Stream

__all__ = ["SwitchedStream"]

_log = logging.getLogger(__name__)


class SwitchedStream:
    """A stream that can be turned off and on without a jump in time.

    While it is off, nothing is computed, and the unprocessed signal is returned with the latency of the stream. When
    it is turned on, the stream is reset, and the unprocessed signal bridges the latency. If the engine fails, the
    error is logged and the stream is turned off: a call with noise is better than no call.

    Args:
        stream: A new stream. Nothing else may use it.

    Attributes:
        stream: The stream.
        enabled: Whether to denoise. Any thread may change it; it takes effect with the next chunk.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.enabled = True
        self._is_on = True
        self._dry = DelayLine(stream.channels, stream.latency_samples)
        self._denoised = Playout(stream.channels)

    def process(self, chunk: NDArray[np.int16]) -> NDArray[np.int16]:
        """Take in the next samples, `int16 (channels, samples)`, and return as many.

        Raises:
            AudioError: The number of channels is not that of the stream.
        """
        if self.enabled != self._is_on:
            self._is_on = self.enabled
            if self._is_on:
                self.stream.reset()
                delay = self.stream.latency_samples
                self._denoised = Playout(self.stream.channels, hold=delay, drop=delay)
        dry = self._dry.exchange(chunk)
        if not self._is_on:
            return dry
        try:
            self._denoised.put(self.stream.process(chunk))
        except Exception:  # whatever a backend raises: a call goes on
            _log.exception("the engine failed: denoising is off until it is enabled again")
            self.enabled = self._is_on = False
            return dry
        return self._denoised.take(dry)
