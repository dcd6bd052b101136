"""The layers that each INT8 method quantizes, and the type of the functions that build quantized graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from frcrn_accel.models import ModelMetadata
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import STAGES, Config, layer_groups

if TYPE_CHECKING:
    import onnx

__all__ = ["Build", "openvino_int8_layers", "tensorrt_int8_layers"]

Build = Callable[[Weights, ModelMetadata, frozenset[str]], "onnx.ModelProto"]
"""Builds a graph from weights, with metadata and some layer groups in float."""


def openvino_int8_layers(config: Config) -> tuple[str, ...]:
    """Return the layers that are INT8 on OpenVINO: the convolutions of the inner stages."""
    # OpenVINO 2026.4 computes the transposed convolution from two rows to seven wrongly in INT8 on CPUs with VNNI and
    # without AMX. That layer is a hundredth of the arithmetic.
    inner = [f"encoders.{i}" for i in range(2, STAGES)] + [f"decoders.{i}" for i in (0, *range(2, STAGES - 1))]
    return tuple(f"{unet}.{layer}" for unet in config.unet_names for layer in inner)


def tensorrt_int8_layers(config: Config) -> tuple[str, ...]:
    """Return the layers that are INT8 on TensorRT: the inner convolutions and the dense FSMN layers."""
    return tuple(
        group
        for group in layer_groups(config)
        if "fsmn" in group
        or (".encoders." in group and not group.endswith(".0"))
        or (".decoders." in group and not group.endswith(f".{STAGES - 1}"))
    )
