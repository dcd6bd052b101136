"""Explicit INT8: `QuantizeLinear` and `DequantizeLinear` around both inputs of a convolution.

The two nodes are called a QDQ pair. OpenVINO and TensorRT fuse the pairs into an integer convolution. This module
holds the code that both share: measuring the ranges of activations on audio, and writing the pairs. The module of
each engine chooses the form of the network, the layers and how ranges are set.

All ranges are symmetric. An input of activations has a single range; weights have a range for each output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel._version import __version__
from frcrn_accel.backends.ort import cpu_session
from frcrn_accel.errors import MissingExtraError, QuantizeError
from frcrn_accel.graph.common import Pair
from frcrn_accel.graph.direct import DirectNetwork
from frcrn_accel.graph.writer import GraphWriter
from frcrn_accel.models import ModelMetadata
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import required_config
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quantize.compact import MAX_INT8, CompactWriter, round_convolution
from frcrn_accel.quantize.parallel import map_parallel, plan_threads, workers

if TYPE_CHECKING:
    from frcrn_accel.quantize.layers import Build

__all__ = [
    "Histogram",
    "Probe",
    "RoundedConvolutions",
    "build_with",
    "measure_inputs",
    "qdq",
    "qdq_input",
]

_SMALLEST_SCALE = 1e-20
_PIECE_SAMPLES = 80_640  # 5 s: takes 2 GB at the released size

# Bins are logarithmic: quantiles are accurate to 1 % whatever the level of a layer.
_BINS_PER_OCTAVE = 64
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -30, 30
_EDGES = 2.0 ** (np.arange(_LOWEST_OCTAVE * _BINS_PER_OCTAVE, _HIGHEST_OCTAVE * _BINS_PER_OCTAVE) / _BINS_PER_OCTAVE)
# A float32 exceeds an edge if and only if it exceeds the largest float32 that is not above the edge.
_EDGES_32 = _EDGES.astype(np.float32)
_EDGES_32 = np.where(_EDGES_32 > _EDGES, np.nextafter(_EDGES_32, np.float32(0)), _EDGES_32)
# The bin at the start of each cell of float32 whose sign, exponent and first 8 binary places are equal. A cell is
# narrower than a bin, so it has one edge at most.
_CELL_BITS = 15
_CELLS = np.searchsorted(_EDGES_32, (np.arange(1 << 16, dtype=np.uint32) << _CELL_BITS).view(np.float32))
_BIN_OF_CELL = np.minimum(_CELLS, len(_EDGES_32) - 1).astype(np.int16)


class Histogram:
    """Histogram of the magnitudes of each channel.

    Args:
        channels: Number of channels.

    Attributes:
        counts: `int64 (channels, bins)`. A bin counts magnitudes up to its edge; the first counts all below it too.
    """

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, len(_EDGES) + 1), np.int64)

    def add(self, tensor: NDArray[np.float32]) -> None:
        """Count the values of `(batch, channels, ...)`."""
        for counts, values in zip(self.counts, tensor.swapaxes(0, 1), strict=True):
            counts += np.bincount(_bins(np.abs(values).ravel()), minlength=len(counts))

    def quantile(self, quantile: float, scales: NDArray[np.float32] | None = None) -> float:
        """Return the smallest magnitude that a given share of the values does not exceed.

        Args:
            quantile: The share.
            scales: Divide the values of each channel by these first, `(channels,)`; accurate to a bin too.
        """
        counts = self.counts
        if scales is not None:
            shifts = np.rint(-np.log2(scales) * _BINS_PER_OCTAVE).astype(int)
            counts = np.stack([_shifted(row, shift) for row, shift in zip(counts, shifts, strict=True)])
        return float(_EDGES[_quantile_bins(counts.sum(axis=0, keepdims=True), quantile)[0]])

    def channel_quantiles(self, quantile: float) -> NDArray[np.float32]:
        """Return the quantile of each channel, `(channels,)`."""
        quantiles: NDArray[np.float32] = _EDGES[_quantile_bins(self.counts, quantile)].astype(np.float32)
        return quantiles


class Probe(DirectNetwork):
    """A float network that records the inputs of the layers to quantize.

    Args:
        weights: As `models.read_weights` returns them.

    Attributes:
        inputs: Input tensors by name of layer, filled as the network is built.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__(GraphWriter(weights), required_config(weights))
        self.inputs: dict[str, str] = {}


