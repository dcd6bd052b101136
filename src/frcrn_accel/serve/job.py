"""One file of a request, denoised in a thread."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import os
import re
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from frcrn_accel.denoiser import KEEPS, Denoiser, FileReport
from frcrn_accel.errors import AudioError, AudioTooLongError, EngineError, one_line
from frcrn_accel.file_denoising import FileJob
from frcrn_accel.files import audio_suffixes
from frcrn_accel.high_band import HighBandMode
from frcrn_accel.notices import collected_notices
from frcrn_accel.processes import FileProcesses, Intake
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.problems import Problem
from frcrn_accel.serve.watch import EngineWatch, WatchedSession

__all__ = [
    "ARCHIVE_MEDIA_TYPE",
    "FILM_MEDIA_TYPES",
    "FORMATS",
    "KEEP_CHOICES",
    "MEDIA_TYPES",
    "Job",
    "JobOptions",
    "Workshop",
    "storage_problems",
]

MEDIA_TYPES = {
    "aiff": "audio/aiff",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "wav": "audio/wav",
    "weba": "audio/webm",
    "webm": "audio/webm",
}
"""Media types by suffix. There are more formats; they are returned only for inputs of the same format."""
FORMATS = tuple(
    suffix for suffix in MEDIA_TYPES if f".{suffix}" in audio_suffixes() and suffix != "weba"
)  # "webm" is the same
FILM_MEDIA_TYPES = {
    "3g2": "video/3gpp2",
    "3gp": "video/3gpp",
    "avi": "video/x-msvideo",
    "flv": "video/x-flv",
    "mkv": "video/x-matroska",
    "mov": "video/quicktime",
    "mp4": "video/mp4",
    "ogv": "video/ogg",
    "webm": "video/webm",
    "wmv": "video/x-ms-wmv",
}
"""Media types of films, likewise."""
KEEP_CHOICES = (*KEEPS, "both")
ARCHIVE_MEDIA_TYPE = "application/zip"
"""Media type of a result that is two files."""

_RESULT, _NOISE = "denoised", "noise"
_SUFFIX = re.compile(r"(\.[a-z0-9]{1,8})?", re.ASCII)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space or inodes, a quota, the limit of a file's size
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_log = logging.getLogger("frcrn_accel.serve")


@dataclass(frozen=True)
class JobOptions:
    """Options of a request.

    Attributes:
        format: One of `FORMATS`; None for that of the input.
        attenuation_limit_db: None for the denoiser's own.
        high_band: None for the denoiser's own.
        keep: See `Denoiser.denoise_file`; `"both"` for an archive of both files.
        takes_films: Whether the result for a film may be a film. With a format, it is the sound.
    """

    format: str | None = None
    attenuation_limit_db: float | None = None
    high_band: HighBandMode | None = None
    keep: Literal["speech", "noise", "both"] = "speech"
    takes_films: bool = True


@dataclass(frozen=True)
class Workshop:
    """The resources that all jobs share.

    Attributes:
        denoiser: The denoiser.
        processes: Where files are decoded and encoded.
        watch: Notes the calls of the engine.
        limits: Limits of the server.
    """

    denoiser: Denoiser
    processes: FileProcesses
    watch: EngineWatch
    limits: Limits


class Job:
    """One file, denoised in a thread; it is decoded and encoded in a process of its own.

    Args:
        workshop: The resources that all jobs share.
        source: The file.
        options: Options of the request.

    Attributes:
        has_begun: Whether `run` was called.
    """

    def __init__(self, workshop: Workshop, source: Path, options: JobOptions) -> None:
        self._workshop = workshop
        self._source = source
        self._options = options
        self._stop = threading.Event()
        self._deadline = time.monotonic() + workshop.limits.timeout_s
        self._report: FileReport | None = None
        self._error: Exception | None = None
        self.has_begun = False

    def stop(self) -> None:
        """Stop once the engine has answered."""
        self._stop.set()

    def run(self) -> None:
        """Denoise the file; an error is kept for `result`."""
        self.has_begun = True
        watch = self._workshop.watch
        try:
            self._report = self._denoise()
        except _Stopped:
            return
        except EngineError as error:
            watch.failed()
            self._error = error
        except Exception as error:
            self._error = error
        else:
            if self._report.duration_s:
                watch.succeeded()

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
        with storage_problems():
            if isinstance(self._error, AudioError):
                self._raise_if_storage_failed(self._error)
            elif self._error is not None:
                raise self._error
        if self._error is not None:
            status = 413 if isinstance(self._error, AudioTooLongError) else 422
            raise Problem(status, self._without_paths(str(self._error))) from self._error
        assert self._report is not None
        return self._report

    @property
    def media_type(self) -> str:
        """Media type of the result."""
        if self._options.keep == "both":
            return ARCHIVE_MEDIA_TYPE
        types = FILM_MEDIA_TYPES if self.result().is_film else MEDIA_TYPES
        return types.get(self.suffix, "application/octet-stream")

    @property
    def suffix(self) -> str:
        """Suffix of the result, without the dot."""
        return self.result().target.suffix.removeprefix(".")

    def _raise_if_storage_failed(self, error: AudioError) -> None:
        """Raise `OSError` if the system could not write the result, which is not the client's fault."""
        cause = error.__cause__
        if isinstance(cause, OSError) and self._target_pattern().search(str(error)):
            raise OSError(cause.errno, str(error)) from error

    def _denoise(self) -> FileReport:
        options, limits = self._options, self._workshop.limits
        suffix = f".{options.format}" if options.format else ""
        with collected_notices():  # they are in the report
            report = self._workshop.denoiser.denoise_file(
                self._source,
                self._source.with_name(_RESULT + suffix),
                progress=self._check,
                max_duration_s=limits.max_duration_s,
                attenuation_limit_db=options.attenuation_limit_db,
                high_band=options.high_band,
                keep="noise" if options.keep == "noise" else "speech",
                noise_target=self._source.with_name(_NOISE + suffix) if options.keep == "both" else None,
                run=partial(
                    self._run,
                    intake=Intake(
                        limits.max_channels,
                        limits.max_decoded_bytes,
                        choose_suffix=not options.format,
                        takes_films=options.takes_films and not options.format,
                    ),
                ),
            )
        # It comes from a process that the file may have taken over: it must not name another file, nor spoil headers
        # and metrics.
        numbers = (report.duration_s, report.processing_s, report.clipped_samples)
        names = [_RESULT, _NOISE] if options.keep == "both" else [_RESULT]
        results = [self._source.with_name(name + report.target.suffix) for name in names]
        is_result = report.target == results[0] and _SUFFIX.fullmatch(report.target.suffix) is not None
        if (
            not is_result
            or not all(map(Path.is_file, results))
            or not all(0 <= number < math.inf for number in numbers)
        ):
            raise AudioError(f"{str(self._source)!r} cannot be denoised: its process sent an invalid report")
        target = report.target if len(results) == 1 else self._packed(results)
        return dataclasses.replace(report, target=target, warnings=tuple(map(self._without_paths, report.warnings)))

    def _packed(self, results: Sequence[Path]) -> Path:
        """Move results into an archive, without compression."""
        archive = self._source.with_name(f"{_RESULT}.zip")
        with zipfile.ZipFile(archive, "w") as files:
            for result in results:
                files.write(result, result.name)
                result.unlink()
        return archive

    def _without_paths(self, text: str) -> str:
        """Return an error or a warning without paths of this machine, which clients must not see."""
        return self._target_pattern().sub("the result", text.replace(repr(str(self._source)), "the file"))

    def _run(self, job: FileJob, intake: Intake) -> FileReport:
        session = WatchedSession(job.engine.session, self._workshop.watch)
        job = dataclasses.replace(job, engine=dataclasses.replace(job.engine, session=session))
        return self._workshop.processes.run(job, intake)

    def _target_pattern(self) -> re.Pattern[str]:
        """Return what the paths of the results look like in an error or a warning."""
        folder = repr(f"{self._source.parent}{os.sep}")[:-1]
        return re.compile(rf"{re.escape(folder)}({_RESULT}|{_NOISE})[.\w]*'")

    def _check(self, done_s: float, total_s: float) -> None:
        if self._stop.is_set() or time.monotonic() > self._deadline:
            raise _Stopped


@contextmanager
def storage_problems() -> Iterator[None]:
    """Turn an `OSError` for lack of room, or of descriptors, into a problem that may pass; others are failures."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            detail = "the server has no room for the file: try again later"
        elif error.errno in _NO_DESCRIPTORS:
            detail = "the server has too many files open: try again later"
        else:
            raise
        _log.warning("cannot store a file: %s", one_line(error))
        raise Problem(507, detail) from error


class _Stopped(Exception):
    """The result is no longer wanted."""
