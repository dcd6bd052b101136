"""The delay from a stream's input to its output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from frcrn_accel.streaming.resampling import StreamResampler

__all__ = ["UNIT_S", "Latency", "delay_samples", "unit_samples"]

UNIT_S = 0.005  # the resampler gets this much per call, so that its output does not depend on the chunks
_OBSERVED_S = 10.0


@dataclass(frozen=True)
class Latency:
    """The parts of a stream's delay, in seconds.

    Attributes:
        lookahead_s: Look-ahead of the model, over all U-Nets.
        window_s: The half of an STFT frame that overlaps the next one.
        step_s: Waiting for a full step.
        resampling_s: Delay of the resampling filters.
    """

    lookahead_s: float
    window_s: float
    step_s: float
    resampling_s: float

    @property
    def total_s(self) -> float:
        """The sum of the parts."""
        return self.lookahead_s + self.window_s + self.step_s + self.resampling_s


def unit_samples(sample_rate_hz: int) -> int:
    """Return the number of samples that the resampler gets per call."""
    return math.ceil(UNIT_S * sample_rate_hz)


@cache
def delay_samples(sample_rate_hz: int, model_rate_hz: int, step: int, held_back: int) -> int:
    """Return the smallest delay at which every input sample yields an output sample, in samples of the stream.

    It is measured by sending silence through the resamplers: how much they hold back depends on the number of
    samples only, not on their values.

    Args:
        sample_rate_hz: Rate of the stream.
        model_rate_hz: Rate of the model.
        step: Samples of a step, at the model's rate.
        held_back: Delay of the model in samples, at its rate.
    """
    if sample_rate_hz == model_rate_hz:
        return held_back + step - 1
    unit = unit_samples(sample_rate_hz)
    to_model = StreamResampler(sample_rate_hz, model_rate_hz, 1)
    from_model = StreamResampler(model_rate_hz, sample_rate_hz, 1)
    received = waiting = out = worst = 0
    skipped = held_back
    while received < _OBSERVED_S * sample_rate_hz:
        # The worst case is just before the next unit is complete.
        worst = max(worst, received + unit - 1 - out)
        received += unit
        waiting += to_model.process(np.zeros((1, unit), np.float32)).shape[1]
        while waiting >= step:
            waiting -= step
            given = max(step - skipped, 0)
            skipped -= step - given
            out += from_model.process(np.zeros((1, given), np.float32)).shape[1]
    return worst
