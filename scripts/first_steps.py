"""Time what a new user does first, from a copy of the repository: `python scripts/first_steps.py [REPOSITORY]`.

It clones the repository, makes an environment, and prints the seconds of each step and from the beginning: install
and denoise a file, hear the first 20 ms of a stream, and quantize a model. pip uses its cache, if it has one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STREAM = """
import soundfile
from frcrn_accel import Denoiser

audio, rate = soundfile.read("examples/noisy.wav", dtype="float32")
stream = Denoiser("frcrn-small-stream").stream(rate)
step = rate // 50
for first in range(0, len(audio), step):
    if stream.process(audio[first : first + step]).any():
        print(f"sound after {(first + step) / rate:.2f} s of audio")
        break
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", nargs="?", default=Path(__file__).parents[1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone, environment = Path(name, "clone"), Path(name, "environment")
        python, command = environment / "bin" / "python", environment / "bin" / "frcrn-accel"
        install = (python, "-m", "pip", "install", "--quiet")
        steps: dict[str, list[tuple[str | Path, ...]]] = {
            "clone": [("git", "clone", "--quiet", str(arguments.repository), clone)],
            "environment": [(sys.executable, "-m", "venv", environment)],
            "first file": [
                (*install, ".[ort]"),
                (command, "denoise", "examples/noisy.wav", "-o", "clean.wav"),
            ],
            "first stream": [(python, "-c", STREAM)],
            "first quantized model": [
                (*install, ".[ort,quantize]"),
                (command, "quantize", "frcrn-small", "int8.onnx", "--method", "dynamic"),
            ],
        }
        began_s = time.perf_counter()
        for step, commands in steps.items():
            step_s = time.perf_counter()
            for line in commands:
                subprocess.run(line, check=True, cwd=clone if clone.exists() else name)
            now_s = time.perf_counter()
            print(f"{step}: {now_s - step_s:.1f} s, {now_s - began_s:.1f} s from the beginning", flush=True)


if __name__ == "__main__":
    main()
