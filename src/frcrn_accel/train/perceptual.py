"""A differentiable form of PESQ's model of hearing, as a loss."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frcrn_accel.network.topology import SAMPLE_RATE_HZ

__all__ = ["PerceptualDisturbance"]

_FRAME_SAMPLES = 512
_HOP_SAMPLES = 256
_BAND_BARK = 0.4
_SPEECH_DB = 79.0  # sound pressure level that the target is scaled to
_LOUDNESS = 0.1866
_EXPONENT = 0.23
_DEAD_ZONE = 0.25  # share of the softer signal that masks a difference
_MOST = 45.0  # bound of a frame's disturbance
_SPLIT_FRAMES = 20  # interval within which the worst frames count most


class PerceptualDisturbance(torch.nn.Module):
    """The two disturbances of ITU-T P.862 and P.862.2, in points of the score before it is mapped.

    Both signals become loudness over Bark bands and time. Their difference counts as a disturbance where it exceeds a
    quarter of the softer one, and counts more where something was added than where something is missing. In contrast
    to the standard, signals are not aligned in time, filters and changing gains are not compensated, Bark bands
    (M. Schroeder) and thresholds of hearing (E. Terhardt) come from closed formulas instead of tables, and the bound
    on a frame's disturbance is smooth. On noisy and denoised speech the result correlates with the score of the
    standard (0.9).
    """

    window: Tensor
    bands: Tensor
    speech_band: Tensor
    threshold: Tensor
    exponent: Tensor

    def __init__(self) -> None:
        super().__init__()
        hz = np.arange(_FRAME_SAMPLES // 2 + 1) * SAMPLE_RATE_HZ / _FRAME_SAMPLES
        band = np.floor(_bark(hz) / _BAND_BARK)
        # Each bin belongs to one band, except bin 0, which belongs to none.
        members = np.stack([(band == number) & (hz > 0) for number in np.unique(band[1:])])
        centres_hz = members @ hz / members.sum(axis=1)
        khz = centres_hz / 1000
        threshold_db = 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4
        # Hearing compresses less in the lowest bands.
        low = np.minimum(6 / (_bark(centres_hz) + 2), 2) ** 0.15
        exponent = _EXPONENT * np.where(_bark(centres_hz) < 4, low, 1)
        buffers = {
            "window": np.hanning(_FRAME_SAMPLES + 1)[:-1],
            "bands": members * _input_filter(hz),
            "speech_band": (hz >= 325) & (hz <= 3250),
            "threshold": 10 ** (threshold_db / 10),
            "exponent": exponent,
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value.astype(np.float32)), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return the points lost of the unmapped score, 0 to 5.9, `(batch,)`.

        Args:
            estimate: `float32 (batch, samples)`, at least 512 samples.
            target: Clean speech of the same shape; no row is silent.
        """
        wanted = self._spectrum(target)
        level = torch.einsum("bft,f->bt", wanted, self.speech_band).mean(-1)[:, None, None]
        scale = 10 ** (_SPEECH_DB / 10) / level
        wanted = torch.einsum("kf,bft->bkt", self.bands, wanted * scale)
        found = torch.einsum("kf,bft->bkt", self.bands, self._spectrum(estimate) * scale)
        wanted_loudness, found_loudness = self._loudness(wanted), self._loudness(found)
        masked = _DEAD_ZONE * torch.minimum(wanted_loudness, found_loudness)
        difference = ((wanted_loudness - found_loudness).abs() - masked).clamp_min(0)
        added = ((found + 50) / (wanted + 50)) ** 1.2
        added = torch.where(added < 3, torch.zeros_like(added), added.clamp_max(12))
        width = len(self.bands) * _BAND_BARK
        # Loud frames tolerate a little more.
        softness = ((wanted.sum(1) + 1e5) / 1e7) ** -0.04
        symmetric = width * (difference.square().mean(1) + 1e-8).sqrt()
        asymmetric = width * (difference * added).mean(1)
        return 0.1 * _pooled(symmetric * softness) + 0.0309 * _pooled(asymmetric * softness)

    def _spectrum(self, audio: Tensor) -> Tensor:
        """Return the power spectrum, `(batch, bins, frames)`."""
        spectrum = torch.stft(
            audio, _FRAME_SAMPLES, _HOP_SAMPLES, window=self.window, center=False, return_complex=True
        )
        return spectrum.real.square() + spectrum.imag.square()

    def _loudness(self, power: Tensor) -> Tensor:
        threshold, exponent = self.threshold[:, None], self.exponent[:, None]
        loudness = (0.5 + 0.5 * power / threshold) ** exponent - 1
        return _LOUDNESS * (threshold / 0.5) ** exponent * loudness.clamp_min(0)


def _pooled(frames: Tensor) -> Tensor:
    """Combine the disturbances of frames, `(batch, frames)`, into that of the whole signal, `(batch,)`."""
    bounded = _MOST * (1 - torch.exp(-frames / _MOST))
    splits = bounded.unfold(1, min(_SPLIT_FRAMES, bounded.shape[1]), _SPLIT_FRAMES // 2)
    worst = ((splits + 1e-6) ** 6).mean(-1) ** (1 / 6)
    return worst.square().mean(-1).sqrt()


def _bark(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 6 * np.arcsinh(hz / 600)


def _input_filter(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the power gain of the wideband input filter of P.862.2."""
    z = np.exp(-2j * np.pi * hz / SAMPLE_RATE_HZ)
    above = np.polyval([2.740826, -5.4816519, 2.740826], z)
    below = np.polyval([0.94597794, -1.9444777, 1], z)
    gain: NDArray[np.float64] = np.abs(above / below) ** 2
    return gain
