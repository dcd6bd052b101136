"""The loss: how far the output of the network is from the target."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.train.config import Loss
from frcrn_accel.train.intelligibility import IntelligibilityLoss
from frcrn_accel.train.perceptual import PerceptualDisturbance

__all__ = ["DenoisingLoss"]

_FRAME_SAMPLES = 512
_HOP_SAMPLES = 128
_FLOOR = 1e-6  # power below which a bin counts as silent: far below the resolution of 16 bits
_BEST_SI_SDR_DB = 35.0
_SILENT_POWER = 1e-10
_LEAST_BIN_WEIGHT = 0.3


class DenoisingLoss(torch.nn.Module):
    """Squared errors of compressed spectra, minus SI-SDR, `PerceptualDisturbance` and `IntelligibilityLoss`.

    The errors of the compressed complex spectrum and of its magnitude are from S. Braun, I. Tashev, "A consolidated
    view of loss functions for supervised deep learning-based speech enhancement", 2020. For a target without speech
    only these two count.

    Args:
        weights: Weights of the parts.
    """

    window: Tensor
    bins: Tensor
    of_perceptual: Tensor

    def __init__(self, weights: Loss) -> None:
        super().__init__()
        self.weights = weights
        self.perceptual = PerceptualDisturbance()
        self.intelligibility = IntelligibilityLoss()
        self.register_buffer("window", torch.hann_window(_FRAME_SAMPLES), persistent=False)
        bins = torch.tensor(_bin_weights(weights.erb_exponent), dtype=torch.float32)
        self.register_buffer("bins", bins[:, None], persistent=False)
        self.register_buffer("of_perceptual", torch.tensor(weights.perceptual), persistent=False)

    def fall(self, share: float) -> None:
        """Set the weights for a point in the decay of the learning rate, from 0 (before it) to 1 (at its end)."""
        first, last = self.weights.perceptual, self.weights.perceptual_at_end
        self.of_perceptual.fill_(first if last is None else first + share * (last - first))

    def forward(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted parts, by name, and their sum, `"loss"`.

        Args:
            estimate: `float32 (batch, samples)`.
            target: Clean speech of the same shape.
        """
        a, b = self._compressed(estimate), self._compressed(target)
        spoken = target.square().sum(-1) > _SILENT_POWER * target.shape[-1]
        # Rows without speech are computed and not counted: to leave them out, the host would have to wait for a GPU.
        # A tone stands in for their silence, for which most measures and their gradients are not finite.
        stand_in = 0.1 * torch.cos(torch.arange(target.shape[-1], device=target.device) * (torch.pi / 8))
        speech = torch.where(spoken[:, None], target, stand_in)
        count = spoken.sum().clamp_min(1)

        def mean(rows: Tensor) -> Tensor:
            return rows.masked_fill(~spoken, 0).sum() / count

        parts = {
            "complex_spectrum": self.weights.complex_spectrum * ((a - b).abs().square() * self.bins).mean(),
            "magnitude": self.weights.magnitude * ((a.abs() - b.abs()).square() * self.bins).mean(),
            "si_sdr": -self.weights.si_sdr * mean(self._si_sdr_db(estimate, speech)) / 10,
            "perceptual": self.of_perceptual * mean(self.perceptual(estimate, speech)),
            "intelligibility": self.weights.intelligibility * mean(self.intelligibility(estimate, speech)),
        }
        return {**parts, "loss": torch.stack(list(parts.values())).sum()}

    def _compressed(self, audio: Tensor) -> Tensor:
        spectrum = torch.stft(audio, _FRAME_SAMPLES, _HOP_SAMPLES, window=self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        return spectrum * (power + _FLOOR) ** ((self.weights.exponent - 1) / 2)

    @staticmethod
    def _si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
        """Return the SI-SDR of each example, capped so that easy examples do not crowd out the others."""
        energy = target.square().sum(-1) + _SILENT_POWER
        aimed = (estimate * target).sum(-1, keepdim=True) / energy[:, None] * target
        error = (estimate - aimed).square().sum(-1)
        floor = energy * 10 ** (-_BEST_SI_SDR_DB / 10)
        return 10 * torch.log10((aimed.square().sum(-1) + _SILENT_POWER) / (error + floor))


def _bin_weights(exponent: float) -> NDArray[np.float64]:
    """Return weights of the bins of the compressed spectra, with mean 1: powers of the inverse of ERB(f).

    ERB, the equivalent rectangular bandwidth of hearing, is from B. Glasberg, B. Moore, "Derivation of auditory
    filter shapes from notched-noise data", 1990. No weight is below `_LEAST_BIN_WEIGHT` before they are scaled again.
    """
    khz = np.arange(_FRAME_SAMPLES // 2 + 1) * SAMPLE_RATE_HZ / _FRAME_SAMPLES / 1000
    weights = (24.7 * (4.37 * khz + 1)) ** -exponent
    weights = np.maximum(weights / weights.mean(), _LEAST_BIN_WEIGHT)
    return np.asarray(weights / weights.mean())
