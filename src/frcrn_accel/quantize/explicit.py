"""Explicit INT8: `QuantizeLinear` and `DequantizeLinear` around both inputs of a convolution.

Engines that know the pairs (OpenVINO, TensorRT) fuse them into an integer convolution. What the graphs for them share
is here: the ranges of activations, measured on audio, and the pairs themselves. Which form of the network, which
layers, and what is done about ranges is up to the module of each engine.

All ranges are symmetric. Activations have one range for each input, weights one for each output channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.backends.ort import cpu_session
from frcrn_accel.errors import MissingExtraError, QuantizeError
from frcrn_accel.graph.common import Pair
from frcrn_accel.graph.direct import DirectNetwork
from frcrn_accel.graph.writer import GraphWriter
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import Config, config_of

__all__ = [
    "MAX_INT8",
    "Histogram",
    "Probe",
    "RoundedConvolutions",
    "measure_inputs",
    "qdq",
    "qdq_input",
    "required_config",
]

MAX_INT8 = 127
_PIECE_SAMPLES = 80_640  # 5 s: takes 2 GB at the released size

# Bins are logarithmic: a quantile is then known to 1 % whatever the scale of a layer.
_BINS_PER_OCTAVE = 64
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -30, 30
_EDGES = 2.0 ** (np.arange(_LOWEST_OCTAVE * _BINS_PER_OCTAVE, _HIGHEST_OCTAVE * _BINS_PER_OCTAVE) / _BINS_PER_OCTAVE)


class Histogram:
    """How often magnitudes were seen, by channel.

    Args:
        channels: Number of them.

    Attributes:
        counts: `int64 (channels, bins)`; a bin holds what is up to its edge, the first all below.
    """

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, len(_EDGES) + 1), np.int64)

    def add(self, tensor: NDArray[np.float32]) -> None:
        """Count the values of `(batch, channels, ...)`."""
        for counts, values in zip(self.counts, tensor.swapaxes(0, 1), strict=True):
            counts += np.bincount(np.searchsorted(_EDGES, np.abs(values).ravel()), minlength=len(counts))

    def quantile(self, quantile: float, scales: NDArray[np.float32] | None = None) -> float:
        """Least magnitude that a share of the values does not exceed.

        Args:
            quantile: The share.
            scales: What the values of each channel are divided by first, `(channels,)`; known to a bin as well.
        """
        counts = self.counts
        if scales is not None:
            shifts = np.rint(-np.log2(scales) * _BINS_PER_OCTAVE).astype(int)
            counts = np.stack([_shifted(row, shift) for row, shift in zip(counts, shifts, strict=True)])
        return float(_EDGES[_quantile_bins(counts.sum(axis=0, keepdims=True), quantile)[0]])

    def channel_quantiles(self, quantile: float) -> NDArray[np.float32]:
        """The same of each channel apart, `(channels,)`."""
        quantiles: NDArray[np.float32] = _EDGES[_quantile_bins(self.counts, quantile)].astype(np.float32)
        return quantiles


class Probe(Protocol):
    """The float network of a form, which notes the inputs of the layers to quantize.

    Attributes:
        inputs: Tensors, by name of layer, once it is built.
    """

    inputs: dict[str, str]

    def build(self, name: str, producer_version: str, properties: Mapping[str, str]) -> onnx.ModelProto:
        """See `Network.build`."""


def measure_inputs(probe: Probe, clips: Iterable[NDArray[np.float32]], threads: int) -> dict[str, Histogram]:
    """Run the network, in float, on noisy speech.

    Args:
        probe: A network that has not been built yet.
        clips: `(batch, samples)` each, as a backend gets them: 16 kHz, about -25 dBFS. A few minutes in all, over the
            kinds of noise and the signal-to-noise ratios to expect, clean speech included.
        threads: CPU threads.

    Returns:
        What each of the inputs saw.

    Raises:
        QuantizeError: There are no clips, or all of them are silent.
        MissingExtraError: The `[quantize]` extra is not installed.
    """
    model = probe.build("calibration", "", {})
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in probe.inputs.values())
    try:
        session = cpu_session(model.SerializeToString(), threads)
    except ImportError as error:
        raise MissingExtraError("Measuring the ranges of activations", "quantize", error) from error
    found: dict[str, Histogram] = {}
    heard = False
    for piece in (piece for clip in clips for piece in _pieces(clip)):
        heard |= bool(piece.any())
        tensors = session.run(list(probe.inputs.values()), {"audio": piece})
        for layer, tensor in zip(probe.inputs, tensors, strict=True):
            found.setdefault(layer, Histogram(tensor.shape[1])).add(tensor)
    if not heard:
        raise QuantizeError("the calibration audio is silent")
    return found


class RoundedConvolutions(DirectNetwork):
    """A form in which the weights of some convolutions are stored as integers and a step for each output.

    Attributes:
        rounded_convolutions: Names of these. Set it before the network is built.
        steps: Step of each output with the batch norm, by layer, as far as the network is built.
    """

    rounded_convolutions: frozenset[str]
    steps: dict[str, str]

    def pair(self, name: str, tensor: str, suffix: str = "") -> Pair:
        """See `Network.pair`."""
        stored = super().pair(name, tensor, suffix)
        if name not in self.rounded_convolutions or tensor != "weight":
            return stored
        re, im = (self.graph.op("Cast", part, to=TensorProto.FLOAT) for part in stored)
        return re, im

    def batch_norms(self, name: str, convolution: str) -> Pair:
        """See `DirectNetwork.batch_norms`: what scales the outputs also scales the integers of the weights."""
        scale, shift = super().batch_norms(name, convolution)
        if f"{name}.{convolution}" in self.rounded_convolutions:
            g = self.graph
            step = g.weight(f"{name}.{convolution}.scale")
            scale = self.steps[name] = g.op("Mul", scale, g.op("Concat", step, step, axis=0))
        return scale, shift


def qdq(graph: GraphWriter, x: str, step: str, zero: str, **axis: int) -> str:
    """A pair: to INT8 and back."""
    integers = graph.op("QuantizeLinear", x, step, zero, **axis)
    return graph.op("DequantizeLinear", integers, step, zero, **axis)


def qdq_input(graph: GraphWriter, x: str, limit: float) -> str:
    """The pair of an activation whose largest magnitude is known."""
    return qdq(graph, x, graph.constant(limit / MAX_INT8), graph.constant(0, np.int8))


def required_config(weights: Weights) -> Config:
    """Size of a network whose weights these are.

    Raises:
        ValueError: They are no FRCRN's.
    """
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    return config


def _pieces(clip: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """A clip in equal parts that are not too long: all inputs of a part are in memory at once."""
    yield from np.array_split(clip, -(-clip.shape[1] // _PIECE_SAMPLES), axis=1)


def _shifted(counts: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """Bins moved up; what goes beyond an end stays in the last bin there."""
    moved = np.zeros_like(counts)
    last = len(counts) - 1
    np.add.at(moved, np.clip(np.arange(len(counts)) + by, 0, last), counts)
    return moved


def _quantile_bins(counts: NDArray[np.int64], quantile: float) -> NDArray[np.int64]:
    """Of each row, the bin up to which a share of all lies."""
    cumulative = np.cumsum(counts, axis=1)
    bins: NDArray[np.int64] = np.sum(cumulative < quantile * cumulative[:, -1:], axis=1)
    return bins.clip(max=counts.shape[1] - 2)
