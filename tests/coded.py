"""Decode what was written with FFmpeg itself, and compare it with what went in."""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

from frcrn_accel.errors import AudioWarning
from frcrn_accel.files import AudioFile, create_audio, open_audio
from frcrn_accel.files.belongings import Belongings
from frcrn_accel.notices import collected_notices


def source(
    suffix: str = ".wav",
    rate: int = 44_100,
    channels: int = 2,
    *,
    format: str = "WAV",
    subtype: str = "PCM_16",
    samples: int = 0,
    layout: str = "",
    bit_rate: int | None = None,
    bits: int | None = None,
    belongings: Belongings | None = None,
) -> AudioFile:
    """Describe a source as the reader does."""
    return AudioFile(
        Path(f"source{suffix}"),
        rate,
        channels,
        samples,
        format,
        subtype,
        bit_rate_bps=bit_rate,
        channel_layout=layout,
        bits=bits,
        belongings=belongings or Belongings(),
    )


def noise(samples: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    """Make noise that every codec keeps, without anything above an eighth of the rate."""
    white = np.random.default_rng(seed).standard_normal((channels, max(samples, 64)))
    spectrum = np.fft.rfft(white)
    spectrum[:, spectrum.shape[1] // 4 :] = 0
    low = np.fft.irfft(spectrum, white.shape[1])
    return (0.1 * low / low.std())[:, :samples].astype(np.float32)


_SURPLUS = re.compile(
    r": ([\d,]+) samples? more than the source at ([\d,]+) Hz \([\d,.]+ ms\)(?:, ([\d,]+) of them before)?"
)


def write(path: Path, like: AudioFile, audio: np.ndarray, block: int = 7_001) -> list[str]:
    """Write a file in blocks, and return its warnings; see `write_all` for the one about its length."""
    return write_all(path, like, audio, block)[0]


def write_all(
    path: Path, like: AudioFile, audio: np.ndarray, block: int = 7_001
) -> tuple[list[str], tuple[int, int, int] | None]:
    """Write a file in blocks. Return its other warnings, and what the one about its length says.

    The latter is by how many samples the file is longer than the audio, at which rate, and how many of these samples
    come before the audio.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioWarning)
        with create_audio(path, like, overwrite=True) as writer:
            for start in range(0, audio.shape[1], block):
                writer.write(audio[:, start : start + block])
    texts = [str(found.message) for found in caught]
    found = [match for text in texts if (match := _SURPLUS.search(text))]
    assert len(found) <= 1
    said = tuple(int((number or "0").replace(",", "")) for number in found[0].groups()) if found else None
    return [text for text in texts if not _SURPLUS.search(text)], said


def ffmpeg(*arguments: object) -> bytes:
    """Run FFmpeg's command, and return what it writes to its standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def read(path: Path, track: int | None = None) -> tuple[AudioFile, np.ndarray, list[str]]:
    """Read a file with the library; return its audio, `(channels, samples)`, and what is said about it, too."""
    with collected_notices() as notices:
        file = open_audio(path, track)
        blocks = [np.zeros((file.channels, 0), np.float32), *file.blocks()]
    return file, np.concatenate(blocks, axis=1), notices


def decode(path: Path, channels: int) -> np.ndarray:
    """Decode with FFmpeg's command, which does not detect all files of a few frames unless the format is given."""
    form = ("-f", path.suffix[1:]) if path.suffix in (".mp3", ".ac3", ".eac3") else ()
    decoded = ffmpeg(*form, "-i", path, "-map", "0:a:0", "-f", "f32le", "-")
    return np.frombuffer(decoded, np.float32).reshape(-1, channels).T


def stated_samples(path: Path) -> int:
    """Return the number of samples that the container states."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return round(stream.duration * stream.time_base * stream.rate)


def lag(one: np.ndarray, other: np.ndarray) -> int:
    """Return by how many samples the other signal is later."""
    size = min(len(one), len(other))
    product = np.fft.rfft(other[:size], 2 * size) * np.fft.rfft(one[:size], 2 * size).conj()
    shift = int(np.argmax(np.fft.irfft(product)))
    return shift - 2 * size if shift > size else shift
