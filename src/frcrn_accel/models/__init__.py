"""Model files: what they say of themselves, which are known, and where they are."""

from frcrn_accel.models.catalog import DEFAULT_MODEL, KnownModel, find_model, known_models, sha256_of
from frcrn_accel.models.file import ModelFile, ModelMetadata

__all__ = [
    "DEFAULT_MODEL",
    "KnownModel",
    "ModelFile",
    "ModelMetadata",
    "find_model",
    "known_models",
    "sha256_of",
]
