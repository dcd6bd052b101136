"""ONNX Runtime on the CPU, fp32."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends.base import Backend, Session
from frcrn_accel.errors import BackendUnavailable, EngineError, ModelError, install_hint
from frcrn_accel.models import ModelFile

__all__ = ["OrtBackend"]


class OrtBackend(Backend):
    """ONNX Runtime's CPU provider, fp32."""

    name: ClassVar[str] = "ort"
    description: ClassVar[str] = "ONNX Runtime on the CPU, fp32"
    priority: ClassVar[int] = 100

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`."""
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailable(cls.name, str(error), install_hint("ort")) from error
        if not hasattr(onnxruntime, "InferenceSession"):
            # What is left when onnxruntime and onnxruntime-gpu were installed together and one was removed.
            raise BackendUnavailable(
                cls.name,
                "the onnxruntime package is incomplete",
                f"pip uninstall -y onnxruntime onnxruntime-gpu, then {install_hint('ort')}",
            )

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        self.check()
        return _OrtSession(model, threads)


class _OrtSession(Session):
    def __init__(self, model: ModelFile, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A plan of all buffers, made at the second run of a shape, comes on top of what the first one left in the
        # arena: two thirds more memory, and no faster (benchmarks/length.py).
        options.enable_mem_pattern = False
        options.log_severity_level = 3  # errors are raised; warnings about folded constants are noise to users
        providers = ["CPUExecutionProvider"]
        try:
            self._session: Any = onnxruntime.InferenceSession(str(model.path), options, providers=providers)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes
            raise ModelError(f"ONNX Runtime cannot load {str(model.path)!r}: {_first_line(error)}") from error
        active = self._session.get_providers()
        if active != providers:
            raise BackendUnavailable(OrtBackend.name, f"it would run on {active}", "report this as a bug")
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        self.device = f"{active[0]}, {threads} thread{'s' if threads > 1 else ''}"

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            (denoised,) = self._session.run([self._output], {self._input: audio})
        except Exception as error:  # as above
            raise EngineError(f"ONNX Runtime failed on a batch of {audio.shape}: {_first_line(error)}") from error
        return denoised  # type: ignore[no-any-return]

    def close(self) -> None:
        self._session = None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
