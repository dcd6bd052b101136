"""The server process: its denoiser, its socket and its shutdown."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import signal
import socket
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from frcrn_accel.backends import resolve_backend
from frcrn_accel.batching import BatchingSession
from frcrn_accel.denoiser import Denoiser, DenoiserOptions
from frcrn_accel.errors import ServeError
from frcrn_accel.models import find_model
from frcrn_accel.posix_signals import handled
from frcrn_accel.serve.app import Service
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.messages import MAX_MESSAGE_BYTES
from frcrn_accel.serve.metrics import Metrics

__all__ = ["Server", "listen", "open_denoiser", "run_server"]

_KEEP_ALIVE_S = 10
_MAX_HEAD_BYTES = 1 << 16
_FLUSH_S = 5  # for the buffers of connections, after all requests are answered
_TICK_S = 0.05

_log = logging.getLogger("frcrn_accel.serve")


def open_denoiser(metrics: Metrics, options: DenoiserOptions | None = None) -> Denoiser:
    """Open a denoiser whose requests share calls of the engine.

    >>> denoiser = open_denoiser(Metrics(), DenoiserOptions(backend="ort", batch_size=4))

    Args:
        metrics: Where to count the sizes of batches.
        options: Options of the denoiser. `batch_size` counts the windows of all requests. The windows are fixed,
            whatever `windowing` says: only windows of one length can share a call.

    Raises:
        BackendError, ModelError, ValueError: See `Denoiser`.
    """
    options = options or DenoiserOptions()
    model = find_model(options.model)
    backend = resolve_backend(options.backend, options.precision, options.calibration, model)
    batch_size = options.batch_size or backend.batch_size
    # The backend now has the precision and the calibration. A batch size stays unset unless the user set it, since
    # some backends refuse any.
    resolved = dataclasses.replace(
        options,
        backend=backend,
        precision=None,
        calibration=None,
        windowing=dataclasses.replace(options.windowing, fixed=True),
    )
    return resolved.open(
        wrap_session=lambda session: BatchingSession(session, batch_size, metrics.batch_size.observe)
    )


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Args:
        host: Name or address.
        port: Port; 0 for a free one.

    Raises:
        ServeError: The port is taken or not allowed, or the host is not an address of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=128)
        # Its connections inherit this. asyncio sets it only on sockets that name their protocol, which these do not;
        # without it, the end of an answer waits some 40 ms for the client to acknowledge the start.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        # For an unknown name the number is negative; for other errors `strerror` would repeat the address.
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise ServeError(f"cannot listen on {host}, port {port}: {reason}; choose another host or port") from error


def run_server(
    app: Starlette, service: Service, listener: socket.socket, *, trusted_proxies: Iterable[str] = ()
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests in progress and return.

    Args:
        app: The application, from `create_app`.
        service: The service of the application.
        listener: The socket, from `listen`; it is closed.
        trusted_proxies: Addresses or networks of proxies. Only from these, `X-Forwarded-For` names the client.

    Raises:
        ServeError: Requests or streams did not finish in time, or a proxy is not an address or a network.
        Exception: The warm-up failed.
    """
    server = Server(app, service, trusted_proxies)
    # Uvicorn raises the signal again when it has ended; here that must not end the process.
    with handled(lambda *_: None, signal.SIGTERM, signal.SIGINT):
        server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
    if server.unanswered:
        raise ServeError(
            f"{server.unanswered} requests or streams were cut off: they did not finish within "
            f"{service.limits.drain_s:g} s (--drain-s)"
        )


class Server(uvicorn.Server):
    """Uvicorn with a graceful shutdown: it keeps listening, and reports not ready, until all requests are answered.

    Args:
        app: The application.
        service: The service of the application.
        trusted_proxies: See `run_server`.

    Attributes:
        unanswered: Number of requests and streams that were cut off by the shutdown.
    """

    def __init__(self, app: ASGIApp, service: Service, trusted_proxies: Iterable[str] = ()) -> None:
        limits = service.limits
        proxies = _networks(trusted_proxies)
        config = uvicorn.Config(
            app,
            http=type("_Connection", (_Connection,), {"slow_s": limits.slow_s}),
            ws=_WebSocket,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # PCM hardly compresses
            # A stream that is slowed down is not read, so its pongs would be missed and the stream closed.
            ws_ping_interval=None,
            lifespan="on",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_FLUSH_S,
        )
        super().__init__(config)
        self._service = service
        self.unanswered = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bound the sockets, then start, see `uvicorn.Server`."""
        for listener in sockets or []:
            _bound_silence(listener, self._service.limits)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """End the server if the warm-up failed, see `uvicorn.Server`."""
        return await super().on_tick(counter) or self._service.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish requests and streams, then shut down, see `uvicorn.Server`."""
        service = self._service
        service.drain()
        if service.active:
            _log.info("waiting for %d requests and streams to finish", service.active)
        deadline = asyncio.get_running_loop().time() + service.limits.drain_s
        while service.active and not self.force_exit and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_TICK_S)
        self.unanswered = service.active
        await super().shutdown(sockets)


class _Requests(h11.Connection):
    """An HTTP parser that refuses requests whose end is ambiguous, which h11 accepts.

    A proxy in front may find another end, and take what follows for a request of somebody else.
    """

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            headers = dict(event.headers)
            is_chunked, has_length = b"transfer-encoding" in headers, b"content-length" in headers
            if is_chunked and (has_length or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("the length of the body is ambiguous")
        return event


class _Connection(H11Protocol):
    """A connection with a time limit for the head of a request and for a handshake, which uvicorn lacks.

    The limit also holds for the rest of a body that was answered before it was complete.

    Attributes:
        slow_s: The limit.
    """

    slow_s: float
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Requests(h11.SERVER, _MAX_HEAD_BYTES)

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
        protocol = self.transport.get_protocol()
        if not getattr(protocol, "handshake_initiated", False):
            # The parser of WebSockets takes a GET without a body, within limits of its own, and is silent otherwise.
            self.send_400_response("Invalid WebSocket handshake.")
        else:
            self.loop.call_later(self.slow_s, _end_handshake, protocol)

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
    """A WebSocket that may be refused with a body; uvicorn 0.54 logs an error after a complete refusal."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True


def _end_handshake(protocol: asyncio.BaseProtocol) -> None:
    """Close a connection whose handshake was not answered in time."""
    if isinstance(protocol, WebSocketsSansIOProtocol) and not protocol.handshake_complete:
        protocol.transport.close()


def _networks(proxies: Iterable[str]) -> list[str]:
    """Check the addresses of proxies.

    Raises:
        ServeError: One is neither an address nor a network.
    """
    checked = list(proxies)
    for proxy in checked:
        try:
            ip_network(proxy)
        except ValueError as error:
            raise ServeError(f"invalid proxy {proxy!r}: give an address or a network, e.g. 10.0.0.0/8") from error
    return checked


def _bound_silence(listener: socket.socket, limits: Limits) -> None:
    """Make the system close connections whose peer takes nothing or is gone."""
    options: dict[str, Any] = {
        "SO_KEEPALIVE": (socket.SOL_SOCKET, 1),
        "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, math.ceil(1000 * limits.stream_idle_s)),  # Linux
    }
    for name, (level, value) in options.items():
        if hasattr(socket, name):
            listener.setsockopt(level, getattr(socket, name), value)
