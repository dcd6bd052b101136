"""Time and memory of denoising a file, against its length.

    python benchmarks/length.py [--minutes 0.1667 1 10 60] [--threads 2] [--rate 16000] [--json OUT.json]

The file is examples/noisy.wav over and over. Each run is a process of its own; its memory is the peak over that of an
idle Python interpreter.
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

NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"
IDLE = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
RUN = """
import resource, sys
from frcrn_accel import Denoiser
source, target, threads = sys.argv[1:]
report = Denoiser(backend="ort", threads=int(threads)).denoise_file(source, target)
print(report.processing_s, report.duration_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def python(code: str, *arguments: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[10 / 60, 1, 10, 60])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=int, default=16_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    (idle_kib,) = python(IDLE)
    audio, rate = soundfile.read(NOISY, dtype="float32")
    audio = soxr.resample(audio, rate, options.rate)
    rows = []
    print(f"frcrn-small on ort, {options.threads} thread(s), {options.rate} Hz mono PCM_16")
    print("| length | time, s | RTF | peak memory over an idle interpreter, MB |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.wav", Path(folder) / "out.wav"
        for minutes in options.minutes:
            left = round(minutes * 60 * options.rate)
            with soundfile.SoundFile(source, "w", options.rate, 1) as file:
                while left > 0:
                    file.write(audio[:left])
                    left -= len(audio)
            processing_s, duration_s, peak_kib = python(RUN, str(source), str(target), str(options.threads))
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
