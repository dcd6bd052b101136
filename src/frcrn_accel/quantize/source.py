"""The data that all quantized files of a model share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.digest import sha256_of
from frcrn_accel.models import ModelFile, read_weights
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.quality.clips import read_clips
from frcrn_accel.quantize.recordings import digest_of, model_inputs
from frcrn_accel.quantize.reference import Reference

__all__ = ["Source"]


class Source:
    """An fp32 model to quantize with several methods; data that do not depend on the method are computed once.

    >>> from frcrn_accel.models import find_model
    >>> from frcrn_accel.quantize import Source, quantize_model
    >>> source = Source(find_model("frcrn-small"))
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = quantize_model(source, f"{folder}/half.onnx", "fp16", gate=None)

    Args:
        model: The model file.

    Attributes:
        model: The model file.
        rescued: Layer groups that a method had to leave in float to pass the gate: others try these first.
    """

    def __init__(self, model: ModelFile) -> None:
        self.model = model
        self.rescued: tuple[str, ...] = ()
        self._references: dict[Path, Reference] = {}
        self._calibrations: dict[Path, tuple[list[NDArray[np.float32]], str]] = {}

    @cached_property
    def weights(self) -> Weights:
        """The weights of the model."""
        return read_weights(self.model.path)

    @cached_property
    def sha256(self) -> str:
        """The digest of the file."""
        return sha256_of(self.model.path)

    def reference(self, folder: Path) -> Reference:
        """Return the model's outputs for a folder of noisy speech, see `read_clips`."""
        if folder not in self._references:
            clips = read_clips(folder, self.model.metadata.sample_rate_hz)
            self._references[folder] = Reference(self.model, clips)
        return self._references[folder]

    def calibration(self, folder: Path) -> tuple[list[NDArray[np.float32]], str]:
        """Return the model's inputs for a folder of noisy speech, and the digest of its files."""
        if folder not in self._calibrations:
            clips = read_clips(folder, self.model.metadata.sample_rate_hz)
            self._calibrations[folder] = model_inputs(clips, self.model.metadata), digest_of(clips)
        return self._calibrations[folder]
