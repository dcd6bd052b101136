"""Code shared by the GPU backends: the driver, the recipe, and running out of memory."""

from __future__ import annotations

import abc
import ctypes
import logging
import sys
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Session
from frcrn_accel.errors import EngineError, ModelError
from frcrn_accel.models import FP16, FP32, Form, ModelFile, Recipe

__all__ = ["GpuSession", "OutOfGpuMemory", "check_gpu_file", "driver_problem", "gpu_name", "gpu_recipe"]

_NAME_BYTES = 256
_FORMS: Mapping[str, Form] = {"fp32": "plain", "fp16": "half"}

log = logging.getLogger("frcrn_accel")


class OutOfGpuMemory(Exception):
    """A batch did not fit into the GPU's memory; `GpuSession.run` retries with half of it."""


class GpuSession(Session):
    """A session that halves batches that do not fit into the GPU's memory, down to one window."""

    _fitting: int | None = None  # windows that are known to fit, after a larger batch did not

    @abc.abstractmethod
    def run_batch(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Session.run`.

        Raises:
            OutOfGpuMemory: The batch does not fit.
            EngineError: The engine failed otherwise.
        """

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Session.run`."""
        most = self._fitting or len(audio)
        parts = [self._run_or_halve(audio[first : first + most]) for first in range(0, len(audio), most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run_or_halve(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return self.run_batch(audio)
        except OutOfGpuMemory as error:
            windows, samples = audio.shape
            if windows == 1:
                raise EngineError(
                    f"the GPU's memory does not hold one window of {samples} samples on {self.device} ({error}): "
                    "free some memory, raise gpu_memory_limit_mb if it is set, shorten the windows with "
                    "windowing=Windowing(window_s=10), or use the CPU with backend='ort'"
                ) from error
            half = (windows + 1) // 2
            self._fitting = half
            log.warning(
                "a batch of %d windows does not fit into the GPU's memory; using %d from now on", windows, half
            )
        return np.concatenate([self._run_or_halve(part) for part in (audio[:half], audio[half:])])


def driver_problem(device_index: int = 0) -> str | None:
    """Return why NVIDIA's driver cannot be used here; None if it can.

    The driver is queried directly, without any package, since everything else depends on it.
    """
    try:
        driver = _driver()
    except OSError as error:
        return f"NVIDIA's driver is not installed ({error})"
    count = ctypes.c_int()
    for code in (driver.cuInit(0), driver.cuDeviceGetCount(ctypes.byref(count))):
        if code:
            text = ctypes.c_char_p()
            driver.cuGetErrorString(code, ctypes.byref(text))
            return f"NVIDIA's driver says: {(text.value or b'unknown error').decode()} (error {code})"
    if device_index >= count.value:
        return f"there is no GPU number {device_index}: NVIDIA's driver finds {count.value}"
    return None


def gpu_name(device_index: int) -> str:
    """Return the driver's name for a GPU."""
    driver = _driver()
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuInit(0)
    driver.cuDeviceGet(ctypes.byref(device), device_index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    return name.value.decode()


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def gpu_recipe(model: ModelFile, precision: str) -> Recipe:
    """Return the recipe of a GPU engine: the network in the form for GPUs, in fp32 or fp16.

    Args:
        model: An fp32 file, or one that was quantized to fp16.
        precision: `"fp32"` or `"fp16"`.

    Raises:
        ModelError: The file is quantized in another way.
    """
    method = model.metadata.method
    if method == FP16 and precision == "fp16":
        return Recipe(method=FP16)
    if method != FP32:
        raise ModelError(
            f"{str(model.path)!r} is quantized with method {method!r} and cannot run in {precision!r} here: leave "
            "the precision out, choose the backend for that method, or give the fp32 file"
        )
    return Recipe(form=_FORMS[precision])


def check_gpu_file(model: ModelFile, precision: str) -> None:
    """Check that a file is the one of `gpu_recipe`.

    Raises:
        ModelError: It is damaged, or in another form.
    """
    metadata = ModelFile.open(model.path).metadata  # a truncated file fails here instead of inside the engine
    if metadata.form != _FORMS[precision] and not (metadata.method == FP16 and precision == "fp16"):
        raise ModelError(
            f"{str(model.path)!r} is not in the form for {precision} on a GPU: load the file of `prepare.prepare`"
        )
