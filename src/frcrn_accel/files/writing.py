"""Write audio files atomically: a file is either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.atomic import replacing
from frcrn_accel.audio import float_to_int
from frcrn_accel.errors import AudioError, OutputExistsError
from frcrn_accel.files.names import CONTAINERS
from frcrn_accel.files.reading import AudioFile
from frcrn_accel.files.reasons import reason_of
from frcrn_accel.ogg import number_stream

__all__ = ["AudioWriter", "create_audio"]

_WAV_LIMIT_BYTES = 1 << 32
_PROBE_BYTES = 1 << 20  # about as much as libsndfile writes at once
_INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
# libsndfile lists these encodings, but can only read them.
_READ_ONLY = {("MP3", "MPEG_LAYER_I"), ("MP3", "MPEG_LAYER_II"), ("WAV", "MPEG_LAYER_III")}


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
    file_format = like.format if same_suffix else CONTAINERS.get(suffix, suffix[1:].upper())
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
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputExistsError:
        raise
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{str(path)!r} cannot be written: {reason_of(error)}") from error
