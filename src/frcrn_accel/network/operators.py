"""The operators of FRCRN between its convolutions, in plain PyTorch.

Tensors are `(batch, frequency, time, 2 * channels)`, real parts first, channels last in memory: the layout in which
convolutions are fastest on CPUs. `train.fused` has faster ones for training.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from frcrn_accel.network.topology import LEAKY_SLOPE

__all__ = ["Operators", "filtered"]


class Operators:
    """Computes the operators between convolutions. A subclass can compute them in another way."""

    def leaky_relu(self, x: Tensor, bias: Tensor) -> Tensor:
        """Compute leaky ReLU of `x + bias`, with a bias `(2 * channels,)`. May overwrite `x`."""
        return F.leaky_relu(x + bias.to(x.dtype), LEAKY_SLOPE)

    def memory(self, x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, taps: Tensor) -> Tensor:
        """Compute a complex FSMN layer along dimension 1: both nets on both parts, and their complex sum with `x`.

        Args:
            x: Input `(batch, length, …, 2 * channels)`, four dimensions.
            weight: Dense layers of the real and the imaginary net, `(2 * channels, channels)`.
            bias: Their biases, `(2 * channels,)`.
            projection: Projections of both nets, block-diagonal, `(2 * channels, 2 * channels)`.
            taps: Filters of (real net, real part), (imaginary, real), (real, imaginary), and that of (imaginary,
                imaginary) negated, `(4 * channels, 1, taps, 1)`.

        Returns:
            A tensor of the shape of `x`.
        """
        parts = x.view(*x.shape[:-1], 2, -1)
        # Positions before the first are zero, also after the projection, which has no bias.
        hidden = F.pad(F.relu(F.linear(parts, weight, bias)), (0, 0, 0, 0, 0, 0, taps.shape[2] - 1, 0))
        y = filtered(F.linear(hidden, projection).flatten(-2), taps)
        re, im = x.chunk(2, dim=-1)
        re_re, im_re, re_im, im_im = y.chunk(4, dim=-1)
        return torch.cat([re - im + (re_re + im_im), im + re + (im_re + re_im)], dim=-1)

    def means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x` and its means over frequency and time, `(batch, 1, 2 * channels)`."""
        x, means = self.frame_means(x)
        return x, means.mean(dim=1, keepdim=True)

    def frame_means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x` and its means over frequency, `(batch, time, 2 * channels)`."""
        return x, x.mean(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))

    def concatenate(self, a: Tensor, scale_a: Tensor | None, b: Tensor, scale_b: Tensor) -> Tensor:
        """Concatenate the channels of `a` and `b`, each times its scale.

        Args:
            a: `(batch, frequency, time, 2 * channels)`.
            scale_a: Scales of each frame, `(batch, time or 1, 2 * channels)`; None for 1.
            b: A tensor of the shape of `a`.
            scale_b: Scales of `b`, like `scale_a`.
        """
        scaled = a if scale_a is None else a * scale_a[:, None]
        return torch.cat([scaled, b * scale_b[:, None]], dim=-1)


def filtered(x: Tensor, taps: Tensor) -> Tensor:
    """Filter each channel along dimension 1 with taps `(channels, 1, taps, 1)`, without padding."""
    return F.conv2d(x.permute(0, 3, 1, 2), taps, groups=taps.shape[0]).permute(0, 2, 3, 1)
