"""Calibrate a model file for INT8 on OpenVINO with mixtures of speech and noise.

    python scripts/calibrate_openvino.py MODEL OUT --speech DIR --noise DIR [--clips 48] [--seconds 5]

DIR holds 16 kHz mono files that libsndfile reads; pieces of them are mixed at -5 to 25 dB, from a fixed seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.export import read_weights
from frcrn_accel.model.topology import SAMPLE_RATE_HZ
from frcrn_accel.models import find_model
from frcrn_accel.quantize.openvino_int8 import calibrate, write_limits

LEVEL = 10 ** (-25 / 20)  # as the denoiser brings signals to
SILENCE = 0.003  # pieces below this RMS are skipped


def piece(paths: list[Path], samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Somewhere in one of the files, where it is not silent."""
    while True:
        with soundfile.SoundFile(paths[rng.integers(len(paths))]) as file:
            if file.samplerate != SAMPLE_RATE_HZ or file.channels != 1:
                raise SystemExit(f"{file.name}: expected mono at {SAMPLE_RATE_HZ} Hz")
            file.seek(int(rng.integers(max(1, file.frames - samples))))
            audio: NDArray[np.float32] = file.read(samples, dtype="float32")
        if len(audio) == samples and rms(audio) > SILENCE:
            return audio


def rms(audio: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(audio**2)))


def mixtures(options: argparse.Namespace) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    speech, noise = sorted(options.speech.iterdir()), sorted(options.noise.iterdir())
    samples = int(options.seconds * SAMPLE_RATE_HZ)
    for _ in range(options.clips):
        a, b = piece(speech, samples, rng), piece(noise, samples, rng)
        mixture = a + b * np.float32(rms(a) / rms(b) * 10 ** (-rng.uniform(-5, 25) / 20))
        yield (mixture * np.float32(LEVEL / rms(mixture)))[None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--noise", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    source = find_model(options.model).path
    limits = calibrate(read_weights(source), mixtures(options), threads=options.threads)
    write_limits(source, options.out, limits)
    for layer, limit in limits.items():
        print(f"{layer}: {limit:.3g}")


if __name__ == "__main__":
    main()
