"""The state of an installation, for people and for bug reports."""

from frcrn_accel.doctor.examine import (
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
from frcrn_accel.doctor.machine import examine_cpu, examine_gpu
from frcrn_accel.doctor.privacy import without_names

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
    "examine_cpu",
    "examine_gpu",
    "without_names",
]
