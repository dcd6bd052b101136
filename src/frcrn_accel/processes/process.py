"""The other end of a worker: a variant that runs in a process of its own."""

from __future__ import annotations

import json
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

from frcrn_accel.errors import BenchError
from frcrn_accel.processes.worker import SAMPLE_RATE_HZ

__all__ = ["Loaded", "Process", "Run"]

WORKER = Path(__file__).with_name("worker.py")
_LONGEST_END_S = 10.0


@dataclass(frozen=True)
class Loaded:
    """What a variant says when it is ready.

    Attributes:
        load_s: Time of importing the library and the engine and of loading the model.
        backend: Name of the backend.
        precision: The number format it computes in.
        device: What it runs on, asked of the engine.
    """

    load_s: float
    backend: str
    precision: str
    device: str


@dataclass(frozen=True)
class Run:
    """One turn.

    Attributes:
        wall_s: Time it took.
        cpu_s: Time of all CPUs of its process in that.
        idle_cpu_s: Time of all CPUs of its process since the turn before, in which it had nothing to do.
    """

    wall_s: float
    cpu_s: float
    idle_cpu_s: float


class Process:
    """A denoiser in a process of its own.

    Args:
        title: What it is called in errors.
        options: Arguments of `Denoiser`; those that are None are left out.
        python: The interpreter; its environment says which version of this library is measured.

    Attributes:
        loaded: What it said when it was ready.

    Raises:
        BenchError: The denoiser cannot be made there.
    """

    def __init__(self, title: str, options: Mapping[str, Any], python: str | Path = sys.executable) -> None:
        self._title = title
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [str(python), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
        )
        try:
            given = {name: value for name, value in options.items() if value is not None}
            self.loaded = Loaded(**self._ask({"do": "load", "options": given}))
        except BaseException:
            self.close()
            raise

    def run(self, length_s: float) -> Run:
        """Denoise noise of a length and measure it."""
        self.start(length_s)
        return self.wait()

    def start(self, length_s: float) -> None:
        """Begin a run, to be waited for."""
        self._tell({"do": "run", "samples": round(length_s * SAMPLE_RATE_HZ)})

    def wait(self) -> Run:
        """The end of a run that was started."""
        return Run(**self._answer())

    def denoise(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """What becomes of `(samples,)` at 16 kHz."""
        with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
            source, target = Path(folder) / "source.npy", Path(folder) / "target.npy"
            np.save(source, audio)
            self._ask({"do": "denoise", "source": str(source), "target": str(target)})
            denoised: NDArray[np.float32] = np.load(target)
        return denoised

    def peak_memory_bytes(self) -> int | None:
        """Of the process so far, Python and the engine in it; None where the system does not tell."""
        peak: int | None = self._ask({"do": "memory"})["peak_memory_bytes"]
        return peak

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):  # it has ended already
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_LONGEST_END_S)
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
        """End the process, at once after an error."""
        if error is not None:
            self._process.kill()
        self.close()

    def _ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        self._tell(order)
        return self._answer()

    def _tell(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: that is told when its answer is asked for
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace").strip().splitlines()
            last = f": {said[-1]}" if said else ""
            raise BenchError(f"{self._title}: its process ended with code {code}{last}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._title}: {answer['error']}")
        return answer
