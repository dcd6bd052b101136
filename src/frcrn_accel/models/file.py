"""A model file and its metadata, read without any engine or ONNX package.

An exported model is one ONNX file that carries its description in `metadata_props`. Only that field of the
protobuf is read here; everything else is skipped unread.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from frcrn_accel.errors import ModelError

__all__ = ["FP32", "METADATA_PREFIX", "STREAM", "FileStatus", "ModelFile", "ModelMetadata", "sha256_of"]

METADATA_PREFIX = "frcrn_accel."
FP32 = "fp32"  # the method of a model that is not quantized
STREAM = "stream"  # the timeline of a step of a stream; the package keeps those of a model under this name
_METADATA_PROPS = 14  # field number of ModelProto.metadata_props in onnx.proto
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_MAX_TEXT_BYTES = 65_536


@dataclass(frozen=True)
class ModelMetadata:
    """What a model file says of itself.

    Attributes:
        name: Name of the model.
        checkpoint_sha256: Digest of the checkpoint file it was exported from, hexadecimal.
        library_version: Version of this library that exported it.
        sample_rate_hz: Rate of the audio it takes and gives.
        window_samples: Length of one STFT frame; the least number of samples the model takes.
        hop_samples: Step between frames.
        channels: Complex channels of every layer (128 in the released model).
        unets: Number of U-Nets in cascade (2 in the released model).
        method: How it was quantized, see `frcrn_accel.quantize.METHODS`; "fp32" for a model as it was exported.
        source_sha256: Digest of the fp32 model file it was quantized from, hexadecimal; "" for fp32.
        calibration_sha256: Digest of the audio it was calibrated on; "" if it took none.
        gate: "passed" if it was compared with its source and found good, "skipped" if that was not asked for;
            "" for fp32.
        kept_float: Layer groups that were left in float, though the method would have quantized them.
        timeline: "stream" for a graph that is a step of a stream, which only `Backend.load_step` runs; "" else.
        start_means: For such a graph, what its means of squeeze-and-excitation are of noisy speech, base64.
    """

    name: str
    checkpoint_sha256: str
    library_version: str
    sample_rate_hz: int
    window_samples: int
    hop_samples: int
    channels: int
    unets: int
    method: str = FP32
    source_sha256: str = ""
    calibration_sha256: str = ""
    gate: str = ""
    kept_float: tuple[str, ...] = ()
    timeline: str = ""
    start_means: str = ""

    def to_properties(self) -> dict[str, str]:
        """As the properties stored in the file; a field that has its default value is not written."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        return {
            METADATA_PREFIX + key: ",".join(value) if isinstance(value, tuple) else str(value)
            for key, value in values.items()
        }

    @classmethod
    def from_properties(cls, properties: dict[str, str]) -> ModelMetadata:
        """Read back what `to_properties` wrote.

        Raises:
            ModelError: A property is missing or is not what it should be.
        """
        values: dict[str, str | int | tuple[str, ...]] = {}
        for field in dataclasses.fields(cls):
            text = properties.get(METADATA_PREFIX + field.name)
            if text is None and field.default is not dataclasses.MISSING:
                continue
            if text is None:
                raise ModelError(f"its metadata has no {METADATA_PREFIX + field.name!r}")
            is_number = field.type == "int"
            if is_number and not (text.isdecimal() and int(text) > 0):
                raise ModelError(
                    f"its metadata {METADATA_PREFIX + field.name!r} is no positive number: {text[:40]!r}"
                )
            if field.type == "tuple[str, ...]":
                values[field.name] = tuple(text.split(","))
            else:
                values[field.name] = int(text) if is_number else text
        return cls(**values)  # type: ignore[arg-type]  # each value was just made by its field's own type


@dataclass(frozen=True)
class ModelFile:
    """A model file on disk.

    Attributes:
        path: Where it is.
        metadata: What it says of itself.
    """

    path: Path
    metadata: ModelMetadata

    @classmethod
    def open(cls, path: Path) -> ModelFile:
        """Read a model file's metadata.

        Raises:
            ModelError: No file there, not an ONNX file, or not one that this library exported.
        """
        try:
            with path.open("rb") as file:
                properties = dict(_read_properties(file))
        except OSError as error:
            raise ModelError(f"model file {str(path)!r} cannot be read: {error.strerror}") from error
        except (ValueError, UnicodeDecodeError) as error:
            raise ModelError(f"{str(path)!r} is not an ONNX file ({error})") from error
        try:
            return cls(path, ModelMetadata.from_properties(properties))
        except ModelError as error:
            raise ModelError(f"{str(path)!r} is not a model made by 'frcrn-accel export': {error}") from error


@dataclass(frozen=True)
class FileStatus:
    """Whether a file is what it should be.

    Attributes:
        path: Where it is.
        bytes: Its size; 0 if it is not there.
        problem: What is wrong with it and what to do; None if it is whole.
    """

    path: Path
    bytes: int
    problem: str | None


def sha256_of(path: Path) -> str:
    """Digest of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_properties(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """The (key, value) pairs in a serialised ModelProto."""
    end = file.seek(0, 2)
    file.seek(0)
    while file.tell() < end:
        number, wire_type = divmod(_read_varint(file), 8)
        if number == 0:
            raise ValueError("field number 0")
        if wire_type == _VARINT:
            _read_varint(file)
        elif wire_type in (_FIXED64, _FIXED32):
            file.seek(8 if wire_type == _FIXED64 else 4, 1)
        elif wire_type == _LENGTH_DELIMITED:
            length = _read_varint(file)
            if length > end - file.tell():
                raise ValueError("truncated")
            if number == _METADATA_PROPS:
                yield _read_entry(file, length)
            else:
                file.seek(length, 1)
        else:
            raise ValueError(f"wire type {wire_type}")


def _read_entry(file: BinaryIO, length: int) -> tuple[str, str]:
    """One StringStringEntryProto: key in field 1, value in field 2."""
    end = file.tell() + length
    texts = {1: "", 2: ""}
    while file.tell() < end:
        number, wire_type = divmod(_read_varint(file), 8)
        size = _read_varint(file)
        if wire_type != _LENGTH_DELIMITED or size > min(end - file.tell(), _MAX_TEXT_BYTES):
            raise ValueError("damaged metadata")
        texts[number] = file.read(size).decode()
    return texts[1], texts[2]


def _read_varint(file: BinaryIO) -> int:
    value = shift = 0
    while shift < 70:
        byte = file.read(1)
        if not byte:
            raise ValueError("truncated")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
    raise ValueError("number too long")
