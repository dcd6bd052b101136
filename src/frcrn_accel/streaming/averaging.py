"""What stands in a stream for the means over all of a signal.

Squeeze-and-excitation scales each channel by what it is on average over the whole signal. A stream does not know the
whole; it takes the mean over what it has heard: frame `n` enters with the share `1 / n`. With a horizon of `h` frames
the share does not fall below `1 / h`, so that what is long past is forgotten. A stream begins as if
it had heard a second of noisy speech before: without that the first seconds are denoised worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Averaging", "Statistics", "shares"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a stream has heard, for another stream, or a later one, to start with.

    Attributes:
        means: Of the squeeze-and-excitation layers, one after the other, `2 * channels of the model` each:
            `(channels of the stream, values)`; one row will do for all channels.
        heard_s: How much audio that is, seconds.
    """

    means: NDArray[np.float32]
    heard_s: float


@dataclass(frozen=True, eq=False)
class Averaging:
    """The rule for the means of squeeze-and-excitation in a stream.

    Attributes:
        horizon_s: What is longer ago counts less and less; None to forget nothing.
        start: What to start with; None for what is typical of noisy speech, which comes with the model.
        start_s: How much audio the start counts for, seconds: what comes later weighs in accordingly. None for what
            it says of itself; 0 for no start at all.
        hold: Stay with the start, whatever comes.

    Raises:
        ValueError: The horizon is shorter than a frame, or the start counts for less than nothing.
    """

    horizon_s: float | None = 20.0
    start: Statistics | None = None
    start_s: float | None = None
    hold: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.horizon_s is not None and not self.horizon_s >= 0.02:
            raise ValueError(f"horizon_s must be at least 0.02 s, got {self.horizon_s}")
        if self.start_s is not None and not self.start_s >= 0:
            raise ValueError(f"start_s must be 0 s or more, got {self.start_s}")


def shares(
    averaging: Averaging, start_s: float, first_frame: int, frames: int, lags: int, frames_per_second: float
) -> NDArray[np.float32]:
    """How the means follow from those before and from new frames, for what lags by 0, 1, ... frames.

    Args:
        averaging: The rule.
        start_s: What the start counts for.
        first_frame: Number of the first new frame in the stream.
        frames: How many there are.
        lags: How many lags.
        frames_per_second: Of the model.

    Returns:
        `(lags, frames, frames + 1)`, not to be changed: for each frame the share of the mean before the step, and of
        each new frame. What lags and is not at the stream's first frame yet leaves the mean as it is.
    """
    horizon = math.inf if averaging.horizon_s is None else max(averaging.horizon_s * frames_per_second, 1)
    if math.isfinite(horizon):
        first_frame = min(first_frame, math.ceil(horizon) + lags)  # from there on one step is like the other
    return _shares(horizon, averaging.hold, start_s * frames_per_second, first_frame, frames, lags)


@lru_cache(maxsize=64)
def _shares(
    horizon: float, hold: bool, start: float, first_frame: int, frames: int, lags: int
) -> NDArray[np.float32]:
    """See `shares`; all in frames."""
    number = first_frame + np.arange(frames) - np.arange(lags)[:, None]
    entering = np.where((number < 0) | hold, 0.0, 1 / np.clip(number + 1 + start, 1, horizon))
    result = np.zeros((lags, frames, frames + 1))
    before = np.zeros((lags, frames + 1))
    before[:, 0] = 1
    for frame in range(frames):
        share = entering[:, frame, None]
        before = before * (1 - share)
        before[:, frame + 1] = share[:, 0]
        result[:, frame] = before
    return result.astype(np.float32)
