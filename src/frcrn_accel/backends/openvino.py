"""OpenVINO on the CPU: bfloat16 where the CPU has it, else fp32."""

from __future__ import annotations

import ctypes
import io
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Backend, Session, StepSession, count_of_threads
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.errors import BackendUnavailable, EngineError, ModelError, install_hint, one_line
from frcrn_accel.models import FP32, OPENVINO_INT8, Form, ModelFile, Recipe, compiled_file
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES

__all__ = ["OpenVinoBackend", "check_settings", "has_bf16", "load_openvino"]

_TELEMETRY = "openvino_telemetry"
DEVICE = "CPU"
FORM: Form = "direct"  # for bf16 and for steps


class OpenVinoBackend(Backend):
    """OpenVINO's CPU plug-in.

    - fp32 runs the model file as it is.
    - bf16, the default where the CPU computes in it natively, runs another form of the network (`graph.direct`). The
      form in model files must not run in bf16: for some numbers of frames OpenVINO 2026.4 never returns. It would
      also be slower.
    - int8 runs a file quantized for OpenVINO (`quantize.openvino_int8`): the direct form with INT8 convolutions. The
      other layers are bf16 where the CPU has it, else fp32. Such a file has no other precision.
    """

    name: ClassVar[str] = "openvino"
    description: ClassVar[str] = "OpenVINO on the CPU"
    priority: ClassVar[int] = 120
    precisions: ClassVar[tuple[str, ...]] = ("bf16", "fp32", "int8")
    methods: ClassVar[frozenset[str]] = frozenset({FP32, OPENVINO_INT8})
    calibrates: ClassVar[bool] = True

    def __init__(self, precision: str | None = None, calibration: str | Path | None = None) -> None:
        super().__init__(precision, calibration)
        if calibration is not None and precision != "int8":
            raise ValueError("OpenVINO calibrates for precision 'int8' only: choose it, or leave calibration out")

    @classmethod
    def priority_for(cls, model: ModelFile) -> int:
        """See `Backend.priority_for`. In fp32 OpenVINO is no faster than ONNX Runtime."""
        if model.metadata.method == OPENVINO_INT8:
            return cls.priority
        if model.metadata.method != FP32:
            return -1
        return cls.priority if cls.default_precision() == "bf16" else OrtBackend.priority - 5

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        try:
            if find_spec("onnx") is None:  # needed to write the direct form, but not imported for a cached file
                raise ImportError("No module named 'onnx'")
            openvino = load_openvino()
        except ImportError as error:
            raise BackendUnavailable(cls.name, str(error), install_hint("openvino")) from error
        except RuntimeError as error:  # openvino-telemetry looks for a home folder when it is imported
            raise BackendUnavailable(cls.name, first_line(error), "set HOME to the path of a folder") from error
        try:
            found = openvino.Core().available_devices
        except Exception as error:  # libraries that do not load fail here, with any exception
            raise BackendUnavailable(cls.name, first_line(error), f"reinstall: {install_hint('openvino')}") from error
        if DEVICE not in found:
            raise BackendUnavailable(cls.name, f"OpenVINO finds no CPU plug-in, only {found}", "reinstall openvino")

    @classmethod
    def default_precision(cls) -> str:
        """Return bf16 if the CPU has it, since its rounding is inaudible; else, or without OpenVINO, fp32."""
        try:
            return "bf16" if has_bf16() else "fp32"
        except (ImportError, RuntimeError):  # see `check`
            return "fp32"

    def precision_for(self, model: ModelFile) -> str:
        """See `Backend.precision_for`."""
        return "int8" if model.metadata.method == OPENVINO_INT8 and self._precision is None else self.precision

    def recipe(self, model: ModelFile) -> Recipe:
        """See `Backend.recipe`."""
        precision = self._checked_precision(model)
        if precision == "int8":
            return Recipe(method=OPENVINO_INT8, calibration=self.calibration)
        return Recipe(form=FORM if precision == "bf16" else None)

    def step_recipe(self, model: ModelFile, lookahead_frames: int) -> Recipe:
        """See `Backend.step_recipe`."""
        if self._checked_precision(model) == "int8":
            raise BackendUnavailable(self.name, "its INT8 files have no streams", "use precision 'bf16' or 'fp32'")
        return Recipe(form=FORM, lookahead_frames=lookahead_frames)

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        self.check()
        precision = self._checked_precision(model)
        if precision == "bf16" and model.metadata.form != FORM:
            raise ModelError(f"{str(model.path)!r} is not in the form for bf16: load the file of `prepare.prepare`")
        if precision == "int8" and model.metadata.method != OPENVINO_INT8:
            raise ModelError(f"{str(model.path)!r} is not quantized: load the file of `prepare.prepare`")
        return _OpenVinoSession(model, precision, threads, self.concurrent_runs)

    def load_step(self, model: ModelFile, threads: int, lookahead: int = LOOKAHEAD_FRAMES) -> StepSession:
        """See `Backend.load_step`."""
        self.check()
        return _OpenVinoStep(model, self._checked_precision(model), threads)

    def _checked_precision(self, model: ModelFile) -> str:
        """Return the precision for a file, after checking that the file and this CPU support it."""
        self.check_method(model)
        precision = self.precision_for(model)
        if model.metadata.method == OPENVINO_INT8 and precision != "int8":
            raise ModelError(
                f"{str(model.path)!r} is INT8 and cannot run in {precision!r}: leave the precision out, or give the "
                "fp32 file that it was made from"
            )
        if precision == "bf16" and not has_bf16():
            raise BackendUnavailable(
                self.name, "this CPU does not compute in bfloat16", "use precision 'fp32', the default here"
            )
        return precision


