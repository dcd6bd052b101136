"""Read audio files in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.audio import check_format
from frcrn_accel.errors import AudioError
from frcrn_accel.files.belongings import Belongings, read_belongings
from frcrn_accel.files.reasons import reason_of

__all__ = ["AudioFile", "open_audio"]

_BLOCK_SAMPLES = 1 << 16


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
        bit_rate_bps: Bits per second of the coded audio, if known.
        channel_layout: Places of the channels, by FFmpeg's name, e.g. `"5.1"`; empty if unknown.
        bits: Bits per sample of a lossless encoding that FFmpeg reads, if known.
        belongings: Text, pictures, chapters and chunks.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    samples: int
    format: str
    subtype: str
    bit_rate_bps: int | None = None
    channel_layout: str = ""
    bits: int | None = None
    belongings: Belongings = field(default_factory=Belongings)

    @property
    def tags(self) -> Mapping[str, str]:
        """Title, artist and other text in the file."""
        return self.belongings.tags

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
        found = AudioFile(path, file.samplerate, file.channels, file.frames, file.format, file.subtype)
    return replace(found, belongings=read_belongings(path))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{str(path)!r} cannot be read as audio: {reason_of(error)}") from error
