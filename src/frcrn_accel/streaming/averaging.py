"""What stands in a stream for the means over all of a signal.

Squeeze-and-excitation scales each channel by what it is on average over the whole signal. A stream does not know the
whole; it takes the mean over what it has heard: frame `n` enters with the share `1 / n`. With a horizon of `h` frames
the share does not fall below `1 / h`, so that what is long past is forgotten. With a start, the stream begins as if
it had heard that before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Averaging", "Statistics", "shares"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a stream has heard, for another stream, or a later one, to start with.

    Attributes:
        means: Of each squeeze-and-excitation layer, `(streams' channels, 2 * channels of the model)`.
        heard_s: How much audio that is, seconds: what comes later weighs in accordingly.
    """

    means: tuple[NDArray[np.float32], ...]
    heard_s: float


@dataclass(frozen=True, eq=False)
class Averaging:
    """The rule for the means of squeeze-and-excitation in a stream.

    Attributes:
        horizon_s: What is longer ago counts less and less; None to forget nothing.
        start: What to start with; None to start with nothing.
        hold: Stay with `start`, whatever comes.

    Raises:
        ValueError: The horizon is shorter than a frame, or there is nothing to hold.
    """

    horizon_s: float | None = 20.0
    start: Statistics | None = None
    hold: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.horizon_s is not None and not self.horizon_s >= 0.02:
            raise ValueError(f"horizon_s must be at least 0.02 s, got {self.horizon_s}")
        if self.hold and self.start is None:
            raise ValueError("hold needs a start to hold")


def shares(
    averaging: Averaging, first_frame: int, frames: int, lags: int, frames_per_second: float
) -> NDArray[np.float32]:
    """How the means follow from those before and from new frames, for what lags by 0, 1, ... frames.

    Args:
        averaging: The rule.
        first_frame: Number of the first new frame in the stream.
        frames: How many there are.
        lags: How many lags.
        frames_per_second: Of the model.

    Returns:
        `(lags, frames, frames + 1)`: for each frame the share of the mean before the step, and of each new frame.
        What lags and is not at the stream's first frame yet leaves the mean as it is.
    """
    number = first_frame + np.arange(frames) - np.arange(lags)[:, None]
    heard = 0.0 if averaging.start is None else averaging.start.heard_s * frames_per_second
    horizon = np.inf if averaging.horizon_s is None else averaging.horizon_s * frames_per_second
    count = np.clip(number + 1 + heard, 1, max(horizon, 1))
    entering = np.where((number < 0) | averaging.hold, 0.0, 1 / count)
    result = np.zeros((lags, frames, frames + 1))
    before = np.zeros((lags, frames + 1))
    before[:, 0] = 1
    for frame in range(frames):
        share = entering[:, frame, None]
        before = before * (1 - share)
        before[:, frame + 1] = share[:, 0]
        result[:, frame] = before
    return result.astype(np.float32)
