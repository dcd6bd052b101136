"""`POST /v1/denoise`."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio import CancelScope, CapacityLimiter
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from frcrn_accel.denoiser import KEEPS, Denoiser, FileReport
from frcrn_accel.high_band import HIGH_BANDS
from frcrn_accel.serve.job import FORMATS, Job, JobOptions, storage_problems
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.metrics import Metrics, note
from frcrn_accel.serve.problems import Problem
from frcrn_accel.serve.result_headers import result_headers
from frcrn_accel.serve.upload import receive_file, send_file

__all__ = ["Files"]

_CHOICES = {"format": FORMATS, "high_band": HIGH_BANDS, "keep": KEEPS}  # options with a few values
_UNREAD_S = 2.0  # longest time to read the body of a request that is refused


class Files:
    """The endpoint as an ASGI application, with the admission of requests.

    A request is admitted before its body is read and counts until its answer is sent. `Limits.concurrency` requests
    are computed at the same time, in threads. The files of a request are in a temporary folder, which is deleted
    however the request ends.

    Args:
        denoiser: The denoiser.
        limits: Limits of the server.
        metrics: Where to count.

    Attributes:
        is_draining: Whether new requests are refused.
    """

    def __init__(self, denoiser: Denoiser, limits: Limits, metrics: Metrics) -> None:
        self._denoiser = denoiser
        self._limits = limits
        self._metrics = metrics
        self._threads = CapacityLimiter(limits.concurrency)
        self._admitted = 0
        self.is_draining = False
        self._mean_s = 1.0
        metrics.admitted.set_function(lambda: self._admitted)
        metrics.computing.set_function(lambda: self._threads.borrowed_tokens)
        metrics.queued.set_function(lambda: self._threads.statistics().tasks_waiting)

    @property
    def admitted(self) -> int:
        """Number of requests in progress."""
        return self._admitted

    def drain(self) -> None:
        """Refuse new requests."""
        self.is_draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""
        request = Request(scope, receive)
        options = _read_options(request.query_params)
        if self.is_draining:
            # Closing a connection with unread data resets it, and the answer may be lost.
            with anyio.move_on_after(_UNREAD_S):
                while (await receive()).get("more_body", False):
                    pass
            raise Problem(503, "the server is shutting down: use another one", {"Connection": "close"})
        with self._admission(), tempfile.TemporaryDirectory(prefix="frcrn-accel-") as name:
            source = Path(name) / "audio"
            try:
                with storage_problems():
                    await receive_file(request, source, self._limits)
                job = Job(self._denoiser, source, options, self._limits)
                await self._compute(job, receive)
            except ClientDisconnect:
                note(scope, "the client left")
                return
            report = job.result()
            self._count(scope, report)
            headers = {
                "Content-Type": job.media_type,
                "Content-Disposition": f'attachment; filename="denoised.{job.suffix}"',
                "Cache-Control": "no-store",
                **result_headers(self._denoiser, report),
            }
            if not await send_file(report.target, headers, send, self._limits):
                note(scope, "the client was too slow")

    @contextmanager
    def _admission(self) -> Iterator[None]:
        if self._admitted >= self._limits.concurrency + self._limits.queue:
            wait_s = math.ceil(min(60.0, max(1.0, self._mean_s * self._admitted / self._limits.concurrency)))
            raise Problem(429, "too many requests are waiting: try again later", {"Retry-After": str(wait_s)})
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def _compute(self, job: Job, receive: Receive) -> None:
        """Run a job in a thread; stop it if the client leaves or the time is up.

        Raises:
            ClientDisconnect: The client left.
            Problem: The time is up.
        """
        is_gone = False

        async def watch(scope: CancelScope) -> None:
            nonlocal is_gone
            try:
                while (await receive())["type"] != "http.disconnect":
                    pass
                is_gone = True
                scope.cancel()
            finally:
                job.stop()  # also if the server is stopped, which waits for its threads

        async with anyio.create_task_group() as group:
            group.start_soon(watch, group.cancel_scope)
            with anyio.move_on_after(self._limits.timeout_s):
                await anyio.to_thread.run_sync(job.run, limiter=self._threads)
            group.cancel_scope.cancel()
        if is_gone:
            raise ClientDisconnect
        if not job.is_done:
            raise Problem(
                503,
                f"the request took longer than the limit of {self._limits.timeout_s:g} s: send shorter audio, or try "
                "again later",
                {"Retry-After": "60"},
            )

    def _count(self, scope: Scope, report: FileReport) -> None:
        note(scope, f"{report.duration_s:.2f} s of audio, real-time factor {report.real_time_factor:.3f}")
        self._mean_s += 0.1 * (report.processing_s - self._mean_s)
        self._metrics.audio_seconds.inc(report.duration_s)
        if report.duration_s:
            self._metrics.real_time_factor.observe(report.real_time_factor)


def _read_options(query: QueryParams) -> JobOptions:
    """Read the options in a query.

    Raises:
        Problem: An option is unknown, repeated or has an invalid value.
    """
    unknown = query.keys() - {*_CHOICES, "attenuation_limit_db"}
    if unknown:
        known = f"{', '.join(_CHOICES)} and attenuation_limit_db"
        raise Problem(400, f"unknown option {min(unknown)[:40]!a}: the options are {known}")
    if len(query.multi_items()) > len(query):
        raise Problem(400, "an option is given twice")
    chosen: dict[str, Any] = {name: query[name] for name in _CHOICES if name in query}
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise Problem(400, f"{name} must be one of {', '.join(_CHOICES[name])}, got {value[:40]!a}")
    text = query.get("attenuation_limit_db")
    if text is None:
        return JobOptions(**chosen)
    try:
        limit_db = float(text)
    except ValueError:
        limit_db = math.nan
    if not 0 <= limit_db < math.inf:
        raise Problem(400, f"attenuation_limit_db must be a number, 0 or more, got {text[:40]!a}")
    return JobOptions(**chosen, attenuation_limit_db=limit_db)
