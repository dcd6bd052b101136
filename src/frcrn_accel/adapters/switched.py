"""A stream that is turned off and on while it runs."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.adapters.playout import DelayLine, Playout
from frcrn_accel.errors import EngineError
from frcrn_accel.streaming import Stream

__all__ = ["SwitchedStream"]

_log = logging.getLogger(__name__)


class SwitchedStream:
    """A stream that can be turned off and on without a jump in time.

    While it is off nothing is computed, and the signal goes out as it came, as late as the stream would give it out.
    Turned on, the stream begins anew, and the signal as it came fills the time until it gives something out.
    An engine that fails turns it off too, and that is logged: a call goes on with noise rather than not at all.

    Args:
        stream: Fresh, and of nobody else.

    Attributes:
        stream: The argument.
        enabled: Whether it is to be on; may be changed from any thread, the next chunk has it.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.enabled = True
        self._is_on = True
        self._as_it_came = DelayLine(stream.channels, stream.latency_samples)
        self._denoised = Playout(stream.channels)

    def process(self, chunk: NDArray[np.int16]) -> NDArray[np.int16]:
        """Take in the next samples, `int16 (channels, samples)`, and give as many out.

        Raises:
            AudioError: Another number of channels.
        """
        if self.enabled != self._is_on:
            self._is_on = self.enabled
            if self._is_on:
                self.stream.reset()
                delay = self.stream.latency_samples
                self._denoised = Playout(self.stream.channels, hold=delay, drop=delay)
        as_it_came = self._as_it_came.exchange(chunk)
        if not self._is_on:
            return as_it_came
        try:
            self._denoised.put(self.stream.process(chunk))
        except EngineError:
            _log.exception("denoising is off until it is enabled again: the engine failed")
            self.enabled = self._is_on = False
            return as_it_came
        return self._denoised.take(as_it_came)
