"""Spectrograms for the pictures of the documentation and of model cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_spectrogram", "spectrogram_db"]

FRAME = 512
RANGE_DB = 70


def spectrogram_db(audio: np.ndarray, hop: int = 256) -> np.ndarray:
    """Return the level of each bin, `(bins, frames)`."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, FRAME)[::hop] * np.hanning(FRAME)
    return np.asarray(20 * np.log10(np.abs(np.fft.rfft(frames)).T + 1e-6))


def draw_spectrogram(
    axes: Axes, audio: np.ndarray, rate_hz: int, highest_db: float | None = None, hop: int = 256
) -> None:
    """Draw levels down to `RANGE_DB` below the highest; None for the highest of this audio."""
    levels_db = spectrogram_db(audio, hop)
    top_db = float(levels_db.max()) if highest_db is None else highest_db
    extent = (0.0, len(audio) / rate_hz, 0.0, rate_hz / 2000)
    axes.imshow(
        levels_db, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top_db - RANGE_DB, vmax=top_db
    )
