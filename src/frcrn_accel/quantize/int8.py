"""Write INT8 files for ONNX Runtime, with static or dynamic ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from frcrn_accel._version import __version__
from frcrn_accel.errors import ModelError
from frcrn_accel.graph.timeline import Stepwise
from frcrn_accel.models import METADATA_PREFIX, ModelFile, ModelMetadata
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quantize.integer import IntegerNetwork
from frcrn_accel.quantize.measure import measure_ranges
from frcrn_accel.quantize.ranges import FsmnRanges, Ranges
from frcrn_accel.quantize.synthetic import synthetic_clips

if TYPE_CHECKING:
    import onnx

    from frcrn_accel.quantize.layers import Build

__all__ = ["build_step", "prepare_as_before", "prepare_dynamic", "prepare_static"]

_RANGES = f"{METADATA_PREFIX}ranges"  # property of a file: steps of streams use the same ranges


def prepare_dynamic(weights: Weights, progress: Progress = no_progress) -> Build:
    """Prepare dynamic INT8: the peak of every frame is found while the network runs.

    It needs no calibration audio. Values inside an FSMN block are relative to the peak of its input, and how large
    they get depends on the weights rather than on the audio: synthetic clips show it as well as recordings.

    Args:
        weights: As `models.read_weights` returns them.
        progress: See `measure_ranges`.
    """
    return _builder(Ranges(_inside_blocks(weights, progress)))


def prepare_static(weights: Weights, audio: Sequence[NDArray[np.float32]], progress: Progress = no_progress) -> Build:
    """Prepare static INT8: the peaks at convolutions are measured on audio, relative to the FSMN block before.

    Ranges inside the blocks still come from synthetic clips: with `frcrn-small` they lost less quality than those of
    recordings, which are a little wider.

    Args:
        weights: As `models.read_weights` returns them.
        audio: Inputs of the model, `(1, samples)` each, at its rate and level.
        progress: See `measure_ranges`.
    """
    inside = _inside_blocks(weights, progress)
    measured = measure_ranges(weights, (clip[0] for clip in audio), progress, inside=False)
    return _builder(Ranges(inside, measured.inputs))


def prepare_as_before(made: ModelFile) -> Build:
    """Prepare the same as for a file that exists, without measuring anything.

    Args:
        made: A file that one of these methods made from the same model, with the same calibration audio.

    Raises:
        ModelError: The file holds no ranges.
    """
    return _builder(_ranges_of(made))


_last_inside: tuple[str, Mapping[str, FsmnRanges]] = ("", {})  # of one model: both methods need them


def _inside_blocks(weights: Weights, progress: Progress) -> Mapping[str, FsmnRanges]:
    """Return the ranges inside the FSMN blocks, which do not depend on the method."""
    global _last_inside
    digest = hashlib.sha256()
    for key, value in weights.items():
        digest.update(key.encode())
        digest.update(value.tobytes())
    if _last_inside[0] != digest.hexdigest():
        _last_inside = digest.hexdigest(), measure_ranges(weights, synthetic_clips(), progress, inputs=False).fsmn
    else:
        progress("measure ranges", 1, 1)
    return _last_inside[1]


def _builder(ranges: Ranges) -> Build:
    def build(weights: Weights, metadata: ModelMetadata, keep_float: frozenset[str]) -> onnx.ModelProto:
        network = IntegerNetwork(weights, ranges, keep_float)
        return network.build(metadata.name, __version__, metadata.to_properties() | {_RANGES: ranges.to_json()})

    return build


def build_step(weights: Weights, variant: ModelFile, metadata: ModelMetadata, lookahead: int) -> onnx.ModelProto:
    """Build the step of a stream with the ranges of a quantized file, and with the same layers in float.

    Args:
        weights: Weights of the fp32 model that the file was made from.
        variant: A file written by one of these methods.
        metadata: Metadata for the graph.
        lookahead: Frames that each U-Net looks ahead.

    Raises:
        ModelError: The file holds no ranges.
    """
    timeline = partial(Stepwise, lookahead=lookahead)
    network = IntegerNetwork(weights, _ranges_of(variant), frozenset(metadata.kept_float), timeline)
    return network.build(metadata.name, __version__, metadata.to_properties())


def _ranges_of(variant: ModelFile) -> Ranges:
    """Read the ranges from a quantized file."""
    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(variant.path).metadata_props}
    if _RANGES not in properties:
        raise ModelError(f"{str(variant.path)!r} holds no ranges: quantize the model again")
    return Ranges.from_json(properties[_RANGES])
