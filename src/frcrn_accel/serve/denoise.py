"""`POST /v1/denoise`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from frcrn_accel.atomic import temporary_folder
from frcrn_accel.denoiser import FileReport
from frcrn_accel.high_band import HIGH_BANDS
from frcrn_accel.numerals import to_number
from frcrn_accel.serve.clients import Shares, client_of
from frcrn_accel.serve.job import FORMATS, KEEP_CHOICES, Job, JobOptions, Workshop, storage_problems
from frcrn_accel.serve.metrics import Metrics, note
from frcrn_accel.serve.problems import Problem
from frcrn_accel.serve.result_headers import result_headers
from frcrn_accel.serve.threads import Slots
from frcrn_accel.serve.upload import receive_file, send_file

__all__ = ["Files"]

_CHOICES = {"format": FORMATS, "high_band": HIGH_BANDS, "keep": KEEP_CHOICES}  # options with a few values
_UNREAD_S = 2.0  # longest time to read the body of a request that is refused
_STOP_S = 1.0  # for work that was stopped; an engine that hangs is not waited for
FOLDER_NAME = "frcrn-accel-serve"


class Files:
    """The endpoint as an ASGI application, with the admission of requests.

    A request is admitted before its body is read and counts until its answer is sent. `Limits.concurrency` requests
    are computed at the same time, in threads. The files of a request are in a temporary folder, which is deleted
    however the request ends.

    Args:
        workshop: The denoiser, and what jobs share.
        metrics: Where to count.
        folder: Where to make temporary folders.

    Attributes:
        folder: As given.
        is_draining: Whether new requests are refused.
    """

    def __init__(self, workshop: Workshop, metrics: Metrics, folder: Path) -> None:
        self._workshop = workshop
        self._limits = workshop.limits
        self._metrics = metrics
        self._slots = Slots(self._limits.concurrency)
        self._admitted = 0
        self._requests = Shares(self._limits.client_requests)
        self._bytes = Shares(self._limits.client_bytes)
        self.folder = folder
        self.is_draining = False
        self._mean_s = 1.0
        metrics.admitted.set_function(lambda: self._admitted)
        metrics.computing.set_function(lambda: self._slots.running)
        metrics.queued.set_function(lambda: self._slots.waiting)

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
        options = replace(options, takes_films=_takes_films(",".join(request.headers.getlist("accept"))))
        if self.is_draining:
            # Closing a connection with unread data resets it, and the answer may be lost.
            with anyio.move_on_after(_UNREAD_S):
                while (await receive()).get("more_body", False):
                    pass
            raise Problem(503, "the server is shutting down: use another one", {"Connection": "close"})
        client = client_of(scope)
        with self._admission(client), self._temporary_folder() as folder, self._body(client) as take:
            source = folder / "audio"
            try:
                with storage_problems():
                    await receive_file(request, source, self._limits, take)
                job = Job(self._workshop, source, options)
                await self._compute(job, receive, client)
            except ClientDisconnect:
                note(scope, "the client left")
                return
            report = job.result()
            self._count(scope, report)
            headers = {
                "Content-Type": job.media_type,
                "Content-Disposition": f'attachment; filename="denoised.{job.suffix}"',
                "Cache-Control": "no-store",
                **result_headers(self._workshop.denoiser, report),
            }
            with storage_problems():
                await send_file(report.target, headers, send)

    @contextmanager
    def _admission(self, client: str) -> Iterator[None]:
        with self._requests.holding(client) as is_admitted:
            if not is_admitted:
                raise self._busy("too many requests of this address are in progress")
            if self._admitted >= self._limits.concurrency + self._limits.queue:
                raise self._busy("too many requests are waiting")
            self._admitted += 1
            try:
                yield
            finally:
                self._admitted -= 1

    def _busy(self, reason: str) -> Problem:
        wait_s = math.ceil(min(60.0, max(1.0, self._mean_s * self._admitted / self._limits.concurrency)))
        return Problem(429, f"{reason}: try again later", {"Retry-After": str(wait_s)})

    @contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        with ExitStack() as stack:
            with storage_problems():
                folder = stack.enter_context(temporary_folder(self.folder, FOLDER_NAME))
            yield folder

    @contextmanager
    def _body(self, client: str) -> Iterator[Callable[[int], None]]:
        """Give a function that takes a number of bytes from what the client may store."""
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if not self._bytes.take(client, size):
                raise self._busy("the requests of this address are too large together")
            taken += size

        try:
            yield take
        finally:
            self._bytes.give_back(client, taken)

    async def _compute(self, job: Job, receive: Receive, client: str) -> None:
        """Run a job in a thread; stop it if the client leaves or the time is up, also if the engine hangs.

        Raises:
            ClientDisconnect: The client left.
            Problem: The time is up.
            RuntimeError: The job could not be run.
        """
        work = asyncio.ensure_future(self._slots.run(job.run, client))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({work, leaving}, timeout=self._limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            is_gone = leaving.done()
        finally:
            job.stop()  # also if the server is stopped
            leaving.cancel()
            if job.has_begun and not work.done():
                await asyncio.wait({work}, timeout=_STOP_S)
            work.cancel()
        if is_gone and not job.is_done:
            raise ClientDisconnect
        if not job.is_done:
            if work.done() and not work.cancelled():
                work.result()  # raises, for example if no thread can be started
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


async def _left(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _takes_films(accept: str) -> bool:
    """Return whether an `Accept` header (RFC 9110, section 12.5.1) does not prefer sound to films."""
    weights = {"*": 0.0}
    for media_range in accept.split(","):
        name, *parameters = (part.strip().lower() for part in media_range.split(";"))
        stated = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        weight = to_number(stated)
        if weight is None or not 0 <= weight <= 1:
            weight = 1.0  # not a weight
        kind = name.partition("/")[0]
        weights[kind] = max(weights.get(kind, 0.0), weight)
    return weights.get("video", weights["*"]) >= weights.get("audio", weights["*"])


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
    limit_db = to_number(text)
    if limit_db is None or limit_db < 0:
        raise Problem(400, f"attenuation_limit_db must be a number, 0 or more, got {text[:40]!a}")
    return JobOptions(**chosen, attenuation_limit_db=limit_db)
