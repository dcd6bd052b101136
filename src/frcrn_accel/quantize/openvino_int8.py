"""Write INT8 files for OpenVINO.

The convolutions of the inner stages of the direct form (`graph.direct`) are quantized: two thirds of the arithmetic.
Everything else stays in float: the layers next to the spectrum and the mask; the second encoder stage, which alone
would cost more quality than all others together; the second decoder stage, which some CPUs compute wrongly; the FSMN
layers, whose time depends on memory rather than arithmetic; and squeeze-and-excitation. docs/backends.md has the
measurements.

- The limit of an input is not the largest magnitude seen in calibration but a quantile just below. A spectrogram
  spans 60 to 80 dB: with the largest magnitude as the limit, quiet speech would fall below one quantization level.
- Weights are stored once, as integers. So are those of the two second stages and of the dense layers, which are used
  in float.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.cpu import available_cpus
from frcrn_accel.graph.common import Pair
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quantize.compact import CompactWriter
from frcrn_accel.quantize.explicit import Probe, RoundedConvolutions, build_with, measure_inputs, qdq, qdq_input
from frcrn_accel.quantize.layers import openvino_int8_layers

if TYPE_CHECKING:
    from frcrn_accel.quantize.layers import Build

__all__ = ["QUANTILE", "calibrate", "prepare_openvino_int8"]

QUANTILE = 0.9999  # of the magnitudes, see docs/backends.md
_STORED = ("encoders.1", "decoders.1")  # used in float, but too large to store in float


def calibrate(
    weights: Weights,
    clips: Iterable[NDArray[np.float32]],
    *,
    quantile: float = QUANTILE,
    threads: int = 1,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """Measure the limits of the layers' inputs.

    Args:
        weights: As `models.read_weights` returns them.
        clips: See `explicit.measure_inputs`.
        quantile: Share of the magnitudes that lie below a layer's limit.
        threads: CPU threads.
        progress: See `explicit.measure_inputs`.

    Returns:
        The limit of each of `openvino_int8_layers`.

    Raises:
        QuantizeError: There are no clips, or all of them are silent.
        MissingExtraError: The `[quantize]` extra is not installed.
    """
    found = measure_inputs(InputProbe(weights), clips, threads, progress)
    return {layer: seen.quantile(quantile) for layer, seen in found.items()}


def prepare_openvino_int8(
    weights: Weights, audio: Sequence[NDArray[np.float32]], progress: Progress = no_progress
) -> Build:
    """Calibrate once, to build any number of graphs.

    Args:
        weights: As `models.read_weights` returns them.
        audio: Inputs of the model, `(1, samples)` each, at its rate and level.
        progress: See `explicit.measure_inputs`.
    """
    limits = calibrate(weights, audio, threads=available_cpus(), progress=progress)
    return build_with(lambda weights, keep_float: _Int8Network(weights, limits, keep_float))


class InputProbe(Probe):
    """The float network, which records the inputs of the layers to quantize."""

    def operands(self, name: str, x: str, weight: str, output_axis: int) -> Pair:
        """See `DirectNetwork.operands`."""
        if name in openvino_int8_layers(self.config):
            self.inputs[name] = x
        return x, weight


class _Int8Network(RoundedConvolutions):
    """The network of a file.

    When the file is loaded, the integers of a weight are converted to floats, these become the block matrix with the
    batch norm, and that is quantized to the same integers again. OpenVINO does not fold a block matrix of integers
    alone: it would build the matrix in each run, and compute in float.
    """

    def __init__(self, weights: Weights, limits: Mapping[str, float], keep_float: frozenset[str]) -> None:
        stored: dict[str, NDArray[Any]] = dict(weights)
        super().__init__(stored, CompactWriter(stored, keep_float))
        self._limits = {layer: limit for layer, limit in limits.items() if layer not in keep_float}
        for layer in [*(f"{unet}.{layer}" for unet in self.config.unet_names for layer in _STORED), *self._limits]:
            is_encoder = ".encoders." in layer
            convolution = f"{layer}.{'conv.conv' if is_encoder else 'transconv.tconv'}"
            self.round_convolution(convolution, output_axis=0 if is_encoder else 1)

    def operands(self, name: str, x: str, weight: str, output_axis: int) -> Pair:
        """See `DirectNetwork.operands`."""
        if name not in self._limits:
            return x, weight
        g = self.graph
        x = qdq_input(g, x, self._limits[name])
        scales = self.output_scales(name)
        return x, qdq(g, weight, scales, g.constant(np.zeros(2 * self.config.channels), np.int8), axis=output_axis)
