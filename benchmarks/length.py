"""Time and memory of denoising a file, against its length.

    python benchmarks/length.py [--minutes 0.1667 1 10 60] [--window-s 20] [--released-size] [--json OUT.json]

The file is examples/noisy.wav over and over. Each run is a process of its own; its memory is the peak over that of an
idle Python interpreter. `--released-size` takes the released model if it was imported, else a network of
its size with random weights (needs `[quantize]`). Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile
import soxr

from frcrn_accel import Windowing
from frcrn_accel.bench import released_size_model
from frcrn_accel.models import DEFAULT_MODEL

NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"
IDLE = "from process import peak_memory_kib; print(peak_memory_kib())"
RUN = """
import sys
from process import peak_memory_kib
from frcrn_accel import Denoiser, Windowing
source, target, model, threads, window_s = sys.argv[1:]
denoiser = Denoiser(model, backend="ort", threads=int(threads), windowing=Windowing(window_s=float(window_s)))
report = denoiser.denoise_file(source, target)
print(report.processing_s, report.duration_s, peak_memory_kib())
"""


def python(code: str, *arguments: str) -> list[float]:
    command = [sys.executable, "-c", code, *arguments]
    # In this folder, to find `process`.
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10 / 60, 1, 10, 60])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--window-s", type=float, default=Windowing().window_s)
    parser.add_argument("--released-size", action="store_true")
    parser.add_argument("--rate", type=int, default=16_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    (idle_kib,) = python(IDLE)
    audio, rate = soundfile.read(NOISY, dtype="float32")
    audio = soxr.resample(audio, rate, options.rate)
    rows = []
    what = "released size" if options.released_size else DEFAULT_MODEL
    print(f"{what} on ort, {options.threads} threads, windows of {options.window_s:g} s, {options.rate} Hz mono")
    print("| length | time, s | RTF | peak memory over an idle interpreter, MB |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.wav", Path(folder) / "out.wav"
        model = str(released_size_model(Path(folder)).file.path) if options.released_size else DEFAULT_MODEL
        for minutes in options.minutes:
            left = round(minutes * 60 * options.rate)
            with soundfile.SoundFile(source, "w", options.rate, 1) as file:
                while left > 0:
                    file.write(audio[:left])
                    left -= len(audio)
            processing_s, duration_s, peak_kib = python(
                RUN, str(source), str(target), model, str(options.threads), str(options.window_s)
            )
            row = {
                "duration_s": duration_s,
                "processing_s": processing_s,
                "real_time_factor": processing_s / duration_s,
                "memory_mb": (peak_kib - idle_kib) * 1024 / 1e6,
            }
            rows.append(row)
            length = f"{duration_s / 60:g} min" if duration_s >= 60 else f"{duration_s:g} s"
            print(
                f"| {length} | {processing_s:.1f} | {row['real_time_factor']:.4f} | {row['memory_mb']:.0f} |",
                flush=True,
            )
            target.unlink()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
