"""Run two hours of stream, fast-forward, with an engine that changes nothing.

`python benchmarks/stream_hours.py [HOURS]`. At each rate and chunk size, every call has to return as many samples as
it gets, and a tone has to come out `latency_samples` later, all the time. Chunks of one sample run for 10 s.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import soxr

from frcrn_accel import Denoiser

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from delaying import DelayingBackend

RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_056, 44_100, 47_999, 48_000, 96_000)


def run(denoiser: Denoiser, rate_hz: int, sizes: list[int], seconds: float) -> float:
    """Return the largest difference of the output from the delayed input."""
    stream = denoiser.stream(rate_hz, step_s=1.0, gain_db=0)
    late, total, worst, first = stream.latency_samples, int(seconds * rate_hz), 0.0, 0
    for size in itertools.cycle(sizes):
        if first >= total:
            return worst

        def tone(start: int, count: int) -> np.ndarray:
            n = np.arange(start, start + count)
            return np.where(n >= 0, 0.3 * np.sin(2 * np.pi * (n * 200 % rate_hz) / rate_hz), 0).astype(np.float32)

        found = stream.process(tone(first, size))
        if len(found) != size:
            raise SystemExit(f"{len(found)} of {size} samples at {first}")
        if first > late + rate_hz:
            worst = max(worst, float(np.abs(found - tone(first - late, size)).max()))
        first += size
    raise AssertionError


def main() -> None:
    hours = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    random_sizes = np.random.default_rng(0).integers(1, 5_000, 97).tolist()
    print(f"soxr {soxr.__version__}")
    with Denoiser(backend=DelayingBackend()) as denoiser:
        for rate_hz in RATES_HZ:
            row = []
            chunks = {"10 ms": [rate_hz // 100], "20 ms": [rate_hz // 50], "441": [441], "random": random_sizes}
            for name, sizes in {"1": [1], **chunks}.items():
                row.append(f"{name}: {run(denoiser, rate_hz, sizes, 10 if name == '1' else 3600 * hours):.1e}")
            print(rate_hz, denoiser.stream(rate_hz, step_s=1.0).latency_samples, *row, flush=True)


if __name__ == "__main__":
    main()
