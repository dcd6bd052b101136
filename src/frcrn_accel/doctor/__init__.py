"""The state of an installation, for people and for bug reports."""

from frcrn_accel.doctor.privacy import without_names
from frcrn_accel.doctor.report import (
    SCHEMA_PATH,
    BackendReport,
    CacheReport,
    CpuReport,
    FileReport,
    GpuDevice,
    GpuReport,
    ModelReport,
    Report,
    examine,
)

__all__ = [
    "SCHEMA_PATH",
    "BackendReport",
    "CacheReport",
    "CpuReport",
    "FileReport",
    "GpuDevice",
    "GpuReport",
    "ModelReport",
    "Report",
    "examine",
    "without_names",
]
