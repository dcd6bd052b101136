"""Audio that models are compared on or calibrated with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import resample
from frcrn_accel.backends import Session
from frcrn_accel.errors import QuantizeError
from frcrn_accel.files import audio_suffixes, open_audio
from frcrn_accel.models import ModelMetadata, sha256_of
from frcrn_accel.pipeline import Engine, Signal, denoise_signal
from frcrn_accel.windows import Windowing

__all__ = ["CALIBRATION_AUDIO", "GATE_AUDIO", "Clip", "denoise_clip", "digest_of", "model_inputs", "read_clips"]

_FOLDER = Path(__file__).parent / "audio"
GATE_AUDIO = _FOLDER / "gate"
"""Pairs of noisy and clean speech inside the package."""
CALIBRATION_AUDIO = _FOLDER / "calibration"
"""Other noisy speech inside the package."""


@dataclass(frozen=True)
class Clip:
    """One channel of one recording, at the model's rate.

    Attributes:
        name: Its file's name in the folder.
        path: Its noisy file.
        duration_s: Its length.
        noisy: `float32 (samples,)`.
        clean: The speech in it, of the same shape; None if it is not known.
    """

    name: str
    path: Path
    duration_s: float
    noisy: NDArray[np.float32]
    clean: NDArray[np.float32] | None


def read_clips(folder: Path, sample_rate_hz: int) -> list[Clip]:
    """Read a folder of noisy recordings, or one with `noisy/` and `clean/` in which each pair has one name.

    Args:
        folder: Its audio files, at any rate, are read with all folders below it; each channel becomes a clip.
        sample_rate_hz: The model's rate, that of the clips.

    Raises:
        QuantizeError: No such folder, no audio in it, or a pair that does not match.
        AudioError: A file cannot be read.
    """
    if not folder.is_dir():
        raise QuantizeError(f"{str(folder)!r} is no folder: give one with noisy speech in it")
    noisy_folder = folder / "noisy" if (folder / "noisy").is_dir() else folder
    clean_folder = folder / "clean" if noisy_folder != folder and (folder / "clean").is_dir() else None
    suffixes = audio_suffixes()
    paths = sorted(path for path in noisy_folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    clips: list[Clip] = []
    for path in paths:
        name = path.relative_to(noisy_folder)
        noisy = _read(path, sample_rate_hz)
        clean = None
        if clean_folder is not None:
            if not (clean_folder / name).is_file():
                raise QuantizeError(f"{str(path)!r} has no partner {str(clean_folder / name)!r}")
            clean = _read(clean_folder / name, sample_rate_hz)
            if clean.shape != noisy.shape:
                raise QuantizeError(f"{str(path)!r} and {str(clean_folder / name)!r} differ in length or channels")
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
    clips = [clip for clip in clips if clip.noisy.any()]
    if not clips:
        raise QuantizeError(f"folder {str(folder)!r} holds no audio but silence")
    return clips


def digest_of(clips: Sequence[Clip]) -> str:
    """Digest of the noisy files that clips came from: their contents in order. Hexadecimal."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(clip.path for clip in clips):
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def denoise_clip(clip: Clip, session: Session, metadata: ModelMetadata) -> NDArray[np.float32]:
    """Denoise a clip as `Denoiser` would: at the model's level, in windows.

    Returns:
        `float32 (samples,)`.

    Raises:
        EngineError: The engine failed or gave numbers that are not finite.
    """
    signal = Signal(lambda: [clip.noisy[None]], metadata.sample_rate_hz, channels=1)
    engine = Engine(session, metadata, Windowing(), batch_size=1)
    denoised = np.concatenate(list(denoise_signal(signal, engine, dry_share=0)), axis=1)
    return denoised.reshape(-1)


def model_inputs(clips: Sequence[Clip], metadata: ModelMetadata) -> list[NDArray[np.float32]]:
    """What a model gets to see of clips: one `float32 (1, samples)` for each window, at its rate and level."""
    recorder = _Recorder()
    for clip in clips:
        denoise_clip(clip, recorder, metadata)
    return recorder.inputs


class _Recorder(Session):
    device = "none"

    def __init__(self) -> None:
        self.inputs: list[NDArray[np.float32]] = []

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        self.inputs.append(audio)
        return audio


def _read(path: Path, sample_rate_hz: int) -> NDArray[np.float32]:
    """A whole file as `(channels, samples)`."""
    file = open_audio(path)

    def blocks() -> Iterator[NDArray[np.float32]]:
        yield np.zeros((file.channels, 0), np.float32)
        yield from resample(file.blocks(), file.sample_rate_hz, sample_rate_hz, file.channels)

    return np.concatenate(list(blocks()), axis=1)
