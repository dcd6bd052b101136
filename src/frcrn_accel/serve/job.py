"""One file of a request, denoised in a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from frcrn_accel.denoiser import Denoiser, FileReport, Keep
from frcrn_accel.errors import AudioError, AudioTooLongError
from frcrn_accel.files import AudioFile, audio_suffixes, open_audio
from frcrn_accel.files.formats import writable_suffix
from frcrn_accel.high_band import HighBandMode
from frcrn_accel.notices import collected_notices
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.problems import Problem

__all__ = ["FORMATS", "MEDIA_TYPES", "Job", "JobOptions", "storage_problems"]

MEDIA_TYPES = {
    "aiff": "audio/aiff",
    "flac": "audio/flac",
    "m4a": "audio/mp4",
    "mp3": "audio/mpeg",
    "ogg": "audio/ogg",
    "opus": "audio/ogg",
    "wav": "audio/wav",
    "webm": "audio/webm",
}
"""Media types by suffix. There are more formats; they are returned only for inputs of the same format."""
FORMATS = tuple(suffix for suffix in MEDIA_TYPES if f".{suffix}" in audio_suffixes())
_SAMPLE_BYTES = 4
_SYSTEM_ERROR = 2  # libsndfile's SF_ERR_SYSTEM, e.g. a full disk

_log = logging.getLogger("frcrn_accel.serve")


@dataclass(frozen=True)
class JobOptions:
    """Options of a request.

    Attributes:
        format: One of `FORMATS`; None for that of the input.
        attenuation_limit_db: None for the denoiser's own.
        high_band: None for the denoiser's own.
        keep: See `Denoiser.denoise_file`.
    """

    format: str | None = None
    attenuation_limit_db: float | None = None
    high_band: HighBandMode | None = None
    keep: Keep = "speech"


class Job:
    """One file, denoised in a thread.

    Attributes:
        suffix: Suffix of the result, without the dot.
        media_type: Media type of the result.
    """

    def __init__(self, denoiser: Denoiser, source: Path, options: JobOptions, limits: Limits) -> None:
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
            with storage_problems():
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
        if is_system and repr(str(self._target())) in str(error):
            raise OSError(str(error)) from error

    def _denoise(self) -> FileReport:
        file = open_audio(self._source)
        if file.channels > self._limits.max_channels:
            raise AudioError(f"audio must have up to {self._limits.max_channels} channels, got {file.channels}")
        self._choose_format(file)
        bytes_per_s = file.sample_rate_hz * file.channels * _SAMPLE_BYTES
        with collected_notices():  # they name files of this machine
            return self._denoiser.denoise_file(
                self._source,
                self._target(),
                progress=self._check,
                max_duration_s=min(self._limits.max_duration_s, self._limits.max_decoded_bytes / bytes_per_s),
                attenuation_limit_db=self._options.attenuation_limit_db,
                high_band=self._options.high_band,
                keep=self._options.keep,
            )

    def _choose_format(self, file: AudioFile) -> None:
        self.suffix = self._options.format or writable_suffix(file).removeprefix(".")
        self.media_type = MEDIA_TYPES.get(self.suffix, "application/octet-stream")

    def _target(self) -> Path:
        return self._source.with_name(f"denoised.{self.suffix}")

    def _check(self, done_s: float, total_s: float) -> None:
        if self._stop.is_set() or time.monotonic() > self._deadline:
            raise _Stopped


@contextmanager
def storage_problems() -> Iterator[None]:
    """Turn an `OSError` into a problem of the server."""
    try:
        yield
    except OSError as error:
        _log.exception("cannot store a file")
        raise Problem(507, "the server has no room for the file: try again later") from error


class _Stopped(Exception):
    """The result is no longer wanted."""
