"""Finding the form of a model that an engine needs."""

from __future__ import annotations

from pathlib import Path

from frcrn_accel.errors import ModelError
from frcrn_accel.models import ModelFile

__all__ = ["find_variant"]


def find_variant(model: ModelFile, method: str, calibration: Path | None) -> ModelFile:
    """The model as quantized by a method: itself, if it is.

    Args:
        model: The model.
        method: One of `frcrn_accel.quantize.METHODS`.
        calibration: Folder with noisy speech, for methods that measure ranges.

    Raises:
        ModelError: It is not quantized by that method.
    """
    if model.metadata.method != method:
        raise ModelError(
            f"{str(model.path)!r} is not quantized by {method!r}: make such a file with "
            f"'frcrn-accel quantize --method {method} --calibration DIR'"
        )
    return model
