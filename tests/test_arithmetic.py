"""The count of arithmetic in `benchmarks/arithmetic.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from frcrn_accel.network.topology import DECODER_KERNELS, ENCODER_KERNELS, SAMPLE_RATE_HZ, Config

spec = importlib.util.spec_from_file_location(
    "arithmetic", Path(__file__).parents[1] / "benchmarks" / "arithmetic.py"
)
arithmetic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(arithmetic)
multiply_accumulates = arithmetic.multiply_accumulates


def per_second(config: Config) -> float:
    """Count per second of audio, without the extra frames at the ends of a window."""
    long, short = (sum(multiply_accumulates(config, s * SAMPLE_RATE_HZ).values()) for s in (20, 10))
    return (long - short) / 10


def test_the_released_size():
    assert per_second(Config(128, 2)) == pytest.approx(37.7e9, rel=0.01)


def test_the_packaged_model():
    assert per_second(Config(32, 2)) == pytest.approx(2.546e9, rel=1e-3)


def test_a_single_frame_by_hand():
    c = 8
    counts = multiply_accumulates(Config(c, 1), 640)
    assert counts["transforms"] == 2 * 642 * 640
    # Encoder stage `i` outputs 2 + i frames; the decoder starts with 8 frames and loses one at each stage.
    encoder_bins, decoder_bins = [159, 78, 37, 17, 7, 2, 1], [1, 2, 7, 17, 37, 78, 159]
    encoders = [
        4 * (c if i else 1) * c * np.prod(ENCODER_KERNELS[i]) * bins * (2 + i) for i, bins in enumerate(encoder_bins)
    ]
    decoders = [
        4 * (2 * c if i else c) * (1 if i == 6 else c) * np.prod(DECODER_KERNELS[i]) * bins * (7 - i)
        for i, bins in enumerate(decoder_bins)
    ]
    assert counts["convolutions"] == sum(encoders[1:]) + sum(decoders[:-1])
    assert counts["first and last layers"] == encoders[0] + decoders[-1] + 4 * 321
    frames_times_bins = sum(bins * (2 + i) for i, bins in enumerate(encoder_bins[:-1]))  # before stages 1 to 6
    frames_times_bins += 2 * 1 * 8  # along time
    frames_times_bins += sum(bins * (7 - i) for i, bins in enumerate(decoder_bins[1:]))  # after stages 0 to 5
    assert counts["FSMN"] == 4 * frames_times_bins * c * (c + c + 20)
    assert counts["squeeze-excitation"] == 11 * 8 * c * (c // 8)


def test_convolutions_grow_with_the_square_of_the_channels():
    narrow, wide = (multiply_accumulates(Config(channels, 1), 16_000)["convolutions"] for channels in (16, 64))
    assert wide == 16 * narrow
    assert multiply_accumulates(Config(16, 2), 16_000)["convolutions"] == 2 * narrow
