"""How far the output of a stream lies behind its input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from frcrn_accel.streaming.resampling import StreamResampler

__all__ = ["UNIT_S", "Latency", "delay_samples", "unit_samples"]

UNIT_S = 0.005  # the resampler is fed so much at a time, so that what it gives does not depend on the chunks
_OBSERVED_S = 10.0


@dataclass(frozen=True)
class Latency:
    """Where the delay of a stream comes from, in seconds.

    Attributes:
        lookahead_s: The frames that the model looks ahead.
        window_s: The half of an STFT window that overlaps the next.
        step_s: Waiting until a step is full.
        resampling_s: What the resampler's filters hold back.
    """

    lookahead_s: float
    window_s: float
    step_s: float
    resampling_s: float

    @property
    def total_s(self) -> float:
        """Their sum."""
        return self.lookahead_s + self.window_s + self.step_s + self.resampling_s


def unit_samples(sample_rate_hz: int) -> int:
    """What the resampler is fed at a time."""
    return math.ceil(UNIT_S * sample_rate_hz)


@cache
def delay_samples(sample_rate_hz: int, model_rate_hz: int, step: int, held_back: int) -> int:
    """The least delay with which there is always an output sample for an input sample.

    Found by sending silence through the resamplers and looking how much has come out: what they hold back follows
    from how much they are given, not from what.

    Args:
        sample_rate_hz: Rate of the stream.
        model_rate_hz: Rate of the model.
        step: Samples of a step, at the model's rate.
        held_back: Samples that the model holds back.
    """
    if sample_rate_hz == model_rate_hz:
        return held_back + step - 1
    unit = unit_samples(sample_rate_hz)
    to_model = StreamResampler(sample_rate_hz, model_rate_hz, 1)
    from_model = StreamResampler(model_rate_hz, sample_rate_hz, 1)
    received = waiting = out = worst = 0
    skipped = held_back
    while received < _OBSERVED_S * sample_rate_hz:
        # The worst moment: all but one sample of the next unit are there.
        worst = max(worst, received + unit - 1 - out)
        received += unit
        waiting += to_model.process(np.zeros((1, unit), np.float32)).shape[1]
        while waiting >= step:
            waiting -= step
            given = max(step - skipped, 0)
            skipped -= step - given
            out += from_model.process(np.zeros((1, given), np.float32)).shape[1]
    return worst
