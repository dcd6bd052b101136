"""The comparison in `benchmarks/stream_hours.py`: which faults of a stream it finds."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from delaying import DelayingBackend
from frcrn_accel import Denoiser

_spec = importlib.util.spec_from_file_location(
    "stream_hours", Path(__file__).parents[1] / "benchmarks" / "stream_hours.py"
)
assert _spec is not None
assert _spec.loader is not None
stream_hours = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stream_hours)

RATE_HZ, LATE, STEP = 48_000, 6_000, 960


class Faulty:
    """A delay whose output has a fault: `spoil` changes the whole signal that comes out."""

    sample_rate_hz, latency_samples = RATE_HZ, LATE

    def __init__(self, seconds: float, spoil: Callable[[np.ndarray], np.ndarray]) -> None:
        samples = round(seconds * RATE_HZ)
        out = spoil(stream_hours.glide(0, samples, RATE_HZ))
        self._out = np.concatenate([np.zeros(LATE, np.float32), out, np.zeros(samples, np.float32)])

    def process(self, chunk: np.ndarray) -> np.ndarray:
        out, self._out = np.split(self._out, [len(chunk)])
        return out

    def flush(self) -> np.ndarray:
        return self._out[:LATE]


def repeated_step(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x[: 3 * RATE_HZ], x[2 * RATE_HZ :]])


def late_by(samples: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.concatenate([x[: 3 * RATE_HZ], np.full(samples, x[3 * RATE_HZ]), x[3 * RATE_HZ :]])


def clicking(x: np.ndarray) -> np.ndarray:
    x[3 * RATE_HZ] += 0.002
    return x


FAULTS = {
    "a lost sample": lambda x: np.delete(x, 3 * RATE_HZ),
    "a sample more": late_by(1),
    "a lost step of 20 ms": lambda x: np.delete(x, np.s_[3 * RATE_HZ : 3 * RATE_HZ + STEP]),
    "a lost second": lambda x: np.delete(x, np.s_[3 * RATE_HZ : 4 * RATE_HZ]),
    "a second twice": repeated_step,
    "a click": clicking,
    "the end is lost": lambda x: x[:-STEP],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_finds_faults(fault: str) -> None:
    worst = stream_hours.largest_difference(Faulty(6, FAULTS[fault]), [441], 6)
    assert worst > stream_hours.LARGEST_DIFFERENCE


def test_it_finds_none_where_there_is_none() -> None:
    assert stream_hours.largest_difference(Faulty(6, lambda x: x), [441, 7], 5.9) == 0
    with Denoiser(backend=DelayingBackend()) as denoiser:
        for rate_hz in (8_000, 44_100):
            stream = denoiser.stream(rate_hz, step_s=1.0, gain_db=0)
            assert stream_hours.largest_difference(stream, [777], 3) < stream_hours.LARGEST_DIFFERENCE / 10


def test_the_signal_does_not_repeat() -> None:
    """At no shift of up to 10 s in whole steps is it like itself: a lost or repeated step is found."""
    x = stream_hours.glide(20 * RATE_HZ, RATE_HZ // 10, RATE_HZ)
    for step in range(1, 501):
        other = stream_hours.glide(20 * RATE_HZ + step * STEP, len(x), RATE_HZ)
        assert np.abs(other - x).max() > 0.1