def measure_inputs(
    probe: Probe, clips: Iterable[NDArray[np.float32]], threads: int, progress: Progress = no_progress
) -> dict[str, Histogram]:
    """Run the float network on noisy speech and count the magnitudes at the inputs of layers.

    Args:
        probe: A network that has not been built yet.
        clips: `(batch, samples)` each, as a backend gets them: 16 kHz, about -25 dBFS. A few minutes in total, with
            the kinds of noise and the signal-to-noise ratios to expect, and with clean speech.
        threads: CPU threads.
        progress: Called after each piece of a clip, as "measure ranges".

    Returns:
        A histogram for each input, by name of layer.

    Raises:
        QuantizeError: There are no clips, or all of them are silent.
        MissingExtraError: The `[quantize]` extra is not installed.
    """
    model = probe.build("calibration", "", {})
    del model.graph.output[0]  # the engine then skips what only the denoised signal needs
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in probe.inputs.values())
    pieces = [piece for clip in clips for piece in _pieces(clip)]
    if not any(piece.any() for piece in pieces):
        raise QuantizeError("the calibration audio is silent")
    plan = plan_threads([piece.shape[1] for piece in pieces], threads)
    try:
        session = cpu_session(model.SerializeToString(), plan.each, in_written_order=True)
    except ImportError as error:
        raise MissingExtraError("Measuring the ranges of activations", "quantize", error) from error
    found: dict[str, Histogram] = {}
    lock = Lock()

    def count(piece: NDArray[np.float32]) -> None:
        tensors = session.run(list(probe.inputs.values()), {"audio": piece})
        with lock:
            for layer, tensor in zip(probe.inputs, tensors, strict=True):
                found.setdefault(layer, Histogram(tensor.shape[1])).add(tensor)

    progress("measure ranges", 0, len(pieces))
    with workers(plan.clips) as pool:
        map_parallel(count, pieces, pool, lambda done: progress("measure ranges", done, len(pieces)))
    return found


class RoundedConvolutions(DirectNetwork):
    """A form that stores the weights of some convolutions as integers with a scale for each output channel.

    Args:
        stored: The weights, which `writer` writes. Those of these convolutions are replaced.
        writer: See `Network`.
    """

    def __init__(self, stored: dict[str, NDArray[Any]], writer: CompactWriter) -> None:
        super().__init__(writer, required_config(stored))
        self._stored = stored
        self._rounded: set[str] = set()
        self._output_scales: dict[str, str] = {}  # with the batch norm, by layer

    def round_convolution(self, name: str, output_axis: int) -> None:
        """Round the weights of a convolution, before the network is built; see `compact.round_convolution`."""
        round_convolution(self._stored, name, output_axis)
        self._rounded.add(name)

    def output_scales(self, layer: str) -> str:
        """Return the scales of a layer's output channels, with the batch norm."""
        # A channel whose weights are all zero still needs a scale.
        return self.graph.op(
            "Max", self.graph.op("Abs", self._output_scales[layer]), self.graph.constant(_SMALLEST_SCALE)
        )

    def pair(self, name: str, tensor: str, suffix: str = "") -> Pair:
        """Return two weights as float tensors, see `Network.pair`."""
        stored = super().pair(name, tensor, suffix)
        if name not in self._rounded or tensor != "weight":
            return stored
        re, im = (self.graph.op("Cast", part, to=TensorProto.FLOAT) for part in stored)
        return re, im

    def batch_norms(self, name: str, convolution: str) -> Pair:
        """See `DirectNetwork.batch_norms`. The scale includes that of the integer weights."""
        scale, shift = super().batch_norms(name, convolution)
        if f"{name}.{convolution}" in self._rounded:
            g = self.graph
            weight_scale = g.weight(f"{name}.{convolution}.scale")
            scale = g.op("Mul", scale, g.op("Concat", weight_scale, weight_scale, axis=0))
            self._output_scales[name] = scale
        return scale, shift


def build_with(network: Callable[[Weights, frozenset[str]], DirectNetwork]) -> Build:
    """Return the function that builds graphs with a network.

    Args:
        network: Returns the network for weights and the layer groups to keep in float.
    """

    def build(weights: Weights, metadata: ModelMetadata, keep_float: frozenset[str]) -> onnx.ModelProto:
        return network(weights, keep_float).build(metadata.name, __version__, metadata.to_properties())

    return build


def qdq(graph: GraphWriter, x: str, scale: str, zero: str, **axis: int) -> str:
    """Add a QDQ pair: quantize to INT8 and back."""
    integers = graph.op("QuantizeLinear", x, scale, zero, **axis)
    return graph.op("DequantizeLinear", integers, scale, zero, **axis)


def qdq_input(graph: GraphWriter, x: str, limit: float) -> str:
    """Add a QDQ pair for an activation with a known largest magnitude."""
    return qdq(graph, x, graph.constant(limit / MAX_INT8), graph.constant(0, np.int8))


def _pieces(clip: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Split a clip into equal parts, short because all inputs of a part are in memory at once."""
    yield from np.array_split(clip, -(-clip.shape[1] // _PIECE_SAMPLES), axis=1)


def _bins(magnitudes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bin of each magnitude: `searchsorted` of the edges, ten times as fast."""
    bins = _BIN_OF_CELL[magnitudes.view(np.uint32) >> _CELL_BITS]
    found: NDArray[np.int64] = bins + (magnitudes > _EDGES_32[bins])
    return found


def _shifted(counts: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """Move bins up; counts that would leave the histogram stay in the bin at that end."""
    moved = np.zeros_like(counts)
    last = len(counts) - 1
    np.add.at(moved, np.clip(np.arange(len(counts)) + by, 0, last), counts)
    return moved


def _quantile_bins(counts: NDArray[np.int64], quantile: float) -> NDArray[np.int64]:
    """Return for each row the bin up to which a share of the counts lies."""
    cumulative = np.cumsum(counts, axis=1)
    bins: NDArray[np.int64] = np.sum(cumulative < quantile * cumulative[:, -1:], axis=1)
    return bins.clip(max=counts.shape[1] - 2)
