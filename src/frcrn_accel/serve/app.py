"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import threading
import time
import wave
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from frcrn_accel.atomic import remove_leftovers, temporary_folder
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import BackendUnavailable, ServeError, one_line
from frcrn_accel.processes import FileProcesses
from frcrn_accel.serve import metrics as _metrics
from frcrn_accel.serve.denoise import FOLDER_NAME, Files
from frcrn_accel.serve.guard import Guard, Hosts, SafeHeaders, allowed_host_names, guess_rates
from frcrn_accel.serve.job import Workshop
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.live import Streams
from frcrn_accel.serve.metrics import Metrics, Observed
from frcrn_accel.serve.openapi import openapi_document
from frcrn_accel.serve.problems import Problem, handle_http_exception, handle_problem
from frcrn_accel.serve.result_headers import RESULT_HEADERS
from frcrn_accel.serve.threads import in_thread
from frcrn_accel.serve.tokens import TokenSet
from frcrn_accel.serve.upload import PacedAnswers
from frcrn_accel.serve.watch import EngineWatch

__all__ = ["Service", "create_app"]

_PAGE = Path(__file__).parent / "page"
_WARM_UP_S = 21.0  # more than a window: backends that prepare for its length do so here
_PROBE_S = 1.0
_PROBE_EVERY_S = 5.0

_log = logging.getLogger("frcrn_accel.serve")


class Service:
    """A denoiser with the state of a server around it.

    Args:
        denoiser: The denoiser. The caller closes it, after `close`.
        limits: Limits of the server.
        metrics: Where to count.
        processes: Where files are decoded and encoded; by default processes of its own. Those given stay open.
        stream_denoiser: The denoiser for live streams; by default the one for files. The caller closes it, too.

    Attributes:
        denoiser, limits, metrics, stream_denoiser: As given.
        files: The endpoint `POST /v1/denoise`.
        streams: The endpoint `WS /v1/stream`.
        failure: The error of the warm-up; None if it succeeded or is not done.

    Raises:
        ServeError: No folder for temporary files is writable.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        processes: FileProcesses | None = None,
        stream_denoiser: Denoiser | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.stream_denoiser = stream_denoiser or denoiser
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self._own_processes = None if processes else FileProcesses(died=self.metrics.file_processes_died.inc)
        self._watch = EngineWatch(self.limits.stall_s)
        self._stream_watch = EngineWatch(self.limits.stall_s)
        self._processes = processes or self._own_processes
        assert self._processes is not None
        workshop = Workshop(denoiser, self._processes, self._watch, self.limits)
        self.files = Files(workshop, self.metrics, _temporary_root())
        self.streams = Streams(self.stream_denoiser, self.limits, self.metrics, self._stream_watch)
        self.failure: Exception | None = None
        self._not_ready = "the model is warming up"
        self._has_streams = True
        self._warm_up: asyncio.Task[None] | None = None
        self._probe: threading.Thread | None = None
        self._next_probe = 0.0
        self._sha256 = sha256_of(denoiser.model_path)

    @property
    def not_ready(self) -> str:
        """Why the server takes no requests; "" if it does."""
        return self._not_ready or self._watch.problem or self._stream_watch.problem

    @property
    def is_computing(self) -> bool:
        """Whether the engine has calls to answer."""
        return self._watch.is_busy or self._stream_watch.is_busy

    @property
    def active(self) -> int:
        """Number of requests and streams in progress."""
        return self.files.admitted + self.streams.open

    async def warm_up(self) -> None:
        """Denoise noise, so that the first request does not wait for the engine; then be ready."""
        try:
            await in_thread(self._try_everything)
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
            remove_leftovers(self.files.folder)  # of servers that were killed
            self._warm_up = asyncio.create_task(self.warm_up())
        return self._warm_up

    def probe(self) -> None:
        """Try a failed engine again, in the background, unless that was done in the last 5 s."""
        is_running = self._probe is not None and self._probe.is_alive()
        has_failed = self._watch.has_failed or self._stream_watch.has_failed
        if self._not_ready or not has_failed or is_running or time.monotonic() < self._next_probe:
            return
        self._next_probe = time.monotonic() + _PROBE_EVERY_S
        self._probe = threading.Thread(target=self._try_again, name="frcrn-accel-probe", daemon=True)
        self._probe.start()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Warm up in the background, and close at the end of the block.

        This is the lifespan of the application. If that is mounted in another one, enter it in the other's lifespan.
        """
        warm_up = self.start()
        try:
            yield
        finally:
            warm_up.cancel()  # it may hang
            with suppress(asyncio.CancelledError):
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
        if self._own_processes is not None:
            self._own_processes.close()

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
            "stream_model": self.stream_denoiser.model.name,
            "attenuation_limit_db": self.denoiser.attenuation_limit_db,
            "high_band": self.denoiser.high_band,
        }

    def _try_everything(self) -> None:
        """Denoise noise as a signal and as a stream, and an empty file, which starts a process for files."""
        self._denoise_noise(_WARM_UP_S)
        try:
            self._stream_noise()
        except BackendUnavailable as error:
            self._has_streams = False
            _log.warning("live streams are not available: %s", error)
        with temporary_folder(self.files.folder, FOLDER_NAME) as folder:
            with wave.open(str(folder / "noise.wav"), "wb") as file:
                file.setparams((1, 2, self.denoiser.model.sample_rate_hz, 0, "NONE", "not compressed"))
            assert self._processes is not None
            self.denoiser.denoise_file(folder / "noise.wav", folder / "denoised.wav", run=self._processes.run)

    def _try_again(self) -> None:
        attempts = ((self._watch, partial(self._denoise_noise, _PROBE_S)), (self._stream_watch, self._stream_noise))
        for watch, attempt in attempts:
            if not watch.has_failed:
                continue
            try:
                attempt()
            except Exception as error:
                _log.warning("the engine still fails: %s", one_line(error, with_type=True))
            else:
                watch.succeeded()
                _log.info("the engine works again")

    def _denoise_noise(self, length_s: float) -> None:
        with self._watch.call():
            self.denoiser(self._noise(length_s), self.denoiser.model.sample_rate_hz)

    def _stream_noise(self) -> None:
        with self._stream_watch.call():
            self.stream_denoiser.stream(self.stream_denoiser.model.sample_rate_hz).process(self._noise(_PROBE_S))

    def _noise(self, length_s: float) -> NDArray[np.float32]:
        samples = int(length_s * self.denoiser.model.sample_rate_hz)
        return np.float32(0.01) * np.random.default_rng(0).standard_normal(samples, np.float32)


