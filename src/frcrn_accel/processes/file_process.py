"""Run a `FileJob` in a process with limits, so that an untrusted file cannot crash this one.

The process decodes, resamples and encodes. The engine stays here: the process sends windows of audio and gets them
back denoised, so that all files share one model. Both ends speak over a socket:

=======================  ==========================================================================
from the process         answer
=======================  ==========================================================================
`run`, then audio        `audio`, then audio; or `stop`
`progress`               `go` or `stop`
`done` with a report     the next job
`failed` with an error   the next job
=======================  ==========================================================================

The process sends JSON and audio, never a pickle: a process that a file has taken over cannot run code here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import AudioError, AudioTooLongError, EngineError, OutputExistsError
from frcrn_accel.file_denoising import FileJob, FileReport
from frcrn_accel.posix_signals import signal_name
from frcrn_accel.processes.deadline import ends_after
from frcrn_accel.processes.intake import Intake, admit

__all__ = ["FileProcess", "FileProcesses", "ProcessLimits"]

_WORKER = Path(__file__).with_name("file_worker.py")
_PACKAGES = Path(__file__).parents[2]
_SECRETS = "FRCRN_ACCEL_TOKENS"  # the process does not need them
_TICK_S = 0.1
_STOP_S = 1.0  # for a process that was asked to stop
_MESSAGES = ("run", "progress", "done", "failed")
_MAX_TEXT_BYTES = 1 << 20
_MAX_WINDOW_SAMPLES = 1 << 26
_ERRORS: Mapping[str, type[Exception]] = {
    error.__name__: error for error in (AudioError, AudioTooLongError, EngineError, OutputExistsError, ValueError)
}


_Audio = NDArray[np.float32]


@dataclass(frozen=True)
class ProcessLimits:
    """Limits of a process for files.

    Attributes:
        memory_bytes: Address space beyond what the process takes by itself.
        stack_bytes: Stack.
        silence_s: Longest time to work without a sign of progress.
        descriptors: Open files.
        jobs: Jobs after which the process is replaced, so that leaks of libraries stay small.
    """

    memory_bytes: int = 2 << 30
    stack_bytes: int = 8 << 20
    silence_s: float = 30.0
    descriptors: int = 64
    jobs: int = 500


class FileProcess:
    """A process for files, one job at a time. It starts with the first job, and again after it has died.

    Args:
        limits: Its limits.
        died: Called after the process has died during a job.
    """

    def __init__(self, limits: ProcessLimits | None = None, died: Callable[[], None] = lambda: None) -> None:
        self._limits = limits or ProcessLimits()
        self._died = died
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._jobs = 0
        self._is_silent = False

    def run(self, job: FileJob, intake: Intake | None = None) -> FileReport:
        """Run a job in the process; see `FileJob.run`.

        `job.progress` is also called while the process is silent, so that it can stop a job that hangs.

        Args:
            job: The job. Its session runs in this process.
            intake: What to check, and to decide, once the source is open.

        Raises:
            AudioError: The job broke a limit, or ended the process; the message names the signal.
            Exception: See `FileJob.run`.
        """
        intake = intake or Intake()
        connection = self._open()
        try:
            self._send_job(connection, job, intake)
            result = self._result(job, self._serve(connection, job))
        except _Lost as error:
            raise AudioError(f"{str(job.source)!r} cannot be denoised: {self._reason_of_death()}") from error
        except BaseException:
            self._stop()
            raise
        self._jobs += 1
        if self._jobs >= self._limits.jobs:
            self.close()
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self) -> None:
        """End the process at once, from any thread; a job that it is running fails."""
        process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End the process, if it runs."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _open(self) -> Connection:
        if self._process is not None and self._process.poll() is not None:  # it died while idle
            self.close()
        if self._connection is None:
            near, far = socket.socketpair()
            with far:
                self._process = subprocess.Popen(
                    [sys.executable, str(_WORKER), json.dumps(dataclasses.asdict(self._limits))],
                    stdin=far.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                    start_new_session=True,
                )
            self._connection = Connection(near.detach())
            self._jobs = 0
            self._is_silent = False
        return self._connection

    def _send_job(self, connection: Connection, job: FileJob, intake: Intake) -> None:
        engine: Any = dataclasses.replace(job.engine, session=None)  # type: ignore[arg-type]
        plain = dataclasses.replace(job, engine=engine, progress=None)
        with _speaking(), self._timely():
            connection.send_bytes(pickle.dumps((plain, intake)))

    def _serve(self, connection: Connection, job: FileJob) -> dict[str, Any]:
        """Answer the process until the job ends; return its last message."""
        shown = 0.0, 0.0
        last_message = time.monotonic()
        while True:
            while not _has_message(connection, _TICK_S):
                _show(job, shown)
                if time.monotonic() - last_message > self._limits.silence_s:
                    raise AudioError(f"{str(job.source)!r} cannot be denoised: {self._silence}")
            with self._timely():
                message = _receive(connection)
                audio = _receive_audio(connection, message) if message["do"] == "run" else None
            answer: dict[str, Any] = {"do": "go"}
            if audio is not None:
                audio = np.ascontiguousarray(job.engine.session.run(audio), np.float32)
                answer = {"do": "audio", "shape": audio.shape}
            elif message["do"] == "progress":
                shown = _times(message)
                _show(job, shown)
            else:
                return message
            with self._timely():
                _send(connection, answer, audio)
            last_message = time.monotonic()

    def _stop(self) -> None:
        """Ask the process to stop its job; end the process if it does not."""
        connection = self._connection
        if connection is None:
            return
        deadline = time.monotonic() + _STOP_S
        with suppress(_Lost), ends_after(_STOP_S, self.kill):
            _send(connection, {"do": "stop"})
            while _has_message(connection, max(0.0, deadline - time.monotonic())):
                message = _receive(connection)
                if message["do"] in ("done", "failed"):
                    # If these crossed, the process forgets the request before its next job.
                    return
                if message["do"] == "run":
                    _receive_audio(connection, message)
        self.kill()
        self.close()

    @contextmanager
    def _timely(self) -> Iterator[None]:
        """End the process if it does not take or send a whole message in time."""
        with ends_after(self._limits.silence_s, self._give_up):
            yield

    def _give_up(self) -> None:
        self._is_silent = True
        self.kill()
        connection = self._connection
        if connection is not None:  # a process that this one started may still hold the other end
            with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as ours:
                ours.shutdown(socket.SHUT_RDWR)

    @property
    def _silence(self) -> str:
        return f"reading or writing it takes more than {self._limits.silence_s:g} s without progress"

    def _reason_of_death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        self.close()
        if self._is_silent:
            return self._silence
        self._died()
        if code is not None and code < 0:
            return f"reading or writing it ended its process ({signal_name(-code)})"
        return f"its process ended (code {code})"

    def _result(self, job: FileJob, answer: Mapping[str, Any]) -> FileReport | Exception:
        with _speaking():
            return _report(answer["report"]) if answer["do"] == "done" else self._error(job, answer)

    def _error(self, job: FileJob, answer: Mapping[str, Any]) -> Exception:
        kind, text = str(answer["kind"]), str(answer["text"])
        if kind == "MemoryError":
            self.close()  # its free memory may be fragmented
            mib = self._limits.memory_bytes >> 20
            return AudioError(f"{str(job.source)!r} cannot be denoised: it needs more memory than {mib} MiB")
        if kind == "OSError":
            return OSError(int(answer["errno"] or 0), text)
        error = _ERRORS[kind](text) if kind in _ERRORS else RuntimeError(f"a process for files failed:\n{text}")
        if answer.get("errno") is not None:
            error.__cause__ = OSError(int(answer["errno"]), text)
        return error


class FileProcesses:
    """Processes for files, for calls of several threads.

    On systems without the limits of POSIX, such as Windows, jobs run in this process.

    >>> processes = FileProcesses()
    >>> report = denoiser.denoise_file(recording, "out.wav", run=processes.run)
    >>> processes.close()

    Args:
        limits: Limits of each process.
        died: Called after a process died during a job.
    """

    def __init__(self, limits: ProcessLimits | None = None, died: Callable[[], None] = lambda: None) -> None:
        self._limits = limits
        self._died = died
        self._lock = threading.Lock()
        self._idle: list[FileProcess] = []
        self._is_closed = False

    def run(self, job: FileJob, intake: Intake | None = None) -> FileReport:
        """Run a job in a process that is idle, or in a new one; see `FileProcess.run`."""
        if os.name != "posix":
            return admit(job, intake or Intake()).run()
        with self._lock:
            process = self._idle.pop() if self._idle else FileProcess(self._limits, self._died)
        try:
            return process.run(job, intake)
        finally:
            with self._lock:
                is_closed = self._is_closed
                if not is_closed:
                    self._idle.append(process)
            if is_closed:
                process.close()

    def close(self) -> None:
        """End the processes that are idle now, and those that work once their jobs end."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.close()


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != _SECRETS}
    paths = [str(_PACKAGES), *filter(None, [environment.get("PYTHONPATH")])]
    # A file needs too little arithmetic for threads, which would take address space.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**environment, **threads, "PYTHONPATH": os.pathsep.join(paths)}


