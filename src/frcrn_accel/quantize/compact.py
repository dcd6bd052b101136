"""Weights in 8 bits: the rounding, and a graph writer that stores large matrices in int8."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.graph.writer import GraphWriter
from frcrn_accel.network.topology import layer_group

__all__ = ["CompactWriter", "round_convolution", "rounded", "scale_of"]

_COMPACT_ELEMENTS = 1024  # larger matrices are stored in 8 bits even if they are used in float
MAX_INT8 = 127


def scale_of(weight: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the symmetric int8 scales of a weight, shared along some axes.

    >>> from frcrn_accel.quantize.compact import scale_of
    >>> scale_of(np.array([[1.27, -2.54], [0, 0]]), (1,)).round(3)
    array([[0.02],
           [1.  ]], dtype=float32)

    Args:
        weight: The weight.
        axes: Axes along which values share a scale; the result has length 1 there.
    """
    peak = np.abs(weight).max(axis=axes, keepdims=True)
    return np.where(peak > 0, peak / MAX_INT8, 1).astype(np.float32)


def rounded(weight: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return a weight as multiples of its scales."""
    integers: NDArray[np.int8] = np.rint(weight / scale).astype(np.int8)
    return integers


def round_convolution(weights: dict[str, NDArray[Any]], name: str, output_axis: int) -> None:
    """Replace both parts of a complex convolution by int8.

    They share a scale for each output channel, stored as `name.scale`, so a block matrix can be built from the
    integers.

    Args:
        weights: Weights of the network.
        name: Start of the keys of the two weights.
        output_axis: Axis of the output channels.
    """
    keys = [f"{name}_{part}.weight" for part in ("re", "im")]
    stacked = np.stack([weights[key] for key in keys])
    scale = scale_of(stacked, tuple(axis for axis in range(5) if axis != output_axis + 1))
    weights.update(zip(keys, rounded(stacked, scale), strict=True))
    weights[f"{name}.scale"] = scale.reshape(-1)


class CompactWriter(GraphWriter):
    """Stores matrices of float layers in 8 bits, with a scale per row; an engine converts them at load.

    Args:
        weights: See `GraphWriter`. Entries that are stored in 8 bits are replaced.
        keep_float: Layers whose weights are stored unchanged.
    """

    def __init__(self, weights: dict[str, NDArray[Any]], keep_float: frozenset[str]) -> None:
        super().__init__(weights)
        self._all = weights
        self._keep_float = keep_float
        self._restored: dict[str, str] = {}

    def weight(self, key: str) -> str:
        """Refer to a weight by its key."""
        value = self._all[key]
        is_matrix = value.dtype == np.float32 and value.ndim == 2 and value.size > _COMPACT_ELEMENTS
        if key not in self._restored and is_matrix and layer_group(key) not in self._keep_float:
            scale = scale_of(value, (1,))
            self._all[key] = rounded(value, scale)
            stored = self.op("Cast", super().weight(key), to=TensorProto.FLOAT)
            self._restored[key] = self.op("Mul", stored, self.constant(scale))
        return self._restored.get(key) or super().weight(key)
