"""The arithmetic of `benchmarks/compare.py`: alignment, differences and the tables that it fills."""

from __future__ import annotations

import doctest

import compare
import figures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

SAMPLES = 4_000
NOISE = (0.1 * np.random.default_rng(0).standard_normal(SAMPLES)).astype(np.float32)


def test_examples():
    assert doctest.testmod(compare, raise_on_error=True).attempted >= 2


@given(st.integers(-300, 300))
def test_a_lag_is_found(lag):
    late = np.zeros_like(NOISE)
    late[max(lag, 0) : SAMPLES + min(lag, 0)] = NOISE[max(-lag, 0) : SAMPLES - max(lag, 0)]
    assert compare.lag_samples(NOISE, late, 300) == lag


@pytest.mark.parametrize(("rate_hz", "delay"), [(16_000, 0), (16_000, 384), (48_000, 960), (48_000, 1440)])
def test_what_only_delays_comes_out_aligned(rate_hz, delay):
    """A denoiser that changes nothing: silence is enough to let all of the signal out."""
    sent = compare.with_tail(NOISE, rate_hz)
    came_out = np.concatenate([np.zeros(delay, np.float32), sent[: len(sent) - delay]])
    out = compare.aligned(came_out, rate_hz, delay, SAMPLES)
    assert out.shape == NOISE.shape
    assert compare.lag_samples(NOISE, out, 100) == 0
    band = np.fft.rfftfreq(SAMPLES, 1 / 16_000) < 6_000
    difference = np.fft.rfft(out - NOISE)[band]
    assert np.linalg.norm(difference) < 0.02 * np.linalg.norm(np.fft.rfft(NOISE)[band])


def test_differences_are_taken_clip_by_clip():
    ours = [dict.fromkeys(compare.METRICS, value) for value in (1.0, 3.0)]
    theirs = [dict.fromkeys(compare.METRICS, value) for value in (1.5, 3.5)]
    found = compare.summary(theirs, ours)
    assert found["scores"]["PESQ-WB"]["mean"] == 2.5
    assert found["difference"]["PESQ-WB"] == {"mean": 0.5, "interval": [0.5, 0.5]}


def test_tables():
    ours = [dict.fromkeys(compare.METRICS, value) for value in (1.0, 3.0)]
    theirs = [dict.fromkeys(compare.METRICS, value) for value in (1.5, 3.5)]
    costs = {
        "rtf": 0.0371,
        "weights_bytes": 4_000_000,
        "install_bytes": 50_400_000,
        "rate_hz": 48_000,
        "licence": "MIT",
    }
    report = {
        "clips": 2,
        "rounds": 9,
        "speed_machine": {"cpu": "a CPU", "system": "Linux", "python": "3.11"},
        "denoisers": {
            compare.NOISY: compare.summary(ours, ours),
            compare.OURS: compare.summary(ours, ours) | costs | {"latency_ms": None, "package": "frcrn-accel 1"},
            "other": compare.summary(theirs, ours) | costs | {"latency_ms": 30, "package": "other 2"},
        },
    }
    scores = figures.comparison("scores")(report).splitlines()
    assert scores[0] == "|  | PESQ-WB | STOI | SI-SDR, dB | DNSMOS OVRL |"
    assert len(scores) == 2 + 3 + 2
    assert scores[4].startswith("| other | 2.50 (1.50 to 3.50) | 2.500 (1.500 to 3.500) |")
    row = figures.comparison("difference")(report).splitlines()[2]
    assert row.startswith("| other | +0.50 (+0.50 to +0.50) | +0.500 (+0.500 to +0.500) |")
    assert figures.comparison_costs(report).splitlines()[2:4] == [
        "| frcrn-small (`frcrn-accel 1`) | 48 kHz | 0.037 | takes whole files | 4.0 | 50 | MIT |",
        "| other (`other 2`) | 48 kHz | 0.037 | 30 ms | 4.0 | 50 | MIT |",
    ]