def _show(job: FileJob, shown: tuple[float, float]) -> None:
    if job.progress is not None:
        job.progress(*shown)


class _Lost(Exception):
    """The process died, or sent an invalid message."""


@contextmanager
def _speaking() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise _Lost from error


def _has_message(connection: Connection, timeout_s: float) -> bool:
    with _speaking():
        return connection.poll(timeout_s)


def _send(connection: Connection, message: Mapping[str, Any], audio: _Audio | None = None) -> None:
    with _speaking():
        connection.send_bytes(json.dumps(message).encode())
        if audio is not None:
            connection.send_bytes(audio.data.cast("B"))


def _receive(connection: Connection) -> dict[str, Any]:
    with _speaking():
        message = json.loads(connection.recv_bytes(_MAX_TEXT_BYTES))
        if not isinstance(message, dict) or message["do"] not in _MESSAGES:
            raise EOFError
        return message


def _times(message: Mapping[str, Any]) -> tuple[float, float]:
    with _speaking():
        return _seconds(message["done_s"]), _seconds(message["total_s"])


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not math.isfinite(seconds):  # JSON of Python has NaN and infinity
        raise ValueError
    return seconds


def _receive_audio(connection: Connection, message: Mapping[str, Any]) -> _Audio:
    with _speaking():
        rows, samples = (int(size) for size in message["shape"])
        if rows < 1 or samples < 1 or rows * samples > _MAX_WINDOW_SAMPLES:
            raise EOFError
        audio = np.empty((rows, samples), np.float32)
        if connection.recv_bytes_into(audio.data.cast("B")) != audio.nbytes:
            raise EOFError
        return audio


def _report(values: Mapping[str, Any]) -> FileReport:
    return FileReport(
        source=Path(values["source"]),
        target=Path(values["target"]),
        sample_rate_hz=int(values["sample_rate_hz"]),
        channels=int(values["channels"]),
        duration_s=_seconds(values["duration_s"]),
        processing_s=_seconds(values["processing_s"]),
        clipped_samples=int(values["clipped_samples"]),
        warnings=tuple(map(str, values["warnings"])),
        tracks=tuple(map(int, values["tracks"])),
        is_film=bool(values["is_film"]),
    )
