"""ONNX Runtime on an NVIDIA GPU: fp16 and fp32."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Backend, Session
from frcrn_accel.backends.fixed_shapes import FixedShapes, run_bound
from frcrn_accel.backends.gpu import (
    GpuSession,
    OutOfGpuMemory,
    check_gpu_file,
    driver_problem,
    gpu_name,
    gpu_recipe,
)
from frcrn_accel.backends.ort import PROBE, make_session
from frcrn_accel.errors import BackendUnavailable, EngineError, ModelError, install_hint, one_line
from frcrn_accel.models import FP16, FP32, ModelFile, Recipe

__all__ = ["OrtCudaBackend", "provider_problem"]

_PROVIDER = "CUDAExecutionProvider"
_DEVICE = "cuda"
_PROBE_S = 120
_WARNINGS, _ERRORS = 2, 3  # levels of its log
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "out_of_memory", "available memory of")


class OrtCudaBackend(Backend):
    """ONNX Runtime's CUDA provider.

    It runs the form of the network for GPUs (`graph.plain`, `graph.half`). In fp16 the same audio gives the same
    bits; in fp32 cuDNN sums in another order each time, which changes the sixth digit.

    Args:
        precision: See `Backend`. fp32 does not use TF32.
        device_index: Number of the GPU.
        gpu_memory_limit_mb: Limit of ONNX Runtime's arena, MB; None for no limit. cuDNN's workspaces come on top.
        cuda_graphs: Record the kernels of recurring batch shapes as CUDA graphs, see `FixedShapes`. Calls are then
            made one at a time. Built, not yet run on a card.
        prefer_nhwc: Prefer convolution kernels for channels-last activations. Built, not yet run on a card.

    Raises:
        UnsupportedPrecisionError: See `Backend`.
        ValueError: An option is out of range.
    """

    name: ClassVar[str] = "ort-cuda"
    description: ClassVar[str] = "ONNX Runtime on an NVIDIA GPU"
    priority: ClassVar[int] = 130
    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32")
    methods: ClassVar[frozenset[str]] = frozenset({FP32, FP16})
    on_gpu: ClassVar[bool] = True
    fixed_windows: ClassVar[bool] = True
    batch_size: int = 4

    def __init__(
        self,
        precision: str | None = None,
        *,
        device_index: int = 0,
        gpu_memory_limit_mb: int | None = None,
        cuda_graphs: bool = False,
        prefer_nhwc: bool = False,
    ) -> None:
        super().__init__(precision)
        if device_index < 0:
            raise ValueError(f"device_index must be 0 or more, got {device_index}")
        if gpu_memory_limit_mb is not None and gpu_memory_limit_mb < 1:
            raise ValueError(f"gpu_memory_limit_mb must be at least 1, got {gpu_memory_limit_mb}")
        self.device_index = device_index
        self.gpu_memory_limit_mb = gpu_memory_limit_mb
        self.cuda_graphs = cuda_graphs
        self.prefer_nhwc = prefer_nhwc

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(cls.name, str(error), install_hint("cuda")) from error
        if _PROVIDER not in getattr(onnxruntime, "get_available_providers", list)():
            raise BackendUnavailable(
                cls.name,
                "the installed onnxruntime package is built without CUDA",
                f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_hint('cuda')}",
            )
        try:
            import onnx  # noqa: F401 - writes the form for GPUs
        except ImportError as error:
            raise BackendUnavailable(cls.name, str(error), install_hint("cuda")) from error
        problem = driver_problem()
        if problem is not None:
            raise BackendUnavailable(
                cls.name, problem, "install the driver for your NVIDIA GPU, or use a backend for the CPU, e.g. 'ort'"
            )
        problem = provider_problem()
        if problem is not None:
            raise BackendUnavailable(cls.name, problem, f"install its CUDA and cuDNN: {install_hint('cuda')}")

    def precision_for(self, model: ModelFile) -> str:
        """See `Backend.precision_for`."""
        return "fp16" if model.metadata.method == FP16 and self._precision is None else self.precision

    def recipe(self, model: ModelFile) -> Recipe:
        """See `Backend.recipe`."""
        return gpu_recipe(model, self.precision_for(model))

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        self.check()
        problem = driver_problem(self.device_index)
        if problem is not None:
            raise BackendUnavailable(self.name, problem, "choose another device_index")
        precision = self.precision_for(model)
        check_gpu_file(model, precision)
        return _CudaSession(model, precision, threads, self.provider_options(precision))

    def provider_options(self, precision: str) -> dict[str, str]:
        """Return the options for ONNX Runtime's CUDA provider."""
        options = {
            "device_id": str(self.device_index),
            # cuDNN's heuristics. An exhaustive search takes seconds per shape and found slower kernels for batches;
            # the provider's default has no kernels for a part of the network, and was 30 times slower.
            "cudnn_conv_algo_search": "HEURISTIC",
            # The default rounds up to the next power of two, up to twice what is needed.
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "0" if precision == "fp32" else "1",
        }
        if self.gpu_memory_limit_mb is not None:
            options["gpu_mem_limit"] = str(self.gpu_memory_limit_mb * 1_000_000)
        if self.cuda_graphs:
            options["enable_cuda_graph"] = "1"
        if self.prefer_nhwc:
            options["prefer_nhwc"] = "1"
        return options


