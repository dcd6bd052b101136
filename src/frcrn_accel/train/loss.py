"""The loss: how far the output of the network is from the target."""

from __future__ import annotations

import torch
from torch import Tensor

from frcrn_accel.train.config import Loss
from frcrn_accel.train.intelligibility import IntelligibilityLoss
from frcrn_accel.train.perceptual import PerceptualDisturbance

__all__ = ["DenoisingLoss"]

_FRAME_SAMPLES = 512
_HOP_SAMPLES = 128
_FLOOR = 1e-6  # power below which a bin counts as silent: far below the resolution of 16 bits
_BEST_SI_SDR_DB = 35.0
_SILENT_POWER = 1e-10


class DenoisingLoss(torch.nn.Module):
    """Squared errors of compressed spectra, minus SI-SDR, `PerceptualDisturbance` and `IntelligibilityLoss`.

    The errors of the compressed complex spectrum and of its magnitude are from S. Braun, I. Tashev, "A consolidated
    view of loss functions for supervised deep learning-based speech enhancement", 2020. For a target without speech
    only these two count.

    Args:
        weights: Weights of the parts.
    """

    window: Tensor

    def __init__(self, weights: Loss) -> None:
        super().__init__()
        self.weights = weights
        self.perceptual = PerceptualDisturbance()
        self.intelligibility = IntelligibilityLoss()
        self.register_buffer("window", torch.hann_window(_FRAME_SAMPLES), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted parts, by name, and their sum, `"loss"`.

        Args:
            estimate: `float32 (batch, samples)`.
            target: Clean speech of the same shape.
        """
        a, b = self._compressed(estimate), self._compressed(target)
        spoken = target.square().sum(-1) > _SILENT_POWER * target.shape[-1]
        ratio_db = lost = unclear = estimate.new_zeros(())
        if spoken.any():
            ratio_db = self._si_sdr_db(estimate[spoken], target[spoken]).mean()
            lost = self.perceptual(estimate[spoken], target[spoken]).mean()
            unclear = self.intelligibility(estimate[spoken], target[spoken]).mean()
        parts = {
            "complex_spectrum": self.weights.complex_spectrum * (a - b).abs().square().mean(),
            "magnitude": self.weights.magnitude * (a.abs() - b.abs()).square().mean(),
            "si_sdr": -self.weights.si_sdr * ratio_db / 10,
            "perceptual": self.weights.perceptual * lost,
            "intelligibility": self.weights.intelligibility * unclear,
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
