"""Names of the files that can be made from one model: how they are quantized, and how their graph is arranged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "DYNAMIC",
    "FP16",
    "FP32",
    "OPENVINO_INT8",
    "STATIC",
    "TENSORRT_INT8",
    "VARIANT_METHODS",
    "Form",
    "Recipe",
]

# Methods of quantization; `quantize.METHODS` describes them. A file's metadata holds one of these names.
FP32 = "fp32"  # not quantized
FP16 = "fp16"
DYNAMIC = "dynamic"
STATIC = "static"
OPENVINO_INT8 = "openvino-int8"
TENSORRT_INT8 = "tensorrt-int8"
VARIANT_METHODS = (DYNAMIC, STATIC, OPENVINO_INT8)  # variants kept in the package, and in the cache after an import

Form = Literal["gauss", "direct", "plain", "half", "step"]


@dataclass(frozen=True)
class Recipe:
    """The file that a backend runs for a model.

    Three choices make a file; they are independent of each other, and of the precision, which is the number format
    that the engine computes in.

    Attributes:
        method: How weights and activations are quantized: `"fp32"` for not at all, else one of `quantize.METHODS`.
        form: How the operators are arranged, see `graph.forms.build_graph`. None for the form that model files hold,
            or that the method writes.
        lookahead_frames: Frames that each U-Net looks ahead, for the step of a stream; None for a graph of the
            whole signal.
        calibration: Folder of noisy speech to measure activation ranges on, for methods that need it; None to use a
            variant that was calibrated before.
    """

    method: str = FP32
    form: Form | None = None
    lookahead_frames: int | None = None
    calibration: Path | None = None
