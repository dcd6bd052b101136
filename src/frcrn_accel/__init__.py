"""FRCRN speech denoising, fast and exact on whatever engine a machine has.

>>> from frcrn_accel import Denoiser
>>> denoiser = Denoiser()
>>> clean = denoiser(noisy, sample_rate=16_000)
"""

from frcrn_accel._version import __version__
from frcrn_accel.backends import Backend, BackendStatus, Session, backend_statuses
from frcrn_accel.denoiser import Denoiser, FileReport
from frcrn_accel.errors import (
    AudioError,
    AudioTooLongError,
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
from frcrn_accel.models import KnownModel, ModelFile, ModelMetadata, known_models
from frcrn_accel.windows import Windowing

__all__ = [
    "AudioError",
    "AudioTooLongError",
    "Backend",
    "BackendError",
    "BackendStatus",
    "BackendUnavailable",
    "BenchError",
    "CorpusError",
    "Denoiser",
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
    "ServeError",
    "Session",
    "SoundCardError",
    "TrainingError",
    "UnknownBackendError",
    "UnsupportedPrecisionError",
    "Windowing",
    "__version__",
    "backend_statuses",
    "known_models",
]
