"""Recordings to measure on: noisy speech, with its clean speech where that is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import check_finite, fit_length, resample
from frcrn_accel.errors import AudioError
from frcrn_accel.files import AudioFile, audio_files, open_audio
from frcrn_accel.notices import notify

__all__ = ["Clip", "finite_blocks", "read_channels", "read_clips"]


@dataclass(frozen=True)
class Clip:
    """One channel of one recording, at the model's rate.

    Attributes:
        name: Name of the file, relative to the folder.
        path: The noisy file.
        duration_s: Duration.
        noisy: Noisy speech, `float32 (samples,)`.
        clean: The clean speech in it, same shape; None if it is not known.
    """

    name: str
    path: Path
    duration_s: float
    noisy: NDArray[np.float32]
    clean: NDArray[np.float32] | None


def read_clips(folder: Path, sample_rate_hz: int, clean_folder: Path | None = None) -> list[Clip]:
    """Read a folder of noisy recordings, or a folder with `noisy/` and `clean/` that hold pairs of equal names.

    Args:
        folder: The folder. Its audio files, at any rate, are read with all subfolders; each channel becomes a clip.
            Silent clips are left out, with an `AudioWarning`.
        sample_rate_hz: Rate of the clips.
        clean_folder: Folder of the clean speech, if `folder` holds only the noisy recordings.

    Raises:
        AudioError: The folder does not exist or has no audio, a pair does not match, or a file cannot be read.
    """
    if not folder.is_dir():
        raise AudioError(f"{str(folder)!r} is not a folder: give a folder of noisy speech")
    noisy_folder = folder
    if clean_folder is None and (folder / "noisy").is_dir():
        noisy_folder = folder / "noisy"
        clean_folder = folder / "clean" if (folder / "clean").is_dir() else None
    clips: list[Clip] = []
    files = audio_files(noisy_folder)
    if not files:
        raise AudioError(f"folder {str(noisy_folder)!r} contains no audio files")
    for path in files:
        name = path.relative_to(noisy_folder)
        noisy = read_channels(path, sample_rate_hz)
        clean = None
        if clean_folder is not None:
            if not (clean_folder / name).is_file():
                raise AudioError(f"{str(path)!r} has no clean counterpart {str(clean_folder / name)!r}")
            clean = read_channels(clean_folder / name, sample_rate_hz)
            if clean.shape != noisy.shape:
                raise AudioError(f"{str(path)!r} and {str(clean_folder / name)!r} differ in length or channels")
        for channel, samples in enumerate(noisy):
            suffix = f" channel {channel}" if len(noisy) > 1 else ""
            clips.append(
                Clip(
                    name=f"{name}{suffix}",
                    path=path,
                    duration_s=len(samples) / sample_rate_hz,
                    noisy=samples,
                    clean=None if clean is None else clean[channel],
                )
            )
    silent = [clip for clip in clips if not clip.noisy.any()]
    if len(silent) == len(clips):
        raise AudioError(f"folder {str(folder)!r} has only silent or empty files")
    for clip in silent:
        notify(f"{clip.name!r} is left out: it {'is silent' if clip.noisy.size else 'has no audio'}")
    return [clip for clip in clips if clip.noisy.any()]


def read_channels(path: Path, sample_rate_hz: int, max_duration_s: float | None = None) -> NDArray[np.float32]:
    """Read a file as `float32 (channels, samples)`, resampled.

    Args:
        path: The file.
        sample_rate_hz: Rate of the result.
        max_duration_s: Read only this much from the start; None for the whole file.

    Raises:
        AudioError: The file cannot be read, or holds NaN or infinity.
    """
    file = open_audio(path)
    max_s = math.inf if max_duration_s is None else max_duration_s
    blocks = [np.zeros((file.channels, 0), np.float32)]
    samples = 0
    for block in finite_blocks(file):
        blocks.append(block)
        samples += block.shape[1]
        if samples >= max_s * file.sample_rate_hz:
            break
    duration_s = min(max_s, samples / file.sample_rate_hz)
    resampled = resample(blocks, file.sample_rate_hz, sample_rate_hz, file.channels)
    return np.concatenate(list(fit_length(resampled, round(duration_s * sample_rate_hz), file.channels)), axis=1)


def finite_blocks(file: AudioFile) -> Iterator[NDArray[np.float32]]:
    """Read a file, see `AudioFile.blocks`.

    Raises:
        AudioError: A value is not finite; the message names the file and the place.
    """
    samples = 0
    for block in file.blocks():
        try:
            check_finite(block, samples)
        except AudioError as error:
            raise AudioError(f"{str(file.path)!r}: {error}") from error
        samples += block.shape[1]
        yield block
