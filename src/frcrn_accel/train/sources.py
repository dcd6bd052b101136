"""Recordings to draw from, decoded once and kept as samples in files that are mapped into memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.atomic import replacing
from frcrn_accel.audio import float_to_int, resample
from frcrn_accel.errors import TrainingError
from frcrn_accel.files import audio_files, open_audio
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.quality.clips import finite_blocks
from frcrn_accel.train.config import Source
from frcrn_accel.train.log import write_errors

__all__ = ["Corpus", "draw_weight", "prepare_source"]

_TRIES = 20
_FROM_INT16 = np.float32(1 / 32768)
_SILENCE = 1e-3  # RMS, full scale at 1.0; quieter stretches are pauses


class Corpus:
    """Sources of one kind, each as one long signal.

    Args:
        signals: int16 at the model's rate, `(samples,)`.
        weights: How often each is drawn, relative to the others.
        held_out_share: Share at the end of each signal that is kept for validation.
        held_out: Draw from these ends instead of from the rest.
    """

    def __init__(
        self,
        signals: Sequence[NDArray[np.int16]],
        weights: Sequence[float],
        held_out_share: float,
        *,
        held_out: bool,
    ) -> None:
        splits = [round(len(signal) * (1 - held_out_share)) for signal in signals]
        self._signals = [s[at:] if held_out else s[:at] for s, at in zip(signals, splits, strict=True)]
        self._shares = np.asarray(weights) / np.sum(weights)

    def draw(self, rng: np.random.Generator, samples: int) -> NDArray[np.float32]:
        """Draw a random stretch that is not silent, full scale at 1.0, `(samples,)`.

        Shorter signals are repeated. If many attempts find only silence, silence is returned.
        """
        for _ in range(_TRIES):
            signal = self._signals[rng.choice(len(self._signals), p=self._shares)]
            start = rng.integers(max(1, len(signal) - samples + 1))
            stretch: NDArray[np.float32] = np.resize(signal[start : start + samples], samples) * _FROM_INT16
            if np.sqrt(np.mean(stretch**2)) > _SILENCE:
                break
        return stretch


def draw_weight(source: Source, samples: int) -> float:
    """Return how often a source of this length is drawn, relative to others: see `Source`."""
    if source.voices is None:
        return source.weight
    return source.weight * math.sqrt(samples / SAMPLE_RATE_HZ / 3600 * source.voices)


def prepare_source(source: Source, folder: Path, cache: Path) -> NDArray[np.int16]:
    """Read a source: its files and their channels one after the other, int16 `(samples,)`, mapped from a file.

    Args:
        source: A file, or a folder that is read with all folders below it. A file `.npy` holds decoded audio, int16
            `(samples,)` at the model's rate, and is mapped as it is.
        folder: Folder that its path is relative to.
        cache: Folder for decoded audio.

    Raises:
        TrainingError: The source, or a file in it, holds no audio, or its decoded audio cannot be written.
        AudioError: A file cannot be read, or holds NaN or infinity.
    """
    path = folder / source.path
    if path.suffix == ".npy" and path.is_file():
        return _checked(path, path)
    files = [path] if path.is_file() else audio_files(path)
    if not files:
        raise TrainingError(f"source {str(path)!r} {'has no audio in it' if path.exists() else 'does not exist'}")
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
    decoded = cache / f"{digest.hexdigest()[:32]}.npy"
    if not decoded.exists():
        cache.mkdir(parents=True, exist_ok=True)
        signals = [_decode(file) for file in files]
        with write_errors(decoded), replacing(decoded, overwrite=True) as temporary:
            np.save(temporary, np.concatenate(signals))
    return _checked(decoded, path)


def _checked(decoded: Path, path: Path) -> NDArray[np.int16]:
    """Map decoded audio, which is from the source at `path`."""
    try:
        signal: NDArray[np.int16] = np.load(decoded, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(f"{str(decoded)!r} cannot be read as a NumPy array: {error}") from error
    if signal.dtype != np.int16 or signal.ndim != 1:
        raise TrainingError(f"{str(decoded)!r} holds {signal.dtype} {signal.shape}, not int16 (samples,)")
    if len(signal) < SAMPLE_RATE_HZ:
        raise TrainingError(f"source {str(path)!r} holds less than a second of audio")
    return signal


def _decode(path: Path) -> NDArray[np.int16]:
    """Decode a file to the model's rate, its channels one after the other."""
    audio = open_audio(path)
    blocks = [
        float_to_int(block, 16).astype(np.int16)
        for block in resample(finite_blocks(audio), audio.sample_rate_hz, SAMPLE_RATE_HZ, audio.channels)
    ]
    if not any(block.size for block in blocks):
        raise TrainingError(f"{str(path)!r} holds no audio: remove it from the training data")
    # Channels follow each other, so that none is lost and they are not mixed.
    return np.concatenate(blocks, axis=1).reshape(-1)
