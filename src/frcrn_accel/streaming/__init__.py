"""Live audio: denoise a signal while it arrives.

The model works on STFT frames of 40 ms, one every 20 ms; these 20 ms are the hop. To denoise a frame, a U-Net also
uses frames that follow it: its look-ahead. A stream therefore returns audio late, by the look-ahead and a few smaller
parts (`Latency`). Squeeze-and-excitation layers scale each channel by a function of its mean over the whole signal;
a stream replaces that mean by a running one (`Averaging`).
"""

from frcrn_accel.streaming.averaging import Averaging, Statistics
from frcrn_accel.streaming.latency import Latency
from frcrn_accel.streaming.stream import Stream, process_streams

__all__ = ["Averaging", "Latency", "Statistics", "Stream", "process_streams"]