class _Compiled:
    """A model that OpenVINO has compiled, with an inference request for each thread.

    Attributes:
        compiled: OpenVINO's compiled model.
        device: See `Session`.
    """

    def __init__(self, model: ModelFile, precision: str, threads: int, streams: int = 1) -> None:
        openvino = load_openvino()
        # Shapes stay dynamic. Compiled for one shape the network is 5 to 10 % faster, but each new shape would cost
        # as much as denoising many windows.
        hint = "f32" if precision == "fp32" or not has_bf16() else "bf16"
        options = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": streams * threads,
            "NUM_STREAMS": streams,
            # With pinning, the threads of several processes would all run on the first cores.
            "ENABLE_CPU_PINNING": False,
        }
        with _signal_stack_kept():
            core = openvino.Core()
            try:
                self.compiled: Any = _compile(core, model, options)
            except Exception as error:  # a RuntimeError of several lines today, but no class is documented
                raise ModelError(f"OpenVINO cannot load {str(model.path)!r}: {first_line(error)}") from error
        check_settings(self.compiled, hint, streams * threads)
        self._local = threading.local()
        self.device = f"{DEVICE}, {precision}, {count_of_threads(threads)}"

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs by name; 0 for an axis of any length."""
        return {
            tensor.any_name: tuple(0 if size.is_dynamic else size.get_length() for size in tensor.partial_shape)
            for tensor in self.compiled.inputs
        }

    def infer(self, feeds: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return the outputs in order, in new arrays."""
        # A request handles one run at a time, so each thread has its own.
        request = getattr(self._local, "request", None)
        try:
            if request is None:
                request = self._local.request = self.compiled.create_infer_request()
            # Inputs are only read and need no copy. Results are in the request's memory and are copied.
            return [np.array(tensor) for tensor in request.infer(feeds, share_inputs=True).values()]
        except Exception as error:  # as above
            raise EngineError(f"OpenVINO failed on a batch of {feeds[0].shape}: {first_line(error)}") from error

    def close(self) -> None:
        self._local = threading.local()
        self.compiled = None


