"""A backend in a distribution of its own.

It runs a spectral gate in NumPy instead of FRCRN, so that the file shows little but the interface of a backend. A
backend for a real engine loads `model.path` in `load` and runs it in `Session.run`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel import Backend, ModelFile, Session

__all__ = ["SpectralGateBackend"]


class SpectralGateBackend(Backend):
    """Attenuates the bins that are near the quiet level of their frequency.

    Args:
        reduction_db: Attenuation of these bins.
        precision: See `Backend`; there is only fp32.
    """

    name: ClassVar[str] = "spectral-gate"
    description: ClassVar[str] = "spectral gate in numpy, an example of a plug-in"
    priority: ClassVar[int] = -1  # never chosen by "auto"

    def __init__(self, reduction_db: float = 12.0, precision: str | None = None) -> None:
        super().__init__(precision)
        self.reduction_db = reduction_db

    @classmethod
    def check(cls) -> None:
        """Do nothing: NumPy runs everywhere.

        A real engine raises `BackendUnavailable` here, with the reason and the remedy.
        """

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`."""
        return _Gate(model.metadata.frame_samples, model.metadata.hop_samples, 10 ** (-self.reduction_db / 20))


class _Gate(Session):
    device = "numpy"

    def __init__(self, window: int, hop: int, floor: float) -> None:
        self._window = np.sqrt(np.hanning(window + 1)[:-1]).astype(np.float32)
        self._hop = hop
        self._floor = np.float32(floor)

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        size, hop = len(self._window), self._hop
        frames = np.lib.stride_tricks.sliding_window_view(audio, size, axis=-1)[:, ::hop] * self._window
        spectrum = np.fft.rfft(frames)
        level = np.abs(spectrum)
        quiet = np.quantile(level, 0.2, axis=1, keepdims=True)
        cleaned = np.fft.irfft(spectrum * np.where(level > 3 * quiet, 1.0, self._floor)) * self._window
        out = np.zeros_like(audio)
        for i in range(cleaned.shape[1]):
            out[:, i * hop : i * hop + size] += cleaned[:, i]
        return out
