"""Texts about audio files that several modules need."""

from __future__ import annotations

__all__ = ["IS_JOINED", "reason_of"]

_NOT_IMPLEMENTED = "Not yet implemented in FFmpeg"
IS_JOINED = "holds another file behind the first, as after joining them: it is left out"


def reason_of(error: Exception) -> str:
    """Return the reason for an error of the system, of libsndfile or of FFmpeg."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    if str(text).startswith(_NOT_IMPLEMENTED):
        return "FFmpeg does not decode this variant of its format"
    return str(text).rstrip(".")
