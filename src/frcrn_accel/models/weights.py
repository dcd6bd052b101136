"""The network's weights inside a model file. Reading them needs the ONNX package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frcrn_accel.errors import ModelError
from frcrn_accel.models.file import METADATA_PREFIX
from frcrn_accel.models.recipe import FP32
from frcrn_accel.network.topology import config_of, parameter_shapes

if TYPE_CHECKING:
    import onnx

    from frcrn_accel.network.checkpoint import Weights

__all__ = ["read_weights"]


def read_weights(path: Path) -> Weights:
    """Read the network's weights from an fp32 model file, under the released key names.

    Raises:
        ImportError: The ONNX package is not installed.
        ModelError: The file does not hold the weights, or holds quantized ones.
    """
    import onnx
    from onnx import numpy_helper

    try:
        model: onnx.ModelProto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError is not a public class
        raise ModelError(f"{str(path)!r} is not an ONNX file ({error})") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    method = properties.get(f"{METADATA_PREFIX}method", FP32)
    if method != FP32:
        raise ModelError(
            f"{str(path)!r} is quantized ({method}) and no longer holds the original weights: give the fp32 file "
            f"that it was made from (sha256 {properties.get(f'{METADATA_PREFIX}source_sha256', 'unknown')})"
        )
    if any(tensor.HasField("data_location") and tensor.data_location for tensor in model.graph.initializer):
        raise ModelError(f"{str(path)!r} keeps weights in other files: save it as one file")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    config = config_of(weights)
    shapes = parameter_shapes(config) if config is not None else {}
    if not shapes or any(key not in weights or weights[key].shape != shape for key, shape in shapes.items()):
        raise ModelError(f"{str(path)!r} does not hold the weights of an FRCRN under their released names")
    broken = [key for key in shapes if not np.isfinite(weights[key]).all()]
    if broken:
        raise ModelError(f"{str(path)!r} holds weights that are not finite: {', '.join(broken[:3])}")
    return {key: weights[key] for key in shapes}
