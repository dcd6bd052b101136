"""Check that this version is as fast as another one; exit with 1 if it is not.

    python benchmarks/regression.py --old PYTHON [--configuration ort] [--least-ratio 0.9] [--model M] [--step-s 0.1]

With `--step-s`, both denoise the clip as a stream.

PYTHON is the interpreter of an environment with the other version; `nox -s regression -- REF` makes one. Each version
runs in a process of its own, with the default model in its package unless a file is given, and they take turns. The
check fails if this version is less than `--least-ratio` times as fast, by the median over the rounds. While the 95 %
interval of that contains the limit, more rounds are measured, up to `--most-rounds`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from frcrn_accel.bench import LEAST_ROUNDS, Ratio, times_faster
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.processes import DenoiserProcess

PAUSE_S = 0.05  # as in frcrn_accel.bench: wait until spinning threads sleep
VERSION = "import frcrn_accel; print(frcrn_accel.__version__, frcrn_accel.__file__)"


def measure(
    old: DenoiserProcess,
    new: DenoiserProcess,
    length_s: float,
    step_s: float | None,
    least_ratio: float,
    rounds: int,
    most_rounds: int,
) -> Ratio:
    """Measure how many times as fast the new version is, with as many rounds as a decision takes."""
    for process in (old, new, old, new):
        process.run(length_s, step_s)
    old_s: list[float] = []
    new_s: list[float] = []
    while True:
        for process, times_s in ((old, old_s), (new, new_s)):
            time.sleep(PAUSE_S)
            times_s.append(process.run(length_s, step_s).wall_s)
        if len(new_s) < rounds:
            continue
        ratio = times_faster(new_s, old_s)
        is_decided = not ratio.low <= least_ratio <= ratio.high
        if is_decided or len(new_s) >= most_rounds:
            print(f"{len(new_s)} rounds")
            return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", required=True, metavar="PYTHON", help="interpreter of the other version")
    parser.add_argument("--least-ratio", type=float, default=0.9)
    parser.add_argument("--model", type=Path, help="a model file for both")
    parser.add_argument(
        "--configuration", default="ort", metavar="BACKEND[:PRECISION]", help="configuration to measure"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--length-s", type=float, default=5.0)
    parser.add_argument("--step-s", type=float, help="step of a stream; without it, the clip is one signal")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--most-rounds", type=int, default=60)
    options = parser.parse_args()
    if options.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds must be at least {LEAST_ROUNDS}")
    versions = []
    for name, python in (("old", options.old), ("new", sys.executable)):
        said = subprocess.run([python, "-c", VERSION], check=True, capture_output=True, text=True).stdout.strip()
        print(f"{name}: {said}")
        versions.append(said)
    if versions[0] == versions[1]:
        parser.error("both interpreters have the same installation: nothing to compare")
    backend, _, precision = options.configuration.partition(":")
    denoiser = DenoiserOptions(
        model=options.model or DEFAULT_MODEL,
        backend=backend,
        precision=precision or None,
        threads=options.threads,
    )
    with DenoiserProcess("old", denoiser, options.old) as old, DenoiserProcess("new", denoiser) as new:
        ratio = measure(
            old,
            new,
            options.length_s,
            options.step_s,
            options.least_ratio,
            options.rounds,
            max(options.rounds, options.most_rounds),
        )
    found = f"{ratio.median:.3f} times as fast ({ratio.low:.3f} to {ratio.high:.3f})"
    if ratio.median < options.least_ratio:
        sys.exit(
            f"{options.configuration}: the new version is only {found}; at least {options.least_ratio:g} is required"
        )
    print(f"{options.configuration}: the new version is {found}")


if __name__ == "__main__":
    main()
