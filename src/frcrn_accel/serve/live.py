"""`WS /v1/stream`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import numpy as np
from anyio import CancelScope
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from frcrn_accel.audio import check_attenuation_limit, float_to_int
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.errors import AudioError, BackendUnavailable, FrcrnAccelError
from frcrn_accel.serve.guard import subprotocols_of
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.metrics import Metrics, note
from frcrn_accel.serve.stepping import Channel, Stepper
from frcrn_accel.serve.tokens import SUBPROTOCOL
from frcrn_accel.streaming import Stream

__all__ = ["MAX_MESSAGE_BYTES", "Streams"]

MAX_MESSAGE_BYTES = 1 << 18
_SAMPLE = np.dtype("<i2")
_CLIENT_ERROR, _SERVER_ERROR, _RESTART, _TRY_AGAIN = 1008, 1011, 1012, 1013  # RFC 6455 and its registry
_log = logging.getLogger("frcrn_accel.serve")
_MOST = 1e9  # of any number in a message
_AHEAD = 2  # messages of a stream that are read and not answered
_START = {"sample_rate": int, "channels": int, "attenuation_limit_db": float, "lookahead_s": float}
_MESSAGES: dict[str, Mapping[str, type]] = {
    "set": {"attenuation_limit_db": float},
    "reset": {},
    "flush": {},
}


class Streams:
    """The endpoint, and all streams that are under way.

    At most two messages of a stream are read and not answered. The second is there when the first is done, so that
    streams that have fallen behind are computed together; and a client that sends faster than this machine computes
    is held back by its own connection.

    Args:
        denoiser: What makes streams.
        limits: See there.
        metrics: Where they are counted.
    """

    def __init__(self, denoiser: Denoiser, limits: Limits, metrics: Metrics) -> None:
        self._denoiser = denoiser
        self._limits = limits
        self._metrics = metrics
        self._stepper = Stepper(self._count)
        self._open = 0
        self._is_draining = False
        self._waiting: set[CancelScope] = set()
        metrics.streams.set_function(lambda: self._open)
        metrics.streams_waiting.set_function(lambda: self._stepper.waiting)

    @property
    def open(self) -> int:
        """Streams that are under way."""
        return self._open

    def drain(self) -> None:
        """Answer what has come in, and end all streams."""
        self._is_draining = True
        for scope in self._waiting:
            scope.cancel()

    def close(self) -> None:
        """End the thread."""
        self._stepper.close()

    async def serve(self, websocket: WebSocket) -> None:
        """One of them, from its beginning to its end: the endpoint."""
        offered = SUBPROTOCOL in subprotocols_of(websocket.scope)
        await websocket.accept(SUBPROTOCOL if offered else None)
        if self._open >= self._limits.max_streams:
            detail = f"there are {self._open} streams already: try again later"
            await self._end(websocket, _End(_TRY_AGAIN, "Too many streams", detail))
            return
        self._open += 1
        try:
            await self._serve(websocket)
        except WebSocketDisconnect:
            note(websocket.scope, "the client left")
        except _End as end:
            await self._end(websocket, end)
        except Exception:
            _log.exception("a stream failed")
            await self._end(websocket, _End(_SERVER_ERROR, "The server failed", "its log says how"))
        finally:
            self._open -= 1

    async def _end(self, websocket: WebSocket, end: _End) -> None:
        """Say why, and close."""
        note(websocket.scope, end.title.lower())
        with suppress(WebSocketDisconnect, RuntimeError):  # the client may have left by now
            await self._send(websocket, {"type": "error", "title": end.title, "detail": end.detail})
            await websocket.close(end.code)

    async def _serve(self, websocket: WebSocket) -> None:
        stream, group = await self._start(websocket)
        channel = self._stepper.add(stream, group)
        begun: asyncio.Queue[_Begun | Exception] = asyncio.Queue()
        free = asyncio.Semaphore(_AHEAD)
        reader = asyncio.create_task(self._read(websocket, channel, begun, free))
        try:
            while await self._answer(websocket, channel, await begun.get()):
                free.release()
        finally:
            reader.cancel()
            channel.close()
            note(websocket.scope, f"{channel.audio_s:.2f} s of audio")

    async def _start(self, websocket: WebSocket) -> tuple[Stream, object]:
        """A stream as the first message wants it, and which others it can be computed with."""
        message = await self._receive(websocket)
        if not isinstance(message, str):
            raise _End(_CLIENT_ERROR, "No start", 'the first message must be {"type": "start", ...}')
        values = _parsed(message, {"start": _START}, required=("sample_rate",))
        channels = values.get("channels", 1)
        if not 1 <= channels <= self._limits.max_channels:
            detail = f"channels must be 1 to {self._limits.max_channels}, got {channels}"
            raise _End(_CLIENT_ERROR, "Bad message", detail)
        lookahead_s = values.get("lookahead_s")
        make = partial(
            self._denoiser.stream,
            values["sample_rate"],
            channels=channels,
            lookahead_s=lookahead_s,
            attenuation_limit_db=values.get("attenuation_limit_db"),
        )
        try:
            stream = await anyio.to_thread.run_sync(make)  # a look-ahead that is new here loads a model
        except BackendUnavailable as error:
            raise _End(_SERVER_ERROR, "No such stream here", str(error)) from error
        except (AudioError, ValueError) as error:
            raise _End(_CLIENT_ERROR, "Bad message", str(error)) from error
        started = {
            "type": "started",
            "model": self._denoiser.model.name,
            "backend": self._denoiser.backend,
            "sample_rate": stream.sample_rate_hz,
            "channels": stream.channels,
            "latency_s": stream.latency_s,
            "latency_samples": stream.latency_samples,
            "max_message_bytes": MAX_MESSAGE_BYTES,
        }
        await self._send(websocket, started)
        # The default and its value in seconds are one engine, but for `process_streams` only that engine counts.
        return stream, stream.latency.lookahead_s

    async def _read(
        self,
        websocket: WebSocket,
        channel: Channel,
        begun: asyncio.Queue[_Begun | Exception],
        free: asyncio.Semaphore,
    ) -> None:
        """Receive messages and begin what they ask for; the reason to end is the last in line."""
        try:
            while True:
                await free.acquire()
                item = self._begin(channel, await self._receive(websocket))
                begun.put_nowait(item)
                if item.kind == "flush":
                    return
        except Exception as end:  # of any kind, or who answers would wait for ever
            begun.put_nowait(end)

    def _begin(self, channel: Channel, message: str | bytes) -> _Begun:
        if isinstance(message, bytes):
            return _Begun("audio", self._process(channel, message))
        values = _parsed(message, _MESSAGES)
        kind = values.pop("type")
        if kind == "flush":
            return _Begun(kind, channel.call(_flushed))
        return _Begun(kind, channel.call(partial(self._set, values) if kind == "set" else Stream.reset))

    async def _answer(self, websocket: WebSocket, channel: Channel, begun: _Begun | Exception) -> bool:
        """Answer a message; False after the last one."""
        if isinstance(begun, Exception):
            raise begun
        result: Any = None if begun.future is None else await _done(begun.future)
        if begun.kind == "audio":
            await self._send(websocket, b"" if result is None else _packed(result))
        elif begun.kind == "flush":
            await self._send(websocket, result)
            flushed = {"type": "flushed", "processing_s": channel.processing_s, "audio_s": channel.audio_s}
            factor = channel.processing_s / channel.audio_s if channel.audio_s else None
            await self._send(websocket, {**flushed, "real_time_factor": factor})
            await websocket.close()
            return False
        else:
            await self._send(websocket, {"type": begun.kind})
        return True

    def _process(self, channel: Channel, message: bytes) -> Future[Any] | None:
        channels = channel.stream.channels
        if len(message) % (_SAMPLE.itemsize * channels):
            detail = f"{len(message)} bytes are no whole number of 16-bit samples in {channels} channel(s)"
            raise _End(_CLIENT_ERROR, "Bad message", detail)
        if not message:
            return None
        return channel.process(np.frombuffer(message, _SAMPLE).reshape(-1, channels).T)

    def _set(self, values: Mapping[str, Any], stream: Stream) -> None:
        limit_db = values.get("attenuation_limit_db")
        stream.attenuation_limit_db = self._denoiser.attenuation_limit_db if limit_db is None else limit_db

    async def _receive(self, websocket: WebSocket) -> str | bytes:
        with CancelScope() as scope:
            self._waiting.add(scope)
            if self._is_draining:
                scope.cancel()
            try:
                with anyio.move_on_after(self._limits.stream_idle_s):
                    message = await websocket.receive()
                    if message["type"] == "websocket.disconnect":
                        raise WebSocketDisconnect(message.get("code", 1005))
                    content: str | bytes = message["text"] if message.get("bytes") is None else message["bytes"]
                    return content
            finally:
                self._waiting.discard(scope)
        if self._is_draining:
            raise _End(_RESTART, "Server ends", "this server is about to end: connect again")
        detail = f"nothing came for {self._limits.stream_idle_s:g} s"
        raise _End(_CLIENT_ERROR, "Idle", detail)

    async def _send(self, websocket: WebSocket, message: bytes | Mapping[str, Any]) -> None:
        if websocket.application_state != WebSocketState.CONNECTED:
            raise WebSocketDisconnect
        with anyio.move_on_after(self._limits.stream_idle_s):
            if isinstance(message, bytes):
                await websocket.send_bytes(message)
            else:
                await websocket.send_text(json.dumps(message))
            return
        raise WebSocketDisconnect(reason="it takes nothing")

    def _count(self, streams: int, audio_s: float) -> None:
        self._metrics.stream_batch_size.observe(streams)
        self._metrics.stream_seconds.inc(audio_s)


@dataclass(frozen=True)
class _Begun:
    """A message that is being seen to.

    Attributes:
        kind: "audio", or its type.
        future: What comes of it; None if there is nothing to do.
    """

    kind: str
    future: Future[Any] | None


class _End(Exception):
    """The server ends a stream.

    Attributes:
        code: Of the WebSocket's closing.
        title: What it is, in two words.
        detail: What happened and what to do.
    """

    def __init__(self, code: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.title = title
        self.detail = detail


def _parsed(text: str, messages: Mapping[str, Mapping[str, type]], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """A control message that is one of these; fields that are null are left out.

    Raises:
        _End: It is none.
    """

    def refuse(detail: str) -> _End:
        return _End(_CLIENT_ERROR, "Bad message", detail)

    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise refuse("a text message must be JSON") from None
    kind = values.get("type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in messages:
        raise refuse(f'a message must be an object with a "type" out of {", ".join(messages)}')
    fields = messages[kind]
    for name, value in values.items():
        if name == "type" or value is None:
            continue
        if name not in fields:
            raise refuse(f"{kind!r} has no field {name[:40]!a}")
        # Only what is between the bounds is: NaN, which JSON readers take, is not.
        is_number = isinstance(value, (int, fields[name])) and not isinstance(value, bool)
        if not (is_number and -_MOST <= value <= _MOST):
            raise refuse(f"{name} must be {'a whole number' if fields[name] is int else 'a number'}")
    for name in required:
        if values.get(name) is None:
            raise refuse(f"{kind!r} must have {name}")
    try:
        check_attenuation_limit(values.get("attenuation_limit_db"))
    except ValueError as error:
        raise refuse(str(error)) from None
    return {name: value for name, value in values.items() if value is not None}


async def _done(future: Any) -> Any:
    """What the stepper made of it.

    Raises:
        _End: The engine failed.
    """
    try:
        return await asyncio.wrap_future(future)
    except FrcrnAccelError as error:
        raise _End(_SERVER_ERROR, "The engine failed", str(error)) from error


def _flushed(stream: Stream) -> bytes:
    return _packed(float_to_int(stream.flush(), 16))


def _packed(samples: Any) -> bytes:
    """`(channels, samples)` as it goes over the wire."""
    return np.ascontiguousarray(samples.T, _SAMPLE).tobytes()
