"""Run two hours of stream, fast-forward, with an engine that changes nothing.

`python benchmarks/stream_hours.py [HOURS] [--step-s 1]`. At each rate and chunk size, every call has to return as
many samples as it gets, and the signal has to come out `latency_samples` later, all the time, to its end. The signal
is a tone that glides between 300 and 3,300 Hz and repeats only after 97 s: a click, a sample that is lost, and a step
that is lost or comes twice all change it. Prints the largest difference, and fails if one is above -60 dB. Chunks of
one sample run for 10 s.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from frcrn_accel import Denoiser

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from delaying import DelayingBackend

RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_056, 44_100, 47_999, 48_000, 96_000)
LARGEST_DIFFERENCE = 1e-3  # a sample late at 96 kHz is 6e-3 at 300 Hz, and the resampling filters 3e-5
_PERIOD_S = 97.0
_SETTLED_S = 1.0  # the signal begins with a jump, which the filters smear
_EDGE_S = 0.01  # and it ends with one


def glide(first: int, count: int, rate_hz: int) -> np.ndarray:
    """Return samples of the signal from `first` on; before 0 they are zero."""
    time_s = np.arange(first, first + count) / rate_hz
    cycles = 1_800 * time_s + 1_500 * _PERIOD_S / (2 * np.pi) * np.sin(2 * np.pi * time_s / _PERIOD_S)
    return np.where(time_s >= 0, 0.3 * np.sin(2 * np.pi * cycles), 0).astype(np.float32)


def largest_difference(stream: Any, sizes: Iterable[int], seconds: float) -> float:
    """Return the largest difference of the output from the delayed input, from the first second to the end.

    Args:
        stream: A new stream.
        sizes: Chunk sizes, used again and again.
        seconds: Duration of the signal.

    Raises:
        ValueError: A call returned another number of samples than it got.
    """
    rate_hz, late, worst, first = stream.sample_rate_hz, stream.latency_samples, 0.0, 0
    begin = late + round(_SETTLED_S * rate_hz)

    def compare(found: np.ndarray, size: int) -> None:
        nonlocal worst, first
        if len(found) != size:
            raise ValueError(f"{len(found)} of {size} samples at {first}")
        wanted = glide(first - late, size, rate_hz)
        settled = max(0, begin - first)
        worst = max(worst, float(np.abs(found - wanted)[settled:].max(initial=0)))
        first += size

    for size in itertools.cycle(sizes):
        if first >= seconds * rate_hz:
            break
        compare(stream.process(glide(first, size, rate_hz)), size)
    rest, edge = stream.flush(), round(_EDGE_S * rate_hz)
    if len(rest) != late:
        raise ValueError(f"{len(rest)} of {late} samples at the end")
    compare(rest[: late - edge], late - edge)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hours", type=float, nargs="?", default=2.0)
    parser.add_argument("--step-s", type=float, default=1.0, help="Step of the streams; short ones take longer.")
    options = parser.parse_args()
    random_sizes = np.random.default_rng(0).integers(1, 5_000, 97).tolist()
    print(f"soxr {soxr.__version__}")
    worst = 0.0
    with Denoiser(backend=DelayingBackend()) as denoiser:
        for rate_hz in RATES_HZ:
            row = []
            chunks = {"10 ms": [rate_hz // 100], "20 ms": [rate_hz // 50], "441": [441], "random": random_sizes}
            for name, sizes in {"1": [1], **chunks}.items():
                stream = denoiser.stream(rate_hz, step_s=options.step_s, gain_db=0)
                found = largest_difference(stream, sizes, 10 if name == "1" else 3600 * options.hours)
                worst = max(worst, found)
                row.append(f"{name}: {found:.1e}")
            print(rate_hz, stream.latency_samples, *row, flush=True)
    if worst > LARGEST_DIFFERENCE:
        sys.exit(f"the output differs from the delayed input by {worst:.1e}")


if __name__ == "__main__":
    main()
