"""Measure what one cold command costs: `nox -s cold-start -- [--runs 11] [--backends ort openvino] [--model NAME]`.

Each run is a process of its own, on 10 s of noise at 16 kHz. The commands take turns, so that other load affects all
of them. The table has medians, and minima, which other load affects least. The first round is not counted: it
compiles the modules to bytecode, and fills the cache of compiled models. Linux and macOS only.

Three commands are for comparison: `python` runs nothing, `libraries` imports what any program for sound with that
engine imports (numpy, soundfile and the engine), and `in Python` denoises one array with a `Denoiser`.

With `--parts`, a process that does what `denoise` does, step by step, says what each step takes.
"""

from __future__ import annotations

import argparse
import array
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, NamedTuple

RATE_HZ, LENGTH_S = 16_000, 10
ENGINES = {"ort": "onnxruntime", "openvino": "openvino"}
IN_PYTHON = """
import numpy as np
from frcrn_accel import Denoiser
model, backend, samples = {model!r}, {backend!r}, {samples}
with Denoiser(model, backend=backend) as denoiser:
    denoiser(0.1 * np.random.default_rng(0).standard_normal(samples).astype("float32"), {rate})
"""
# What `frcrn-accel denoise` does, with a time stamp after each step: seconds on the clock, and of all threads' CPU.
PARTS = """
import time
stamps = []
def stamp(name):
    stamps.append((name, time.time(), time.process_time()))
stamp("start Python")
import numpy, soundfile
stamp("import numpy, soundfile")
import frcrn_accel
stamp("import frcrn_accel")
import typer, frcrn_accel.cli, frcrn_accel.cli.denoise
stamp("import the command")
import frcrn_accel.files
stamp("import frcrn_accel.files")
import {engine}
stamp("import {engine}")
import json, pathlib
source, target = map(pathlib.Path, {paths!r})
frcrn_accel.files.open_audio(source)
stamp("open the file")
run_s = [0.0, 0.0]
class Timed(frcrn_accel.Session):
    def __init__(self, inner):
        self.inner, self.device = inner, inner.device
    def run(self, audio):
        start = time.time(), time.process_time()
        found = self.inner.run(audio)
        run_s[:] = run_s[0] + time.time() - start[0], run_s[1] + time.process_time() - start[1]
        return found
    def close(self):
        self.inner.close()
denoiser = frcrn_accel.Denoiser({model!r}, backend={backend!r}, wrap_session=Timed)
stamp("load the model")
denoiser.denoise_file(source, target, overwrite=True)
name, clock, cpu = "run the model", stamps[-1][1] + run_s[0], stamps[-1][2] + run_s[1]
stamps.append((name, clock, cpu))
stamp("read, measure and write")
denoiser.close()
stamp("close the model")
print(json.dumps(stamps), flush=True)
"""


class Cost(NamedTuple):
    """The cost of one process."""

    wall_s: float
    cpu_s: float
    peak_bytes: int


def main() -> None:
    """Measure all commands in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11, help="counted runs of each command")
    parser.add_argument("--backends", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--model", default="frcrn-small")
    parser.add_argument("--parts", action="store_true", help="also what each step takes")
    options = parser.parse_args()
    print(machine(options.backends), flush=True)
    print(f"{options.model}, {LENGTH_S} s at {RATE_HZ} Hz, mono WAV; {options.runs} runs of each in turns\n")
    with tempfile.TemporaryDirectory() as name:
        paths = [str(Path(name, file)) for file in ("noisy.wav", "clean.wav")]
        write_noise(paths[0])
        measured = commands(options.model, options.backends, paths)
        costs = take_turns(measured, options.runs)
        print("| process | wall, s | least | CPU, s | least | peak memory, MB |\n|---|---|---|---|---|---|")
        for command, found in costs.items():
            print(row(command, found), flush=True)
        if options.parts:
            for backend in options.backends:
                print_parts(options.model, backend, paths, options.runs)


def write_noise(path: str) -> None:
    """Write noise. This process imports no numpy: its memory is the least that Linux reports for those it starts."""
    random = Random(0)
    samples = array.array("h", (round(random.gauss(0, 3_000)) for _ in range(LENGTH_S * RATE_HZ)))
    if sys.byteorder == "big":
        samples.byteswap()
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, RATE_HZ, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())


def machine(backends: list[str]) -> str:
    """Return a line that names the machine, and the versions of what is measured."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    packages = ["frcrn-accel", "numpy", "typer", *(ENGINES[name] for name in backends)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{cpu}, {os.cpu_count()} CPUs, load {load}; Python {platform.python_version()}, {versions}"


