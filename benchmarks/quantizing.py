"""Measure where the time of quantizing goes, in seconds and in CPU seconds of each step.

    python benchmarks/quantizing.py frcrn-small dynamic static openvino-int8
    python benchmarks/quantizing.py --released-size dynamic

The methods share what they have in common, as in `frcrn-accel models import`. CPU seconds are those of all threads,
and depend less on what else the machine does. A step does not include the steps inside it. The digest of each file
shows whether a change of the code changes what it makes.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from frcrn_accel.errors import QualityError
from frcrn_accel.export import write_random_model
from frcrn_accel.models import VARIANT_METHODS, find_model
from frcrn_accel.network.topology import Config
from frcrn_accel.quantize import CALIBRATION_AUDIO, MAX_RESCUED, METHODS, GateThresholds, Source, quantize_model

# A function of the package, by module and name, and the step that it is.
STEPS = (
    ("onnxruntime", "InferenceSession.__init__", "sessions"),
    ("frcrn_accel.backends.openvino", "OpenVinoBackend.load", "sessions"),
    ("frcrn_accel.quantize.quantizer", "_prepare", "ranges"),
    ("frcrn_accel.quantize.candidate", "CandidateFactory._write", "graphs"),
    ("frcrn_accel.quantize.reference", "Reference.output", "gate: the source"),
    ("frcrn_accel.quantize.candidate", "compare", "gate: candidates"),
    ("frcrn_accel.quantize.gate", "_Scores.add_pesq", "gate: scores"),
    ("frcrn_accel.quantize.gate", "_Scores.add_dnsmos", "gate: scores"),
    ("frcrn_accel.quantize.quantizer", "_choose", "search for groups"),
)


@dataclass
class Spent:
    """Calls and time of a step.

    Attributes:
        calls: How often it ran.
        wall_s: Seconds.
        cpu_s: CPU seconds.
    """

    calls: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0


class Clock:
    """Attributes time to the innermost step of the main thread that runs."""

    def __init__(self) -> None:
        self.steps: dict[str, Spent] = defaultdict(Spent)
        self._open = ["other"]
        self._last = time.perf_counter(), time.process_time()

    def tick(self) -> None:
        """Attribute the time since the last call."""
        now = time.perf_counter(), time.process_time()
        spent = self.steps[self._open[-1]]
        spent.wall_s += now[0] - self._last[0]
        spent.cpu_s += now[1] - self._last[1]
        self._last = now

    def timed(self, function: Callable[..., Any], step: str) -> Callable[..., Any]:
        """Wrap a function that is a step."""

        @functools.wraps(function)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if current_thread() is not main_thread():
                return function(*arguments, **options)
            self.tick()
            self._open.append(step)
            self.steps[step].calls += 1
            try:
                return function(*arguments, **options)
            finally:
                self.tick()
                self._open.pop()

        return wrapped

    def watch(self) -> None:
        """Wrap the functions of `STEPS`."""
        for module, name, step in STEPS:
            *owners, last = name.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            setattr(owner, last, self.timed(getattr(owner, last), step))


def main() -> None:
    """Parse the command line, quantize, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="frcrn-small")
    parser.add_argument("methods", nargs="*", help=f"default: {' '.join(VARIANT_METHODS)}")
    parser.add_argument("--released-size", action="store_true", help="random weights of that size instead of a model")
    parser.add_argument("--max-rescued", type=int, default=MAX_RESCUED)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    methods = [options.model, *options.methods] if options.released_size else options.methods
    methods = [method for method in methods if method in METHODS] or list(VARIANT_METHODS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.released_size:
            model = write_random_model(folder / "m.onnx", Config(), "released-size")
        else:
            model = find_model(options.model)
        clock = Clock()
        clock.watch()
        source = Source(model)
        total = Spent()
        for method in methods:
            began = time.perf_counter(), time.process_time()
            calibration = CALIBRATION_AUDIO if METHODS[method].needs_calibration else None
            try:
                report = quantize_model(
                    source,
                    folder / f"{method}.onnx",
                    method,
                    calibration=calibration,
                    gate=None if options.no_gate else GateThresholds(),
                    max_rescued=options.max_rescued,
                )
            except QualityError as error:
                report = error.report
            wall_s, cpu_s = time.perf_counter() - began[0], time.process_time() - began[1]
            total.wall_s += wall_s
            total.cpu_s += cpu_s
            measures = report.gate.measures if report.gate else ()
            print(
                f"{method}: {report.verdict} in {wall_s:.1f} s, {cpu_s:.1f} CPU s, in float: "
                f"{', '.join(report.kept_float) or 'nothing'}, sha256 {report.output_sha256[:16]}, "
                + ", ".join(f"{m.metric} {m.value:.3f} {m.unit}" for m in measures if m.value is not None),
                flush=True,
            )
        clock.tick()
    print(f"\n| step | calls | s | CPU s |\n|---|---|---|---|\n| all | | {total.wall_s:.1f} | {total.cpu_s:.1f} |")
    for step, spent in sorted(clock.steps.items(), key=lambda entry: -entry[1].cpu_s):
        print(f"| {step} | {spent.calls or ''} | {spent.wall_s:.1f} | {spent.cpu_s:.1f} |")


if __name__ == "__main__":
    main()
