"""Means as a stream has them, for training a network that is used in streams."""

from __future__ import annotations

import torch
from torch import Tensor

from frcrn_accel.network.operators import Operators
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ

__all__ = ["RunningMeans"]


class RunningMeans(Operators):
    """Operators whose means are those over what has been heard: `streaming.averaging`, without a horizon.

    What a stream starts with is what is typical of noisy speech; here it is the mean over the batch, into which no
    gradient goes.

    Args:
        operators: What computes all the rest.
        start_s: How much audio the start counts for, seconds.
    """

    def __init__(self, operators: Operators, start_s: float = 1.0) -> None:
        self._operators = operators
        self._start_frames = start_s * SAMPLE_RATE_HZ / HOP_SAMPLES

    def leaky_relu(self, x: Tensor, bias: Tensor) -> Tensor:
        """See `Operators.leaky_relu`."""
        return self._operators.leaky_relu(x, bias)

    def memory(self, x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, taps: Tensor) -> Tensor:
        """See `Operators.memory`."""
        return self._operators.memory(x, weight, bias, projection, taps)

    def means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x`, and the means over frequency and the frames so far, `(batch, time, 2 * channels)`."""
        x, frames = self._operators.frame_means(x)
        start = frames.detach().mean(dim=(0, 1))
        heard = torch.arange(1, frames.shape[1] + 1, device=x.device)[:, None]
        means = (self._start_frames * start + frames.cumsum(dim=1)) / (self._start_frames + heard)
        return x, means

    def concatenate(self, a: Tensor, scale_a: Tensor | None, b: Tensor, scale_b: Tensor) -> Tensor:
        """See `Operators.concatenate`."""
        return self._operators.concatenate(a, scale_a, b, scale_b)
