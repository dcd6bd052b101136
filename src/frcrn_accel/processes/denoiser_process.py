"""Start a process with a denoiser, and control it from this one; `denoiser_worker` is the other end."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.errors import BenchError
from frcrn_accel.processes.denoiser_worker import SAMPLE_RATE_HZ

__all__ = ["DENOISER_WORKER", "DenoiserProcess", "Loaded", "Run"]

DENOISER_WORKER = Path(__file__).with_name("denoiser_worker.py")
_SHUTDOWN_S = 10.0


@dataclass(frozen=True)
class Loaded:
    """Report of a process whose denoiser is ready.

    Attributes:
        load_s: Time to import the library and the engine and to load the model.
        backend: Name of the backend.
        precision: Number format that it computes in.
        device: Device that it runs on, as reported by the engine.
    """

    load_s: float
    backend: str
    precision: str
    device: str


@dataclass(frozen=True)
class Run:
    """The measurements of one run.

    Attributes:
        wall_s: Elapsed time.
        cpu_s: CPU time of the process, summed over all CPUs, during the run.
        idle_cpu_s: CPU time of the process, summed over all CPUs, between the previous run and this one.
    """

    wall_s: float
    cpu_s: float
    idle_cpu_s: float


class DenoiserProcess:
    """A denoiser in a process of its own.

    Args:
        title: Name in error messages.
        options: Options of the denoiser; the backend by its name. Only those that differ from the defaults are sent,
            so that an earlier version of this library, which may not know all of them, can run the process.
        python: Interpreter; its environment decides which version of this library runs.

    Attributes:
        loaded: What the process reported when the denoiser was ready.

    Raises:
        BenchError: The denoiser cannot be opened there.
    """

    def __init__(self, title: str, options: DenoiserOptions, python: str | Path = sys.executable) -> None:
        self._title = title
        message = {"do": "load", "options": self._plain_values(options)}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [str(python), str(DENOISER_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )
        try:
            self.loaded = Loaded(**self._request(message))
        except BaseException:
            self.close()
            raise

    def run(self, length_s: float, step_s: float | None = None) -> Run:
        """Denoise noise of a length in seconds, and measure it.

        Args:
            length_s: The length.
            step_s: Denoise it as a stream with this step; None for one signal.
        """
        self.start(length_s, step_s)
        return self.wait()

    def start(self, length_s: float, step_s: float | None = None) -> None:
        """Start a run without waiting for its end, see `run`."""
        self._send({"do": "run", "samples": round(length_s * SAMPLE_RATE_HZ), "step_s": step_s})

    def wait(self) -> Run:
        """Wait for the end of a run that was started."""
        return Run(**self._receive())

    def denoise(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise `(samples,)` at 16 kHz; return the same shape."""
        with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
            source, target = Path(folder) / "source.npy", Path(folder) / "target.npy"
            np.save(source, audio)
            self._request({"do": "denoise", "source": str(source), "target": str(target)})
            denoised: NDArray[np.float32] = np.load(target)
        return denoised

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of the process so far, Python included; None on systems that do not report it."""
        peak: int | None = self._request({"do": "memory"})["peak_memory_bytes"]
        return peak

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):  # it has ended already
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()

    def __enter__(self) -> Self:
        """Return itself; leaving the block ends the process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process, after an error without waiting for it."""
        if error is not None:
            self._process.kill()
        self.close()

    def _plain_values(self, options: DenoiserOptions) -> dict[str, Any]:
        """Return the options that differ from the defaults, as JSON can hold them."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(options):
            value = getattr(options, field.name)
            if value == field.default:
                continue
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                value = dataclasses.asdict(value)
            elif isinstance(value, Path):
                value = str(value)
            elif value == math.inf:
                continue  # no limit, as by default; JSON has no infinity
            elif not isinstance(value, (str, int, float)):
                raise BenchError(f"{self._title}: {field.name} must be given by name for another process")
            values[field.name] = value
        return values

    def _request(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._send(message)
        return self._receive()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended; `_receive` reports that
            self._process.stdin.write(json.dumps(message, allow_nan=False) + "\n")
            self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()
            last = f": {lines[-1]}" if lines else ""
            raise BenchError(f"{self._title}: its process ended with code {code}{last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._title}: {answer['error']}")
        return answer
