"""Every error this library raises on purpose.

::

    FrcrnAccelError
    ├── AudioError          the audio cannot be denoised: not finite, unreadable, out of range (also a ValueError)
    │   └── AudioTooLongError  it is longer than a limit that was set
    ├── OutputExistsError   the output file is there and overwriting was not asked for (also a FileExistsError)
    ├── ModelError          a model file or checkpoint is missing, damaged or not an FRCRN
    ├── ExportError         the exported graph did not match the checkpoint it came from
    ├── QuantizeError       a model cannot be quantized as asked (also a ValueError)
    ├── QualityError        a quantized model is further from its source than the quality gate allows
    ├── TrainingError       a training config is wrong, its audio is missing, or training diverged (also a ValueError)
    ├── BenchError          a benchmark cannot be run as asked, or what it measures has failed (also a ValueError)
    ├── CorpusError         a job over many files cannot be done as asked, or cannot go on (also a ValueError)
    ├── SoundCardError      there is no sound card here, or it does not do what was asked
    ├── ServeError          the server cannot be started as asked, or did not end in order
    ├── MissingExtraError   a feature needs a package of an extra that is not installed (also an ImportError)
    └── BackendError
        ├── UnknownBackendError    no backend of that name is installed (also a LookupError)
        ├── UnsupportedPrecisionError   the backend does not compute in that number format (also a ValueError)
        ├── BackendUnavailable     the backend is installed but cannot run here
        └── EngineError            the engine failed while it ran, or gave numbers that are not finite
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "AudioError",
    "AudioTooLongError",
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
    """Base of all errors of this library; its text is one line that can be shown to a person."""


class AudioError(FrcrnAccelError, ValueError):
    """The audio cannot be denoised."""


class AudioTooLongError(AudioError):
    """The audio is longer than a limit that was set."""


class OutputExistsError(FrcrnAccelError, FileExistsError):
    """The output file exists and overwriting it was not asked for."""


class ModelError(FrcrnAccelError):
    """A model file or a checkpoint is missing, damaged or not an FRCRN."""


class ExportError(FrcrnAccelError):
    """The exported graph did not match the checkpoint it came from; nothing was written."""


class QuantizeError(FrcrnAccelError, ValueError):
    """The model cannot be quantized as asked: unknown method or layer group, no calibration audio, no gate audio."""


class QualityError(FrcrnAccelError):
    """The quantized model is further from its source than the quality gate allows; nothing was written.

    Args:
        message: What was measured, what is allowed, and which layers to keep in float.
        report: The `quantize.QuantizeReport` with all measurements.

    Attributes:
        report: The argument.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class TrainingError(FrcrnAccelError, ValueError):
    """A training config is wrong, its audio is missing, or training diverged."""


class BenchError(FrcrnAccelError, ValueError):
    """A benchmark cannot be run as asked, or a process that it measures has failed."""


class CorpusError(FrcrnAccelError, ValueError):
    """A job over many files cannot be done as asked, or cannot go on, because the disk is full for instance."""


class SoundCardError(FrcrnAccelError):
    """There is no sound card, or no such device, or it does not do what was asked; the text says what to install."""


class ServeError(FrcrnAccelError):
    """The server cannot be started as asked, or did not end in order."""


class MissingExtraError(FrcrnAccelError, ImportError):
    """A feature needs packages that are not installed.

    Args:
        feature: What was asked for, as the start of a sentence.
        extra: Name of the extra that brings the packages.
        cause: The import error, for its text.
    """

    def __init__(self, feature: str, extra: str, cause: ImportError) -> None:
        super().__init__(f"{feature} needs more packages ({cause}): {install_hint(extra)}")
        self.extra = extra


class BackendError(FrcrnAccelError):
    """Base of the errors around engines."""


class UnknownBackendError(BackendError, LookupError):
    """No backend of that name is installed."""


class UnsupportedPrecisionError(BackendError, ValueError):
    """A backend does not compute in the number format that was asked for.

    Args:
        backend: Name of the backend.
        precision: What was asked for.
        precisions: What it offers.
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
        backend, reason, remedy: The arguments.
    """

    def __init__(self, backend: str, reason: str, remedy: str) -> None:
        super().__init__(f"backend {backend!r} cannot run here: {reason}; {remedy}")
        self.backend = backend
        self.reason = reason
        self.remedy = remedy


class EngineError(BackendError):
    """The engine failed while it ran, or gave numbers that are not finite."""


def install_hint(extra: str) -> str:
    """The pip line that installs an extra."""
    return f"pip install 'frcrn-accel[{extra}]'"
