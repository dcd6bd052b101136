"""Weights in 8 bits: the rounding, and a graph writer that stores large matrices so."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.graph.writer import GraphWriter
from frcrn_accel.network.topology import layer_group

__all__ = ["CompactWriter", "round_convolution", "rounded", "step_of"]

_COMPACT_ELEMENTS = 1024  # larger matrices are stored in 8 bits even if they are used in float


def step_of(weight: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
    """One step of int8 along the other axes; what is all zero has a step too."""
    peak = np.abs(weight).max(axis=axes, keepdims=True)
    return np.where(peak > 0, peak / 127, 1).astype(np.float32)


def rounded(weight: NDArray[np.float32], step: NDArray[np.float32]) -> NDArray[np.int8]:
    """In whole steps."""
    steps: NDArray[np.int8] = np.rint(weight / step).astype(np.int8)
    return steps


def round_convolution(weights: dict[str, NDArray[Any]], name: str, output_axis: int) -> None:
    """Make int8 of both parts of a complex convolution, in place.

    They share one step for each output channel, which becomes `name.scale`: so a block matrix can be made of the
    integers.

    Args:
        weights: The network's.
        name: What the keys of the two weights start with.
        output_axis: Axis of the output channels.
    """
    keys = [f"{name}_{part}.weight" for part in ("re", "im")]
    stacked = np.stack([weights[key] for key in keys])
    step = step_of(stacked, tuple(axis for axis in range(5) if axis != output_axis + 1))
    weights.update(zip(keys, rounded(stacked, step), strict=True))
    weights[f"{name}.scale"] = step.reshape(-1)


class CompactWriter(GraphWriter):
    """Stores matrices of float layers in 8 bits, with a scale per row; an engine makes floats of them at load.

    Args:
        weights: The network's, see `GraphWriter`. What is stored in 8 bits is replaced.
        keep_float: Layers whose weights are stored as they are.
    """

    def __init__(self, weights: dict[str, NDArray[Any]], keep_float: frozenset[str]) -> None:
        super().__init__(weights)
        self._all = weights
        self._keep_float = keep_float
        self._restored: dict[str, str] = {}

    def weight(self, key: str) -> str:
        """Refer to one of the weights."""
        value = self._all[key]
        is_matrix = value.dtype == np.float32 and value.ndim == 2 and value.size > _COMPACT_ELEMENTS
        if key not in self._restored and is_matrix and layer_group(key) not in self._keep_float:
            step = step_of(value, (1,))
            self._all[key] = rounded(value, step)
            stored = self.op("Cast", super().weight(key), to=TensorProto.FLOAT)
            self._restored[key] = self.op("Mul", stored, self.constant(step))
        return self._restored.get(key) or super().weight(key)
