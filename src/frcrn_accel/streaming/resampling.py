"""Changing the rate of a signal that is still coming in."""

from __future__ import annotations

import inspect

import numpy as np
import soxr
from numpy.typing import NDArray

__all__ = ["StreamResampler"]

# soxr has it from 1.1 on; Pipecat, for one, wants 1.0, and the two are to go into one environment.
_HAS_VARIABLE_RATES = "vr" in inspect.signature(soxr.ResampleStream).parameters


class StreamResampler:
    """One direction of it.

    soxr's mode for variable rates, if this soxr has it: its filters hold back less than a third of what those for
    files do, and are as flat up to 7.5 kHz.

    Args:
        from_hz: Rate of what comes in.
        to_hz: Rate of what goes out. The same rate is no change at all.
        channels: Number of channels.
    """

    def __init__(self, from_hz: int, to_hz: int, channels: int) -> None:
        self._channels = channels
        options = {"vr": True} if _HAS_VARIABLE_RATES else {}
        self._soxr = (
            None
            if from_hz == to_hz
            else soxr.ResampleStream(from_hz, to_hz, channels, dtype="float32", quality="HQ", **options)
        )

    def process(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The next samples, as far as they are there already, `(channels, samples)` both."""
        if self._soxr is None:
            return block
        out: NDArray[np.float32] = self._soxr.resample_chunk(np.ascontiguousarray(block.T))
        return np.ascontiguousarray(out.reshape(-1, self._channels).T)
