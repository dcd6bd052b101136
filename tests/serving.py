"""A server on loopback, in a thread of this process."""

from __future__ import annotations

import atexit
import io
import logging
import queue
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile

from delaying import DelayingBackend
from frcrn_accel import Denoiser, Session, Windowing
from frcrn_accel.batching import BatchingSession
from frcrn_accel.processes import FileProcesses
from frcrn_accel.serve import Limits, Service, create_app, listen
from frcrn_accel.serve.server import Server

__all__ = [
    "GatedBackend",
    "Running",
    "answer_to_drops",
    "gated_denoiser",
    "resident_bytes",
    "running",
    "sound_file",
    "wav",
]

_PROCESSES = FileProcesses()  # of all servers of these tests: starting one takes half a second
atexit.register(_PROCESSES.close)
_FOLDER = tempfile.TemporaryDirectory(prefix="frcrn-accel-tests-")


class GatedBackend(DelayingBackend):
    """A `DelayingBackend` whose calls for files wait for a gate too, and add no delay.

    Attributes:
        files_gate: Calls for files wait for it.
        files_entered: Released by each call for a file.
        batching: The session that `gated_denoiser` wrapped around it last.
    """

    batching: BatchingSession

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(gain)
        self.files_gate = threading.Event()
        self.files_gate.set()
        self.files_entered = threading.Semaphore(0)
        self.function = self._run_file

    def _run_file(self, audio: np.ndarray) -> np.ndarray:
        self.files_entered.release()
        assert self.files_gate.wait(60)
        return audio * np.float32(np.nan if self.broken else self.gain)


class Running:
    """A running server.

    Attributes:
        port: Its port.
        url: Its URL.
        service: Its service.
        folder: Folder of its temporary files.
        client: A client for it.
    """

    def __init__(self, port: int, service: Service, folder: Path, lines: queue.Queue[str], client: Any) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.service = service
        self.folder = folder
        self.client = client
        self._lines = lines

    def line(self, part: str) -> str:
        """Return the next log line with this in it. A request is over when its line is logged."""
        while True:
            line = self._lines.get(timeout=60)
            if part in line:
                return line

    def leftovers(self) -> list[Path]:
        """Return the temporary files."""
        return list(self.folder.iterdir())

    def raw(self, request: bytes = b"") -> socket.socket:
        """Open a connection and send the start of a request."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(request)
        return connection

    def head(self, length: int, path: str = "/v1/denoise") -> bytes:
        """Return the head of a request with a body of that length."""
        return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {length}\r\n\r\n".encode()


@contextmanager
def running(
    denoiser: Denoiser,
    folder: Path,
    limits: Limits | None = None,
    *,
    trusted_proxies: Sequence[str] = (),
    **options: Any,
) -> Iterator[Running]:
    """Run a server, warmed up, until the block ends.

    Args:
        denoiser: Its denoiser; it stays open.
        folder: Folder for its temporary files.
        limits: See `Service`.
        trusted_proxies: See `run_server`.
        options: See `create_app`.
    """
    lines: queue.Queue[str] = queue.Queue()
    handler = _Lines(lines)
    log = logging.getLogger("frcrn_accel.serve")
    folder.mkdir(exist_ok=True)
    before = tempfile.tempdir, log.level
    tempfile.tempdir = str(folder)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    service = Service(denoiser, limits, processes=_PROCESSES)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(create_app(service, **options), service, trusted_proxies)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            run = Running(port, service, folder, lines, client)
            run.line("ready")
            yield run
    finally:
        server.should_exit = True
        thread.join(60)
        log.removeHandler(handler)
        tempfile.tempdir, level = before
        log.setLevel(level)
    assert not thread.is_alive()
    assert service.active == 0
    assert list(folder.iterdir()) == []


def gated_denoiser(backend: GatedBackend, batch_size: int = 4) -> Denoiser:
    """Open a denoiser like that of the server, with short windows."""

    def wrap(session: Session) -> Session:
        backend.batching = BatchingSession(session, batch_size)
        return backend.batching

    windowing = Windowing(window_s=1.0, past_s=0.2, future_s=0.04, fade_s=0.05, fixed=True)
    return Denoiser(backend=backend, windowing=windowing, batch_size=batch_size, wrap_session=wrap)


def answer_to_drops(connection: socket.socket, drop: bytes) -> bytes:
    """Send a few bytes again and again until the server answers; return all of its answer."""
    connection.settimeout(0.02)
    for _ in range(3_000):
        # Once the server has closed the connection nothing can be sent, but its answer can still be received.
        with suppress(ConnectionError):
            connection.sendall(drop)
        with suppress(TimeoutError):
            answer = connection.recv(1 << 16)
            break
    else:
        raise AssertionError("no answer in a minute")
    connection.settimeout(60)
    with suppress(ConnectionError):  # the server did not read what was sent last
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not report it."""
    status = Path("/proc/self/status")
    return 1024 * int(status.read_text().split("VmRSS:")[1].split()[0]) if status.exists() else 0


def wav(audio: np.ndarray, rate: int = 16_000, **options: Any) -> bytes:
    """Encode audio, `(samples,)` or `(samples, channels)`, as a WAV or, with `format`, another file."""
    file = io.BytesIO()
    soundfile.write(file, audio, rate, **{"format": "WAV", **options})
    return file.getvalue()


def sound_file(content: bytes) -> Path:
    """Write a new file, since libsndfile reads MP3 better from files than from memory."""
    path = Path(_FOLDER.name) / secrets.token_hex(8)
    path.write_bytes(content)
    return path


class _Lines(logging.Handler):
    def __init__(self, lines: queue.Queue[str]) -> None:
        super().__init__()
        self._queue = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._queue.put(record.getMessage())
