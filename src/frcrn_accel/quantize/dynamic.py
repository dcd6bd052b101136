"""INT8 weights, ranges of activations measured on the fly."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from frcrn_accel._version import __version__
from frcrn_accel.export.frcrn import build_graph
from frcrn_accel.export.graph import GraphWriter
from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.model.topology import layer_group
from frcrn_accel.models import ModelMetadata

__all__ = ["build_dynamic"]


def build_dynamic(weights: Weights, metadata: ModelMetadata, keep_float: frozenset[str]) -> onnx.ModelProto:
    """The network with each weight matrix stored as INT8 with a scale for each output channel.

    Args:
        weights: As `export.read_weights` gives them.
        metadata: For the file.
        keep_float: Layer groups that stay in float32.
    """
    writer = _IntegerWeightsWriter(weights, keep_float)
    return build_graph(weights, metadata.name, __version__, metadata.to_properties(), writer)


class _IntegerWeightsWriter(GraphWriter):
    def __init__(self, weights: Weights, keep_float: frozenset[str]) -> None:
        scales = {
            key: np.maximum(np.abs(value).max(axis=tuple(range(1, value.ndim)), keepdims=True), 1e-12) / 127
            for key, value in weights.items()
            if value.ndim > 1 and layer_group(key) not in keep_float
        }
        super().__init__(
            {
                key: np.rint(value / scales[key]).astype(np.int8) if key in scales else value
                for key, value in weights.items()
            }
        )
        self._scales = scales

    def weight(self, key: str) -> str:
        stored = super().weight(key)
        if key not in self._scales:
            return stored
        return self.op("Mul", self.op("Cast", stored, to=TensorProto.FLOAT), self.constant(self._scales[key]))
