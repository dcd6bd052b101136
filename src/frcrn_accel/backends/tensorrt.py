"""TensorRT on an NVIDIA GPU, with either of NVIDIA's packages: fp16, fp32 and INT8."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Backend, Session
from frcrn_accel.backends.gpu import GpuSession, OutOfGpuMemory, driver_problem, gpu_recipe
from frcrn_accel.backends.tensorrt_plan import (
    DATA_CENTRE,
    PLAN_SUFFIX,
    RTX,
    BuildLog,
    Plan,
    Target,
    build_plan,
    check_compute_capabilities,
    import_package,
    make_logger,
    plan_target,
)
from frcrn_accel.errors import BackendUnavailable, EngineError, ModelError, install_hint
from frcrn_accel.models import FP16, FP32, TENSORRT_INT8, ModelFile, Recipe, cached_file
from frcrn_accel.network.topology import FRAME_SAMPLES, SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import tensorrt as trt

    from frcrn_accel.backends.cuda import Gpu

__all__ = ["TensorRtBackend", "TensorRtRtxBackend", "load_plan"]

_METHOD_PRECISIONS: Mapping[str, str] = {FP16: "fp16", TENSORRT_INT8: "int8"}


class TensorRtBackend(Backend):
    """TensorRT for data centres.

    TensorRT compiles a model file to a plan for one kind of GPU. A plan is built on first use, which takes seconds to
    minutes, and cached.

    Args:
        precision: See `Backend`.
        calibration: See `Backend`; for precision `"int8"`.
        device_index: Number of the GPU.
        window_s: Longest window, for which the plan is tuned: the `window_s` of the `Windowing`.
        max_batch: Maximum number of windows per call. GPU memory is allocated as needed.
        plan: File built by `frcrn-accel build-engine` for this model and GPU; None to use the cache.

    Raises:
        UnsupportedPrecisionError: See `Backend`.
        ValueError: An option is out of range, or `calibration` is given without precision `"int8"`.
    """

    name: ClassVar[str] = "tensorrt"
    description: ClassVar[str] = "TensorRT on an NVIDIA GPU"
    priority: ClassVar[int] = 140
    precisions: ClassVar[tuple[str, ...]] = ("fp16", "fp32", "int8")
    methods: ClassVar[frozenset[str]] = frozenset({FP32, FP16, TENSORRT_INT8})
    calibrates: ClassVar[bool] = True
    on_gpu: ClassVar[bool] = True
    uses_threads: ClassVar[bool] = False
    fixed_windows: ClassVar[bool] = True
    package: ClassVar[str] = DATA_CENTRE

    def __init__(
        self,
        precision: str | None = None,
        calibration: str | Path | None = None,
        *,
        device_index: int = 0,
        window_s: float = 20.0,
        max_batch: int = 4,
        plan: str | Path | None = None,
    ) -> None:
        super().__init__(precision, calibration)
        if calibration is not None and precision != "int8":
            raise ValueError("TensorRT calibrates for precision 'int8' only: choose it, or leave calibration out")
        for option, value, least in (("device_index", device_index, 0), ("max_batch", max_batch, 1)):
            if value < least:
                raise ValueError(f"{option} must be {least} or more, got {value}")
        if not FRAME_SAMPLES / SAMPLE_RATE_HZ <= window_s < math.inf:
            raise ValueError(f"window_s must be finite and at least one frame of 0.04 s, got {window_s}")
        self.device_index = device_index
        self.window_s = window_s
        self.batch_size = max_batch
        self.plan = None if plan is None else Path(plan)

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        cls._usable_gpu(0)

    @classmethod
    def check_packages(cls) -> None:
        """Check that the packages for building plans are installed.

        Raises:
            BackendUnavailable: A package is missing.
        """
        missing: list[Exception] = []
        # The second manages GPU memory, the third writes the form of the graph for GPUs.
        for package, load in (
            (cls.package, import_package),
            ("cuda.bindings.runtime", import_module),
            ("onnx", import_module),
        ):
            try:
                load(package)
            except (ImportError, OSError) as error:  # OSError: a shared library of the package is missing
                missing.append(error)
        if missing:
            reason = ", ".join(str(error) for error in missing)
            raise BackendUnavailable(cls.name, reason, install_hint(cls.name)) from missing[0]

    def precision_for(self, model: ModelFile) -> str:
        """See `Backend.precision_for`."""
        return self._precision or _METHOD_PRECISIONS.get(model.metadata.method) or self.precision

    def recipe(self, model: ModelFile) -> Recipe:
        """See `Backend.recipe`."""
        precision = self.precision_for(model)
        if precision != "int8":
            return gpu_recipe(model, precision)
        return Recipe(method=TENSORRT_INT8, calibration=self.calibration)

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        gpu = self._usable_gpu(self.device_index)
        ModelFile.open(model.path)  # reports a damaged file before TensorRT does
        plan = load_plan(model, self._target(model, (gpu.compute_capability,), gpu.name), self.plan)
        from frcrn_accel.backends.cuda import CudaError

        try:
            return _TensorRtSession(plan, gpu)
        except (CudaError, OutOfGpuMemory) as error:
            raise BackendUnavailable(
                self.name, f"the CUDA runtime says: {error}", "free memory of the GPU, or choose another device_index"
            ) from error

    def build(self, model: ModelFile, compute_capabilities: Sequence[str] = ()) -> Plan:
        """Build a plan ahead of time, for the option `plan`.

        Args:
            model: The file that `recipe` asks for.
            compute_capabilities: Architectures to build for, e.g. `["8.9"]`; no such GPU needs to be present. Empty
                for the GPU in this machine.

        Raises:
            BackendUnavailable: Packages are missing, or the package cannot build for these GPUs.
            ModelError: TensorRT cannot read the model.
            EngineError: Building failed.
        """
        self.check_packages()
        gpu_name = ""
        if not compute_capabilities:
            gpu = self._usable_gpu(self.device_index)
            compute_capabilities, gpu_name = (gpu.compute_capability,), gpu.name
        return build_plan(model, self._target(model, compute_capabilities, gpu_name))

    @classmethod
    def _usable_gpu(cls, index: int) -> Gpu:
        """Return a GPU that the installed packages can use.

        Raises:
            BackendUnavailable: Packages, the driver or the GPU are missing, or are not compatible.
        """
        cls.check_packages()
        from frcrn_accel.backends.cuda import CudaError, find_gpu

        for problem, remedy in (
            (driver_problem(), "install the driver for your NVIDIA GPU, or use a backend for the CPU, e.g. 'ort'"),
            (driver_problem(index), "choose another device_index"),
        ):
            if problem is not None:
                raise BackendUnavailable(cls.name, problem, remedy)
        try:
            gpu = find_gpu(index)
        except CudaError as error:  # the driver is too old for the runtime in cuda-bindings
            raise BackendUnavailable(
                cls.name, f"the CUDA runtime says: {error}", "install a newer driver for your NVIDIA GPU"
            ) from error
        check_compute_capabilities(cls.package, [gpu.compute_capability])
        return gpu

    def _target(self, model: ModelFile, compute_capabilities: Sequence[str], gpu_name: str) -> Target:
        hop = model.metadata.hop_samples
        return plan_target(
            model,
            self.package,
            self.precision_for(model),
            compute_capabilities,
            longest_window_samples=round(self.window_s * model.metadata.sample_rate_hz / hop) * hop,
            max_batch=self.batch_size,
            gpu=gpu_name,
        )


class TensorRtRtxBackend(TensorRtBackend):
    """TensorRT for RTX GPUs, which also builds for GPUs that are not present."""

    name: ClassVar[str] = "tensorrt-rtx"
    description: ClassVar[str] = "TensorRT for RTX on an NVIDIA GPU"
    priority: ClassVar[int] = 145
    package: ClassVar[str] = RTX


def load_plan(model: ModelFile, target: Target, path: Path | None = None) -> Plan:
    """Return a plan: from a file, from the cache, or newly built.

    Args:
        model: The model file that it is built from.
        target: The model, GPU and shapes that it must fit.
        path: A plan built before; None for the cache.

    Raises:
        ModelError: The file is not a plan, or does not fit the target. Or see `build_plan`.
        BackendUnavailable, EngineError: See `build_plan`.
    """
    if path is not None:
        plan = Plan.read(path)
        mismatch = plan.target.mismatch(target)
        if mismatch:
            raise ModelError(f"plan {str(path)!r} cannot be used: {mismatch}; build it again with build-engine")
        return plan

    def build(path: Path) -> None:
        build_plan(model, target).write(path)

    return Plan.read(cached_file(model, target.to_key(), build, PLAN_SUFFIX))


class _TensorRtSession(GpuSession):
    """Run a plan, one call at a time.

    The engine gets memory for activations at each call, as much as the shape needs, so a smaller batch takes less.
    """

    def __init__(self, plan: Plan, gpu: Gpu) -> None:
        from frcrn_accel.backends.cuda import DeviceBuffer, Queue, use_gpu

        use_gpu(gpu)
        self._gpu = gpu
        self._target = plan.target
        self._log = BuildLog()
        self._lock = threading.Lock()
        package = import_package(plan.target.package)
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = package
        self._logger = make_logger(package, self._log)
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(plan.content)
        if engine is None:
            raise ModelError(
                f"TensorRT cannot load its plan: {self._last_error()}; empty the cache or build it again"
            )
        self._engine: trt.ICudaEngine | None = engine
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise EngineError(f"TensorRT cannot create an execution context: {self._last_error()}")
        self._context: trt.IExecutionContext | None = context
        self._input, self._output = (engine.get_tensor_name(i) for i in range(2))
        self._queue = Queue()
        self._audio, self._denoised, self._workspace = DeviceBuffer(), DeviceBuffer(), DeviceBuffer()
        self._profile = 0
        self.device = f"{gpu.name}, {plan.target.package} {plan.target.package_version}, {plan.target.precision}"

    def run_batch(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        from frcrn_accel.backends.cuda import CudaError

        most = self._target.max_batch
        if audio.shape[1] > self._target.longest_window_samples:
            raise EngineError(
                f"the plan takes windows of at most {self._target.longest_window_samples} samples, got "
                f"{audio.shape[1]}: give the backend the window_s of the Windowing"
            )
        parts = [np.ascontiguousarray(audio[first : first + most]) for first in range(0, len(audio), most)]
        denoised = []
        try:
            with self._lock:
                for part in parts:
                    denoised.append(self._run_part(part))
        except CudaError as error:
            raise EngineError(f"TensorRT failed on a batch of {audio.shape}: {error}") from error
        return np.concatenate(denoised)

    def _run_part(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run at most `max_batch` windows. The caller holds the lock."""
        from frcrn_accel.backends.cuda import use_gpu

        context = self._context
        if context is None:
            raise EngineError("this session is closed")
        use_gpu(self._gpu)
        self._log.errors.clear()
        profile = 0 if audio.shape[1] == self._target.longest_window_samples else 1
        self._audio.reserve(audio.nbytes)
        self._denoised.reserve(audio.nbytes)
        done = profile == self._profile or context.set_optimization_profile_async(profile, self._queue.handle)
        if done:
            self._profile = profile
        done = done and context.set_input_shape(self._input, audio.shape)
        if done:
            self._workspace.reserve(max(1, context.update_device_memory_size_for_shapes()))
            context.set_device_memory(self._workspace.address, self._workspace.size)
            context.set_tensor_address(self._input, self._audio.address)
            context.set_tensor_address(self._output, self._denoised.address)
            self._audio.upload(audio)
            done = context.execute_async_v3(self._queue.handle)
        self._queue.wait()
        if not done:
            error = self._last_error()
            if "memory" in error.lower():
                raise OutOfGpuMemory(error)
            raise EngineError(f"TensorRT failed on a batch of {audio.shape}: {error}")
        denoised = np.empty_like(audio)
        self._denoised.download(denoised)
        return denoised

    def close(self) -> None:
        from frcrn_accel.backends.cuda import use_gpu

        with self._lock:
            if self._engine is None:
                return
            use_gpu(self._gpu)
            self._context = None  # before the engine
            self._engine = None
            freed: tuple[Any, ...] = (self._audio, self._denoised, self._workspace, self._queue)
            for held in freed:
                held.close()

    def _last_error(self) -> str:
        return self._log.last_error("no reason given")
