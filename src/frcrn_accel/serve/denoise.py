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
from frcrn_accel.serve.upload import receive_file, send_file

__all__ = ["FORMATS", "MEDIA_TYPES", "Files"]

# Of the names that `format` may have: libsndfile has many more formats, which only come back if they came in.
_NAMES = {"aiff": "AIFF", "flac": "FLAC", "mp3": "MP3", "ogg": "OGG", "opus": "OGG", "wav": "WAV"}
FORMATS = tuple(name for name in _NAMES if f".{name}" in audio_suffixes())
MEDIA_TYPES = {
    "AIFF": "audio/aiff",
    "FLAC": "audio/flac",
    "MP3": "audio/mpeg",
    "OGG": "audio/ogg",
    "RF64": "audio/wav",
    "WAV": "audio/wav",
    "WAVEX": "audio/wav",
}
_SAMPLE_BYTES = 4
_UNREAD_S = 2.0  # longest time that is given to a request which is refused
_SYSTEM_ERROR = 2  # libsndfile's SF_ERR_SYSTEM: a disk that is full

_log = logging.getLogger("frcrn_accel.serve")


@dataclass(frozen=True)
class _Options:
    """What the query says.

    Attributes:
        format: One of `FORMATS`; None for that of the input.
        attenuation_limit_db: None for the denoiser's own.
    """

    format: str | None
    attenuation_limit_db: float | None


class Files:
    """The endpoint, an ASGI application; and who is admitted to it.

    A request is admitted before its body is read, and counts until its answer is sent; `Limits.concurrency` of them
    are computed at the same time, in threads. All that belongs to one is in a folder of its own, which goes with it,
    however it ends.

    Args:
        denoiser: What denoises.
        limits: See there.
        metrics: Where it is counted.

    Attributes:
        is_draining: Whether no more are admitted.
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
        """Requests that are under way."""
        return self._admitted

    def drain(self) -> None:
        """Admit no more."""
        self.is_draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        request = Request(scope, receive)
        options = _read_options(request.query_params)
        if self.is_draining:
            # Closed with a part of the request unread, a connection is reset, and the answer may be lost with it.
            with anyio.move_on_after(_UNREAD_S):
                while (await receive()).get("more_body", False):
                    pass
            raise Problem(503, "this server is about to end: ask another one", {"Connection": "close"})
        with self._admission(), tempfile.TemporaryDirectory(prefix="frcrn-accel-") as name:
            source = Path(name) / "audio"
            try:
                with _storing():
                    await receive_file(request, source, self._limits)
                job = _Job(self._denoiser, source, options, self._limits)
                await self._compute(job, receive)
            except ClientDisconnect:
                note(scope, "the client left")
                return
            report = job.result()
            self._count(scope, report)
            if not await send_file(report.target, self._headers(job, report), send, self._limits):
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
        """Have it done in a thread; stop it if the client leaves, or if it takes too long.

        Raises:
            ClientDisconnect: The client is gone.
            Problem: The time is over.
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
                job.stop()  # also if the server itself is stopped: it waits for its threads

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
                f"this took longer than the limit of {self._limits.timeout_s:g} s: send shorter audio, or try later",
                {"Retry-After": "60"},
            )

    def _count(self, scope: Scope, report: FileReport) -> None:
        note(scope, f"{report.duration_s:.2f} s of audio, real-time factor {report.real_time_factor:.3f}")
        self._mean_s += 0.1 * (report.processing_s - self._mean_s)
        self._metrics.audio_seconds.inc(report.duration_s)
        if report.duration_s:
            self._metrics.real_time_factor.observe(report.real_time_factor)

    def _headers(self, job: _Job, report: FileReport) -> dict[str, str]:
        headers = {
            "Content-Type": job.media_type,
            "Content-Disposition": f'attachment; filename="denoised.{job.suffix}"',
            "Cache-Control": "no-store",
            "X-Processing-Seconds": f"{report.processing_s:.6f}",
            "X-Audio-Seconds": f"{report.duration_s:.6f}",
            "X-Model": self._denoiser.model.name,
            "X-Backend": self._denoiser.backend,
            "X-Clipped-Samples": str(report.clipped_samples),
        }
        if report.duration_s:
            headers["X-Real-Time-Factor"] = f"{report.real_time_factor:.6f}"
        return headers


class _Stopped(Exception):
    """Nobody waits for the result any more."""


class _Job:
    """One file, for a thread.

    Attributes:
        is_done: Whether there is a result, or an error.
        suffix: Of the result, without a dot.
        media_type: Of the result.
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
        """End soon."""
        self._stop.set()

    def run(self) -> None:
        """Denoise; errors are kept."""
        try:
            self._report = self._denoise()
        except _Stopped:
            pass
        except Exception as error:
            self._error = error

    @property
    def is_done(self) -> bool:
        return self._report is not None or self._error is not None

    def result(self) -> FileReport:
        """What became of it.

        Raises:
            Problem: The audio cannot be denoised.
            Exception: All else that went wrong.
        """
        if isinstance(self._error, AudioError):
            with _storing():
                self._raise_if_ours(self._error)
            status = 413 if isinstance(self._error, AudioTooLongError) else 422
            # The names of files on this machine are nobody's business.
            text = str(self._error).replace(repr(str(self._source)), "the file")
            text = text.replace(repr(str(self._target())), "the result")
            raise Problem(status, text) from self._error
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report

    def _raise_if_ours(self, error: AudioError) -> None:
        """Raise what the system said when the result was written: no fault of the body."""
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
        asked = self._options.format
        file_format = file.format if asked is None else _NAMES[asked]
        self.media_type = MEDIA_TYPES.get(file_format, "application/octet-stream")
        names = {"RF64": "wav", "WAVEX": "wav"}
        self.suffix = asked or names.get(file_format, file_format.lower())

    def _target(self) -> Path:
        # With the same suffix as the source, which is none, the result has its format.
        suffix = "" if self._options.format is None else f".{self._options.format}"
        return self._source.with_name(f"denoised{suffix}")

    def _check(self, done_s: float, total_s: float) -> None:
        if self._stop.is_set() or time.monotonic() > self._deadline:
            raise _Stopped


@contextmanager
def _storing() -> Iterator[None]:
    """What cannot be stored is no fault of the client."""
    try:
        yield
    except OSError as error:
        _log.exception("a file cannot be stored")
        raise Problem(507, "this server has no room for the file: try again later") from error


def _read_options(query: QueryParams) -> _Options:
    """The options in a query.

    Raises:
        Problem: There are others, one is there twice, or it has no such value.
    """
    unknown = query.keys() - {"format", "attenuation_limit_db"}
    if unknown:
        raise Problem(400, f"there is no option {min(unknown)[:40]!a}: there are format and attenuation_limit_db")
    if len(query.multi_items()) > len(query):
        raise Problem(400, "an option is there twice")
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