class _CudaSession(GpuSession):
    def __init__(self, model: ModelFile, precision: str, threads: int, options: dict[str, str]) -> None:
        _preload()
        # A few operators on shapes run on the CPU.
        providers: list[str | tuple[str, dict[str, str]]] = [(_PROVIDER, options), "CPUExecutionProvider"]
        try:
            with _quiet():
                self._session = make_session(str(model.path), threads, providers)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise ModelError(f"ONNX Runtime cannot load {str(model.path)!r}: {one_line(error)}") from error
        active = self._session.get_providers()
        if active[0] != _PROVIDER:
            reason = provider_problem() or f"ONNX Runtime fell back to {active[0]}"
            raise BackendUnavailable(OrtCudaBackend.name, reason, "see ONNX Runtime's messages above")
        self._device_index = int(options["device_id"])
        records = "enable_cuda_graph" in options
        self._shapes = FixedShapes(self._session, _DEVICE, self._device_index) if records else None
        self.device = f"{gpu_name(self._device_index)}, {_PROVIDER}, {precision}"

    def run_batch(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            if self._shapes is not None:
                return self._shapes.run(audio)
            return run_bound(self._session, audio, _DEVICE, self._device_index)
        except Exception as error:  # as above
            text = str(error).lower()
            if any(sign in text for sign in _OUT_OF_MEMORY):
                raise OutOfGpuMemory(one_line(error)) from error
            raise EngineError(f"ONNX Runtime failed on a batch of {audio.shape}: {one_line(error)}") from error

    def close(self) -> None:
        self._session = self._shapes = None


@cache
def provider_problem() -> str | None:
    """Return why ONNX Runtime cannot use its CUDA provider, in the loader's words; None if it can.

    ONNX Runtime does not raise this error: it writes it to standard error and falls back to the CPU. The provider is
    therefore tried in a separate process, whose standard error can be read.
    """
    code = (
        "import json, sys, onnxruntime\n"
        "from frcrn_accel.backends.ort_cuda import _preload\n"
        "_preload()\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=[sys.argv[2]])\n"
        "print(json.dumps(session.get_providers()))"
    )
    try:
        command = [sys.executable, "-c", code, str(PROBE), _PROVIDER]
        found = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the trial failed: {error}"
    lines = found.stdout.strip().splitlines()
    if found.returncode == 0 and lines and json.loads(lines[-1])[0] == _PROVIDER:
        return None
    return _reason_in(found.stderr) or f"the trial process exited with {found.returncode} and no message"


def _reason_in(stderr: str) -> str:
    """Return the reason in ONNX Runtime's messages: the loader's, else the last line."""
    _, _, loader = stderr.partition("with error: ")
    lines = (loader or stderr).strip().splitlines()
    line = lines[0 if loader else -1] if lines else ""
    return line.replace("\x1b[m", "").strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence ONNX Runtime's message that no plug-in provides the device, since the built-in provider does.

    The message comes from a global logger, whose level can be set but not read: afterwards, the default level is set.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)


@cache
def _preload() -> None:
    """Load CUDA and cuDNN from NVIDIA's packages, where ONNX Runtime does not look by itself."""
    import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):  # it prints missing libraries; they are reported later
        getattr(onnxruntime, "preload_dlls", lambda: None)()
