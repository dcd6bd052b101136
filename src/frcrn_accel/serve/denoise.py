"""`POST /v1/denoise`."""

from __future__ import annotations

import logging
import math
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import CancelScope, CapacityLimiter
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from frcrn_accel.denoiser import Denoiser, FileReport
from frcrn_accel.errors import AudioError, AudioTooLongError
from frcrn_accel.files import AudioFile, audio_suffixes, open_audio
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.metrics import Metrics, note
from frcrn_accel.serve.problems import Problem
from frcrn_accel.serve.result_headers import result_headers
from frcrn_accel.serve.upload import receive_file, send_file

__all__ = ["FORMATS", "MEDIA_TYPES", "Files"]

MEDIA_TYPES = {
    "aiff": "audio/aiff",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "wav": "audio/wav",
}
"""Media types by suffix. libsndfile has more formats; they are returned only for inputs of the same format."""
FORMATS = tuple(suffix for suffix in MEDIA_TYPES if f".{suffix}" in audio_suffixes())
_SUFFIX_OF_FORMAT = {"RF64": "wav", "WAVEX": "wav"}  # of the other formats, their names in lower case
_SAMPLE_BYTES = 4
_UNREAD_S = 2.0  # longest time to read the body of a request that is refused
_SYSTEM_ERROR = 2  # libsndfile's SF_ERR_SYSTEM, e.g. a full disk

_log = logging.getLogger("frcrn_accel.serve")


@dataclass(frozen=True)
class _Options:
    """Options in the query.

    Attributes:
        format: One of `FORMATS`; None for that of the input.
        attenuation_limit_db: None for the denoiser's own.
    """

    format: str | None
    attenuation_limit_db: float | None


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
                with _storage_problems():
                    await receive_file(request, source, self._limits)
                job = _Job(self._denoiser, source, options, self._limits)
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

    async def _compute(self, job: _Job, receive: Receive) -> None:
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


class _Stopped(Exception):
    """The result is no longer wanted."""


class _Job:
    """One file, denoised in a thread.

    Attributes:
        suffix: Suffix of the result, without the dot.
        media_type: Media type of the result.
    """

    def __init__(self, denoiser: Denoiser, source: Path, options: _Options, limits: Limits) -> None:
        self._denoiser = denoiser
        self._source = source
        self._options = options
        self._limits = limits
        self._stop = threading.Event()
        self._deadline = time.monotonic() + limits.timeout_s
        self._report: FileReport | None = None
        self._error: Exception | None = None
        self.suffix = self.media_type = ""

    def stop(self) -> None:
        """Stop before the next window."""
        self._stop.set()

    def run(self) -> None:
        """Denoise the file; an error is kept for `result`."""
        try:
            self._report = self._denoise()
        except _Stopped:
            pass
        except Exception as error:
            self._error = error

    @property
    def is_done(self) -> bool:
        """Whether there is a result or an error."""
        return self._report is not None or self._error is not None

    def result(self) -> FileReport:
        """Return the report.

        Raises:
            Problem: The audio cannot be denoised, or the result cannot be stored.
            Exception: Any other error.
        """
        if isinstance(self._error, AudioError):
            with _storage_problems():
                self._raise_if_storage_failed(self._error)
            status = 413 if isinstance(self._error, AudioTooLongError) else 422
            # Clients must not see paths of this machine.
            text = str(self._error).replace(repr(str(self._source)), "the file")
            text = text.replace(repr(str(self._target())), "the result")
            raise Problem(status, text) from self._error
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report

    def _raise_if_storage_failed(self, error: AudioError) -> None:
        """Raise `OSError` if the system could not write the result, which is not the client's fault."""
        cause = error.__cause__
        is_system = isinstance(cause, OSError) or getattr(cause, "code", None) == _SYSTEM_ERROR
        if is_system and str(error).startswith(repr(str(self._target()))):
            raise OSError(str(error)) from error

    def _denoise(self) -> FileReport:
        file = open_audio(self._source)
        if file.channels > self._limits.max_channels:
            raise AudioError(f"audio must have up to {self._limits.max_channels} channels, got {file.channels}")
        self._choose_format(file)
        bytes_per_s = file.sample_rate_hz * file.channels * _SAMPLE_BYTES
        return self._denoiser.denoise_file(
            self._source,
            self._target(),
            progress=self._check,
            max_duration_s=min(self._limits.max_duration_s, self._limits.max_decoded_bytes / bytes_per_s),
            attenuation_limit_db=self._options.attenuation_limit_db,
        )

    def _choose_format(self, file: AudioFile) -> None:
        self.suffix = self._options.format or _SUFFIX_OF_FORMAT.get(file.format, file.format.lower())
        self.media_type = MEDIA_TYPES.get(self.suffix, "application/octet-stream")

    def _target(self) -> Path:
        # With the same suffix as the source, which is none, the result gets its format.
        suffix = "" if self._options.format is None else f".{self._options.format}"
        return self._source.with_name(f"denoised{suffix}")

    def _check(self, done_s: float, total_s: float) -> None:
        if self._stop.is_set() or time.monotonic() > self._deadline:
            raise _Stopped


@contextmanager
def _storage_problems() -> Iterator[None]:
    """Turn an `OSError` into a problem of the server."""
    try:
        yield
    except OSError as error:
        _log.exception("cannot store a file")
        raise Problem(507, "the server has no room for the file: try again later") from error


def _read_options(query: QueryParams) -> _Options:
    """Read the options in a query.

    Raises:
        Problem: An option is unknown, repeated or has an invalid value.
    """
    unknown = query.keys() - {"format", "attenuation_limit_db"}
    if unknown:
        raise Problem(400, f"unknown option {min(unknown)[:40]!a}: the options are format and attenuation_limit_db")
    if len(query.multi_items()) > len(query):
        raise Problem(400, "an option is given twice")
    file_format = query.get("format")
    if file_format is not None and file_format not in FORMATS:
        raise Problem(400, f"format must be one of {', '.join(FORMATS)}, got {file_format[:40]!a}")
    text = query.get("attenuation_limit_db")
    if text is None:
        return _Options(file_format, None)
    try:
        limit_db = float(text)
    except ValueError:
        limit_db = math.nan
    if not 0 <= limit_db < math.inf:
        raise Problem(400, f"attenuation_limit_db must be a number, 0 or more, got {text[:40]!a}")
    return _Options(file_format, limit_db)
