"""What FRCRN does between its convolutions, in PyTorch's own operators.

Tensors are `(batch, frequency, time, 2 * channels)`, real parts first, channels last in memory: the layout in which
convolutions are fastest on CPUs. Training has a faster form of the same: `train.fused`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from frcrn_accel.network.topology import LEAKY_SLOPE

__all__ = ["Operators", "filtered"]


class Operators:
    """The operators between convolutions; a subclass may compute them otherwise."""

    def leaky_relu(self, x: Tensor, bias: Tensor) -> Tensor:
        """Leaky ReLU of `x + bias`, which is `(2 * channels,)`. It may overwrite `x`."""
        return F.leaky_relu(x + bias.to(x.dtype), LEAKY_SLOPE)

    def memory(self, x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, taps: Tensor) -> Tensor:
        """One layer of complex FSMN along dimension 1: both networks on both parts, and their complex sum with `x`.

        Args:
            x: `(batch, steps, …, 2 * channels)`, four dimensions.
            weight: Of the first product: that of the real and of the imaginary network, `(2 * channels, channels)`.
            bias: The same, `(2 * channels,)`.
            projection: Of the second product, block-diagonal, `(2 * channels, 2 * channels)`.
            taps: The filters of (real network, real part), (imaginary, real), (real, imaginary), and that of
                (imaginary, imaginary) negated, `(4 * channels, 1, taps, 1)`.

        Returns:
            The shape of `x`.
        """
        parts = x.view(*x.shape[:-1], 2, -1)
        # What lies before the first step is zero; the projection keeps it so.
        hidden = F.pad(F.relu(F.linear(parts, weight, bias)), (0, 0, 0, 0, 0, 0, taps.shape[2] - 1, 0))
        y = filtered(F.linear(hidden, projection).flatten(-2), taps)
        re, im = x.chunk(2, dim=-1)
        re_re, im_re, re_im, im_im = y.chunk(4, dim=-1)
        return torch.cat([re - im + (re_re + im_im), im + re + (im_re + re_im)], dim=-1)

    def means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x`, and its means over frequency and time, `(batch, 1, 2 * channels)`."""
        x, means = self.frame_means(x)
        return x, means.mean(dim=1, keepdim=True)

    def frame_means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x`, and its means over frequency, `(batch, time, 2 * channels)`."""
        return x, x.mean(dim=1, dtype=torch.promote_types(x.dtype, torch.float32))

    def concatenate(self, a: Tensor, scale_a: Tensor | None, b: Tensor, scale_b: Tensor) -> Tensor:
        """The channels of `a`, then those of `b`, each times its scale.

        Args:
            a: `(batch, frequency, time, 2 * channels)`.
            scale_a: Of each frame, `(batch, time or 1, 2 * channels)`; None is one.
            b: The shape of `a`.
            scale_b: The same for `b`.
        """
        scaled = a if scale_a is None else a * scale_a[:, None]
        return torch.cat([scaled, b * scale_b[:, None]], dim=-1)


def filtered(x: Tensor, taps: Tensor) -> Tensor:
    """Each channel with its filter along dimension 1, `(channels, 1, taps, 1)`, where all taps lie inside."""
    return F.conv2d(x.permute(0, 3, 1, 2), taps, groups=taps.shape[0]).permute(0, 2, 3, 1)
