"""Manage GPU memory through `cuda-bindings`.

`cuda-bindings` is NVIDIA's own package: a few megabytes, with the CUDA runtime linked in, so that it needs only the
driver. PyTorch would work too, but takes gigabytes; TensorRT's packages offer no memory management.
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
    """A GPU.

    Attributes:
        index: Its number.
        name: Its name.
        compute_capability: Its architecture, e.g. `"8.9"`.
        memory_bytes: Size of its memory.
    """

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


def find_gpu(index: int) -> Gpu:
    """Return the properties of a GPU.

    Raises:
        CudaError: No GPU has this number.
    """
    runtime = _runtime()
    properties = _checked(*runtime.cudaGetDeviceProperties(index))
    capability = f"{properties.major}.{properties.minor}"
    return Gpu(index, properties.name.decode().rstrip("\0"), capability, properties.totalGlobalMem)


def use_gpu(gpu: Gpu) -> None:
    """Direct the CUDA calls of this thread to a GPU."""
    _checked(*_runtime().cudaSetDevice(gpu.index))


class Queue:
    """A queue of work on the current GPU (a CUDA stream).

    Attributes:
        handle: Address that engines take.
    """

    def __init__(self) -> None:
        self.handle = int(_checked(*_runtime().cudaStreamCreate()))

    def wait(self) -> None:
        """Wait until all queued work is done.

        Raises:
            CudaError: Part of the work failed.
        """
        _checked(*_runtime().cudaStreamSynchronize(self.handle))

    def close(self) -> None:
        """Free the resource."""
        _checked(*_runtime().cudaStreamDestroy(self.handle))


class DeviceBuffer:
    """Memory on the current GPU that grows as needed and is reused.

    Attributes:
        address: Its address; 0 before the first allocation.
        size: Its size, bytes.
    """

    def __init__(self) -> None:
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> None:
        """Make the buffer at least `size` bytes large. Growing discards its content.

        Raises:
            OutOfGpuMemory: The GPU does not have that much free memory.
        """
        if size > self.size:
            self.close()
            self.address = int(_checked(*_runtime().cudaMalloc(size)))
            self.size = size

    def upload(self, array: NDArray[np.float32]) -> None:
        """Copy an array to the GPU."""
        self._copy(self.address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, array: NDArray[np.float32]) -> None:
        """Copy from the GPU into an array."""
        self._copy(array.ctypes.data, self.address, array.nbytes, "cudaMemcpyDeviceToHost")

    def close(self) -> None:
        """Free the resource."""
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
    """Return the value of a CUDA call, or raise its error."""
    runtime = _runtime()
    if error == runtime.cudaError_t.cudaSuccess:
        return value
    _, text = runtime.cudaGetErrorString(error)
    message = f"{text.decode()} ({error.name})"
    if error == runtime.cudaError_t.cudaErrorMemoryAllocation:
        runtime.cudaGetLastError()  # else the next call would report it again
        raise OutOfGpuMemory(message)
    raise CudaError(message)
