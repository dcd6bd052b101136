"""Model files: what they say of themselves, which are known, and where they are."""

from frcrn_accel.models.cache import CACHE_DIR_VARIABLE, cache_folder, cached_file, cached_variant, find_cached
from frcrn_accel.models.catalog import (
    DEFAULT_MODEL,
    KnownModel,
    find_model,
    known_models,
    packaged_variant,
    sha256_of,
)
from frcrn_accel.models.file import FP32, METADATA_PREFIX, ModelFile, ModelMetadata

__all__ = [
    "CACHE_DIR_VARIABLE",
    "DEFAULT_MODEL",
    "FP32",
    "METADATA_PREFIX",
    "KnownModel",
    "ModelFile",
    "ModelMetadata",
    "cache_folder",
    "cached_file",
    "cached_variant",
    "find_cached",
    "find_model",
    "known_models",
    "packaged_variant",
    "sha256_of",
]
