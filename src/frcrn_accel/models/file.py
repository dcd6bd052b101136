"""A model file and its metadata, read without any engine or ONNX package.

An exported model is one ONNX file that carries its description in `metadata_props`.
"""

from __future__ import annotations

import base64
import dataclasses
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frcrn_accel.errors import ModelError
from frcrn_accel.models.properties import has_external_data, read_properties
from frcrn_accel.models.recipe import FP32
from frcrn_accel.network.topology import FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE_HZ, SE_REDUCTION
from frcrn_accel.numerals import to_whole

__all__ = ["METADATA_PREFIX", "FileStatus", "ModelFile", "ModelMetadata"]

METADATA_PREFIX = "frcrn_accel."
_TRUE = "true"
_MAX_DIGITS = 9


@dataclass(frozen=True)
class ModelMetadata:
    """Description of a model, as its file holds it.

    Attributes:
        name: Name of the model.
        checkpoint_sha256: Digest of the checkpoint file it was exported from, hexadecimal.
        library_version: Version of this library that exported it.
        sample_rate_hz: Sample rate of its input and output.
        frame_samples: Length of an STFT frame; the shortest input the model takes.
        hop_samples: Step between STFT frames.
        channels: Complex channels of every layer (128 in the released model).
        unets: Number of U-Nets in cascade (2 in the released model).
        method: How it was quantized, one of `quantize.METHODS`; "fp32" for a model that is not quantized.
        source_sha256: Digest of the fp32 model file it was quantized from, hexadecimal; "" for fp32.
        calibration_sha256: Digest of the audio it was calibrated on; "" if none was needed.
        gate: "passed" if the quality gate compared it with its source and accepted it, "skipped" if the comparison
            was turned off; "" for fp32.
        kept_float: Layer groups left in float that the method would have quantized.
        form: Arrangement of its operators that a backend asked for (`Recipe.form`); "" for the usual one.
        is_step: Whether the graph is one step of a stream, which only `Backend.load_step` runs.
        start_means: For a step, the squeeze-and-excitation means that streams start with, base64.
    """

    name: str
    checkpoint_sha256: str
    library_version: str
    sample_rate_hz: int
    frame_samples: int
    hop_samples: int
    channels: int
    unets: int
    method: str = FP32
    source_sha256: str = ""
    calibration_sha256: str = ""
    gate: str = ""
    kept_float: tuple[str, ...] = ()
    form: str = ""
    is_step: bool = False
    start_means: str = ""

    @property
    def window_samples(self) -> int:
        """Name of `frame_samples` in version 0.1.0, for backends written against it."""
        return self.frame_samples

    def to_properties(self) -> dict[str, str]:
        """Return the properties to store in a file; fields that have their default value are left out."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        return {METADATA_PREFIX + key: _to_text(value) for key, value in values.items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> ModelMetadata:
        """Read what `to_properties` wrote, in this version or an earlier one.

        Raises:
            ModelError: A property is missing or malformed, contradicts another, or is not that of an FRCRN.
        """
        texts = _with_current_names(properties)
        types = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            key = METADATA_PREFIX + field.name
            if key in texts:
                values[field.name] = _READERS[types[field.name]](key, texts[key])
            elif field.default is dataclasses.MISSING:
                raise ModelError(f"its metadata lacks {key!r}")
        found = cls(**values)
        found._check()
        return found

    def _check(self) -> None:
        """Check that this describes an FRCRN, so that later computations can rely on it."""
        for name, expected in (
            ("sample_rate_hz", SAMPLE_RATE_HZ),
            ("frame_samples", FRAME_SAMPLES),
            ("hop_samples", HOP_SAMPLES),
        ):
            if getattr(self, name) != expected:
                raise ModelError(
                    f"its metadata {METADATA_PREFIX + name!r} is {getattr(self, name)}, but an FRCRN has {expected}"
                )
        if self.channels % SE_REDUCTION:
            raise ModelError(
                f"its metadata {METADATA_PREFIX + 'channels'!r} is {self.channels}, not a multiple of {SE_REDUCTION}"
            )
        if (self.method == FP32) != (not self.source_sha256):
            raise ModelError("its metadata contradict each other: only a quantized file has a source_sha256")
        if self.start_means:
            try:
                means = np.frombuffer(base64.b64decode(self.start_means, validate=True), np.float32)
            except ValueError:
                means = np.zeros(0, np.float32)
            if not self.is_step or not means.size or not np.isfinite(means).all():
                raise ModelError(f"its metadata {METADATA_PREFIX + 'start_means'!r} are not the means of a step")


@dataclass(frozen=True)
class ModelFile:
    """A model file on disk.

    Attributes:
        path: Its path.
        metadata: Its metadata.
    """

    path: Path
    metadata: ModelMetadata

    @classmethod
    def open(cls, path: Path) -> ModelFile:
        """Read a model file's metadata.

        Raises:
            ModelError: The file is missing, is not an ONNX file, or was not exported by this library.
        """
        try:
            properties = read_properties(path)
            if has_external_data(path):
                raise ModelError(
                    f"{str(path)!r} keeps weights in other files, which its digest does not cover: "
                    "save it as one file"
                )
        except OSError as error:
            raise ModelError(f"model file {str(path)!r} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{str(path)!r} is not an ONNX file ({error})") from error
        try:
            return cls(path, ModelMetadata.from_properties(properties))
        except ModelError as error:
            raise ModelError(f"{str(path)!r} is not a model made by 'frcrn-accel export': {error}") from error


@dataclass(frozen=True)
class FileStatus:
    """Whether a file is intact.

    Attributes:
        path: Its path.
        bytes: Its size; 0 if it is missing.
        problem: What is wrong with it and how to repair it; None if it is intact.
    """

    path: Path
    bytes: int
    problem: str | None


def _with_current_names(properties: Mapping[str, str]) -> dict[str, str]:
    """Rename the properties that version 0.1.0 wrote under other names."""
    texts = dict(properties)
    for old, new in (("window_samples", "frame_samples"), ("timeline", "is_step")):
        if METADATA_PREFIX + old in texts:
            text = texts.pop(METADATA_PREFIX + old)
            text = _TRUE if text == "stream" else text
            if texts.setdefault(METADATA_PREFIX + new, text) != text:
                raise ModelError(f"its metadata contradict each other: {old!r} and {new!r}")
    return texts


def _to_text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _positive_int(key: str, text: str) -> int:
    number = to_whole(text)
    if not number or len(text) > _MAX_DIGITS:
        raise ModelError(f"its metadata {key!r} is not a positive number: {text[:40]!r}")
    return number


def _boolean(key: str, text: str) -> bool:
    if text != _TRUE:  # false is the default, which is not written
        raise ModelError(f"its metadata {key!r} is not {_TRUE!r}: {text[:40]!r}")
    return True


_READERS: Mapping[Any, Callable[[str, str], object]] = {
    str: lambda key, text: text,
    int: _positive_int,
    bool: _boolean,
    tuple[str, ...]: lambda key, text: tuple(text.split(",")),
}
