"""From an fp32 model file to a smaller, faster one that was compared with it. Needs the `[quantize]` extra."""

from frcrn_accel.quantize.gate import ClipResult, GateReport, GateThresholds, GroupCost, Measure
from frcrn_accel.quantize.methods import METHODS, Method
from frcrn_accel.quantize.quantizer import MAX_RESCUED, QuantizeReport, quantize_model
from frcrn_accel.quantize.recordings import CALIBRATION_AUDIO, GATE_AUDIO

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
    "quantize_model",
]
