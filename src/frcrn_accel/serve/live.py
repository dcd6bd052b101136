"""`WS /v1/stream`."""

from __future__ import annotations

import asyncio
import json
import logging
import time
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

from frcrn_accel.denoiser import Denoiser, StreamOptions
from frcrn_accel.errors import AudioError, BackendUnavailable, FrcrnAccelError
from frcrn_accel.serve.clients import Shares, client_of
from frcrn_accel.serve.guard import subprotocols_of
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.messages import (
    CLIENT_ERROR,
    MAX_MESSAGE_BYTES,
    RESTART,
    SERVER_ERROR,
    TRY_AGAIN,
    StreamProblem,
    bad_message,
    read_audio,
    read_control,
    read_start,
    write_audio,
)
from frcrn_accel.serve.metrics import Metrics, note
from frcrn_accel.serve.stepping import Channel, Stepper
from frcrn_accel.serve.threads import in_thread
from frcrn_accel.serve.tokens import SUBPROTOCOL
from frcrn_accel.serve.watch import EngineWatch
from frcrn_accel.streaming import Stream

__all__ = ["Streams"]

_AHEAD = 2  # messages of a stream that are read and not answered

_log = logging.getLogger("frcrn_accel.serve")


class Streams:
    """The endpoint, with all streams in progress.

    At most two messages of a stream are read and not answered. The second is ready when the first is done, so that
    streams that have fallen behind are computed together; and a client that sends faster than this machine computes
    is slowed down by its own connection.

    Args:
        denoiser: The denoiser.
        limits: Limits of the server.
        metrics: Where to count.
        watch: Notes the calls of the engine.
    """

    def __init__(self, denoiser: Denoiser, limits: Limits, metrics: Metrics, watch: EngineWatch) -> None:
        self._denoiser = denoiser
        self._limits = limits
        self._metrics = metrics
        self._stepper = Stepper(self._count, watch)
        self._clients = Shares(limits.client_streams)
        self._open = 0
        self._is_draining = False
        self._receiving: set[CancelScope] = set()
        metrics.streams.set_function(lambda: self._open)
        metrics.streams_waiting.set_function(lambda: self._stepper.waiting)

    @property
    def open(self) -> int:
        """Number of streams in progress."""
        return self._open

    def drain(self) -> None:
        """Answer the messages that were received, and end all streams."""
        self._is_draining = True
        for scope in self._receiving:
            scope.cancel()

    def close(self) -> None:
        """End the thread."""
        self._stepper.close()

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one stream: the endpoint."""
        offered = SUBPROTOCOL in subprotocols_of(websocket.scope)
        await websocket.accept(SUBPROTOCOL if offered else None)
        with self._clients.holding(client_of(websocket.scope)) as is_held:
            detail = None
            if not is_held:
                detail = f"this address has its limit of {self._limits.client_streams} streams"
            elif self._open >= self._limits.max_streams:
                detail = f"the server has its limit of {self._limits.max_streams} streams"
            if detail is not None:
                problem = StreamProblem(TRY_AGAIN, "Too many streams", f"{detail}: try again later")
                await self._end(websocket, problem)
                return
            await self._serve_one(websocket)

    async def _serve_one(self, websocket: WebSocket) -> None:
        self._open += 1
        try:
            await self._serve(websocket)
        except WebSocketDisconnect:
            note(websocket.scope, "the client left")
        except StreamProblem as problem:
            await self._end(websocket, problem)
        except Exception:
            _log.exception("a stream failed")
            detail = "internal server error; see the server log"
            await self._end(websocket, StreamProblem(SERVER_ERROR, "Server error", detail))
        finally:
            self._open -= 1

    async def _end(self, websocket: WebSocket, problem: StreamProblem) -> None:
        """Send a problem, and close."""
        note(websocket.scope, problem.title.lower())
        message = {"type": "error", "title": problem.title, "detail": problem.detail}
        with suppress(WebSocketDisconnect, RuntimeError):  # the client may have left
            await self._send(websocket, message)
            await websocket.close(problem.code)

    async def _serve(self, websocket: WebSocket) -> None:
        patience = _Patience(self._limits.stream_idle_s)
        stream, group = await self._start(websocket, patience)
        channel = self._stepper.add(stream, group)
        begun: asyncio.Queue[_Begun | Exception] = asyncio.Queue()
        free = asyncio.Semaphore(_AHEAD)
        reader = asyncio.create_task(self._read(websocket, channel, begun, free, patience))
        try:
            while await self._answer(websocket, channel, await begun.get()):
                free.release()
        finally:
            reader.cancel()
            channel.close()
            note(websocket.scope, f"{channel.audio_s:.2f} s of audio")

    async def _start(self, websocket: WebSocket, patience: _Patience) -> tuple[Stream, object]:
        """Open the stream of the first message; also return its group for the stepper."""
        start = read_start(await self._receive(websocket, patience))
        patience.renew()
        if not 1 <= start.channels <= self._limits.max_channels:
            raise bad_message(f"channels must be 1 to {self._limits.max_channels}, got {start.channels}")
        options = StreamOptions(
            lookahead_s=start.lookahead_s,
            attenuation_limit_db=start.attenuation_limit_db,
            high_band=start.high_band,
        )
        open_stream = partial(options.open, self._denoiser, start.sample_rate, channels=start.channels)
        try:
            # The first of a look-ahead loads a model, or makes it.
            stream = await asyncio.wait_for(in_thread(open_stream), self._limits.timeout_s)
        except asyncio.TimeoutError:
            raise _stalled(self._limits.timeout_s) from None
        except BackendUnavailable as error:
            raise StreamProblem(SERVER_ERROR, "Stream not available", str(error)) from error
        except (AudioError, ValueError) as error:
            raise bad_message(str(error)) from error
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
        # Streams with one look-ahead share an engine, whether the client gave it or left it to the default.
        return stream, stream.latency.lookahead_s

    async def _read(
        self,
        websocket: WebSocket,
        channel: Channel,
        begun: asyncio.Queue[_Begun | Exception],
        free: asyncio.Semaphore,
        patience: _Patience,
    ) -> None:
        """Receive messages and begin their work. The last item of the queue is a flush or the reason to end."""
        try:
            while True:
                await free.acquire()
                item = self._begin(channel, await self._receive(websocket, patience))
                begun.put_nowait(item)
                if item.kind == "flush":
                    return
        except Exception as error:  # of any kind, or `_serve` would wait forever
            begun.put_nowait(error)

    def _begin(self, channel: Channel, message: str | bytes) -> _Begun:
        if isinstance(message, bytes):
            samples = read_audio(message, channel.stream.channels)
            return _Begun("audio", channel.process(samples) if samples.size else None)
        control = read_control(message)
        if control.kind == "flush":
            return _Begun("flush", channel.call(_flush))
        if control.kind == "reset":
            return _Begun("reset", channel.call(Stream.reset))
        return _Begun("set", channel.call(partial(self._limit_attenuation, control.attenuation_limit_db)))

    async def _answer(self, websocket: WebSocket, channel: Channel, begun: _Begun | Exception) -> bool:
        """Answer a message; return False after the last one."""
        if isinstance(begun, Exception):
            raise begun
        result: Any = None if begun.future is None else await _result(begun.future, self._limits.stall_s)
        if begun.kind == "audio":
            await self._send(websocket, b"" if result is None else write_audio(result))
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

    def _limit_attenuation(self, limit_db: float | None, stream: Stream) -> None:
        stream.attenuation_limit_db = self._denoiser.attenuation_limit_db if limit_db is None else limit_db

    async def _receive(self, websocket: WebSocket, patience: _Patience) -> str | bytes:
        """Receive a message.

        Raises:
            WebSocketDisconnect: The client left.
            StreamProblem: No audio came in time, or the server is shutting down.
        """
        with CancelScope() as scope:
            self._receiving.add(scope)
            if self._is_draining:
                scope.cancel()
            try:
                with anyio.move_on_after(patience.left_s), patience:
                    message = await websocket.receive()
                    if message["type"] == "websocket.disconnect":
                        raise WebSocketDisconnect(message.get("code", 1005))
                    content: str | bytes = message["text"] if message.get("bytes") is None else message["bytes"]
                    if content and isinstance(content, bytes):
                        patience.renew()
                    return content
            finally:
                self._receiving.discard(scope)
        if self._is_draining:
            raise StreamProblem(RESTART, "Shutting down", "the server is shutting down: connect again")
        raise StreamProblem(CLIENT_ERROR, "Idle", f"no audio for {self._limits.stream_idle_s:g} s")

    async def _send(self, websocket: WebSocket, message: bytes | Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            WebSocketDisconnect: The client left, or does not read.
        """
        if websocket.application_state != WebSocketState.CONNECTED:
            raise WebSocketDisconnect
        with anyio.move_on_after(self._limits.stream_idle_s):
            if isinstance(message, bytes):
                await websocket.send_bytes(message)
            else:
                await websocket.send_text(json.dumps(message))
            return
        raise WebSocketDisconnect(reason="the client does not read")

    def _count(self, streams: int, audio_s: float) -> None:
        self._metrics.stream_batch_size.observe(streams)
        self._metrics.stream_seconds.inc(audio_s)


