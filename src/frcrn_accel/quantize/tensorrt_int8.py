"""Write INT8 files for TensorRT: nearly all of the arithmetic, with equalised channels.

All convolutions of the plain form (`graph.plain`) are quantized except the first, the last and the depthwise filters.
The rest is in float16 or float32, as in a file of `graph.half`.

TensorRT has a single range for each input of a convolution. Two steps make that enough:

- Channels are equalised: each is divided by its magnitude before it is quantized, and the weights that it meets are
  multiplied by the same factor. Between the two convolutions of an FSMN the factor is in the weights on both sides;
  elsewhere it is a multiplication next to others, which an engine fuses.
- The limit of an input is a quantile of the equalised magnitudes seen in calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.cpu import available_cpus
from frcrn_accel.graph.common import Pair
from frcrn_accel.graph.half import HalfWriter
from frcrn_accel.graph.plain import PlainNetwork
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import layer_group, required_config
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quantize.compact import CompactWriter, scale_of
from frcrn_accel.quantize.explicit import Histogram, Probe, RoundedConvolutions, build_with, measure_inputs, qdq_input

if TYPE_CHECKING:
    from frcrn_accel.quantize.layers import Build

__all__ = ["Ranges", "find_ranges", "prepare_tensorrt_int8"]

LIMIT_QUANTILE = 0.9999
CHANNEL_QUANTILE = 0.999
_LARGEST_FACTOR = 32.0  # limits the gain of a channel that is silent in calibration
_SMALLEST_COMMON_SCALE = 1e-6  # float16 still has some digits there


@dataclass(frozen=True)
class Ranges:
    """Ranges of the quantized inputs, by name of operand.

    Attributes:
        limits: Largest magnitude, after equalisation.
        factors: Divisor of each complex channel, `(channels,)`; for a `project` of each channel of the two nets,
            `(2 * channels,)`.
    """

    limits: Mapping[str, float]
    factors: Mapping[str, NDArray[np.float32]]


def prepare_tensorrt_int8(
    weights: Weights, audio: Sequence[NDArray[np.float32]], progress: Progress = no_progress
) -> Build:
    """Calibrate once, to build any number of graphs.

    Args:
        weights: As `models.read_weights` returns them.
        audio: Inputs of the model, `(1, samples)` each, at its rate and level.
        progress: See `explicit.measure_inputs`.
    """
    seen = measure_inputs(InputProbe(weights), audio, available_cpus(), progress)
    ranges = find_ranges(required_config(weights).channels, seen)
    return build_with(lambda weights, keep_float: _Int8Network(weights, ranges, keep_float))


def find_ranges(channels: int, seen: Mapping[str, Histogram]) -> Ranges:
    """Choose factors and limits.

    Args:
        channels: Complex channels of the network.
        seen: Histogram of each operand.
    """
    limits: dict[str, float] = {}
    factors: dict[str, NDArray[np.float32]] = {}
    for name, histogram in seen.items():
        to_complex = _complex_channels(name, len(histogram.counts), channels)
        magnitudes = np.zeros(to_complex.max() + 1, np.float32)
        np.maximum.at(magnitudes, to_complex, histogram.channel_quantiles(CHANNEL_QUANTILE))
        # Half of the channels may be silent.
        typical = max(float(np.median(magnitudes)), float(np.finfo(np.float32).tiny))
        factors[name] = (magnitudes / typical).clip(1 / _LARGEST_FACTOR, _LARGEST_FACTOR).astype(np.float32)
        limits[name] = histogram.quantile(LIMIT_QUANTILE, factors[name][to_complex])
    return Ranges(limits, factors)


def _complex_channels(name: str, tensor_channels: int, channels: int) -> NDArray[np.int64]:
    """Return, for each channel of an operand's tensor, the index of its factor."""
    if name.endswith(".project"):  # both nets on the real part, both on the imaginary part
        return np.tile(np.arange(2 * channels), 2)
    # Each tensor holds real, then imaginary parts; a decoder takes two tensors.
    pairs = np.arange(tensor_channels // 2).reshape(-1, 1, channels)
    return np.tile(pairs, (1, 2, 1)).reshape(-1)


def _weight_keys(name: str) -> tuple[list[str], int]:
    """Return the keys of the two weights that an operand meets, and the axis of their input channels."""
    if ".encoders." in name:
        return [f"{name}.conv.conv_{part}.weight" for part in ("re", "im")], 1
    if ".decoders." in name:
        return [f"{name}.transconv.tconv_{part}.weight" for part in ("re", "im")], 0
    group, layer, which = name.rsplit(".", 2)
    return [f"{group}.fsmn_{part}_{layer}.{which}.weight" for part in ("re", "im")], 1


class InputProbe(Probe, PlainNetwork):
    """The float network, which records the inputs of the layers to quantize."""

    def convolution(self, name: str, x: str, weight: str, shift: str, **attributes: Any) -> str:
        """Record the input, see `PlainNetwork.convolution`; all of these convolutions are quantized."""
        self.inputs[name] = x
        return super().convolution(name, x, weight, shift, **attributes)


class _Writer(HalfWriter, CompactWriter):
    """Stores weights in 8 bits, and computes in float16 where convolutions are not INT8."""

    opset = 19  # the first that quantizes float16


class _Int8Network(RoundedConvolutions, PlainNetwork):
    """The network of a file. Weights are stored once, as the integers to compute with."""

    def __init__(self, weights: Weights, ranges: Ranges, keep_float: frozenset[str]) -> None:
        stored: dict[str, NDArray[Any]] = dict(weights)
        super().__init__(stored, _Writer(stored, keep_float, keep_float=keep_float))
        self._limits = {name: limit for name, limit in ranges.limits.items() if layer_group(name) not in keep_float}
        self._factors = ranges.factors
        self._rounded_inputs: dict[str, str] = {}
        for name in self._limits:
            _equalise(stored, name, ranges.factors[name])
        self._matrix_scales: dict[str, NDArray[np.float32]] = {}
        for name in self._limits:
            keys, axis = _weight_keys(name)
            if name.endswith((".linear", ".project")):
                # As the writer rounds them, both nets on both parts.
                scales = [scale_of(stored[key], (1,)).reshape(-1) for key in keys]
                self._matrix_scales[name] = np.concatenate([*scales, *scales])
            else:
                self.round_convolution(keys[0].removesuffix("_re.weight"), output_axis=1 - axis)

    def convolution(self, name: str, x: str, weight: str, shift: str, **attributes: Any) -> str:
        """Add a convolution, in INT8 unless kept in float, see `PlainNetwork.convolution`.

        The integers of each output channel have their own scale, but the graph dequantizes them with a common one:
        only then does TensorRT (for RTX, 1.7) write the sums as float16, and not as float32 for a further layer to
        scale. The rest of the scales is a factor for each channel after the convolution.
        """
        if name not in self._limits:
            return super().convolution(name, x, weight, shift, **attributes)
        g = self.graph
        if x not in self._rounded_inputs:  # even and odd rows share it
            self._rounded_inputs[x] = qdq_input(g, self._divided(name, x), self._limits[name])
        scales, common = self._weight_scales(name)
        integers = g.op("QuantizeLinear", weight, scales, g.constant(np.zeros(self._outputs(name)), np.int8), axis=0)
        operand = g.op("DequantizeLinear", integers, common, g.constant(0, np.int8))
        y = g.op("Conv", self._rounded_inputs[x], operand, **attributes)
        if name.endswith(".project"):  # see `filters`
            return y
        y = g.op("Mul", y, g.op("Unsqueeze", g.op("Div", scales, common), g.ints(1, 2)))
        return g.op("Add", y, g.op("Unsqueeze", shift, g.ints(1, 2)))

    def filters(self, name: str, kernel: str) -> str:
        """See `PlainNetwork.filters`. They include the factors of the channels."""
        if f"{name}.project" not in self._limits:
            return kernel
        g = self.graph
        scales, common = self._weight_scales(f"{name}.project")
        return g.op("Mul", kernel, g.op("Unsqueeze", g.op("Div", scales, common), g.ints(1, 2, 3)))

    def _outputs(self, name: str) -> int:
        """Return the number of output channels of a convolution."""
        return len(self._matrix_scales.get(name, np.zeros(2 * self.config.channels)))

    def _weight_scales(self, name: str) -> Pair:
        """Return the scale of each output channel, and a common one: the largest, rounded to float16."""
        g = self.graph
        is_matrix = name in self._matrix_scales
        scales = g.constant(self._matrix_scales[name]) if is_matrix else self.output_scales(name)
        common = g.op("Max", g.op("ReduceMax", scales, keepdims=0), g.constant(_SMALLEST_COMMON_SCALE))
        return scales, g.op("Cast", g.op("Cast", common, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)

    def _divided(self, name: str, x: str) -> str:
        """Divide an input by the factors, unless the weights before it are divided already."""
        if name.endswith(".project"):
            return x
        factors = self._factors[name]
        channels = _complex_channels(name, 2 * len(factors), self.config.channels)
        return self.graph.op("Mul", x, self.graph.constant((1 / factors[channels])[:, None, None]))


def _equalise(stored: dict[str, NDArray[Any]], name: str, factors: NDArray[np.float32]) -> None:
    """Multiply the weights that an operand meets. Inside an FSMN also divide the weights that produce it."""
    keys, axis = _weight_keys(name)
    is_project = name.endswith(".project")
    for number, key in enumerate(keys):
        own = np.split(factors, 2)[number] if is_project else factors
        shape = [1] * stored[key].ndim
        shape[axis] = -1
        stored[key] = stored[key] * own.reshape(shape)
        if is_project:
            linear = key.replace(".project.", ".linear.")
            stored[linear] = stored[linear] / own[:, None]
            bias = linear.replace(".weight", ".bias")
            stored[bias] = stored[bias] / own
