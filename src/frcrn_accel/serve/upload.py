"""Receive the body of a request into a file, and send answers, within limits of size and speed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import anyio
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frcrn_accel.numerals import to_whole
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.metrics import note
from frcrn_accel.serve.problems import Problem

__all__ = ["PacedAnswers", "receive_file", "send_file"]

_CHUNK_BYTES = 1 << 16
_MULTIPART = "multipart/form-data"
_FILE_PART = "file"


async def receive_file(request: Request, target: Path, limits: Limits, take: Callable[[int], None]) -> None:
    """Write the audio of a request to a file.

    Args:
        request: Its body is the audio, or a form with one file named "file".
        target: The file to write.
        limits: Limits of the size and the speed of the body.
        take: Called with the size of each part, before it is stored.

    Raises:
        Problem: The body is too large (413), too slow (408), compressed (415), or an invalid form (400); or `take`
            raised it.
        ClientDisconnect: The client left.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "send the audio without a Content-Encoding", {"Accept-Encoding": "identity"})
    length = request.headers.get("content-length", "")
    size = to_whole(length) if length else 0
    if size is None or size > limits.max_body_bytes:
        raise _too_large(limits)
    request = Request(request.scope, _Paced(request.receive, limits, take))
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _MULTIPART:
        await _receive_form(request, target)
        return
    async with await anyio.open_file(target, "wb") as file:
        async for chunk in request.stream():
            await file.write(chunk)


async def send_file(source: Path, headers: Mapping[str, str], send: Send) -> None:
    """Send a file as the answer."""
    raw_headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    async with await anyio.open_file(source, "rb") as file:  # before the answer starts, since it may fail
        raw_headers.append((b"content-length", str(source.stat().st_size).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": raw_headers})
        more_body = True
        while more_body:
            chunk = await file.read(_CHUNK_BYTES)
            more_body = bool(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": more_body})


class PacedAnswers:
    """Middleware that cuts off an answer that the client reads too slowly, and closes the connection.

    The client has `Limits.slow_s` for each part of an answer, and the time that it takes at
    `Limits.min_bytes_per_second`.

    Args:
        app: The application.
        limits: Limits of the server.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""

        async def paced_send(message: Message) -> None:
            size = len(message.get("body", b""))
            with anyio.move_on_after(self._limits.slow_s + size / self._limits.min_bytes_per_second) as period:
                await send(message)
            if period.cancelled_caught:
                raise _TooSlow

        try:
            await self._app(scope, receive, paced_send if scope["type"] == "http" else send)
        except _TooSlow:
            note(scope, "the client was too slow")


class _TooSlow(Exception):
    """The client does not read the answer in time."""


async def _receive_form(request: Request, target: Path) -> None:
    try:
        form = await request.form(max_files=1, max_fields=0)
    except (LookupError, ValueError) as error:  # e.g. names that cannot be decoded with the charset of the form
        raise Problem(400, "the form is invalid: send it as RFC 7578 says, in UTF-8") from error
    try:
        upload = form.get(_FILE_PART)
        if not isinstance(upload, UploadFile):
            raise Problem(400, f"the form has no file named {_FILE_PART!r}")
        with target.open("wb") as file:
            await anyio.to_thread.run_sync(partial(shutil.copyfileobj, upload.file, file))
    finally:
        await form.close()


class _Paced:
    """An ASGI `receive` that refuses bodies that are too large or too slow.

    In each period of `slow_s`, the average must reach `min_bytes_per_second`. So a client that stalls is refused
    after one or two periods, however fast it was before. The whole body must have arrived within `upload_s`.
    """

    def __init__(self, receive: Receive, limits: Limits, take: Callable[[int], None]) -> None:
        self._receive = receive
        self._limits = limits
        self._take = take
        self._deadline = time.monotonic() + limits.upload_s
        self._total_bytes = 0
        self._start_period()

    async def __call__(self) -> Message:
        while True:
            with anyio.move_on_after(max(0.0, min(self._end, self._deadline) - time.monotonic())) as scope:
                message = await self._receive()
                break
            assert scope.cancelled_caught
            if time.monotonic() >= self._deadline:
                raise self._too_slow()
            if self._period_bytes < self._limits.min_bytes_per_second * self._limits.slow_s:
                raise Problem(
                    408,
                    f"received less than {self._limits.min_bytes_per_second} bytes/s over {self._limits.slow_s:g} s",
                    {"Connection": "close"},
                )
            self._start_period()
        size = len(message.get("body", b""))
        self._period_bytes += size
        self._total_bytes += size
        if self._total_bytes > self._limits.max_body_bytes:
            raise _too_large(self._limits)
        if message.get("more_body", False) and time.monotonic() >= self._deadline:
            raise self._too_slow()
        self._take(size)
        return message

    def _too_slow(self) -> Problem:
        text = f"the body took longer to arrive than the limit of {self._limits.upload_s:g} s"
        return Problem(408, text, {"Connection": "close"})

    def _start_period(self) -> None:
        self._end = time.monotonic() + self._limits.slow_s
        self._period_bytes = 0


def _too_large(limits: Limits) -> Problem:
    return Problem(413, f"the body is larger than the limit of {limits.max_body_bytes / (1 << 20):g} MiB")
