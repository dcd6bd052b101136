"""Errors that this library raises on purpose.

::

    FrcrnAccelError
    ├── AudioError          the audio cannot be denoised: not finite, unreadable, out of range (also a ValueError)
    │   └── AudioTooLongError  it is longer than the limit
    ├── OutputExistsError   the output file exists and overwriting was not requested (also a FileExistsError)
    ├── ModelError          a model file or checkpoint is missing, damaged or not an FRCRN
    ├── ExportError         the exported graph does not match its checkpoint
    ├── QuantizeError       a model cannot be quantized as requested (also a ValueError)
    ├── QualityError        a quantized model differs more from its source than the quality gate allows
    ├── TrainingError       a training config is wrong, its audio is missing, or training diverged (also a ValueError)
    ├── BenchError          a benchmark cannot run as requested, or a measured process failed (also a ValueError)
    ├── CorpusError         a job over many files cannot run as requested, or stopped (also a ValueError)
    ├── SoundCardError      no usable sound card, or it does not support the request
    ├── ServeError          the server cannot start as requested, or did not shut down cleanly
    ├── MissingExtraError   a feature needs a package of an extra that is not installed (also an ImportError)
    └── BackendError
        ├── UnknownBackendError    no backend of that name is installed (also a LookupError)
        ├── UnsupportedPrecisionError   the backend does not compute in that number format (also a ValueError)
        ├── BackendUnavailable     the backend is installed but cannot run here
        └── EngineError            the engine failed at run time, or returned NaN or infinity

`AudioWarning`, a `UserWarning`, reports what is missing in a file or cannot be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "AudioError",
    "AudioTooLongError",
    "AudioWarning",
    "BackendError",
    "BackendUnavailable",
    "BenchError",
    "CorpusError",
    "EngineError",
    "ExportError",
    "FrcrnAccelError",
    "MissingExtraError",
    "ModelError",
    "OutputExistsError",
    "QualityError",
    "QuantizeError",
    "ServeError",
    "SoundCardError",
    "TrainingError",
    "UnknownBackendError",
    "UnsupportedPrecisionError",
]


class FrcrnAccelError(Exception):
    """Base of all errors of this library. Its message is one line that can be shown to users."""


class AudioError(FrcrnAccelError, ValueError):
    """The audio cannot be denoised."""


class AudioTooLongError(AudioError):
    """The audio is longer than the limit."""


class AudioWarning(UserWarning):
    """Part of a file is missing, was repaired or cannot be kept; the rest is intact. Its message is one line."""


class OutputExistsError(FrcrnAccelError, FileExistsError):
    """The output file exists and overwriting was not requested."""


class ModelError(FrcrnAccelError):
    """A model file or a checkpoint is missing, damaged or not an FRCRN."""


class ExportError(FrcrnAccelError):
    """The exported graph does not match its checkpoint; nothing was written."""


class QuantizeError(FrcrnAccelError, ValueError):
    """The model cannot be quantized as requested: unknown method or layer group, or no audio to measure on."""


class QualityError(FrcrnAccelError):
    """The quantized model differs more from its source than the quality gate allows; nothing was written.

    Args:
        message: The measurements, the limits, and the layers to keep in float.
        report: The `quantize.QuantizeReport` with all measurements.

    Attributes:
        report: See above.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class TrainingError(FrcrnAccelError, ValueError):
    """A training config is wrong, its audio is missing, or training diverged."""


class BenchError(FrcrnAccelError, ValueError):
    """A benchmark cannot run as requested, or a measured process failed."""


class CorpusError(FrcrnAccelError, ValueError):
    """A job over many files cannot run as requested, or stopped, for example because the disk is full."""


class SoundCardError(FrcrnAccelError):
    """No usable sound card or device, or it does not support the request."""


class ServeError(FrcrnAccelError):
    """The server cannot start as requested, or did not shut down cleanly."""


class MissingExtraError(FrcrnAccelError, ImportError):
    """A feature needs packages that are not installed.

    Args:
        feature: The feature, as the start of a sentence.
        extra: Name of the extra with the packages.
        cause: The import error; its message becomes part of this one's.

    Attributes:
        extra: See above.
    """

    def __init__(self, feature: str, extra: str, cause: ImportError) -> None:
        super().__init__(f"{feature} needs more packages ({cause}): {install_hint(extra)}")
        self.extra = extra


class BackendError(FrcrnAccelError):
    """Base of the errors of backends and engines."""


class UnknownBackendError(BackendError, LookupError):
    """No backend of that name is installed."""


class UnsupportedPrecisionError(BackendError, ValueError):
    """A backend does not compute in the requested number format.

    Args:
        backend: Name of the backend.
        precision: The requested precision.
        precisions: The supported ones.
    """

    def __init__(self, backend: str, precision: str, precisions: Sequence[str]) -> None:
        super().__init__(f"backend {backend!r} has no precision {precision!r}: it has {', '.join(precisions)}")


class BackendUnavailable(BackendError):
    """A backend is installed but cannot run here.

    Args:
        backend: Name of the backend.
        reason: What is missing or failed.
        remedy: What to install or do.

    Attributes:
        backend, reason, remedy: See above.
    """

    def __init__(self, backend: str, reason: str, remedy: str) -> None:
        super().__init__(f"backend {backend!r} cannot run here: {reason}; {remedy}")
        self.backend = backend
        self.reason = reason
        self.remedy = remedy


class EngineError(BackendError):
    """The engine failed at run time, or returned NaN or infinity."""


def install_hint(extra: str) -> str:
    """Return the pip command that installs an extra."""
    return f"pip install 'frcrn-accel[{extra}]'"


def one_line(error: Exception, *, skip: str | None = None, with_type: bool = False) -> str:
    """Return an error on one line: the first line of its message, or the name of its type if the message is empty.

    >>> one_line(RuntimeError("out of memory\\nat node 7"))
    'out of memory'

    Args:
        error: The error, usually one of another library.
        skip: Leave out lines that start with this.
        with_type: Put the name of the type in front.
    """
    name = type(error).__name__
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line and not (skip and line.startswith(skip))), "")
    if not text:
        return name
    return f"{name}: {text}" if with_type else text
