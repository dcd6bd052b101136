"""Model files: what they say of themselves, which are known, and where they are."""

from frcrn_accel.models.cache import (
    CACHE_DIR_VARIABLE,
    MODEL_NAME,
    cache_folder,
    cached_file,
    cached_files,
    cached_variant,
    find_cached,
    find_imported,
    imported_names,
    keep_imported,
)
from frcrn_accel.models.catalog import (
    DEFAULT_MODEL,
    LIVE_MODEL,
    KnownModel,
    find_model,
    known_models,
    packaged_files,
    packaged_variant,
    usual_lookahead,
)
from frcrn_accel.models.download import download_checkpoint, downloadable
from frcrn_accel.models.file import FP32, METADATA_PREFIX, STREAM, FileStatus, ModelFile, ModelMetadata, sha256_of

__all__ = [
    "CACHE_DIR_VARIABLE",
    "DEFAULT_MODEL",
    "FP32",
    "LIVE_MODEL",
    "METADATA_PREFIX",
    "MODEL_NAME",
    "STREAM",
    "FileStatus",
    "KnownModel",
    "ModelFile",
    "ModelMetadata",
    "cache_folder",
    "cached_file",
    "cached_files",
    "cached_variant",
    "download_checkpoint",
    "downloadable",
    "find_cached",
    "find_imported",
    "find_model",
    "imported_names",
    "keep_imported",
    "known_models",
    "packaged_files",
    "packaged_variant",
    "sha256_of",
    "usual_lookahead",
]
