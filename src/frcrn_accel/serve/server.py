"""The server process: what listens, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from frcrn_accel.backends import resolve_backend
from frcrn_accel.batching import BatchingSession
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.errors import ServeError
from frcrn_accel.models import DEFAULT_MODEL, find_model
from frcrn_accel.posix_signals import handled
from frcrn_accel.serve.app import Service
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.live import MAX_MESSAGE_BYTES
from frcrn_accel.serve.metrics import Metrics
from frcrn_accel.windows import Windowing

__all__ = ["Server", "listen", "open_denoiser", "run_server"]

_KEEP_ALIVE_S = 10
_FLUSH_S = 5  # for what is still in the buffers of connections, after all answers are given
_TICK_S = 0.05

_log = logging.getLogger("frcrn_accel.serve")


def open_denoiser(
    metrics: Metrics,
    model: str | Path = DEFAULT_MODEL,
    *,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    attenuation_limit_db: float | None = None,
    batch_size: int | None = None,
) -> Denoiser:
    """A denoiser whose requests share calls of the engine.

    Args:
        metrics: Where the sizes of batches are counted.
        model, backend, precision, threads, attenuation_limit_db: See `Denoiser`.
        batch_size: Windows for one call of the engine, over all requests; by default what the backend says suits it.

    Raises:
        BackendError, ModelError, ValueError: See `Denoiser`.
    """
    engine = resolve_backend(backend, precision, None, find_model(model))
    size = batch_size or engine.batch_size
    return Denoiser(
        model,
        backend=engine,
        threads=threads,
        attenuation_limit_db=attenuation_limit_db,
        # Windows of one length can be in one call.
        windowing=Windowing(fixed=True),
        batch_size=size,
        wrap_session=lambda session: BatchingSession(session, size, metrics.batch_size.observe),
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: Name or address.
        port: 0 for a free one.

    Raises:
        ServeError: It is taken, not allowed, or no address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        # Of a name that is not known it is negative; the text of the others has the address in it once more.
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise ServeError(f"cannot listen on {host}, port {port}: {reason}; choose others") from error


def run_server(app: Starlette, service: Service, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; then answer what is under way, and end.

    Args:
        app: Of `create_app`.
        service: What it serves.
        listener: Of `listen`; it is closed.

    Raises:
        ServeError: Not everything was answered in time, or the warm-up failed.
    """
    server = Server(app, service)
    # Uvicorn raises the signal that ended it once more, for whoever handled it before: here nobody.
    with handled(lambda *_: None, signal.SIGTERM, signal.SIGINT):
        server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
    if server.unanswered:
        raise ServeError(
            f"{server.unanswered} requests or streams were cut off: they took longer than the limit of "
            f"{service.limits.drain_s:g} s to end"
        )


class Server(uvicorn.Server):
    """Uvicorn, with an end in order: it goes on listening, and says that it is not ready, until all is answered.

    Args:
        app: What it serves.
        service: What that serves.

    Attributes:
        unanswered: Requests and streams that were cut off at the end.
    """

    def __init__(self, app: Starlette, service: Service) -> None:
        limits = service.limits
        config = uvicorn.Config(
            app,
            http=type("_Connection", (_Connection,), {"slow_s": limits.slow_s}),
            ws=_WebSocket,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # of no use for noise
            # A stream that is held back is not read, nor are its answers to pings: it would be closed for being slow.
            ws_ping_interval=None,
            lifespan="on",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_FLUSH_S,
        )
        super().__init__(config)
        self._service = service
        self.unanswered = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        for listener in sockets or []:
            _bound_silence(listener, self._service.limits)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn."""
        return await super().on_tick(counter) or self._service.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        service = self._service
        service.drain()
        if service.active:
            _log.info("%d requests and streams are under way: waiting for them", service.active)
        deadline = asyncio.get_running_loop().time() + service.limits.drain_s
        while service.active and not self.force_exit and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_TICK_S)
        self.unanswered = service.active
        await super().shutdown(sockets)


class _Connection(H11Protocol):
    """Closed if the head of a request does not come in time, which uvicorn has no limit for.

    What follows an answer that was given before the body was there is thrown away, for as long as that too.

    Attributes:
        slow_s: The time.
    """

    slow_s: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        super().handle_websocket_upgrade(event)
        self._unwatch()

    def _watch(self) -> None:
        is_upgraded = self.transport.get_protocol() is not self
        is_waiting = self.cycle is None or self.cycle.response_complete
        if is_upgraded or not is_waiting:
            self._unwatch()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.slow_s, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _WebSocket(WebSocketsSansIOProtocol):
    """A refusal with a body is an answer: Uvicorn 0.54 logs an error after it, as if there had been none."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True


def _bound_silence(listener: socket.socket, limits: Limits) -> None:
    """Have the system end connections whose other side takes nothing, or is no longer there."""
    options: dict[str, Any] = {
        "SO_KEEPALIVE": (socket.SOL_SOCKET, 1),
        "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, math.ceil(1000 * limits.stream_idle_s)),  # Linux
    }
    for name, (level, value) in options.items():
        if hasattr(socket, name):
            listener.setsockopt(level, getattr(socket, name), value)
