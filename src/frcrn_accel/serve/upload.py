"""The body of a request to a file, and a file to the body of an answer: bounded, and not slower than a limit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anyio
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive, Send

from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.problems import Problem

__all__ = ["receive_file", "send_file"]

_CHUNK_BYTES = 1 << 16
_MULTIPART = "multipart/form-data"
_FILE_PART = "file"


async def receive_file(request: Request, target: Path, limits: Limits) -> None:
    """Put the audio that comes with a request into a file.

    Args:
        request: Its body is the audio, or a form with one file named "file".
        target: The file to make.
        limits: For the length of the body, and for the time it takes.

    Raises:
        Problem: The body is too long (413), too slow (408), compressed (415), or no such form (400).
        ClientDisconnect: The client is gone.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "send the audio without a Content-Encoding", {"Accept-Encoding": "identity"})
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body_bytes:
        raise _too_long(limits)
    request = Request(request.scope, _Paced(request.receive, limits))
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _MULTIPART:
        await _receive_form(request, target)
        return
    async with await anyio.open_file(target, "wb") as file:
        async for chunk in request.stream():
            await file.write(chunk)


async def send_file(source: Path, headers: Mapping[str, str], send: Send, limits: Limits) -> bool:
    """Answer with a file.

    Returns:
        Whether all of it was taken. If the client is too slow for the limits, the answer ends in the middle, and the
        server closes the connection.
    """
    raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    raw_headers.append((b"content-length", str(source.stat().st_size).encode()))
    with anyio.move_on_after(limits.slow_s):
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers})
    chunk_s = limits.slow_s + _CHUNK_BYTES / limits.min_bytes_per_second
    async with await anyio.open_file(source, "rb") as file:
        while True:
            chunk = await file.read(_CHUNK_BYTES)
            with anyio.move_on_after(chunk_s) as scope:
                await send({"type": "http.response.body", "body": chunk, "more_body": bool(chunk)})
            if scope.cancelled_caught:
                return False
            if not chunk:
                return True


async def _receive_form(request: Request, target: Path) -> None:
    async with request.form(max_files=1, max_fields=0) as form:
        upload = form.get(_FILE_PART)
        if not isinstance(upload, UploadFile):
            raise Problem(400, f"the form has no file with the name {_FILE_PART!r}")
        with target.open("wb") as file:
            await anyio.to_thread.run_sync(partial(shutil.copyfileobj, upload.file, file))


class _Paced:
    """Receives for an ASGI application; refuses what is too long or too slow.

    In each stretch of `slow_s`, `min_bytes_per_second` must come on the average. So a client that stands still is
    given up after one or two of them, however fast it was before.
    """

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive = receive
        self._limits = limits
        self._total_bytes = 0
        self._begin_stretch()

    async def __call__(self) -> Message:
        while True:
            with anyio.move_on_after(max(0.0, self._end - time.monotonic())) as scope:
                message = await self._receive()
                break
            assert scope.cancelled_caught
            if self._stretch_bytes < self._limits.min_bytes_per_second * self._limits.slow_s:
                raise Problem(
                    408,
                    f"less than {self._limits.min_bytes_per_second} bytes/s came in {self._limits.slow_s:g} s",
                    {"Connection": "close"},
                )
            self._begin_stretch()
        size = len(message.get("body", b""))
        self._stretch_bytes += size
        self._total_bytes += size
        if self._total_bytes > self._limits.max_body_bytes:
            raise _too_long(self._limits)
        return message

    def _begin_stretch(self) -> None:
        self._end = time.monotonic() + self._limits.slow_s
        self._stretch_bytes = 0


def _too_long(limits: Limits) -> Problem:
    return Problem(413, f"the body is longer than the limit of {limits.max_body_bytes / (1 << 20):g} MiB")
