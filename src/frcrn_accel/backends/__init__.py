"""Engines that can run a model, and how they are found."""

from frcrn_accel.backends.base import Backend, Session, StepSession
from frcrn_accel.backends.registry import ENTRY_POINT_GROUP, BackendStatus, backend_statuses, resolve_backend

__all__ = [
    "ENTRY_POINT_GROUP",
    "Backend",
    "BackendStatus",
    "Session",
    "StepSession",
    "backend_statuses",
    "resolve_backend",
]
