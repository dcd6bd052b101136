"""Metrics for Prometheus, and the log line of each request."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frcrn_accel.serve.clients import client_of
from frcrn_accel.serve.problems import Problem, unexpected_problem

__all__ = ["CONTENT_TYPE", "Metrics", "Observed", "note"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FACTS = "frcrn_accel.facts"
_GONE = 499  # nginx's status for a client that closed the connection before the answer
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_REAL_TIME_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SHOWN = 100  # characters of a text from outside in the log
_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

_log = logging.getLogger("frcrn_accel.serve")


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def named(kind: Any, name: str, text: str, **options: Any) -> Any:
            return kind(f"frcrn_accel_{name}", text, registry=self.registry, **options)

        self.requests = named(Counter, "requests", "Answered requests.", labelnames=("path", "status"))
        self.request_seconds = named(
            Histogram,
            "request_seconds",
            "Time from the head of a request to the end of its answer.",
            labelnames=("path",),
            buckets=_SECONDS,
        )
        self.admitted = named(Gauge, "requests_admitted", "Files in progress, transfers included.")
        self.computing = named(Gauge, "requests_computing", "Files being computed.")
        self.queued = named(Gauge, "requests_queued", "Files waiting to be computed.")
        self.audio_seconds = named(Counter, "audio_seconds", "Duration of the denoised files.")
        self.real_time_factor = named(
            Histogram, "real_time_factor", "Processing time of a file over its duration.", buckets=_REAL_TIME_FACTORS
        )
        self.batch_size = named(Histogram, "batch_size", "Windows per call of the engine.", buckets=_BATCHES)
        self.file_processes_died = named(
            Counter, "file_processes_died", "Processes for files that died during a job; each was replaced."
        )
        self.connections = named(Gauge, "connections", "Connections.")
        self.refused = named(Counter, "connections_refused", "Connections beyond a limit.")
        self.streams = named(Gauge, "streams", "Live streams.")
        self.streams_waiting = named(Gauge, "streams_waiting", "Live streams with audio waiting to be computed.")
        self.stream_seconds = named(Counter, "stream_audio_seconds", "Duration of the denoised live audio.")
        self.stream_batch_size = named(
            Histogram, "stream_batch_size", "Live streams per call of the engine.", buckets=_BATCHES
        )

    def text(self) -> bytes:
        """Return the metrics in the text format of Prometheus."""
        return generate_latest(self.registry)


def note(scope: Scope, text: str) -> None:
    """Add a fact to the log line of a request."""
    scope.setdefault(_FACTS, []).append(text)


class Observed:
    """The outermost middleware: counts, times and logs requests, and answers those that failed unexpectedly.

    The log contains no query, header or body, so neither audio nor tokens.

    Args:
        app: The application to observe.
        metrics: Where to count.
        paths: Paths that are counted by name; all others count as "other".
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        status = _GONE

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        began = time.perf_counter()
        # Where the application is mounted, the path includes the prefix; routing changes `root_path`.
        route = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            await self._app(scope, receive, observed_send)
        except asyncio.CancelledError:  # by the server, at the end of its shutdown
            if status == _GONE:
                await Problem(503, "the server has shut down").response()(scope, receive, observed_send)
        except Exception:
            _log.exception("a request failed")
            if status == _GONE:  # nothing is sent yet
                await unexpected_problem().response()(scope, receive, observed_send)
        finally:
            seconds = time.perf_counter() - began
            path = route if route in self._paths else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.request_seconds.labels(path).observe(seconds)
            facts = "".join(f", {fact}" for fact in scope.get(_FACTS, []))
            level = logging.DEBUG if path in ("/health", "/ready", "/metrics") else logging.INFO
            shown = route if path != "other" else ascii(route[:_SHOWN])
            client, method = _plain((scope.get("client") or ["-"])[0]), _plain(scope.get("method", "WS"))
            line = "%s %s %s %d %.3f s%s"
            whose = {"client": client_of(scope)}
            _log.log(level, line, client, method, shown, status, seconds, facts, extra=whose)


def _plain(text: str) -> str:
    """Return text of a client or proxy for the log: short, on one line, and without control characters."""
    return ascii(text[:_SHOWN])[1:-1]
