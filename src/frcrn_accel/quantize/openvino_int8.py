"""INT8 for OpenVINO: which layers, over which ranges, and the graph that says so.

Of the direct form (`export.direct`) the convolutions of the inner stages are quantized: two thirds of the arithmetic.
Everything else stays float: the layers next to the spectrum and the mask, the second encoder stage, which alone would
cost more than all others together, the FSMN layers, whose time goes with memory rather than arithmetic, and
squeeze-and-excitation. docs/backends.md has the measurements.

- Activations: one symmetric range for each input. Its limit is not the largest magnitude that calibration sees but a
  quantile just below. A spectrogram spans 60-80 dB; with the largest as the limit, quiet speech falls below one step.
- Weights: one symmetric range for each output channel, up to its largest weight. They are stored as integers, each
  once; so are those of the second encoder stage and of the dense layers, which are used in float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel._version import __version__
from frcrn_accel.backends.ort import cpu_session
from frcrn_accel.cpu import available_cpus
from frcrn_accel.errors import MissingExtraError, QuantizeError
from frcrn_accel.export.direct import DirectNetwork
from frcrn_accel.export.graph import GraphWriter
from frcrn_accel.export.network import Pair
from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.model.topology import Config, config_of
from frcrn_accel.models import ModelMetadata
from frcrn_accel.quantize.compact import CompactWriter, round_convolution
from frcrn_accel.quantize.methods import openvino_int8_layers

if TYPE_CHECKING:
    from frcrn_accel.quantize.methods import Build

__all__ = ["QUANTILE", "calibrate", "prepare_openvino_int8"]

QUANTILE = 0.9999  # of the magnitudes, see docs/backends.md
_MAX_INT8 = 127
_SMALLEST_STEP = 1e-20
_PIECE_SAMPLES = 80_640  # 5 s: takes 2 GB at the released size
_STORED_ENCODER = "encoders.1"  # in float, but too large to be stored so

# Histograms have logarithmic bins: the limit is then known to 1 % whatever the scale of a layer.
_BINS_PER_OCTAVE = 64
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -30, 30

Limits = Mapping[str, float]


def calibrate(
    weights: Weights, clips: Iterable[NDArray[np.float32]], *, quantile: float = QUANTILE, threads: int = 1
) -> dict[str, float]:
    """Find the limits of the layers' inputs by running the network, in float, on noisy speech.

    Args:
        weights: As `export.read_weights` gives them.
        clips: `(batch, samples)` each, as a backend gets them: 16 kHz, about -25 dBFS. A few minutes in all, over the
            kinds of noise and the signal-to-noise ratios to expect, clean speech included.
        quantile: Share of the magnitudes that lie below a layer's limit.
        threads: CPU threads.

    Returns:
        The limit of each of `openvino_int8_layers`.

    Raises:
        QuantizeError: There are no clips, or all of them are silent.
        MissingExtraError: The `[quantize]` extra is not installed.
    """
    network = _Probe(GraphWriter(weights), _config(weights))
    model = network.build("calibration", "", {})
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in network.inputs.values())
    try:
        session = cpu_session(model.SerializeToString(), threads)
    except ImportError as error:
        raise MissingExtraError("Measuring the ranges of activations", "quantize", error) from error
    edges = 2.0 ** (
        np.arange(_LOWEST_OCTAVE * _BINS_PER_OCTAVE, _HIGHEST_OCTAVE * _BINS_PER_OCTAVE) / _BINS_PER_OCTAVE
    )
    counts = {layer: np.zeros(len(edges) + 1, np.int64) for layer in network.inputs}
    heard = False
    for piece in (piece for clip in clips for piece in _pieces(clip)):
        heard |= bool(piece.any())
        for histogram, tensor in zip(
            counts.values(), session.run(list(network.inputs.values()), {"audio": piece}), strict=True
        ):
            histogram += np.bincount(np.searchsorted(edges, np.abs(tensor).ravel()), minlength=len(histogram))
    if not heard:
        raise QuantizeError("the calibration audio is silent")
    return {layer: float(edges[_quantile_bin(histogram, quantile)]) for layer, histogram in counts.items()}


def prepare_openvino_int8(weights: Weights, audio: Sequence[NDArray[np.float32]]) -> Build:
    """Calibrate, for any number of graphs.

    Args:
        weights: As `export.read_weights` gives them.
        audio: What the model is to see: `(1, samples)` each, at its rate and level.
    """
    limits = calibrate(weights, audio, threads=available_cpus())

    def build(weights: Weights, metadata: ModelMetadata, keep_float: frozenset[str]) -> onnx.ModelProto:
        network = _Int8Network(weights, _config(weights), limits, keep_float)
        return network.build(metadata.name, __version__, metadata.to_properties())

    return build


class _Probe(DirectNetwork):
    """The float network, which notes the inputs of the layers to quantize."""

    def __init__(self, graph: GraphWriter, config: Config) -> None:
        super().__init__(graph, config)
        self.inputs: dict[str, str] = {}

    def operands(self, name: str, x: str, weight: str, output_axis: int) -> Pair:
        """See `DirectNetwork.operands`."""
        if name in openvino_int8_layers(self.config):
            self.inputs[name] = x
        return x, weight


class _Int8Network(DirectNetwork):
    """With `QuantizeLinear` and `DequantizeLinear` around what is quantized.

    The integers of a weight are made floats, the block matrix with the batch norm is made of those, and of that the
    same integers again. It is done when the file is loaded. Of a block matrix made of integers alone OpenVINO does
    not know that it is constant: it would make it anew in each run, and compute in float.
    """

    def __init__(self, weights: Weights, config: Config, limits: Limits, keep_float: frozenset[str]) -> None:
        stored: dict[str, NDArray[Any]] = dict(weights)
        super().__init__(CompactWriter(stored, keep_float), config)
        self._limits = {layer: limit for layer, limit in limits.items() if layer not in keep_float}
        convolutions = [f"{unet}.{_STORED_ENCODER}.conv.conv" for unet in config.unet_names]
        for layer in self._limits:
            convolutions.append(f"{layer}.conv.conv" if ".encoders." in layer else f"{layer}.transconv.tconv")
        for convolution in convolutions:
            round_convolution(stored, convolution, output_axis=int(".decoders." in convolution))
        self._rounded_convolutions = frozenset(convolutions)
        self._steps: dict[str, str] = {}  # of the rows of the weights with the batch norm, by layer

    def pair(self, name: str, tensor: str, suffix: str = "") -> Pair:
        """See `Network.pair`."""
        stored = super().pair(name, tensor, suffix)
        if name not in self._rounded_convolutions or tensor != "weight":
            return stored
        re, im = (self.graph.op("Cast", part, to=TensorProto.FLOAT) for part in stored)
        return re, im

    def batch_norms(self, name: str, convolution: str) -> Pair:
        """See `DirectNetwork.batch_norms`: what scales the outputs also scales the integers of the weights."""
        scale, shift = super().batch_norms(name, convolution)
        if f"{name}.{convolution}" in self._rounded_convolutions:
            g = self.graph
            step = g.weight(f"{name}.{convolution}.scale")
            scale = self._steps[name] = g.op("Mul", scale, g.op("Concat", step, step, axis=0))
        return scale, shift

    def operands(self, name: str, x: str, weight: str, output_axis: int) -> Pair:
        """See `DirectNetwork.operands`."""
        if name not in self._limits:
            return x, weight
        g = self.graph
        x = self._rounded(x, g.constant(self._limits[name] / _MAX_INT8), g.constant(0, np.int8))
        # A channel whose weights are all zero still needs a step.
        step = g.op("Max", g.op("Abs", self._steps[name]), g.constant(_SMALLEST_STEP))
        zeros = g.constant(np.zeros(2 * self.config.channels), np.int8)
        return x, self._rounded(weight, step, zeros, axis=output_axis)

    def _rounded(self, x: str, step: str, zero: str, **axis: int) -> str:
        """To INT8 and back."""
        g = self.graph
        return g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero, **axis), step, zero, **axis)


def _pieces(clip: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """A clip in equal parts that are not too long: all inputs of a part are in memory at once."""
    return np.array_split(clip, -(-clip.shape[1] // _PIECE_SAMPLES), axis=1)


def _quantile_bin(histogram: NDArray[np.int64], quantile: float) -> int:
    return min(int(np.searchsorted(np.cumsum(histogram), quantile * histogram.sum())), len(histogram) - 2)


def _config(weights: Weights) -> Config:
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    return config
