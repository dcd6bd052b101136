"""Run one denoiser, controlled by lines of JSON on standard input.

The file is run by its path, not as a module, so that any interpreter can run it, even one with an earlier version of
this library (benchmarks/regression.py). So it uses nothing of the library but `Denoiser` and `Windowing`.

===========================================  =====================================================
input line                                   output line
===========================================  =====================================================
`{"do": "load", "options": {...}}`           `{"load_s", "backend", "precision", "device"}`
`{"do": "run", "samples": n, "step_s": s}`   `{"wall_s", "cpu_s", "idle_cpu_s"}`; a stream if `s` is not null
`{"do": "denoise", "source": , "target": }`  `{}`; both are `.npy` files of `float32 (samples,)`
`{"do": "memory"}`                           `{"peak_memory_bytes"}`
===========================================  =====================================================

After an error the output line is `{"error": TEXT}`. The process ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Worker", "main", "peak_memory_bytes"]

SAMPLE_RATE_HZ = 16_000
LEVEL = 0.056  # root mean square that the model works at, -25 dBFS


class Worker:
    """Answers requests with one denoiser."""

    def __init__(self) -> None:
        self._denoiser: Any = None
        self._noise: Any = None
        self._idle_since_cpu_s = 0.0

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the output line for an input line."""
        actions = {"load": self._load, "run": self._run, "denoise": self._denoise, "memory": self._memory}
        answer: dict[str, Any] = actions[request["do"]](request)
        self._idle_since_cpu_s = time.process_time()
        return answer

    def _load(self, request: Mapping[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        from frcrn_accel import Denoiser  # timed: a user waits for imports too

        options = dict(request["options"])
        if "windowing" in options:
            from frcrn_accel import Windowing

            options["windowing"] = Windowing(**options["windowing"])
        self._denoiser = Denoiser(**options)
        load_s = time.perf_counter() - began
        return {
            "load_s": load_s,
            "backend": self._denoiser.backend,
            "precision": self._denoiser.precision,
            "device": self._denoiser.device,
        }

    def _run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        samples = request["samples"]
        if self._noise is None or len(self._noise) != samples:
            noise = np.random.default_rng(0).standard_normal(samples, np.float32)
            self._noise = noise * np.float32(LEVEL)
        idle_cpu_s = time.process_time() - self._idle_since_cpu_s
        step_s: float | None = request.get("step_s")
        step = round((step_s or 0) * SAMPLE_RATE_HZ)
        # A stream starts before the clock: only its steps are measured.
        stream = None if step_s is None else self._denoiser.stream(SAMPLE_RATE_HZ, step_s=step_s)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        if stream is None:
            self._denoiser(self._noise, SAMPLE_RATE_HZ)
        else:
            for first in range(0, samples, step):
                stream.process(self._noise[first : first + step])
        return {
            "wall_s": time.perf_counter() - wall_s,
            "cpu_s": time.process_time() - cpu_s,
            "idle_cpu_s": idle_cpu_s,
        }

    def _denoise(self, request: Mapping[str, Any]) -> dict[str, Any]:
        import numpy as np

        np.save(request["target"], self._denoiser(np.load(request["source"]), SAMPLE_RATE_HZ))
        return {}

    def _memory(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {"peak_memory_bytes": peak_memory_bytes()}


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process; None on systems that do not report it."""
    try:
        # Not getrusage on Linux: its peak includes that of the parent process.
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        pass
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def main() -> None:
    """Answer until the input ends."""
    # Keep whatever an engine prints out of the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    worker = Worker()
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # reported by the process at the other end
            known = any(base.__name__ == "FrcrnAccelError" for base in type(error).__mro__)
            answer = {"error": str(error) if known else f"{type(error).__name__}: {error}"}
        print(json.dumps(answer, allow_nan=False), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are not top-level modules
    main()
