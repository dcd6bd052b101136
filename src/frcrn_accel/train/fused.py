"""The operators between convolutions as training on a CPU wants them: few passes over memory, in bfloat16.

The activations of a batch are gigabytes, and PyTorch's own operators read and write them so often that this takes
longer than all convolutions together. `fused.c` is compiled when training starts; without a C compiler training goes
on with PyTorch's operators.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import tempfile
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from frcrn_accel.model.operators import Operators, filtered
from frcrn_accel.model.topology import LEAKY_SLOPE

__all__ = ["FusedOperators", "fused_operators"]

_LOG = logging.getLogger(__name__)
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC", "-std=c11")
# Those that need memory for sums, and give 0 if there is none.
_ALLOCATING = {"leaky_relu_backward", "relu_behind_backward", "channel_means", "scaled_concat_backward"}


def fused_operators(channels: int) -> Operators:
    """The fastest operators there are here for a network of so many complex channels."""
    library = _library(channels)
    return Operators() if library is None else FusedOperators(library, channels)


class FusedOperators(Operators):
    """`fused.c` for bfloat16 tensors on a CPU, PyTorch's operators for all others.

    Args:
        library: `fused.c`, compiled for this many channels.
        channels: Complex channels.
    """

    def __init__(self, library: ctypes.CDLL, channels: int) -> None:
        self._library = library
        self._channels = channels

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedOperators:
        """Itself: a library cannot be copied."""
        return self

    def leaky_relu(self, x: Tensor, bias: Tensor) -> Tensor:
        """See `Operators.leaky_relu`."""
        if not _applies(x) or x.shape[-1] != 2 * self._channels or not x.is_contiguous():
            return super().leaky_relu(x, bias)
        return cast(Tensor, _applied(_LeakyRelu, x, bias.float(), self._library))

    def memory(self, x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, taps: Tensor) -> Tensor:
        """See `Operators.memory`."""
        if not _applies(x):
            return super().memory(x, weight, bias, projection, taps)
        return cast(Tensor, _applied(_Memory, x, weight, bias, projection, taps, self._library))

    def means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Operators.means`."""
        if not _applies(x):
            return super().means(x)
        return cast(tuple[Tensor, Tensor], _applied(_Means, x, self._library))

    def concatenate(self, a: Tensor, scale_a: Tensor | None, b: Tensor, scale_b: Tensor) -> Tensor:
        """See `Operators.concatenate`."""
        if not _applies(a):
            return super().concatenate(a, scale_a, b, scale_b)
        if scale_a is None:
            scale_a = torch.ones_like(scale_b)
        return cast(Tensor, _applied(_Concatenate, a, scale_a.float(), b, scale_b.float(), self._library))


class _LeakyRelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, library: ctypes.CDLL) -> Tensor:
        ctx.mark_dirty(x)
        _run(library.leaky_relu, x[..., 0].numel(), LEAKY_SLOPE, bias, x)
        ctx.library = library
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        gradient, result = gradient.contiguous(), torch.empty_like(y)
        of_bias = y.new_empty(y.shape[-1], dtype=torch.float32)
        _run(ctx.library.leaky_relu_backward, y[..., 0].numel(), LEAKY_SLOPE, y, gradient, result, of_bias)
        return result, of_bias, None


