"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from frcrn_accel.denoiser import Denoiser
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import BackendUnavailable
from frcrn_accel.serve import metrics as _metrics
from frcrn_accel.serve.denoise import Files
from frcrn_accel.serve.guard import Guard, Hosts, SafeHeaders, allowed_host_names
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.live import Streams
from frcrn_accel.serve.metrics import Metrics, Observed
from frcrn_accel.serve.openapi import openapi_document
from frcrn_accel.serve.problems import Problem, handle_http_exception, handle_problem
from frcrn_accel.serve.result_headers import RESULT_HEADERS
from frcrn_accel.serve.tokens import TokenSet

__all__ = ["Service", "create_app"]

_PAGE = Path(__file__).parent / "page"
_WARM_UP_S = 21.0  # more than a window: backends that prepare for its length do so here

_log = logging.getLogger("frcrn_accel.serve")


class Service:
    """A denoiser with the state of a server around it.

    Args:
        denoiser: The denoiser. The caller closes it, after `close`.
        limits: Limits of the server.
        metrics: Where to count.

    Attributes:
        denoiser, limits, metrics: As given.
        files: The endpoint `POST /v1/denoise`.
        streams: The endpoint `WS /v1/stream`.
        failure: The error of the warm-up; None if it succeeded or is not done.
    """

    def __init__(self, denoiser: Denoiser, limits: Limits | None = None, metrics: Metrics | None = None) -> None:
        self.denoiser = denoiser
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.files = Files(denoiser, self.limits, self.metrics)
        self.streams = Streams(denoiser, self.limits, self.metrics)
        self.failure: Exception | None = None
        self._not_ready = "the model is warming up"
        self._has_streams = True
        self._warm_up: asyncio.Task[None] | None = None
        self._sha256 = sha256_of(denoiser.model_path)

    @property
    def not_ready(self) -> str:
        """Why the server takes no requests; "" if it does."""
        return self._not_ready

    @property
    def active(self) -> int:
        """Number of requests and streams in progress."""
        return self.files.admitted + self.streams.open

    async def warm_up(self) -> None:
        """Denoise noise, so that the first request does not wait for the engine; then be ready."""
        try:
            await anyio.to_thread.run_sync(self._denoise_noise)
        except Exception as error:
            self.failure = error
            self._not_ready = "the warm-up failed"
        else:
            if self._not_ready and not self.files.is_draining:
                self._not_ready = ""
                _log.info("ready")

    def start(self) -> asyncio.Task[None]:
        """Start the warm-up in the background, if it was not started before; return its task."""
        if self._warm_up is None:
            self._warm_up = asyncio.create_task(self.warm_up())
        return self._warm_up

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warm up in the background, and close at the end of the block.

        This is the lifespan of the application. Where it is mounted in another one, use it in the lifespan of that.
        """
        warm_up = self.start()
        try:
            yield
        finally:
            await warm_up
            self.close()

    def drain(self) -> None:
        """Admit no more requests, finish those in progress, and end the streams."""
        self._not_ready = "the server is shutting down"
        self.files.drain()
        self.streams.drain()

    def close(self) -> None:
        """End the threads. No request or stream may be in progress."""
        self.streams.close()

    def describe(self) -> dict[str, object]:
        """Return the model's entry in `/v1/models`."""
        model = self.denoiser.model
        return {
            "name": model.name,
            "sha256": self._sha256,
            "checkpoint_sha256": model.checkpoint_sha256,
            "sample_rate_hz": model.sample_rate_hz,
            "channels": model.channels,
            "unets": model.unets,
            "backend": self.denoiser.backend,
            "precision": self.denoiser.precision,
            "device": self.denoiser.device,
            "streams": self._has_streams,
            "attenuation_limit_db": self.denoiser.attenuation_limit_db,
            "high_band": self.denoiser.high_band,
        }

    def _denoise_noise(self) -> None:
        rate_hz = self.denoiser.model.sample_rate_hz
        noise = 0.01 * np.random.default_rng(0).standard_normal(int(_WARM_UP_S * rate_hz))
        self.denoiser(noise.astype(np.float32), rate_hz)
        try:
            self.denoiser.stream(rate_hz).process(noise[:rate_hz].astype(np.float32))
        except BackendUnavailable as error:
            self._has_streams = False
            _log.warning("live streams are not available: %s", error)


def create_app(
    service: Service,
    *,
    tokens: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    allowed_hosts: Iterable[str] = (),
) -> Starlette:
    """Create the ASGI application. Its lifespan is `Service.running`, which warms the service up and closes it.

    It can be mounted in another application. Starlette does not run the lifespan of a mounted one: use
    `Service.running` in that of the other. Otherwise the first request starts the warm-up.

    Args:
        service: What it serves.
        tokens: Tokens of which requests to `/v1/` must have one; none to require no token.
        allowed_origins: Origins, besides the server's own, whose web pages may use it; "*" for all.
        allowed_hosts: Host names, besides those of loopback, that requests may be addressed to; "*" for all. IP
            addresses are always allowed.

    Raises:
        ServeError: An allowed host is not a name.
    """

    async def models(request: Request) -> Response:
        return JSONResponse({"models": [service.describe()]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        if service.not_ready:
            raise Problem(503, service.not_ready, {"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=_metrics.CONTENT_TYPE)

    document = openapi_document(has_tokens=bool(known_tokens := TokenSet(tokens)))

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    page_files = _PageFiles(directory=_PAGE)

    async def page(request: Request) -> Response:
        return await page_files.get_response("index.html", request.scope)

    origins = frozenset(allowed_origins)
    # The guard is part of the mount, so it protects what is below it wherever the application itself is mounted.
    protected = {
        "/denoise": Route("/denoise", service.files, methods=["POST"]),
        "/stream": WebSocketRoute("/stream", service.streams.serve),
        "/models": Route("/models", models),
    }
    v1 = Router(list(protected.values()), redirect_slashes=False)
    routes = {
        "/health": Route("/health", health),
        "/ready": Route("/ready", ready),
        "/metrics": Route("/metrics", metrics),
        "/openapi.json": Route("/openapi.json", openapi),
        "/": Route("/", page),
    }
    cors = Middleware(
        CORSMiddleware,
        allow_origins=sorted(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=[header.name for header in RESULT_HEADERS],
    )
    app = Starlette(
        routes=[
            Mount("/v1", v1, middleware=[Middleware(Guard, known_tokens, origins)]),
            *routes.values(),
            Mount("/page", page_files),
        ],
        middleware=[
            Middleware(Observed, service.metrics, frozenset((*routes, *(f"/v1{path}" for path in protected)))),
            Middleware(SafeHeaders),
            Middleware(Hosts, allowed_host_names(allowed_hosts)),
            *([cors] if origins else []),
            Middleware(_Started, service),
        ],
        exception_handlers={
            Problem: handle_problem,
            HTTPException: handle_http_exception,
        },
        lifespan=lambda app: service.running(),
    )
    app.router.redirect_slashes = False
    return app


class _Started:
    """Middleware that starts the warm-up with the first request, unless a lifespan has started it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""
        if scope["type"] in ("http", "websocket"):
            self._service.start()
        await self._app(scope, receive, send)


class _PageFiles(StaticFiles):
    """The files of the page. Browsers revalidate them, so that an upgrade never mixes two versions."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "no-cache"
        if str(full_path).endswith(".js") and "content-type" in response.headers:
            # The type comes from the system's MIME table; with a wrong entry there, browsers refuse the scripts.
            response.headers["content-type"] = "text/javascript; charset=utf-8"
        return response
