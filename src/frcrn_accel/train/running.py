"""Running means, as a stream has them, to train a network for streams."""

from __future__ import annotations

import torch
from torch import Tensor

from frcrn_accel.network.operators import Operators
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ

__all__ = ["RunningMeans"]


class RunningMeans(Operators):
    """Operators whose means are over the signal so far, as `streaming.averaging` computes them without a horizon.

    A stream starts with means typical of noisy speech; here it starts with the mean over the batch, without gradient.

    Args:
        operators: Operators that compute everything else.
        start_s: Weight of the start, as seconds of audio.
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
        """Return `x`, and its means over frequency and the frames so far, `(batch, time, 2 * channels)`."""
        x, frames = self._operators.frame_means(x)
        start = frames.detach().mean(dim=(0, 1))
        count = torch.arange(1, frames.shape[1] + 1, device=x.device)[:, None]
        means = (self._start_frames * start + frames.cumsum(dim=1)) / (self._start_frames + count)
        return x, means

    def concatenate(self, a: Tensor, scale_a: Tensor | None, b: Tensor, scale_b: Tensor) -> Tensor:
        """See `Operators.concatenate`."""
        return self._operators.concatenate(a, scale_a, b, scale_b)
