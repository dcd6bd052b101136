"""A GPU's memory, by way of `cuda-bindings`.

Of what could give it: `cuda-bindings` is NVIDIA's own package, some megabytes, and has the CUDA runtime linked in, so
it needs nothing but the driver. PyTorch could as well, for some gigabytes; TensorRT's packages bring none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.gpu import OutOfGpuMemory

__all__ = ["CudaError", "DeviceBuffer", "Gpu", "Queue", "find_gpu", "use_gpu"]


class CudaError(Exception):
    """A call of the CUDA runtime failed."""


@dataclass(frozen=True)
class Gpu:
    """A card.

    Attributes:
        index: Its number.
        name: What it is called.
        compute_capability: Its architecture, e.g. `"8.9"`.
        memory_bytes: All of its memory.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


def find_gpu(index: int) -> Gpu:
    """What the driver knows of a card.

    Raises:
        CudaError: There is none of this number.
    """
    runtime = _runtime()
    properties = _checked(*runtime.cudaGetDeviceProperties(index))
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(index, properties.name.decode().rstrip("\0"), capability, properties.totalGlobalMem)


def use_gpu(gpu: Gpu) -> None:
    """Make the calls of this thread go to a card."""
    _checked(*_runtime().cudaSetDevice(gpu.index))


class Queue:
    """A queue of work on the card in use.

    Attributes:
        handle: What engines take.
    """

    def __init__(self) -> None:
        self.handle = int(_checked(*_runtime().cudaStreamCreate()))

    def wait(self) -> None:
        """Until all of it is done.

        Raises:
            CudaError: Some of it failed.
        """
        _checked(*_runtime().cudaStreamSynchronize(self.handle))

    def close(self) -> None:
        """Free it."""
        _checked(*_runtime().cudaStreamDestroy(self.handle))


class DeviceBuffer:
    """Memory on the card in use, which grows as needed and is kept.

    Attributes:
        address: Where it is; 0 for none yet.
        size: Bytes.
    """

    def __init__(self) -> None:
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> None:
        """Have at least so many bytes. What was in it is lost if it grows.

        Raises:
            OutOfGpuMemory: They are not there.
        """
        if size > self.size:
            self.close()
            self.address = int(_checked(*_runtime().cudaMalloc(size)))
            self.size = size

    def upload(self, array: NDArray[np.float32]) -> None:
        """Copy to the card."""
        self._copy(self.address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: NDArray[np.float32]) -> None:
        """Copy from the card into an array."""
        self._copy(array.ctypes.data, self.address, array.nbytes, "cudaMemcpyDeviceToHost")

    def close(self) -> None:
        """Free it."""
        if self.address:
            address, self.address, self.size = self.address, 0, 0
            _checked(*_runtime().cudaFree(address))

    @staticmethod
    def _copy(target: int, source: int, size: int, kind: str) -> None:
        runtime = _runtime()
        _checked(*runtime.cudaMemcpy(target, source, size, getattr(runtime.cudaMemcpyKind, kind)))


def _runtime() -> Any:
    from cuda.bindings import runtime

    return runtime


def _checked(error: Any, value: Any = None) -> Any:
    """The value of a call, unless it failed."""
    runtime = _runtime()
    if error == runtime.cudaError_t.cudaSuccess:
        return value
    _, text = runtime.cudaGetErrorString(error)
    message = f"{text.decode()} ({error.name})"
    if error == runtime.cudaError_t.cudaErrorMemoryAllocation:
        runtime.cudaGetLastError()  # else the next call would report it again
        raise OutOfGpuMemory(message)
    raise CudaError(message)
