"""INT8 weights and activations, ranges of activations measured beforehand on calibration audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from frcrn_accel.errors import QuantizeError
from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.models import ModelMetadata

__all__ = ["calibrate_static"]


def calibrate_static(
    weights: Weights, audio: Sequence[NDArray[np.float32]]
) -> Callable[[Weights, ModelMetadata, frozenset[str]], onnx.ModelProto]:
    """Measure the ranges of activations once, for any number of graphs that are built with them.

    Args:
        weights: As `export.read_weights` gives them.
        audio: What the model is to see: `float32 (1, samples)` each, at its rate and level.

    Raises:
        QuantizeError: Always, in this version.
    """
    raise QuantizeError("static quantization is not in this version: use --method dynamic or fp16")