class _Memory(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, taps: Tensor, library: ctypes.CDLL
    ) -> Tensor:
        x = x.contiguous()
        weight, projection, taps = weight.to(x.dtype), projection.to(x.dtype), taps.to(x.dtype)
        batch, steps, others, channels = x.shape
        past = taps.shape[2] - 1
        rows = 2 * batch * (past + steps) * others
        first = x.view(-1, channels // 2) @ weight.t()
        hidden = x.new_empty(rows, channels)
        row = 2 * others * channels
        _run(library.relu_behind, batch, past * row, steps * row, first, bias.float(), hidden)
        del first
        memory = (hidden @ projection.t()).view(batch, past + steps, others, 2 * channels)
        y = filtered(memory, taps).contiguous()
        result = torch.empty_like(x)
        _run(library.complex_sum, batch * steps * others, x, y, result)
        ctx.library = library
        ctx.save_for_backward(x, hidden, memory, weight, projection, taps)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, memory, weight, projection, taps = ctx.saved_tensors
        library = ctx.library
        batch, steps, others, channels = x.shape
        gradient = gradient.contiguous()
        of_filtered = x.new_empty(batch, steps, others, 2 * channels)
        pixels = batch * steps * others
        _run(library.complex_sum_backward_y, pixels, gradient, of_filtered)
        of_memory, of_taps, _ = torch.ops.aten.convolution_backward(
            of_filtered.permute(0, 3, 1, 2),
            memory.permute(0, 3, 1, 2),
            taps,
            None,
            (1, 1),
            (0, 0),
            (1, 1),
            False,
            (0, 0),
            taps.shape[0],
            (True, True, False),
        )
        of_memory = of_memory.permute(0, 2, 3, 1).contiguous().view(-1, channels)
        of_projection = of_memory.t() @ hidden
        of_hidden = of_memory @ projection
        of_first = x.new_empty(2 * pixels, channels)
        row = 2 * others * channels
        past = taps.shape[2] - 1
        of_bias = x.new_empty(channels, dtype=torch.float32)
        sizes = (batch, past * row, steps * row)
        _run(library.relu_behind_backward, *sizes, hidden, of_hidden, of_first, of_bias)
        of_weight = of_first.t() @ x.view(-1, channels // 2)
        of_x = (of_first @ weight).view_as(x)
        _run(library.complex_sum_backward_x, pixels, gradient, of_x)
        return of_x, of_weight.float(), of_bias, of_projection.float(), of_taps.float(), None


class _Means(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, library: ctypes.CDLL) -> tuple[Tensor, Tensor]:
        means = x.new_empty(x.shape[0], x.shape[-1], dtype=torch.float32)
        x = x.contiguous()
        _run(library.channel_means, x.shape[0], x.shape[1] * x.shape[2], x, means)
        ctx.library = library
        return x.view_as(x), means

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_means: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        result = torch.empty_like(gradient)
        batch, bins, frames, _ = gradient.shape
        _run(ctx.library.channel_means_backward, batch, bins * frames, gradient, of_means.contiguous(), result)
        return result, None


class _Concatenate(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, library: ctypes.CDLL) -> Tensor:
        a, b, scale_a, scale_b = a.contiguous(), b.contiguous(), scale_a.contiguous(), scale_b.contiguous()
        batch, bins, frames, channels = a.shape
        result = a.new_empty(batch, bins, frames, 2 * channels)
        _run(library.scaled_concat, batch, bins * frames, a, scale_a, b, scale_b, result)
        ctx.library = library
        ctx.save_for_backward(a, scale_a, b, scale_b)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        results = [torch.empty_like(tensor) for tensor in tensors]
        batch, bins, frames, _ = tensors[0].shape
        _run(ctx.library.scaled_concat_backward, batch, bins * frames, gradient.contiguous(), *tensors, *results)
        return *results, None


def _applied(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _applies(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _run(function: Any, *arguments: int | float | Tensor) -> None:
    """Call a function of the library; tensors, which must be contiguous, are handed over as their addresses."""
    if any(isinstance(argument, Tensor) and not argument.is_contiguous() for argument in arguments):
        raise ValueError("a tensor is not contiguous")
    # The arguments, held until the end, keep the tensors alive.
    addresses = (argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments)
    if function(*addresses) == 0:
        raise MemoryError


@cache
def _library(channels: int) -> ctypes.CDLL | None:
    """`fused.c`, compiled for this machine; None, and a line in the log, if that does not work."""
    compiler = shutil.which("cc")
    if compiler is None:
        _LOG.warning("no C compiler ('cc'): training goes on with PyTorch's own operators, which are slower")
        return None
    with tempfile.TemporaryDirectory() as folder, as_file(files(__package__) / "fused.c") as source:
        library = Path(folder) / "fused.so"
        command = [compiler, *_FLAGS, f"-DCHANNELS={channels}", str(source), "-o", str(library)]
        compiled = subprocess.run(command, capture_output=True, text=True, check=False)
        if compiled.returncode:
            _LOG.warning(
                "%r failed (%s): training goes on with PyTorch's own operators, which are slower",
                " ".join(command),
                compiled.stderr.strip()[-500:],
            )
            return None
        loaded = ctypes.CDLL(str(library))
    integers, pointers = [ctypes.c_int64], [ctypes.c_void_p]
    for name, signature in {
        "leaky_relu": [*integers, ctypes.c_float, *2 * pointers],
        "leaky_relu_backward": [*integers, ctypes.c_float, *4 * pointers],
        "relu_behind": [*3 * integers, *3 * pointers],
        "relu_behind_backward": [*3 * integers, *4 * pointers],
        "complex_sum": [*integers, *3 * pointers],
        "complex_sum_backward_y": [*integers, *2 * pointers],
        "complex_sum_backward_x": [*integers, *2 * pointers],
        "channel_means": [*2 * integers, *2 * pointers],
        "channel_means_backward": [*2 * integers, *3 * pointers],
        "scaled_concat": [*2 * integers, *5 * pointers],
        "scaled_concat_backward": [*2 * integers, *9 * pointers],
    }.items():
        getattr(loaded, name).argtypes = signature
        getattr(loaded, name).restype = ctypes.c_int if name in _ALLOCATING else None
    return loaded
