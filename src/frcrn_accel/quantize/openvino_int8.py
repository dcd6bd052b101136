"""INT8 for OpenVINO: which layers, over which ranges, and the graph that says so.

Of the direct form (`export.direct`) the convolutions of the inner stages are quantized: two thirds of the arithmetic.
Everything else stays float: the layers next to the spectrum and the mask, the second encoder stage, which alone would
cost more than all others together, the FSMN layers, whose time goes with memory rather than arithmetic, and
squeeze-and-excitation. docs/backends.md has the measurements.

- Activations: one symmetric range for each input. Its limit is not the largest magnitude that calibration sees but a
  quantile just below. A spectrogram spans 60-80 dB; with the largest as the limit, quiet speech falls below one step.
- Weights: one symmetric range for each output channel, up to its largest weight, worked out from the weights.

So all that has to be stored is one number for each layer. It goes into the metadata of the model file, which every
engine then still runs as before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from frcrn_accel.atomic import replacing
from frcrn_accel.errors import ModelError
from frcrn_accel.export.direct import DirectNetwork
from frcrn_accel.export.graph import GraphWriter
from frcrn_accel.export.network import Pair
from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.model.topology import STAGES, Config, config_of
from frcrn_accel.models.file import METADATA_PREFIX

__all__ = ["PROPERTY", "QUANTILE", "build_int8_graph", "calibrate", "int8_layers", "read_limits", "write_limits"]

PROPERTY = METADATA_PREFIX + "openvino_int8"
QUANTILE = 0.9999  # of the magnitudes, see docs/backends.md
_MAX_INT8 = 127

# Histograms have logarithmic bins: the limit is then known to 1 % whatever the scale of a layer.
_BINS_PER_OCTAVE = 64
_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -30, 30

Limits = Mapping[str, float]


def int8_layers(config: Config) -> list[str]:
    """Names of the layers that are quantized."""
    inner = [f"encoders.{i}" for i in range(2, STAGES)] + [f"decoders.{i}" for i in range(STAGES - 1)]
    return [f"{unet}.{layer}" for unet in config.unet_names for layer in inner]


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
        The limit of each of `int8_layers`.

    Raises:
        ValueError: There are no clips, or all of them are silent.
    """
    import onnxruntime

    network = _Probe(GraphWriter(weights), _config(weights))
    model = network.build("calibration", "", {})
    model.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in network.inputs.values())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    edges = 2.0 ** (
        np.arange(_LOWEST_OCTAVE * _BINS_PER_OCTAVE, _HIGHEST_OCTAVE * _BINS_PER_OCTAVE) / _BINS_PER_OCTAVE
    )
    counts = {layer: np.zeros(len(edges) + 1, np.int64) for layer in network.inputs}
    for clip in clips:
        for histogram, tensor in zip(
            counts.values(), session.run(list(network.inputs.values()), {"audio": clip}), strict=True
        ):
            histogram += np.bincount(np.searchsorted(edges, np.abs(tensor).ravel()), minlength=len(histogram))
    if not all(histogram[1:].any() for histogram in counts.values()):
        raise ValueError("calibration needs audio that is not silent")
    return {layer: float(edges[_quantile_bin(histogram, quantile)]) for layer, histogram in counts.items()}


def build_int8_graph(
    weights: Weights, limits: Limits, name: str, producer_version: str, properties: Mapping[str, str]
) -> onnx.ModelProto:
    """The network with quantized layers, `QuantizeLinear` and `DequantizeLinear` around what is INT8.

    Args:
        weights: As `export.read_weights` gives them; they are stored as they are.
        limits: As `calibrate` gives them.
        name: Name of the graph.
        producer_version: Version of this library.
        properties: Metadata for the file.

    Raises:
        ValueError: `limits` does not have the layers of this network.
    """
    config = _config(weights)
    if set(limits) != set(int8_layers(config)):
        raise ValueError("the calibration is not of this network")
    return _Int8Network(GraphWriter(weights), config, limits).build(name, producer_version, properties)


def write_limits(source: Path, out: Path, limits: Limits, *, overwrite: bool = False) -> None:
    """Copy a model file, with the limits in its metadata.

    Args:
        source: The model file.
        out: The file to write; may be `source` with `overwrite`.
        limits: As `calibrate` gives them.
        overwrite: Replace `out` if it exists.

    Raises:
        ModelError: `source` cannot be read.
        OutputExistsError: `out` exists and `overwrite` is false.
    """
    model = _read(source)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    properties[PROPERTY] = json.dumps({layer: float(f"{limit:.6g}") for layer, limit in limits.items()})
    onnx.helper.set_model_props(model, properties)
    with replacing(out, overwrite=overwrite) as temporary:
        temporary.write_bytes(model.SerializeToString())


def read_limits(path: Path) -> dict[str, float]:
    """The limits in a model file.

    Raises:
        ModelError: It has none, or they are damaged.
    """
    properties = {entry.key: entry.value for entry in _read(path).metadata_props}
    if PROPERTY not in properties:
        raise ModelError(f"{str(path)!r} is not calibrated for INT8 on OpenVINO")
    try:
        limits = {str(layer): float(limit) for layer, limit in json.loads(properties[PROPERTY]).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"the INT8 calibration in {str(path)!r} is damaged ({error})") from error
    if not all(0 < limit < float("inf") for limit in limits.values()):
        raise ModelError(f"the INT8 calibration in {str(path)!r} is damaged: limits must be positive")
    return limits


class _Probe(DirectNetwork):
    """The float network, which notes the inputs of the layers to quantize."""

    def __init__(self, graph: GraphWriter, config: Config) -> None:
        super().__init__(graph, config)
        self.inputs: dict[str, str] = {}

    def operands(self, name: str, x: str, weight: str, output_axis: int) -> Pair:
        if name in int8_layers(self.config):
            self.inputs[name] = x
        return x, weight


class _Int8Network(DirectNetwork):
    def __init__(self, graph: GraphWriter, config: Config, limits: Limits) -> None:
        super().__init__(graph, config)
        self._limits = limits

    def operands(self, name: str, x: str, weight: str, output_axis: int) -> Pair:
        if name not in self._limits:
            return x, weight
        g = self.graph
        x = self.rounded(x, g.constant(self._limits[name] / _MAX_INT8), g.constant(0, np.int8))
        # A channel whose weights are all zero still needs a step.
        largest = g.op(
            "Max",
            g.op("ReduceMax", g.op("Abs", weight), axes=[a for a in range(4) if a != output_axis], keepdims=0),
            g.constant(1e-20),
        )
        zeros = g.constant(np.zeros(2 * self.config.channels), np.int8)
        step = g.op("Div", largest, g.constant(_MAX_INT8))
        return x, self.rounded(weight, step, zeros, axis=output_axis)

    def rounded(self, x: str, step: str, zero: str, **axis: int) -> str:
        """To INT8 and back."""
        g = self.graph
        return g.op("DequantizeLinear", g.op("QuantizeLinear", x, step, zero, **axis), step, zero, **axis)


def _quantile_bin(histogram: NDArray[np.int64], quantile: float) -> int:
    return min(int(np.searchsorted(np.cumsum(histogram), quantile * histogram.sum())), len(histogram) - 2)


def _config(weights: Weights) -> Config:
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    return config


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's DecodeError is no public class
        raise ModelError(f"{str(path)!r} is not an ONNX file ({error})") from error