def _temporary_root() -> Path:
    """Return the folder for temporary files. Python silently takes the next one if one is full or not writable.

    Raises:
        ServeError: The one that was asked for is not writable, or none is.
    """
    asked = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), None)
    try:
        if asked is not None:
            with tempfile.TemporaryFile(dir=asked) as file:
                file.write(b"room")
        found = Path(tempfile.gettempdir())
    except OSError as error:
        reason = error.strerror or error
        raise ServeError(
            f"cannot write temporary files to {asked or 'the usual folders'}: {reason}; set TMPDIR"
        ) from error
    if asked is None and found == Path.cwd():  # Python's last resort
        raise ServeError("cannot write temporary files to the usual folders: make room there, or set TMPDIR")
    return found


def create_app(
    service: Service,
    *,
    tokens: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    allowed_hosts: Iterable[str] = (),
    open_metrics: bool = False,
) -> Starlette:
    """Create the ASGI application. Its lifespan is `Service.running`, which warms the service up and closes it.

    It can be mounted in another application. Starlette does not run the lifespan of a mounted application: enter
    `Service.running` in that of the outer one. Otherwise the first request starts the warm-up.

    Args:
        service: The denoiser with its endpoints and limits.
        tokens: Valid tokens. Requests to `/v1/` and `/metrics` must have one of them, unless there are none.
        allowed_origins: Origins, besides the server's own, whose web pages may use it; "*" for all.
        allowed_hosts: Host names, besides those of loopback, that requests may be addressed to; "*" for all. IP
            addresses are always allowed.
        open_metrics: Require no token for `/metrics`.

    Raises:
        ServeError: An allowed host is not a name.
    """

    async def models(request: Request) -> Response:
        return JSONResponse({"models": [service.describe()]})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(request: Request) -> Response:
        if service.not_ready:
            service.probe()
            raise Problem(503, service.not_ready, {"Retry-After": "1"})
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=_metrics.CONTENT_TYPE)

    document = openapi_document(has_tokens=bool(known_tokens := TokenSet(tokens)), open_metrics=open_metrics)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document)

    page_files = _PageFiles(directory=_PAGE)

    async def page(request: Request) -> Response:
        return await page_files.get_response("index.html", request.scope)

    origins = frozenset(allowed_origins)
    guard = Middleware(Guard, known_tokens, origins, guess_rates(service.limits.client_guesses))
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
        "/metrics": Route("/metrics", metrics, middleware=[] if open_metrics else [guard]),
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
            Mount("/v1", v1, middleware=[guard]),
            *routes.values(),
            Mount("/page", page_files),
        ],
        middleware=[
            Middleware(Observed, service.metrics, frozenset((*routes, *(f"/v1{path}" for path in protected)))),
            Middleware(PacedAnswers, service.limits),
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
