"""Reasons for the errors of the libraries that read and write audio files."""

from __future__ import annotations

__all__ = ["reason_of"]


def reason_of(error: Exception) -> str:
    """Return the reason for an error of the system, of libsndfile or of FFmpeg."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(text).rstrip(".")
