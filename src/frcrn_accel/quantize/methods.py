"""The methods of quantization, in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from frcrn_accel._version import __version__
from frcrn_accel.backends import Backend
from frcrn_accel.backends.openvino import OpenVinoBackend
from frcrn_accel.backends.ort import OrtBackend, OrtDynamicInt8Backend, OrtStaticInt8Backend
from frcrn_accel.models import DYNAMIC, FP16, OPENVINO_INT8, STATIC, TENSORRT_INT8, ModelFile, ModelMetadata
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import Config, layer_groups
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quantize.layers import Build, openvino_int8_layers, tensorrt_int8_layers

if TYPE_CHECKING:
    import onnx

__all__ = ["METHODS", "Method"]


class Prepare(Protocol):
    """Signature of `Method.prepare`."""

    def __call__(self, weights: Weights, audio: Sequence[NDArray[Any]], progress: Progress = no_progress, /) -> Build:
        """Return the function that builds graphs; see `Method.prepare`."""


@dataclass(frozen=True)
class Method:
    """A method of quantization.

    Attributes:
        name: Name that users type.
        description: One line for tables.
        needs_calibration: Whether it measures ranges on calibration audio.
        prepare: Takes the weights, the model's inputs for the calibration audio, `float32 (1, samples)` each (none
            without calibration), and a function to report progress to. Returns the function that builds graphs. It is
            called once, however many graphs are built.
        backend: Returns the backend that the gate runs files on: the one they are for, or ONNX Runtime on the CPU for
            GPU methods, because files are also made on machines without a GPU.
        groups: Returns the layer groups of a network that can be kept in float.
        prepare_as_before: Takes a file that the method made from the same model with the same calibration audio, and
            returns the same as `prepare`, without measuring. None if files do not hold what was measured.
    """

    name: str
    description: str
    needs_calibration: bool
    prepare: Prepare
    backend: Callable[[], Backend] = OrtBackend
    groups: Callable[[Config], tuple[str, ...]] = layer_groups
    prepare_as_before: Callable[[ModelFile], Build] | None = None


def _openvino() -> Backend:
    return OpenVinoBackend("int8")


# The builders import the ONNX package, so they are imported on use.


def _dynamic(weights: Weights, audio: Sequence[NDArray[Any]], progress: Progress = no_progress) -> Build:
    from frcrn_accel.quantize.int8 import prepare_dynamic

    return prepare_dynamic(weights, progress)


def _static(weights: Weights, audio: Sequence[NDArray[Any]], progress: Progress = no_progress) -> Build:
    from frcrn_accel.quantize.int8 import prepare_static

    return prepare_static(weights, audio, progress)


def _integer_as_before(made: ModelFile) -> Build:
    from frcrn_accel.quantize.int8 import prepare_as_before

    return prepare_as_before(made)


def _integer_groups(config: Config) -> tuple[str, ...]:
    from frcrn_accel.quantize.integer import group_names

    return group_names(config)


def _openvino_int8(weights: Weights, audio: Sequence[NDArray[Any]], progress: Progress = no_progress) -> Build:
    from frcrn_accel.quantize.openvino_int8 import prepare_openvino_int8

    return prepare_openvino_int8(weights, audio, progress)


def _tensorrt_int8(weights: Weights, audio: Sequence[NDArray[Any]], progress: Progress = no_progress) -> Build:
    from frcrn_accel.quantize.tensorrt_int8 import prepare_tensorrt_int8

    return prepare_tensorrt_int8(weights, audio, progress)


def _fp16(weights: Weights, audio: Sequence[NDArray[Any]], progress: Progress = no_progress) -> Build:
    from frcrn_accel.graph.forms import build_graph
    from frcrn_accel.graph.half import HalfStorageWriter

    def build(weights: Weights, metadata: ModelMetadata, keep_float: frozenset[str]) -> onnx.ModelProto:
        writer = HalfStorageWriter(weights, keep_float)
        return build_graph(weights, metadata.name, __version__, metadata.to_properties(), "half", writer)

    return build


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            DYNAMIC,
            "INT8 for ONNX Runtime, ranges found for each frame while it runs",
            False,
            _dynamic,
            OrtDynamicInt8Backend,
            _integer_groups,
            _integer_as_before,
        ),
        Method(
            STATIC,
            "INT8 for ONNX Runtime, ranges measured on calibration audio",
            True,
            _static,
            OrtStaticInt8Backend,
            _integer_groups,
            _integer_as_before,
        ),
        Method(
            OPENVINO_INT8,
            "INT8 convolutions for OpenVINO, ranges measured on calibration audio",
            True,
            _openvino_int8,
            _openvino,
            openvino_int8_layers,
        ),
        Method(
            TENSORRT_INT8,
            "INT8 for TensorRT, ranges measured on calibration audio",
            True,
            _tensorrt_int8,
            groups=tensorrt_int8_layers,
        ),
        Method(FP16, "half precision, for GPU engines", False, _fp16),
    )
}
