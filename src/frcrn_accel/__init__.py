"""Denoise speech with FRCRN, on the fastest backend that a machine has.

>>> from frcrn_accel import Denoiser
>>> denoiser = Denoiser()
>>> clean = denoiser(noisy, sample_rate=16_000)
"""

import os

# Before it is imported: from version 1.29 on, ONNX Runtime otherwise reports to Microsoft what it runs.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from frcrn_accel._version import __version__
from frcrn_accel.backends import Backend, BackendStatus, Session, backend_statuses
from frcrn_accel.denoiser import Denoiser, DenoiserOptions, FileReport, StreamOptions
from frcrn_accel.errors import (
    AudioError,
    AudioTooLongError,
    AudioWarning,
    BackendError,
    BackendUnavailable,
    BenchError,
    CorpusError,
    EngineError,
    ExportError,
    FrcrnAccelError,
    MissingExtraError,
    ModelError,
    OutputExistsError,
    QualityError,
    QuantizeError,
    ServeError,
    SoundCardError,
    TrainingError,
    UnknownBackendError,
    UnsupportedPrecisionError,
)
from frcrn_accel.models import KnownModel, ModelFile, ModelMetadata, Recipe, known_models
from frcrn_accel.streaming import Stream
from frcrn_accel.windows import Windowing

__all__ = [
    "AudioError",
    "AudioTooLongError",
    "AudioWarning",
    "Backend",
    "BackendError",
    "BackendStatus",
    "BackendUnavailable",
    "BenchError",
    "CorpusError",
    "Denoiser",
    "DenoiserOptions",
    "EngineError",
    "ExportError",
    "FileReport",
    "FrcrnAccelError",
    "KnownModel",
    "MissingExtraError",
    "ModelError",
    "ModelFile",
    "ModelMetadata",
    "OutputExistsError",
    "QualityError",
    "QuantizeError",
    "Recipe",
    "ServeError",
    "Session",
    "SoundCardError",
    "Stream",
    "StreamOptions",
    "TrainingError",
    "UnknownBackendError",
    "UnsupportedPrecisionError",
    "Windowing",
    "__version__",
    "backend_statuses",
    "known_models",
]