class _OpenVinoSession(Session):
    def __init__(self, model: ModelFile, precision: str, threads: int, streams: int) -> None:
        self._model = _Compiled(model, precision, threads, streams)
        self.device = self._model.device

    @property
    def compiled(self) -> Any:
        """OpenVINO's compiled model, for diagnosis."""
        return self._model.compiled

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        (denoised,) = self._model.infer([audio])
        if denoised.shape != audio.shape:  # OpenVINO does not report audio shorter than one frame as an error
            raise EngineError(f"OpenVINO gave {denoised.shape} for a batch of {audio.shape}")
        return denoised

    def close(self) -> None:
        self._model.close()


class _OpenVinoStep(StepSession):
    def __init__(self, model: ModelFile, precision: str, threads: int) -> None:
        self._model = _Compiled(model, precision, threads)
        self.device = self._model.device
        self.metadata = model.metadata
        self.inputs = self._model.input_shapes

    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        return self._model.infer([feeds[name] for name in self.inputs])

    def close(self) -> None:
        self._model.close()


def _compile(core: Any, model: ModelFile, options: Mapping[str, Any]) -> Any:
    """Compile a model, or load what was compiled before on this CPU, which takes a fifth of the time."""
    openvino = load_openvino()

    def compile_() -> Any:
        return core.compile_model(core.read_model(str(model.path)), DEVICE, options)

    def write(path: Path) -> None:
        content = io.BytesIO()
        compile_().export_model(content)
        path.write_bytes(content.getbuffer())

    key = {
        "engine": "openvino",
        "engine_version": openvino.__version__,
        "precision": options["INFERENCE_PRECISION_HINT"],
    }
    # OpenVINO's own cache loads damaged files without an error; this one compares digests.
    path = compiled_file(model, key, write, ".compiled")
    return compile_() if path is None else core.import_model(io.BytesIO(path.read_bytes()), DEVICE, options)


def check_settings(compiled: Any, hint: str, threads: int) -> None:
    """Check that OpenVINO took the settings that it was given: it may ignore hints.

    Args:
        compiled: OpenVINO's compiled model.
        hint: The requested precision, `"f32"` or `"bf16"`.
        threads: The requested number of threads.

    Raises:
        BackendUnavailable: It would run with other settings.
    """
    found = {
        "devices": compiled.get_property("EXECUTION_DEVICES"),
        "precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
        "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
    }
    wanted = {"devices": [DEVICE], "precision": hint, "threads": threads}
    if found["threads"] < threads and found == {**wanted, "threads": found["threads"]}:
        cpus = found["threads"]
        raise BackendUnavailable(
            OpenVinoBackend.name,
            f"it computes with at most one thread per CPU, and this process may use {cpus}",
            f"ask for at most {count_of_threads(cpus)}",
        )
    if found != wanted:
        raise BackendUnavailable(
            OpenVinoBackend.name, f"it would run with {found}, not {wanted}", "report this as a bug"
        )


def load_openvino() -> Any:
    """Import OpenVINO, without the package that reports each import to Intel and keeps an identifier of the user.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    is_unused = _TELEMETRY not in sys.modules
    if is_unused:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # then importing it is an `ImportError`
    try:
        import openvino
    finally:
        if is_unused:
            sys.modules.pop(_TELEMETRY, None)
    return openvino


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 natively on this CPU.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    openvino = load_openvino()
    with _signal_stack_kept():
        return "BF16" in openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


class _SignalStack(ctypes.Structure):
    """The struct `stack_t` of Linux's C libraries."""

    _fields_: ClassVar = [("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("bytes", ctypes.c_size_t)]


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Restore the thread's signal stack after OpenVINO's plug-in has been loaded.

    To get permission for AMX, the plug-in sets an alternate signal stack for the loading thread, and restores the
    previous one when it is freed. If two of them are not freed in reverse order (OpenVINO 2026.4), the restored stack
    has been freed itself, and the next signal, such as Ctrl-C, kills the process. Once loaded, the plug-in does not
    need the stack.
    """
    if sys.platform != "linux":
        yield
        return
    libc = ctypes.CDLL(None)
    before = _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def first_line(error: Exception) -> str:
    """Return the first line of an OpenVINO error that is not a location in its source."""
    return one_line(error, skip="Exception from ")
