"""The server process: its denoiser, its socket and its shutdown."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from frcrn_accel.atomic import remove_leftovers
from frcrn_accel.backends import resolve_backend
from frcrn_accel.batching import BatchingSession
from frcrn_accel.denoiser import Denoiser, DenoiserOptions
from frcrn_accel.errors import ServeError
from frcrn_accel.models import find_model
from frcrn_accel.posix_signals import handled
from frcrn_accel.serve.app import Service
from frcrn_accel.serve.bounds import Bounds, PacedRequests
from frcrn_accel.serve.connections import HttpConnection, WebSocketConnection
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.messages import MAX_MESSAGE_BYTES
from frcrn_accel.serve.metrics import Metrics

__all__ = ["Server", "listen", "open_denoiser", "run_server"]

_KEEP_ALIVE_S = 10
_FLUSH_S = 5.0  # for the buffers of connections, after all requests are answered
_LEAST_FLUSH_S = 0.3
_OVERDUE_S = 1.5  # after `Limits.drain_s`; then the process ends even if something hangs
_BACKLOG = 64  # connections that asyncio accepts at a time
_OWN_DESCRIPTORS = 64
_REQUEST_DESCRIPTORS = 6  # files, and the sockets of processes
_LEAST_CONNECTIONS = 16
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
        trusted_proxies: Addresses or networks of proxies. Only their `X-Forwarded-For` is taken for the client.

    Raises:
        ServeError: Requests or streams did not finish in time, a proxy is neither an address nor a network, or the
            limit of open files is too low.
        Exception: The warm-up failed.

    If something hangs, the process ends by force `Limits.drain_s` and 1.5 s after the signal, with status 2.
    """
    server = Server(app, service, trusted_proxies, overdue=lambda: _end_now(server))
    # Uvicorn raises the signal again when it has ended; here that must not end the process.
    with handled(lambda *_: None, signal.SIGTERM, signal.SIGINT):
        server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
    if server.unanswered:
        raise ServeError(_cut_off(server))


class Server(uvicorn.Server):
    """Uvicorn with a graceful shutdown: it keeps listening, and reports not ready, until all requests are answered.

    Args:
        app: The application.
        service: The service of the application.
        trusted_proxies: See `run_server`.
        overdue: Called if the server has not ended by itself 1.5 s after it should have.

    Attributes:
        unanswered: Number of requests and streams that were cut off by the shutdown.
        bounds: Limits that all connections share.
        service: As given.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        trusted_proxies: Iterable[str] = (),
        overdue: Callable[[], None] | None = None,
    ) -> None:
        limits = service.limits
        proxies = list(trusted_proxies)
        self.bounds = Bounds(limits, _most_connections(limits), proxies, service.metrics.refused.inc)
        service.metrics.connections.set_function(lambda: self.bounds.count)
        config = uvicorn.Config(
            PacedRequests(app, self.bounds),
            http=type("_Connection", (HttpConnection,), {"bounds": self.bounds}),
            ws=WebSocketConnection,
            backlog=_BACKLOG,
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
        )
        super().__init__(config)
        self.service = service
        self._overdue = overdue
        self._timer: threading.Timer | None = None
        self.unanswered = 0

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Run until a signal, see `uvicorn.Server`. If the engine still computes then, `overdue` stays scheduled."""
        super().run(sockets)
        if self._timer is not None and not self.service.is_computing:
            self._timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down, see `uvicorn.Server`."""
        super().handle_exit(sig, frame)
        if self._overdue is not None and self._timer is None:
            self._timer = threading.Timer(self.service.limits.drain_s + _OVERDUE_S, self._overdue)
            self._timer.daemon = True
            self._timer.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Bound the sockets, then start, see `uvicorn.Server`."""
        for listener in sockets or []:
            _bound_silence(listener, self.service.limits)
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """End the server if the warm-up failed, see `uvicorn.Server`."""
        return await super().on_tick(counter) or self.service.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish requests and streams, then shut down, see `uvicorn.Server`."""
        service = self.service
        service.drain()
        if service.active:
            _log.info("waiting for %d requests and streams to finish", service.active)
        deadline = asyncio.get_running_loop().time() + service.limits.drain_s
        while service.active and not self.force_exit and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_TICK_S)
        self.unanswered = service.active
        left_s = deadline - asyncio.get_running_loop().time()
        flush_s: Any = min(_FLUSH_S, max(_LEAST_FLUSH_S, left_s))  # wait_for, which gets it, takes a fraction
        self.config.timeout_graceful_shutdown = flush_s
        await super().shutdown(sockets)


def _most_connections(limits: Limits) -> int:
    """Return how many connections there can be, so that accepting one never fails for lack of a descriptor.

    The limit of open files is raised as far as the system allows.

    Raises:
        ServeError: The limit is too low for the requests in progress.
    """
    try:
        import resource
    except ImportError:  # Windows
        return limits.max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = _OWN_DESCRIPTORS + _BACKLOG + _REQUEST_DESCRIPTORS * (limits.concurrency + limits.queue)
    wanted = limits.max_connections + kept
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    most = limits.max_connections if soft == resource.RLIM_INFINITY else min(limits.max_connections, soft - kept)
    if most < min(_LEAST_CONNECTIONS, limits.max_connections):
        requests = limits.concurrency + limits.queue
        raise ServeError(
            f"the limit of {soft} open files (ulimit -n) is too low for {requests} requests, which need "
            f"{kept + _LEAST_CONNECTIONS}: raise it, or lower --concurrency or --queue"
        )
    if most < limits.max_connections:
        _log.warning("at most %d connections, since the limit of open files is %d (ulimit -n)", most, soft)
    return most


def _cut_off(server: Server) -> str:
    limit_s = server.service.limits.drain_s
    return (
        f"{server.unanswered} requests or streams were cut off: they did not finish within {limit_s:g} s (--drain-s)"
    )


def _end_now(server: Server) -> None:
    """End the process, whatever its threads do."""
    server.unanswered = server.unanswered or server.service.active
    text = _cut_off(server) if server.unanswered else "the engine did not answer in time"
    remove_leftovers(server.service.files.folder, own=True)
    logging.shutdown()
    print(f"frcrn-accel: error: {text}", file=sys.stderr, flush=True)
    os._exit(2)


def _bound_silence(listener: socket.socket, limits: Limits) -> None:
    """Make the system close connections whose peer does not read or is gone."""
    options: dict[str, Any] = {
        "SO_KEEPALIVE": (socket.SOL_SOCKET, 1),
        "TCP_USER_TIMEOUT": (socket.IPPROTO_TCP, math.ceil(1000 * limits.stream_idle_s)),  # Linux
    }
    for name, (level, value) in options.items():
        if hasattr(socket, name):
            listener.setsockopt(level, getattr(socket, name), value)
