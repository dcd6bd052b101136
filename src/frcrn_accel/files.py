"""Read audio files in blocks, and write them atomically: a file is either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.atomic import replacing
from frcrn_accel.audio import check_format, float_to_int
from frcrn_accel.errors import AudioError, OutputExistsError
from frcrn_accel.ogg import number_stream

__all__ = [
    "AudioFile",
    "AudioWriter",
    "audio_files",
    "audio_suffixes",
    "check_targets",
    "create_audio",
    "open_audio",
]

_BLOCK_SAMPLES = 1 << 16
_WAV_LIMIT_BYTES = 1 << 32
_PROBE_BYTES = 1 << 20  # about as much as libsndfile writes at once
_TAGS = ("title", "copyright", "artist", "comment", "date", "album", "license", "tracknumber", "genre")
_INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
# libsndfile lists these encodings, but can only read them.
_READ_ONLY = {("MP3", "MPEG_LAYER_I"), ("MP3", "MPEG_LAYER_II"), ("WAV", "MPEG_LAYER_III")}
_CONTAINERS = {".aif": "AIFF", ".oga": "OGG", ".opus": "OGG"}  # other suffixes are the container's name


@dataclass(frozen=True)
class AudioFile:
    """The properties of an audio file.

    Attributes:
        path: Path of the file.
        sample_rate_hz: Sample rate.
        channels: Number of channels.
        samples: Samples per channel, according to the header.
        format: Container, by libsndfile's name, e.g. `"WAV"`.
        subtype: Encoding, by libsndfile's name, e.g. `"PCM_16"`.
        tags: Title, artist and other text in the file.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    samples: int
    format: str
    subtype: str
    tags: dict[str, str]

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Read the audio from its start.

        Yields:
            Blocks of `float32 (channels, samples)`.

        Raises:
            AudioError: The file cannot be decoded to its end.
        """
        with _reading(self.path), soundfile.SoundFile(self.path) as file:
            while len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
                yield np.ascontiguousarray(block.T)


def open_audio(path: Path) -> AudioFile:
    """Read the properties of an audio file.

    Raises:
        AudioError: The file does not exist, is not audio, or its rate or channel count is not supported.
    """
    if not path.is_file():
        raise AudioError(f"{str(path)!r} {'is not a file' if path.exists() else 'does not exist'}")
    with _reading(path), soundfile.SoundFile(path) as file:
        check_format(file.samplerate, file.channels)
        tags = {tag: text for tag in _TAGS if (text := getattr(file, tag))}
        return AudioFile(path, file.samplerate, file.channels, file.frames, file.format, file.subtype, tags)


def audio_suffixes() -> set[str]:
    """Return the suffixes of the formats that can be read and written, in lower case, with the dot."""
    return {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"} | _CONTAINERS.keys()


def audio_files(folder: Path, *, but_not_in: Path | None = None) -> list[Path]:
    """Return the sorted files in a folder and its subfolders whose suffix is that of an audio format.

    Args:
        folder: The folder.
        but_not_in: A folder to leave out, such as that of the outputs.
    """
    suffixes = audio_suffixes()
    left_out = None
    if but_not_in is not None and but_not_in.resolve().is_relative_to(folder.resolve()):
        left_out = folder / but_not_in.resolve().relative_to(folder.resolve())
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and left_out not in path.parents and path.is_file()
    )


def check_targets(pairs: Iterable[tuple[str, str]]) -> None:
    """Check that all targets differ.

    Args:
        pairs: Each source with its target.

    Raises:
        AudioError: Two sources have the same target; the message names both.
    """
    sources: dict[str, str] = {}
    for source, target in pairs:
        if target in sources:
            raise AudioError(f"{sources[target]!r} and {source!r} would both become {target!r}")
        sources[target] = source


class AudioWriter:
    """Writes blocks to an audio file.

    Attributes:
        clipped_samples: Number of samples beyond full scale that an integer encoding has clipped so far.
    """

    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file = file
        self._bits = _INTEGER_BITS.get(file.subtype)
        self.clipped_samples = 0

    def write(self, block: NDArray[np.float32]) -> None:
        """Append a block, `float32 (channels, samples)`."""
        if self._bits is None:
            self._file.write(block.T)
            return
        # libsndfile reads full scale as 1.0, but writes 1.0 as one integer less. Integers are therefore made here, in
        # the upper bits of an int32, so that unchanged samples are written bit for bit.
        self.clipped_samples += int(np.count_nonzero(np.abs(block) > 1.0))
        shifted = float_to_int(block, self._bits) << (32 - self._bits)
        self._file.write(shifted.T.astype(np.int32))


@contextmanager
def create_audio(path: Path, like: AudioFile, *, overwrite: bool) -> Iterator[AudioWriter]:
    """Create an audio file. It appears under its name when the block ends without an error.

    Args:
        path: The file to write; its suffix selects the format.
        like: Source of rate, channels, tags and, if the format supports it, encoding.
        overwrite: Replace an existing file.

    Raises:
        AudioError: The format is unknown or cannot store this audio, or the folder is not writable.
        OutputExistsError: `path` exists and `overwrite` is false.
    """
    file_format, subtype = _target_format(path, like)
    with _writing(path), replacing(path, overwrite=overwrite) as temporary:
        try:
            file = soundfile.SoundFile(
                temporary, "w", like.sample_rate_hz, like.channels, subtype, format=file_format
            )
            with file:
                for tag, text in like.tags.items():
                    setattr(file, tag, text)
                yield AudioWriter(file)
        except soundfile.SoundFileError:
            _try_to_write(temporary)
            raise
        if file_format == "OGG":
            number_stream(temporary)


def _try_to_write(path: Path) -> None:
    """Write to a file to get the system's reason for an error of libsndfile, such as a full disk.

    Raises:
        OSError: Writing fails.
    """
    with path.open("ab") as file:
        file.write(bytes(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _target_format(path: Path, like: AudioFile) -> tuple[str, str]:
    """Return libsndfile's container and encoding for a new file."""
    suffix = path.suffix.lower()
    same_suffix = suffix == like.path.suffix.lower()
    file_format = like.format if same_suffix else _CONTAINERS.get(suffix, suffix[1:].upper())
    if file_format == "RAW" or file_format not in soundfile.available_formats():
        raise AudioError(f"{str(path)!r}: unknown audio format {suffix!r}; try .wav, .flac, .ogg or .mp3")
    if file_format in ("WAV", "WAVEX") and like.samples * like.channels * 8 >= _WAV_LIMIT_BYTES:
        file_format = "RF64"  # WAV with 64-bit sizes
    subtypes = soundfile.available_subtypes(file_format)
    if suffix == ".opus":
        return file_format, "OPUS"
    can_be_kept = like.subtype in subtypes and (file_format, like.subtype) not in _READ_ONLY
    return file_format, like.subtype if can_be_kept else soundfile.default_subtype(file_format)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{str(path)!r} cannot be read as audio: {_reason(error)}") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputExistsError:
        raise
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{str(path)!r} cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return str(text).rstrip(".")
