"""The process of `FileProcess`: run the jobs received over the socket on standard input; see there.

The file is run by its path with its limits as argument.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PROGRESS_S = 0.05
_SYSTEM_ERROR = 2  # libsndfile's SF_ERR_SYSTEM, e.g. a full disk
_IGNORED = ("SIGINT", "SIGTERM", "SIGHUP")  # sent to process groups; this process ends with the other one instead


class _Stopped(Exception):
    """The result is no longer wanted."""


class _Peer:
    """The other process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._shown = 0.0

    def ask(self, message: Mapping[str, Any], audio: Any = None) -> Any:
        """Send a message; return the audio of the answer, if it has some.

        Raises:
            _Stopped: The answer is to stop.
        """
        import numpy as np

        self.send(message)
        if audio is not None:
            self._connection.send_bytes(np.ascontiguousarray(audio, np.float32).data.cast("B"))
        answer = json.loads(self._connection.recv_bytes())
        if answer["do"] == "stop":
            raise _Stopped
        if answer["do"] == "audio":
            denoised = np.empty(answer["shape"], np.float32)
            self._connection.recv_bytes_into(denoised.data.cast("B"))
            return denoised
        return None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message that has no answer."""
        self._connection.send_bytes(json.dumps(message).encode())

    def show(self, done_s: float, total_s: float) -> None:
        """Report progress.

        Raises:
            _Stopped: The other process asks to stop.
        """
        if time.monotonic() - self._shown >= _PROGRESS_S or done_s >= total_s:
            self.ask({"do": "progress", "done_s": done_s, "total_s": total_s})
            self._shown = time.monotonic()

    def next_job(self) -> Any:
        """Return the next job with its intake."""
        while True:
            content = self._connection.recv_bytes()
            if not content.startswith(b"{"):  # a request to stop that crossed the end of its job
                return pickle.loads(content)  # noqa: S301 - from the process that started this one


def _do(peer: _Peer, job: Any, intake: Any) -> dict[str, Any]:
    """Run a job; return the last message about it."""
    from frcrn_accel.processes.intake import admit
    from frcrn_accel.processes.remote_session import RemoteSession

    engine = dataclasses.replace(job.engine, session=RemoteSession(peer.ask))
    try:
        report = admit(dataclasses.replace(job, engine=engine, progress=peer.show), intake).run()
    except Exception as error:
        return _failure(error)
    values = dataclasses.asdict(report)
    return {"do": "done", "report": {**values, "source": str(report.source), "target": str(report.target)}}


def _failure(error: Exception) -> dict[str, Any]:
    from frcrn_accel.errors import AudioError, AudioTooLongError, EngineError, FrcrnAccelError, OutputExistsError

    kinds = (AudioTooLongError, AudioError, OutputExistsError, EngineError, MemoryError, OSError)
    chain = [error, error.__cause__, error.__context__]
    if any(isinstance(found, MemoryError) for found in chain) and not isinstance(error, EngineError):
        return {"do": "failed", "kind": "MemoryError", "text": ""}
    kind = next((kind.__name__ for kind in kinds if isinstance(error, kind)), "")
    known = isinstance(error, (FrcrnAccelError, OSError))
    text = str(error) if known else "".join(traceback.format_exception(error))
    cause = error if isinstance(error, OSError) and not isinstance(error, FrcrnAccelError) else error.__cause__
    number = cause.errno or 0 if isinstance(cause, OSError) else None
    if getattr(cause, "code", None) == _SYSTEM_ERROR:
        number = 0
    return {"do": "failed", "kind": kind, "text": text, "errno": number}


def _limit(limits: Mapping[str, Any]) -> None:
    """Limit this process."""
    import resource

    with suppress(OSError, IndexError):  # macOS has no such file, and does not keep to this limit
        own = 1024 * int(Path("/proc/self/status").read_text().split("VmSize:")[1].split()[0])
        _lower(resource.RLIMIT_AS, own + limits["memory_bytes"])
    _lower(resource.RLIMIT_STACK, limits["stack_bytes"])
    _lower(resource.RLIMIT_NOFILE, limits["descriptors"])
    _lower(resource.RLIMIT_CORE, 0)  # a core dump would contain the audio


def _lower(kind: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def _end_with(descriptor: int) -> None:
    """End this process when the other end of a socket is closed, whatever this process is doing."""
    poll = select.poll()
    poll.register(descriptor, getattr(select, "POLLRDHUP", select.POLLHUP))
    poll.poll()
    os._exit(1)


def main() -> None:
    """Run jobs until the other process ends."""
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    connection = Connection(os.dup(sys.stdin.fileno()))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, sys.stdin.fileno())
    os.close(null)
    threading.Thread(target=_end_with, args=(connection.fileno(),), daemon=True).start()
    # Modules that jobs need are loaded before the memory is limited.
    import av  # noqa: F401
    import soxr  # noqa: F401

    import frcrn_accel.files  # noqa: F401

    _limit(json.loads(sys.argv[1]))
    peer = _Peer(connection)
    with suppress(EOFError, ConnectionError):
        while True:
            peer.send(_do(peer, *peer.next_job()))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its modules are not top-level modules
    main()