@dataclass(frozen=True)
class _Begun:
    """A message whose work has begun.

    Attributes:
        kind: "audio", or the type of the message.
        future: The result; None for a message without audio.
    """

    kind: str
    future: Future[Any] | None


class _Patience:
    """How long a client may still go without sending audio. Only the time that the server waits for it counts.

    Args:
        most_s: The whole time.

    Attributes:
        left_s: What is left.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = self.left_s = most_s
        self._began = 0.0

    def renew(self) -> None:
        """Begin again after audio."""
        self._began, self.left_s = time.monotonic(), self._most_s

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self.left_s -= time.monotonic() - self._began


async def _result(future: Future[Any], stall_s: float) -> Any:
    """Wait for a result of the stepper.

    Raises:
        StreamProblem: The engine failed, or does not answer.
    """
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), stall_s)
    except asyncio.TimeoutError:
        raise _stalled(stall_s) from None
    except FrcrnAccelError as error:
        raise StreamProblem(SERVER_ERROR, "The engine failed", str(error)) from error


def _stalled(limit_s: float) -> StreamProblem:
    return StreamProblem(SERVER_ERROR, "The engine stalled", f"no answer from the engine for {limit_s:g} s")


def _flush(stream: Stream) -> bytes:
    stream.process(np.zeros((stream.channels, 0), np.int16))  # without a chunk, the rest would be float32
    return write_audio(stream.flush())
