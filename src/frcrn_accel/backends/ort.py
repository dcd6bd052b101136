"""ONNX Runtime on the CPU: fp32, and INT8 with dynamic or static ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Backend, Session, StepSession, count_of_threads
from frcrn_accel.errors import BackendUnavailable, EngineError, ModelError, install_hint, one_line
from frcrn_accel.models import (
    DYNAMIC,
    FP16,
    FP32,
    STATIC,
    TENSORRT_INT8,
    Form,
    ModelFile,
    Recipe,
    compiled_file,
    ready_variant,
)
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES

__all__ = [
    "PROBE",
    "STEP_FORM",
    "OrtBackend",
    "OrtDynamicInt8Backend",
    "OrtStaticInt8Backend",
    "cpu_session",
    "make_session",
]


STEP_FORM: Form = "step"  # for a few frames it is faster than the form of model files, whose last axis is time
_PROVIDERS = ["CPUExecutionProvider"]
# One MatMulInteger of uint8 (1, 64) and a constant int8 (64, 16) of 127: made by scripts/make_probe.py.
PROBE = Path(__file__).with_name("u8s8-probe.onnx")


class OrtBackend(Backend):
    """ONNX Runtime's CPU provider, fp32."""

    name: ClassVar[str] = "ort"
    description: ClassVar[str] = "ONNX Runtime on the CPU, fp32"
    priority: ClassVar[int] = 100
    # Files for GPU engines run too, if slowly: the quality gate compares them where there is no GPU.
    methods: ClassVar[frozenset[str]] = frozenset({FP32, FP16, TENSORRT_INT8})

    @classmethod
    def priority_for(cls, model: ModelFile) -> int:
        """See `Backend.priority_for`."""
        return cls.priority if model.metadata.method == FP32 else -1

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(cls.name, str(error), install_hint("ort")) from error
        if not hasattr(onnxruntime, "InferenceSession"):
            # This remains when onnxruntime and onnxruntime-gpu were installed together and one was removed.
            raise BackendUnavailable(
                cls.name,
                "the onnxruntime package is incomplete",
                f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_hint('ort')}",
            )

    def recipe(self, model: ModelFile) -> Recipe:
        """See `Backend.recipe`."""
        self.check_method(model)
        return Recipe(method=model.metadata.method)

    def step_recipe(self, model: ModelFile, lookahead_frames: int) -> Recipe:
        """See `Backend.step_recipe`."""
        self.check_method(model)
        return Recipe(form=STEP_FORM, lookahead_frames=lookahead_frames)

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        self.check()
        return _OrtSession(model, threads)

    def load_step(self, model: ModelFile, threads: int, lookahead: int = LOOKAHEAD_FRAMES) -> StepSession:
        """See `Backend.load_step`."""
        self.check()
        return _OrtStep(model, threads)


class _OrtInt8Backend(OrtBackend):
    """Run the variant that one method of quantization makes of a model."""

    method: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("int8",)
    computes_batches: ClassVar[bool] = False  # the graph is for one window: integer scales belong to a signal

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        super().check()
        if not _products_are_exact():
            raise BackendUnavailable(
                cls.name,
                "this CPU has no exact product of unsigned and signed 8-bit integers (it lacks AVX-512 VNNI, "
                "AVX-VNNI and AMX, and ONNX Runtime then saturates sums of two products)",
                "use backend 'ort'",
            )

    @classmethod
    def priority_for(cls, model: ModelFile) -> int:
        """See `Backend.priority_for`. Quantizing is slow, so `"auto"` needs the quantized file to exist."""
        if model.metadata.method == cls.method:
            return cls.priority
        if ready_variant(model, cls.method) is None:
            return -1
        return cls.priority if model.metadata.channels >= _INT8_LEAST_CHANNELS else OrtBackend.priority - 10

    def recipe(self, model: ModelFile) -> Recipe:
        """See `Backend.recipe`."""
        return Recipe(method=self.method, calibration=self.calibration)

    def step_recipe(self, model: ModelFile, lookahead_frames: int) -> Recipe:
        """See `Backend.step_recipe`."""
        return Recipe(method=self.method, lookahead_frames=lookahead_frames, calibration=self.calibration)


class OrtDynamicInt8Backend(_OrtInt8Backend):
    """INT8 without calibration audio: quantized on first use and cached."""

    name: ClassVar[str] = "ort-dynamic-int8"
    description: ClassVar[str] = "ONNX Runtime on the CPU, INT8 with ranges computed at run time"
    priority: ClassVar[int] = 105
    method: ClassVar[str] = DYNAMIC
    methods: ClassVar[frozenset[str]] = frozenset({DYNAMIC})


class OrtStaticInt8Backend(_OrtInt8Backend):
    """INT8 with calibrated ranges: needs a folder of calibration audio, or a variant calibrated before."""

    name: ClassVar[str] = "ort-static-int8"
    description: ClassVar[str] = "ONNX Runtime on the CPU, INT8 with calibrated ranges"
    priority: ClassVar[int] = 110
    method: ClassVar[str] = STATIC
    methods: ClassVar[frozenset[str]] = frozenset({STATIC})
    calibrates: ClassVar[bool] = True


