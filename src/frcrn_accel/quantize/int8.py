"""INT8 files for ONNX Runtime: what is known of the activations decides which kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from frcrn_accel._version import __version__
from frcrn_accel.errors import ModelError
from frcrn_accel.graph.timeline import Stepwise
from frcrn_accel.models import METADATA_PREFIX, ModelFile, ModelMetadata
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.quantize.integer import IntegerNetwork, Ranges
from frcrn_accel.quantize.ranges import measure_ranges
from frcrn_accel.quantize.synthetic import synthetic_clips

if TYPE_CHECKING:
    import onnx

    from frcrn_accel.quantize.methods import Build

__all__ = ["build_step", "prepare_dynamic", "prepare_static"]

_RANGES = f"{METADATA_PREFIX}ranges"  # property of a file: what streams need to have its numbers


def prepare_dynamic(weights: Weights) -> Build:
    """No calibration audio: the peak of every frame is looked for in the data.

    Inside an FSMN block values are relative to that of its input. How large they get there is up to the weights, not
    to the audio: synthetic signals show it as well as recordings.

    Args:
        weights: As `export.read_weights` gives them.
    """
    return _builder(Ranges(measure_ranges(weights, synthetic_clips()).fsmn))


def prepare_static(weights: Weights, audio: Sequence[NDArray[np.float32]]) -> Build:
    """With calibration audio, the peaks at the convolutions are known too, relative to the block before them.

    Inside the blocks the synthetic signals still decide: with `frcrn-small` their ranges lost less than those of
    recordings, which are a little wider.

    Args:
        weights: As `export.read_weights` gives them.
        audio: What the model is to see: `(1, samples)` each, at its rate and level.
    """
    inside = measure_ranges(weights, synthetic_clips()).fsmn
    return _builder(Ranges(inside, measure_ranges(weights, (clip[0] for clip in audio)).inputs))


def _builder(ranges: Ranges) -> Build:
    def build(weights: Weights, metadata: ModelMetadata, keep_float: frozenset[str]) -> onnx.ModelProto:
        network = IntegerNetwork(weights, ranges, keep_float)
        return network.build(metadata.name, __version__, metadata.to_properties() | {_RANGES: ranges.to_json()})

    return build


def build_step(weights: Weights, variant: ModelFile, metadata: ModelMetadata, lookahead: int) -> onnx.ModelProto:
    """A step of a stream with the numbers of a quantized file: the same ranges, the same layers in float.

    Args:
        weights: Of the fp32 model that the file was made from.
        variant: A file that one of these methods made.
        metadata: To put into the graph.
        lookahead: Frames that each U-Net looks ahead.

    Raises:
        ModelError: The file does not tell its ranges.
    """
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(variant.path).metadata_props}
    if _RANGES not in properties:
        raise ModelError(f"{str(variant.path)!r} does not tell its ranges: quantize the model again")
    ranges = Ranges.from_json(properties[_RANGES])
    timeline = partial(Stepwise, lookahead=lookahead)
    network = IntegerNetwork(weights, ranges, frozenset(metadata.kept_float), timeline)
    return network.build(metadata.name, __version__, metadata.to_properties())
