"""The delay from a stream's input to its output."""

from __future__ import annotations

from dataclasses import dataclass

from frcrn_accel.streaming.resampling import reach_samples

__all__ = ["Latency", "delay_samples"]


@dataclass(frozen=True)
class Latency:
    """The parts of a stream's delay, in seconds.

    Attributes:
        lookahead_s: Look-ahead of the model, over all U-Nets.
        half_frame_s: The half of an STFT frame that overlaps the next one.
        step_s: Waiting for a full step.
        resampling_s: Delay of the resampling filters.
    """

    lookahead_s: float
    half_frame_s: float
    step_s: float
    resampling_s: float

    @property
    def total_s(self) -> float:
        """The sum of the parts."""
        return self.lookahead_s + self.half_frame_s + self.step_s + self.resampling_s


def delay_samples(sample_rate_hz: int, model_rate_hz: int, step: int, held_back: int) -> int:
    """Return the delay of a stream in samples, large enough that each chunk yields as many samples as it has.

    Let `r` be `sample_rate_hz / model_rate_hz`. With `n` samples received, the output that is due ends with sample
    `k = n - 1 - delay` of the signal. It needs the model's output up to sample `j <= k / r + reach` (of the second
    resampler). The model has computed that once it has received `j + held_back + step` samples, rounded down to whole
    steps. The last of these needs the input up to sample `(j + held_back + step - 1) * r + reach` (of the first). So
    the delay below is enough: that sample is at most `n - 1`.

    Args:
        sample_rate_hz: Rate of the stream.
        model_rate_hz: Rate of the model.
        step: Samples of a step, at the model's rate.
        held_back: Delay of the model in samples, at its rate.
    """
    before = reach_samples(sample_rate_hz, model_rate_hz)
    after = reach_samples(model_rate_hz, sample_rate_hz)
    return before - ((after + held_back + step - 1) * -sample_rate_hz // model_rate_hz)
