"""The operators between convolutions for training on a CPU, in bfloat16 and with few passes over memory.

The activations of a batch take gigabytes, and PyTorch's own operators read and write them so often that they take
longer than all convolutions together. `fused.c` is compiled when training starts; without a C compiler, PyTorch's
operators are used.
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

from frcrn_accel.network.operators import Operators
from frcrn_accel.network.topology import LEAKY_SLOPE

__all__ = ["FusedOperators", "fused_operators"]

_LOG = logging.getLogger(__name__)
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-std=c11",
)
# Functions that allocate memory for sums, and return 0 if they get none.
_ALLOCATING = {"leaky_relu_backward", "memory", "memory_backward"}


def fused_operators(channels: int, compiler: str = "cc") -> Operators:
    """Return the fastest operators for a network on this machine.

    Args:
        channels: Complex channels of the network.
        compiler: Command of the C compiler. If it is missing or fails, the result is PyTorch's operators, and a
            warning is logged.
    """
    library = _library(channels, compiler)
    return Operators() if library is None else FusedOperators(library, channels)


class FusedOperators(Operators):
    """`fused.c` for bfloat16 tensors on a CPU, PyTorch's operators for all other tensors.

    Args:
        library: `fused.c`, compiled for `channels`.
        channels: Complex channels.
    """

    def __init__(self, library: ctypes.CDLL, channels: int) -> None:
        self._library = library
        self._channels = channels

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedOperators:
        """Return itself: a loaded library cannot be copied."""
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

    def frame_means(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Operators.frame_means`."""
        if not _applies(x):
            return super().frame_means(x)
        return cast(tuple[Tensor, Tensor], _applied(_FrameMeans, x, self._library))

    def concatenate(self, a: Tensor, scale_a: Tensor | None, b: Tensor, scale_b: Tensor) -> Tensor:
        """See `Operators.concatenate`."""
        if not _applies(a):
            return super().concatenate(a, scale_a, b, scale_b)
        if scale_a is None:
            scale_a = torch.ones_like(scale_b)
        of_a, of_b = (scale.float().expand(-1, a.shape[2], -1) for scale in (scale_a, scale_b))
        return cast(Tensor, _applied(_Concatenate, a, of_a, b, of_b, self._library))


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
        tensors = x.contiguous(), *(parameter.float().contiguous() for parameter in (weight, bias, projection, taps))
        result = torch.empty_like(tensors[0])
        _run(library.memory, *x.shape[:3], taps.shape[2], *tensors, result)
        ctx.library = library
        ctx.save_for_backward(*tensors)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        x, *_, taps = tensors
        results = [torch.empty_like(tensor) for tensor in tensors]
        _run(ctx.library.memory_backward, *x.shape[:3], taps.shape[2], *tensors, gradient.contiguous(), *results)
        return *results, None


class _FrameMeans(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, library: ctypes.CDLL) -> tuple[Tensor, Tensor]:
        means = x.new_empty(x.shape[0], *x.shape[2:], dtype=torch.float32)
        x = x.contiguous()
        _run(library.frame_means, *x.shape[:3], x, means)
        ctx.library = library
        return x.view_as(x), means

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_means: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous()
        result = torch.empty_like(gradient)
        _run(ctx.library.frame_means_backward, *gradient.shape[:3], gradient, of_means.contiguous(), result)
        return result, None


class _Concatenate(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, library: ctypes.CDLL) -> Tensor:
        tensors = tuple(tensor.contiguous() for tensor in (a, scale_a, b, scale_b))
        result = a.new_empty(*a.shape[:3], 2 * a.shape[3])
        _run(library.scaled_concat, *a.shape[:3], *tensors, result)
        ctx.library = library
        ctx.save_for_backward(*tensors)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        results = [torch.empty_like(tensor) for tensor in tensors]
        _run(ctx.library.scaled_concat_backward, *tensors[0].shape[:3], gradient.contiguous(), *tensors, *results)
        return *results, None


def _applied(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _applies(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _run(function: Any, *arguments: int | float | Tensor) -> None:
    """Call a function of the library; tensors, which must be contiguous, are passed as their addresses."""
    if any(isinstance(argument, Tensor) and not argument.is_contiguous() for argument in arguments):
        raise ValueError("a tensor is not contiguous")
    # `arguments` keeps the tensors alive during the call.
    addresses = (argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments)
    if function(*addresses) == 0:
        raise MemoryError


@cache
def _library(channels: int, compiler: str) -> ctypes.CDLL | None:
    """Compile `fused.c` for this machine; log a warning and return None if that fails."""
    command = shutil.which(compiler)
    if command is None:
        _LOG.warning("no C compiler (%r): training uses PyTorch's own operators, which are slower", compiler)
        return None
    with tempfile.TemporaryDirectory() as folder, as_file(files(__package__) / "fused.c") as source:
        library = Path(folder) / "fused.so"
        line = [command, *_FLAGS, f"-DCHANNELS={channels}", str(source), "-o", str(library)]
        compiled = subprocess.run(line, capture_output=True, text=True, check=False)
        if compiled.returncode:
            _LOG.warning(
                "%r failed (%s): training uses PyTorch's own operators, which are slower",
                " ".join(line),
                compiled.stderr.strip()[-500:],
            )
            return None
        loaded = ctypes.CDLL(str(library))
    integers, pointers = [ctypes.c_int64], [ctypes.c_void_p]
    for name, signature in {
        "leaky_relu": [*integers, ctypes.c_float, *2 * pointers],
        "leaky_relu_backward": [*integers, ctypes.c_float, *4 * pointers],
        "memory": [*4 * integers, *6 * pointers],
        "memory_backward": [*4 * integers, *11 * pointers],
        "frame_means": [*3 * integers, *2 * pointers],
        "frame_means_backward": [*3 * integers, *3 * pointers],
        "scaled_concat": [*3 * integers, *5 * pointers],
        "scaled_concat_backward": [*3 * integers, *9 * pointers],
    }.items():
        getattr(loaded, name).argtypes = signature
        getattr(loaded, name).restype = ctypes.c_int if name in _ALLOCATING else None
    return loaded
