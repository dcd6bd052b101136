"""Measure how much cutting a long signal into windows changes the result of a whole pass.

    python benchmarks/windows.py PAIRS_DIR [--signals 20] [--seconds 60] [--json OUT.json]

Half of the signals are clean speech of PAIRS_DIR, joined end to end, in the noise of one of its pairs (noisy minus
clean, repeated) at -2.5 to 12.5 dB SNR. The other half, which is harder, are joined noisy files, whose noise and SNR
change every few seconds. Printed: SI-SDR of the windowed result to the whole pass, mean and minimum over the signals
of each half, and the time relative to the whole pass.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from frcrn_accel import Denoiser, Windowing
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.quality import si_sdr_db

# window, past, future, fade; seconds
GRID = [
    *(Windowing(window_s, 2.0, 0.3, 0.5) for window_s in (10, 15, 20, 30)),
    *(Windowing(20, past_s, 0.3, 0.5) for past_s in (0.25, 1.0, 4.0)),
    *(Windowing(20, 2.0, 0.3, fade_s) for fade_s in (0.1, 2.0)),
    *(Windowing(20, 2.0, future_s, 0.5) for future_s in (0.04, 0.6)),
]


def steady_noise(pairs: Path, count: int, samples: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    paths = sorted((pairs / "clean").iterdir())
    for i in range(count):
        speech = joined(rng, paths, samples)
        path = paths[(i * len(paths)) // count]
        noise = np.resize(soundfile.read(pairs / "noisy" / path.name)[0] - soundfile.read(path)[0], samples)
        snr_db = (-2.5, 2.5, 7.5, 12.5)[i % 4]
        yield (speech + noise * np.std(speech) / np.std(noise) * 10 ** (-snr_db / 20)).astype(np.float32)


def changing_noise(pairs: Path, count: int, samples: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(1)
    for _ in range(count):
        yield joined(rng, sorted((pairs / "noisy").iterdir()), samples).astype(np.float32)


def joined(rng: np.random.Generator, paths: list[Path], samples: int) -> np.ndarray:
    """Join files in random order, all at the same level."""
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < samples:
        audio, _ = soundfile.read(paths[rng.integers(len(paths))])
        parts.append(audio * 0.05 / np.std(audio))
    return np.concatenate(parts)[:samples]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    half, samples = options.signals // 2, int(options.seconds * SAMPLE_RATE_HZ)
    audios = [*steady_noise(options.pairs, half, samples), *changing_noise(options.pairs, half, samples)]
    whole_pass = Denoiser(backend="ort", windowing=Windowing(window_s=2 * options.seconds))
    wholes, whole_s = [], []
    for audio in audios:
        began = time.perf_counter()
        wholes.append(whole_pass(audio, SAMPLE_RATE_HZ))
        whole_s.append(time.perf_counter() - began)

    rows = []
    print("| window, s | past, s | future, s | fade, s | steady noise, dB (min) | changing noise, dB (min) | time |")
    print("|---|---|---|---|---|---|---|")
    for windowing in [Windowing(), *GRID]:
        denoiser = Denoiser(backend="ort", windowing=windowing)
        sdr_db, relative = [], []
        for audio, whole, time_s in zip(audios, wholes, whole_s, strict=True):
            began = time.perf_counter()
            windowed = denoiser(audio, SAMPLE_RATE_HZ)
            relative.append((time.perf_counter() - began) / time_s)
            sdr_db.append(si_sdr_db(whole, windowed))
        row = {
            **vars(windowing),
            "steady_si_sdr_db": sdr_db[:half],
            "changing_si_sdr_db": sdr_db[half:],
            "relative_time": float(np.median(relative)),
        }
        rows.append(row)
        print(
            f"| {windowing.window_s:g} | {windowing.past_s:g} | {windowing.future_s:g} | {windowing.fade_s:g} "
            f"| {np.mean(sdr_db[:half]):.1f} ({np.min(sdr_db[:half]):.1f}) "
            f"| {np.mean(sdr_db[half:]):.1f} ({np.min(sdr_db[half:]):.1f}) | {row['relative_time']:.2f} |",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
