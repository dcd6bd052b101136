"""Running means in place of means over the whole signal.

Squeeze-and-excitation layers scale each channel by a function of its mean over the whole signal. A stream does not
have the whole signal, so it uses the mean so far: frame `n` enters it with weight `1 / n`. With a horizon of `h`
frames the weight never falls below `1 / h`, so that the distant past is forgotten. The mean starts as if a second of
typical noisy speech had come first; without this start, the first seconds are denoised worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.arguments import real_number, shown

__all__ = ["Averaging", "Statistics", "shares"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """The running means of a stream, to start another stream with.

    Attributes:
        means: Means of all squeeze-and-excitation layers, concatenated, `2 * channels of the model` values each:
            `(channels of the stream, values)`. A single row applies to all channels.
        duration_s: Audio that the means cover, s.
        model: Digest of the checkpoint that the means were measured with; "" if it is not known.

    Raises:
        ValueError: `duration_s` is negative or not finite.
    """

    means: NDArray[np.float32]
    duration_s: float
    model: str = ""

    def __post_init__(self) -> None:
        """Check the duration."""
        if not 0 <= real_number("duration_s of statistics", self.duration_s) < math.inf:
            raise ValueError(f"duration_s of statistics must be finite and 0 s or more, got {shown(self.duration_s)}")


@dataclass(frozen=True, eq=False)
class Averaging:
    """How a stream averages for the squeeze-and-excitation layers.

    >>> Averaging(horizon_s=60)
    Averaging(horizon_s=60.0, start=None, start_s=None, hold=False)

    Attributes:
        horizon_s: Horizon of the running means, s: older audio fades out. None to weight all audio equally.
        start: Means to start with; None for those of typical noisy speech, which come with the model.
        start_s: Audio that the start counts for, s. None for its own duration; 0 to ignore the start.
        hold: Keep the start and do not update the means.

    Raises:
        ValueError: `horizon_s` is shorter than a hop (0.02 s), or `start_s` is negative.
        TypeError: `start` or `hold` is of another type.
    """

    horizon_s: float | None = 20.0
    start: Statistics | None = None
    start_s: float | None = None
    hold: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.start is not None and not isinstance(self.start, Statistics):
            raise TypeError(f"start must be Statistics or None, got {type(self.start).__name__}")
        for name in ("horizon_s", "start_s"):
            value = getattr(self, name)
            if value is not None:  # as a float: an integer may be too large to compute with
                object.__setattr__(self, name, real_number(name, value))
        if self.horizon_s is not None and not self.horizon_s >= 0.02:
            raise ValueError(f"horizon_s must be at least 0.02 s, got {self.horizon_s}")
        if self.start_s is not None and not self.start_s >= 0:
            raise ValueError(f"start_s must be 0 s or more, got {self.start_s}")
        if not isinstance(self.hold, bool | np.bool_):
            raise TypeError(f"hold must be True or False, got {shown(self.hold)}")


def shares(
    averaging: Averaging, start_s: float, first_frame: int, frames: int, lags: int, frames_per_second: float
) -> NDArray[np.float32]:
    """Return the weights that update the running means by a step of new frames.

    Deeper layers process a frame later than shallow ones: for each lag of 0, 1, ... frames there are weights.

    Args:
        averaging: The rule.
        start_s: Audio that the start counts for, s.
        first_frame: Index of the step's first frame in the stream.
        frames: Number of frames in the step.
        lags: Number of lags.
        frames_per_second: Frame rate of the model.

    Returns:
        Read-only `float32 (lags, frames, frames + 1)`: for each frame the weight of the mean before the step, then
        the weight of each frame of the step. A layer that has not reached the stream's first frame keeps its mean.
    """
    horizon = math.inf if averaging.horizon_s is None else max(averaging.horizon_s * frames_per_second, 1)
    if math.isfinite(horizon):
        first_frame = min(first_frame, math.ceil(horizon) + lags)  # from there on the weights are constant
    return _shares(horizon, averaging.hold, start_s * frames_per_second, first_frame, frames, lags)


@lru_cache(maxsize=64)
def _shares(
    horizon: float, hold: bool, start: float, first_frame: int, frames: int, lags: int
) -> NDArray[np.float32]:
    """Return the weights of `shares`; all arguments count frames."""
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
