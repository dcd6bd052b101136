"""Run ONNX Runtime sessions with input and output bound to a device, also at fixed addresses for CUDA graphs."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FixedShapes", "run_bound"]

_MOST_SHAPES = 4  # whole and partial batches of one window; each graph keeps its activations in the GPU's memory
_NOT_RECORDED = -1


class FixedShapes:
    """Run a session with fixed buffers for recurring batch shapes.

    A shape that is seen a second time gets buffers and the number of a CUDA graph. ONNX Runtime records the graph in
    the next calls with that number, and then launches it as a whole. The first four such shapes get a graph; all
    others run without one.

    A graph always reads and writes the same addresses, so calls are made one at a time.

    Args:
        session: An `onnxruntime.InferenceSession` with one input and one output of equal shape.
        device: Device of the input and the output, `"cuda"` or `"cpu"`.
        device_index: Number of the device.
    """

    def __init__(self, session: Any, device: str, device_index: int) -> None:
        self._session = session
        self._device = device
        self._device_index = device_index
        self._seen: set[tuple[int, ...]] = set()
        self._buffers: dict[tuple[int, ...], _Buffers] = {}
        self._calls = threading.Lock()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes that have buffers."""
        return list(self._buffers)

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the session on a batch; return a new array of the same shape.

        Raises:
            Exception: ONNX Runtime failed.
        """
        with self._calls:
            buffers = self._buffers.get(audio.shape)
            if buffers is None and audio.shape in self._seen and len(self._buffers) < _MOST_SHAPES:
                buffers = self._buffers[audio.shape] = self._make_buffers(audio.shape)
            if buffers is None:
                self._seen.add(audio.shape)
                return run_bound(self._session, audio, self._device, self._device_index, _options(_NOT_RECORDED))
            buffers.input.update_inplace(np.ascontiguousarray(audio))
            self._session.run_with_iobinding(buffers.binding, buffers.options)
            return np.array(buffers.output.numpy())

    def _make_buffers(self, shape: tuple[int, ...]) -> _Buffers:
        import onnxruntime

        new = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        place = (shape, np.float32, self._device, self._device_index)
        buffers = _Buffers(new(*place), new(*place), self._session.io_binding(), _options(len(self._buffers) + 1))
        buffers.binding.bind_ortvalue_input(self._session.get_inputs()[0].name, buffers.input)
        buffers.binding.bind_ortvalue_output(self._session.get_outputs()[0].name, buffers.output)
        return buffers


def run_bound(
    session: Any, audio: NDArray[np.float32], device: str, device_index: int, options: Any = None
) -> NDArray[np.float32]:
    """Run a session on a batch, which is copied to the device once and back once; return a new array of equal shape.

    Args:
        session: See `FixedShapes`.
        audio: `(batch, samples)`.
        device: See `FixedShapes`.
        device_index: See `FixedShapes`.
        options: `onnxruntime.RunOptions` of the call.

    Raises:
        Exception: ONNX Runtime failed.
    """
    binding = session.io_binding()  # a binding belongs to one call
    binding.bind_cpu_input(session.get_inputs()[0].name, np.ascontiguousarray(audio))
    binding.bind_output(session.get_outputs()[0].name, device, device_index)
    session.run_with_iobinding(binding, options)
    (denoised,) = binding.copy_outputs_to_cpu()
    return denoised  # type: ignore[no-any-return]


class _Buffers(NamedTuple):
    """Input and output of one shape, bound to a session."""

    input: Any
    output: Any
    binding: Any
    options: Any


def _options(graph: int) -> Any:
    """Return the options of a call that records or launches a CUDA graph."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