# With fewer channels the operators are too small to gain from INT8, see docs/performance.md.
_INT8_LEAST_CHANNELS = 64


class _OrtSession(Session):
    def __init__(self, model: ModelFile, threads: int) -> None:
        self._session, self.device = _open(model, threads)
        self._input = self._session.get_inputs()[0].name
        self._is_single = self._session.get_inputs()[0].shape[0] == 1
        self._output = self._session.get_outputs()[0].name

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            if self._is_single and len(audio) > 1:
                return np.concatenate([self.run(row) for row in audio[:, None]])
            (denoised,) = self._session.run([self._output], {self._input: audio})
        except Exception as error:  # as in `_open`
            raise EngineError(f"ONNX Runtime failed on a batch of {audio.shape}: {one_line(error)}") from error
        return denoised  # type: ignore[no-any-return]

    def close(self) -> None:
        self._session = None


class _OrtStep(StepSession):
    def __init__(self, model: ModelFile, threads: int) -> None:
        self._session, self.device = _open(model, threads, is_step=True)
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]
        self.metadata = model.metadata
        self.inputs = {
            tensor.name: tuple(0 if isinstance(size, str) else size for size in tensor.shape)
            for tensor in self._session.get_inputs()
        }

    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        try:
            return self._session.run(self._outputs, feeds)  # type: ignore[no-any-return]
        except Exception as error:  # as in `_open`
            raise EngineError(f"ONNX Runtime failed on a step of a stream: {one_line(error)}") from error

    def close(self) -> None:
        self._session = None


def _open(model: ModelFile, threads: int, *, is_step: bool = False) -> tuple[Any, str]:
    """Open a session; return it with a description of its device."""
    try:
        optimized = _optimized(model)
        session = make_session(
            str(optimized or model.path), threads, _PROVIDERS, is_step=is_step, optimize=optimized is None
        )
    except Exception as error:  # onnxruntime raises a dozen unrelated classes
        raise ModelError(f"ONNX Runtime cannot load {str(model.path)!r}: {one_line(error)}") from error
    active = session.get_providers()
    if active != _PROVIDERS:
        raise BackendUnavailable(OrtBackend.name, f"it would run on {active}", "report this as a bug")
    return session, f"{active[0]}, {count_of_threads(threads)}"


def _optimized(model: ModelFile) -> Path | None:
    """Return the graph as ONNX Runtime optimizes it for this CPU. Optimizing takes most of the loading time."""
    import onnxruntime

    def write(path: Path) -> None:
        make_session(str(model.path), 1, _PROVIDERS, optimized=path)

    key = {"engine": "onnxruntime", "engine_version": onnxruntime.__version__}
    return compiled_file(model, key, write, ".optimized")


def cpu_session(model: str | bytes, threads: int, *, is_step: bool = False, in_written_order: bool = False) -> Any:
    """Open an ONNX Runtime session on the CPU, with the settings that suit this network.

    Args:
        model: Path of a model file, or its content.
        threads: CPU threads.
        is_step: Whether the file is a step of a stream.
        in_written_order: See `make_session`.

    Raises:
        ImportError: ONNX Runtime is not installed.
        Exception: ONNX Runtime cannot load the model.
    """
    return make_session(model, threads, _PROVIDERS, is_step=is_step, in_written_order=in_written_order)


def make_session(
    model: str | bytes,
    threads: int,
    providers: Sequence[str | tuple[str, dict[str, str]]],
    *,
    is_step: bool = False,
    optimize: bool = True,
    optimized: Path | None = None,
    in_written_order: bool = False,
) -> Any:
    """Open an ONNX Runtime session on any device.

    Args:
        model: Path of a model file, or its content.
        threads: CPU threads.
        providers: Names of ONNX Runtime's execution providers, with their options.
        is_step: See `cpu_session`.
        optimize: Whether the graph is still to be optimized.
        optimized: Where to write the optimized graph.
        in_written_order: Whether to run the operators in the order of the file. ONNX Runtime's own order comes to
            outputs along the way last, and keeps all that they are computed from until then.

    Raises:
        ImportError: ONNX Runtime is not installed.
        Exception: ONNX Runtime cannot load the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The plan of all buffers, made at the second run of a shape, is allocated in addition to the arena of the first
    # run: two thirds more memory, and no gain in speed (benchmarks/length.py). A step has small buffers and many
    # operators; the plan makes it 5 % faster.
    options.enable_mem_pattern = is_step
    options.log_severity_level = 3  # errors are raised; warnings about folded constants only confuse users
    if in_written_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model, options, providers=list(providers))


@cache
def _products_are_exact() -> bool:
    """Return whether ONNX Runtime's integer product computes 255 * 127 + 255 * 127 without saturating."""
    (found,) = cpu_session(str(PROBE), 1).run(None, {"x": np.full((1, 64), 255, np.uint8)})
    return bool((found == 64 * 255 * 127).all())
