"""Live audio: a signal that is denoised while it comes in."""

from frcrn_accel.streaming.averaging import Averaging, Statistics
from frcrn_accel.streaming.latency import Latency
from frcrn_accel.streaming.stream import Stream, process_streams

__all__ = ["Averaging", "Latency", "Statistics", "Stream", "process_streams"]