def commands(model: str, backends: list[str], paths: list[str]) -> dict[str, list[str]]:
    """Return the commands by their names."""
    python, (source, target) = sys.executable, paths
    cli = [python, "-m", "frcrn_accel"]
    found = {"python": [python, "-c", "pass"]}
    for backend in backends:
        found[f"libraries, {backend}"] = [python, "-c", f"import numpy, soundfile, {ENGINES[backend]}"]
    found["frcrn-accel --version"] = [*cli, "--version"]
    found["frcrn-accel --help"] = [*cli, "--help"]
    found["import frcrn_accel"] = [python, "-c", "import frcrn_accel"]
    denoise = [*cli, "denoise", source, "-o", target, "--overwrite", "--model", model, "--backend"]
    for backend in backends:
        code = IN_PYTHON.format(model=model, backend=backend, samples=LENGTH_S * RATE_HZ, rate=RATE_HZ)
        found[f"in Python, {backend}"] = [python, "-c", code]
        found[f"denoise, {backend}"] = [*denoise, backend]
    found["denoise, auto"] = [*denoise, "auto"]
    return found


def take_turns(measured: dict[str, list[str]], runs: int) -> dict[str, list[Cost]]:
    """Run all commands once for nothing, then in turns."""
    costs: dict[str, list[Cost]] = {name: [] for name in measured}
    for number in range(runs + 1):
        for name, command in measured.items():
            cost = run(command)
            if number:
                costs[name].append(cost)
    return costs


def run(command: list[str]) -> Cost:
    """Run a command and return its cost. An error ends the measurement."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise SystemExit(f"{command} failed: {errors.decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def environment() -> dict[str, str]:
    """Return the environment of the processes: with bytecode, as an installed package has it."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def row(name: str, costs: list[Cost]) -> str:
    """Return a line of the table.

    >>> row("python", [Cost(0.02, 0.01, 9_000_000), Cost(0.03, 0.02, 9_000_000), Cost(0.5, 0.04, 9_000_000)])
    '| python | 0.03 | 0.02 | 0.02 | 0.01 | 9 |'
    """
    cells = [f"{choose(cost[n] for cost in costs):.2f}" for n in (0, 1) for choose in (median, min)]
    return f"| {name} | {' | '.join(cells)} | {median(cost.peak_bytes for cost in costs) / 1e6:.0f} |"


def print_parts(model: str, backend: str, paths: list[str], runs: int) -> None:
    """Print what the steps of denoising take."""
    code = PARTS.format(engine=ENGINES[backend], paths=paths, model=model, backend=backend)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(runs):
        before, cpu_before = time.time(), 0.0
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(), check=True, capture_output=True, text=True
        )
        end = time.time()
        stamps: list[Any] = json.loads(done.stdout)
        for name, clock, cpu in stamps:
            found.setdefault(name, []).append((clock - before, cpu - cpu_before))
            before, cpu_before = clock, cpu
        found.setdefault("end the process", []).append((end - before, float("nan")))
    print(f"\n| step, {backend} | wall, ms | CPU, ms |\n|---|---|---|")
    for name, times in found.items():
        walls, cpus = zip(*times, strict=True)
        print(f"| {name} | {1e3 * median(walls):.0f} | {1e3 * median(cpus):.0f} |")


if __name__ == "__main__":
    main()
