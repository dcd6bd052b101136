"""Audio for calibration and for the quality gate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import Session
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import ModelMetadata
from frcrn_accel.pipeline import Engine, Signal, Treatment, denoise_signal
from frcrn_accel.quality.clips import Clip
from frcrn_accel.windows import Windowing

__all__ = ["CALIBRATION_AUDIO", "GATE_AUDIO", "denoise_clip", "digest_of", "model_inputs", "sample_numbers"]

_FOLDER = Path(__file__).parent / "audio"
GATE_AUDIO = _FOLDER / "gate"
"""Folder in the package with pairs of noisy and clean speech."""
CALIBRATION_AUDIO = _FOLDER / "calibration"
"""Folder in the package with other noisy speech."""


def digest_of(clips: Sequence[Clip]) -> str:
    """Return the digest of the noisy files of clips, hexadecimal: of their contents, in order."""
    digest = hashlib.sha256()
    for path in dict.fromkeys(clip.path for clip in clips):
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def sample_numbers(clips: Sequence[Clip], duration_s: float) -> Sequence[int]:
    """Pick clips of about this total length, at least one, evenly from the whole list; return their numbers."""
    count = max(1, round(len(clips) * duration_s / sum(clip.duration_s for clip in clips)))
    return range(0, len(clips), max(1, len(clips) // count))


def denoise_clip(clip: Clip, session: Session, metadata: ModelMetadata) -> NDArray[np.float32]:
    """Denoise a clip as `Denoiser` would: at the model's level, in windows.

    Returns:
        `float32 (samples,)`.

    Raises:
        EngineError: The engine failed or its output is not finite.
    """
    signal = Signal(lambda: [clip.noisy[None]], metadata.sample_rate_hz, channels=1)
    engine = Engine(session, metadata, Windowing(), batch_size=1)
    denoised = np.concatenate(list(denoise_signal(signal, engine, Treatment(high_band="drop"))), axis=1)
    return denoised.reshape(-1)


def model_inputs(clips: Sequence[Clip], metadata: ModelMetadata) -> list[NDArray[np.float32]]:
    """Return the model's inputs for clips: `float32 (1, samples)` for each window, at its rate and level."""
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
