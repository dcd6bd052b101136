"""Measure time and memory of denoising a file, against its length.

    python benchmarks/length.py [--minutes 0.1667 1 10 60] [--window-s 20] [--released-size] [--json OUT.json]

The file repeats examples/noisy.wav. Each run is a process of its own; its memory is the peak above that of an idle
Python interpreter. `--released-size` uses the released model if it was imported, else a network of its size with
random weights (needs `[quantize]`). Linux only.
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
from frcrn_accel.processes import DENOISER_WORKER

NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"
RUN = """
import sys
from frcrn_accel import Denoiser, Windowing
from frcrn_accel.processes.denoiser_worker import peak_memory_bytes
source, target, model, threads, window_s = sys.argv[1:]
denoiser = Denoiser(model, backend="ort", threads=int(threads), windowing=Windowing(window_s=float(window_s)))
report = denoiser.denoise_file(source, target)
print(report.processing_s, report.duration_s, peak_memory_bytes())
"""


def run(*arguments: str) -> list[float]:
    """Denoise in a process of its own; return processing time, duration and peak memory in bytes."""
    command = [sys.executable, "-c", RUN, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def idle_memory_bytes() -> int:
    """Return the peak memory of an interpreter that has loaded nothing."""
    request = json.dumps({"do": "memory"}) + "\n"
    command = [sys.executable, str(DENOISER_WORKER)]
    done = subprocess.run(command, input=request, check=True, capture_output=True, text=True)
    memory_bytes: int = json.loads(done.stdout)["peak_memory_bytes"]
    return memory_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10 / 60, 1, 10, 60])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--window-s", type=float, default=Windowing().window_s)
    parser.add_argument("--released-size", action="store_true")
    parser.add_argument("--rate", type=int, default=16_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    idle_bytes = idle_memory_bytes()
    audio, rate = soundfile.read(NOISY, dtype="float32")
    audio = soxr.resample(audio, rate, options.rate)
    rows = []
    what = "released size" if options.released_size else DEFAULT_MODEL
    print(f"{what} on ort, {options.threads} threads, windows of {options.window_s:g} s, {options.rate} Hz mono")
    print("| length | time, s | RTF | peak memory above an idle interpreter, MB |")
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
            processing_s, duration_s, peak_bytes = run(
                str(source), str(target), model, str(options.threads), str(options.window_s)
            )
            row = {
                "duration_s": duration_s,
                "processing_s": processing_s,
                "real_time_factor": processing_s / duration_s,
                "memory_mb": (peak_bytes - idle_bytes) / 1e6,
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
