"""The operators between convolutions for training on a GPU: the filter of an FSMN layer as one pass over memory.

PyTorch's depthwise convolution, channels last in bfloat16, and above all its backward pass take longer than all dense
convolutions of the network together. The kernels are written in Triton, which comes with PyTorch on Linux.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from frcrn_accel.network.operators import Operators

__all__ = ["GpuOperators", "gpu_operators"]

_LOG = logging.getLogger(__name__)
_LENGTH = 32  # positions of a program
_COLUMNS = 2  # at most, of a program: the rows of more would not fit into registers


def gpu_operators() -> Operators:
    """Return the fastest operators on a GPU.

    Without Triton they are PyTorch's own, and a warning is logged.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        _LOG.warning("no Triton: training uses PyTorch's own operators, which are slower")
        return Operators()
    return GpuOperators()


class GpuOperators(Operators):
    """Triton kernels where PyTorch's operators are slow."""

    def memory(self, x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, taps: Tensor) -> Tensor:
        """See `Operators.memory`."""
        parts = x.view(*x.shape[:-1], 2, -1)
        projected = F.linear(F.relu(F.linear(parts, weight, bias)), projection).flatten(-2)
        return cast(Tensor, _Filter.apply(x, projected, taps))  # type: ignore[no-untyped-call]


class _Filter(Function):
    """The filter, its complex sum and the addition of `x`, each with float32 sums."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, projected: Tensor, taps: Tensor) -> Tensor:
        from frcrn_accel.train.kernels import filter_forward

        x, projected, taps = x.contiguous(), projected.contiguous(), taps.flatten(1).float().t().contiguous()
        y = torch.empty_like(x)
        grid, sizes = _plan(x, taps)
        filter_forward[grid](x, projected, taps, y, *sizes[:3], **sizes[3])
        ctx.save_for_backward(projected, taps)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        from frcrn_accel.train.kernels import filter_backward, filter_backward_taps

        projected, taps = ctx.saved_tensors
        dy = dy.contiguous()
        dx, dprojected = torch.empty_like(dy), torch.empty_like(projected)
        grid, sizes = _plan(dy, taps)
        filter_backward[grid](dy, taps, dx, dprojected, *sizes[:3], **sizes[3])
        sums = taps.new_empty(grid[0] * grid[1], *taps.shape)
        filter_backward_taps[grid](projected, dy, sums, *sizes[:3], **sizes[3])
        return dx, dprojected, sums.sum(0).t().reshape(-1, 1, len(taps), 1)


def _plan(x: Tensor, taps: Tensor) -> tuple[tuple[int, int], tuple[int, int, int, dict[str, int]]]:
    """Return the grid of programs for a tensor, and the sizes that the kernels take."""
    batch, length, others, _ = x.shape
    channels = taps.shape[1] // 4
    columns = min(_COLUMNS, _power_of_two(others))
    constants = {
        "TAPS": taps.shape[0],
        "LENGTH": _LENGTH,
        "COLUMNS": columns,
        "CHANNELS": _power_of_two(channels),
    }
    grid = (batch * -(-length // _LENGTH), -(-others // columns))
    return grid, (length, others, channels, constants)


def _power_of_two(size: int) -> int:
    """Return the least power of two that is not smaller."""
    return 1 << (size - 1).bit_length()
