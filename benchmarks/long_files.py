"""Measure what a long file costs besides the model: reading, level, resampling, full band, and writing.

    python benchmarks/long_files.py [--minutes 60] [--formats ...] [--old SRC] [--json OUT.json]

The engine returns its input, so that only the rest is measured. The files repeat examples/noisy.wav. Each run is a
process of its own, and the CPU seconds of all its threads are taken. `--old` is the folder `src` of another version,
which takes turns with this one on the formats that it reads. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import imageio_ffmpeg

NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"
SRC = Path(__file__).parents[1] / "src"
RUN = """
import resource, sys
from frcrn_accel import Denoiser
from frcrn_accel.testing import FunctionBackend
before = resource.getrusage(resource.RUSAGE_SELF)
report = Denoiser(backend=FunctionBackend()).denoise_file(sys.argv[1], sys.argv[2], overwrite=True)
after = resource.getrusage(resource.RUSAGE_SELF)
cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(cpu_s, report.duration_s, after.ru_maxrss / 1000)
"""
PICTURE = ("-f", "lavfi", "-i", "testsrc=size=320x180:rate=5")
# Name, and the arguments of FFmpeg that make it.
FORMATS: dict[str, tuple[str, ...]] = {
    "16 kHz.wav": ("-ar", "16000"),
    "48 kHz stereo.wav": ("-ar", "48000", "-ac", "2"),
    "48 kHz stereo.flac": ("-ar", "48000", "-ac", "2"),
    "44.1 kHz stereo.mp3": ("-ar", "44100", "-ac", "2", "-b:a", "128k"),
    "48 kHz stereo.m4a": ("-ar", "48000", "-ac", "2", "-c:a", "aac", "-b:a", "128k"),
    "48 kHz stereo.mp4": (
        "-ar",
        "48000",
        "-ac",
        "2",
        "-c:a",
        "aac",
        "-b:a",
        "128k",
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
    ),
}
OLD_READS = (".wav", ".flac", ".mp3")


def make(folder: Path, name: str, minutes: float) -> Path:
    """Make a file of a format with FFmpeg."""
    path = folder / name
    picture = PICTURE if path.suffix == ".mp4" else ()
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-stream_loop", "-1", "-i", str(NOISY), *picture]
    command += ["-t", str(60 * minutes), *FORMATS[name], str(path)]
    subprocess.run(command, check=True)
    return path


def run(source: Path, target: Path, src: Path) -> tuple[float, float, float]:
    """Denoise in a process of its own; return CPU seconds, duration in seconds, and peak memory in MB."""
    environment = {**os.environ, "PYTHONPATH": str(src)}
    command = [sys.executable, "-c", RUN, str(source), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    cpu_s, duration_s, memory_mb = map(float, done.stdout.split())
    return cpu_s, duration_s, memory_mb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--old", type=Path, metavar="SRC", help="folder of the package of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("| file | CPU s for each hour | memory, MB | CPU s, old | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file_name in options.formats:
            source = make(folder, file_name, options.minutes)
            target = folder / f"out{source.suffix}"
            new, old = [], []
            for _ in range(options.rounds):
                new.append(run(source, target, SRC))
                if options.old is not None and source.suffix in OLD_READS:
                    old.append(run(source, target, options.old))
            hours = new[0][1] / 3600
            row = {
                "file": file_name,
                "duration_s": new[0][1],
                "cpu_s_per_hour": statistics.median(cpu_s for cpu_s, *_ in new) / hours,
                "memory_mb": max(memory_mb for *_, memory_mb in new),
                "old_cpu_s_per_hour": statistics.median(cpu_s for cpu_s, *_ in old) / hours if old else None,
            }
            rows.append(row)
            before = row["old_cpu_s_per_hour"]
            compared = f"{before:.1f} | {row['cpu_s_per_hour'] / before:.2f}" if before else " | "
            print(f"| {file_name} | {row['cpu_s_per_hour']:.1f} | {row['memory_mb']:.0f} | {compared} |", flush=True)
            source.unlink()
    if options.json is not None:
        options.json.write_text(json.dumps({"minutes": options.minutes, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
