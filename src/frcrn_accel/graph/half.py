"""Half precision, for hardware that computes in float16.

Some parts would overflow or lose too much precision in float16 and stay in float32: the STFT; its inverse with the
division by the overlap; the small layer that ends a U-Net, the mask and its product with the spectrum; and
squeeze-and-excitation from its means on, which are sums over up to 159 bins and all frames. Audio is float32 at input
and output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.graph.writer import GraphWriter
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import layer_group

__all__ = ["HalfStorageWriter", "HalfWriter"]

_LARGEST = float(np.finfo(np.float16).max)
_SMALL = 1_000  # smaller tensors stay in float32: they save nothing, and the last layer has only four values


class HalfWriter(GraphWriter):
    """Adds casts where the precision changes.

    Values that depend on weights alone are computed in float32 and cast where they meet the signal. An engine does
    that once.

    Args:
        weights: See `GraphWriter`.
        float_groups: Layer groups that stay in float32.
        storage: Further arguments for the next class in the inheritance order.
    """

    def __init__(self, weights: dict[str, NDArray[Any]], float_groups: frozenset[str], **storage: Any) -> None:
        super().__init__(weights, **storage)
        self._float_groups = float_groups
        self._is_half: dict[str, bool] = {}  # of every float tensor that depends on the audio
        self._integers: set[str] = set()
        self._casts: dict[tuple[str, int], str] = {}

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant; equal ones are stored once."""
        name = super().constant(value, dtype)
        if np.issubdtype(dtype, np.integer):
            self._integers.add(name)
        return name

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs, and the casts of its inputs."""
        signals = [name for name in inputs if name in self._is_half or name == "audio"]
        if kind == "DequantizeLinear" and not signals and self._computes_in_half(kind, signals):
            # A weight: dequantize it to float16 at once, where it meets the signal, instead of casting the result.
            integers, scale, zero = inputs
            names = super().ops(kind, outputs, integers, self._cast(scale, TensorProto.FLOAT16), zero, **attributes)
            self._is_half.update(dict.fromkeys(names, True))
            return names
        if not signals or kind == "Shape":
            names = super().ops(kind, outputs, *inputs, **attributes)
            if kind == "Shape":
                self._integers.update(names)
            return names
        half = self._computes_in_half(kind, signals)
        cast = [name if name in self._integers else self._in_precision(name, half) for name in inputs]
        names = super().ops(kind, outputs, *cast, **attributes)
        self._is_half.update(dict.fromkeys(names, half))
        return names

    def _computes_in_half(self, kind: str, signals: list[str]) -> bool:
        group = layer_group(self.current_scope)
        outside = "." not in group
        # The linear layer has one channel: little work, and its rounding would be that of the mask.
        if outside or group.endswith(".linear") or group in self._float_groups or kind == "GlobalAveragePool":
            return False
        if ".se_layers_" in group:  # float32 from the means on, until the scales meet the signal again
            return any(self._is_half.get(name, False) for name in signals)
        return True

    def _in_precision(self, name: str, half: bool) -> str:
        if self._is_half.get(name, False) == half:
            return name
        return self._cast(name, TensorProto.FLOAT16 if half else TensorProto.FLOAT)

    def _cast(self, name: str, to: int) -> str:
        if (name, to) not in self._casts:
            (self._casts[name, to],) = super().ops("Cast", 1, name, to=to)
        return self._casts[name, to]


class HalfStorageWriter(HalfWriter):
    """Also stores large weights as float16.

    Args:
        weights: See `GraphWriter`.
        keep_float: Layer groups that stay in float32.
    """

    def __init__(self, weights: Weights, keep_float: frozenset[str] = frozenset()) -> None:
        self._half_keys = {
            key
            for key, value in weights.items()
            if value.size >= _SMALL and layer_group(key) not in keep_float and np.abs(value).max() <= _LARGEST
        }
        super().__init__(
            {key: value.astype(np.float16) if key in self._half_keys else value for key, value in weights.items()},
            keep_float,
        )

    def weight(self, key: str) -> str:
        """Refer to a weight by its key, as float32."""
        stored = super().weight(key)
        return self._cast(stored, TensorProto.FLOAT) if key in self._half_keys else stored
