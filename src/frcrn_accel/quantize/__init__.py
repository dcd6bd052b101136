"""Quantize an fp32 model file: smaller, faster, and compared with its source. Needs the `[quantize]` extra.

`methods` has the table of methods, `quantizer` turns a model into a variant, and `gate` compares the two. Three
modules write INT8 graphs:

- `integer`: 8-bit operators, for ONNX Runtime on a CPU. FSMN layers (feedforward sequential memory network, see
  `network.topology`) are in 8 bits too; squeeze-and-excitation is in float.
- `openvino_int8`, `tensorrt_int8`: QDQ graphs, in which pairs of QuantizeLinear and DequantizeLinear mark the
  tensors that an engine may keep in integers (`explicit`).

`graph.half` writes float16.
"""

from frcrn_accel.quantize.gate import ClipResult, GateReport, GateThresholds, Measure
from frcrn_accel.quantize.methods import METHODS, Method
from frcrn_accel.quantize.quantizer import MAX_RESCUED, QuantizeReport, Rescue, quantize_model
from frcrn_accel.quantize.recordings import CALIBRATION_AUDIO, GATE_AUDIO
from frcrn_accel.quantize.sensitivity import GroupCost
from frcrn_accel.quantize.source import Source

__all__ = [
    "CALIBRATION_AUDIO",
    "GATE_AUDIO",
    "MAX_RESCUED",
    "METHODS",
    "ClipResult",
    "GateReport",
    "GateThresholds",
    "GroupCost",
    "Measure",
    "Method",
    "QuantizeReport",
    "Rescue",
    "Source",
    "quantize_model",
]
