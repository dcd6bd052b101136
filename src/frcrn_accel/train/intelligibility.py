"""A differentiable form of STOI, as a loss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frcrn_accel.network.topology import SAMPLE_RATE_HZ

__all__ = ["IntelligibilityLoss"]

_FRAME_SAMPLES = 410  # 25.6 ms
_HOP_SAMPLES = 205
_FFT_SAMPLES = 1024
_BANDS = 15
_LOWEST_HZ = 150.0
_SEGMENT_FRAMES = 30  # 384 ms: the period of the slowest modulation that counts
_SEGMENT_STEP = 5
_RANGE_DB = 40.0  # frames this far below the loudest are silent and do not count
_CLIP_DB = 15.0
_EPSILON = 1e-5


class IntelligibilityLoss(torch.nn.Module):
    """One minus the short-time objective intelligibility (STOI).

    Source: C. Taal, R. Hendriks, R. Heusdens, J. Jensen, "An algorithm for intelligibility prediction of
    time-frequency weighted noisy speech", IEEE TASLP 2011. This form computes at 16 kHz instead of 10 kHz, uses only
    every fifth segment, and removes silent frames from the spectra instead of the signals.
    """

    window: Tensor
    bands: Tensor

    def __init__(self) -> None:
        super().__init__()
        hz = np.arange(_FFT_SAMPLES // 2 + 1) * SAMPLE_RATE_HZ / _FFT_SAMPLES
        centres_hz = _LOWEST_HZ * 2 ** (np.arange(_BANDS) / 3)
        lowest, above = (np.abs(hz - (centres_hz * 2**way)[:, None]).argmin(1) for way in (-1 / 6, 1 / 6))
        number = np.arange(len(hz))
        members = (number >= lowest[:, None]) & (number < above[:, None])
        self.register_buffer("window", torch.hann_window(_FRAME_SAMPLES), persistent=False)
        self.register_buffer("bands", torch.tensor(members, dtype=torch.float32), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return 1 - STOI, `(batch,)`; 0 where less than 384 ms of the target is not silent.

        Args:
            estimate: `float32 (batch, samples)`, at least 1024 samples.
            target: Clean speech of the same shape; no row is silent.
        """
        wanted, found = self._spectrum(target), self._spectrum(estimate)
        energy_db = 10 * torch.log10(wanted.sum(1) + 1e-12)
        spoken = energy_db > energy_db.amax(1, keepdim=True) - _RANGE_DB
        wanted, found = ((self.bands @ power + 1e-10).sqrt() for power in (wanted, found))
        # Frames that count come first, in their order; segments that reach beyond them are not counted. So every
        # example has as many segments, and no number is read from a GPU.
        order = torch.argsort((~spoken).to(torch.uint8), dim=1, stable=True)[:, None].expand(-1, _BANDS, -1)
        if order.shape[2] < _SEGMENT_FRAMES:
            return 0 * found.sum((1, 2))
        wanted, found = (x.gather(2, order).unfold(2, _SEGMENT_FRAMES, _SEGMENT_STEP) for x in (wanted, found))
        gain = wanted.square().sum(-1, keepdim=True).sqrt() / (found.square().sum(-1, keepdim=True).sqrt() + _EPSILON)
        clipped = torch.minimum(found * gain, wanted * (1 + 10 ** (_CLIP_DB / 20)))
        a, b = (x - x.mean(-1, keepdim=True) for x in (wanted, clipped))
        norms = (a.square().sum(-1) + _EPSILON**2).sqrt() * (b.square().sum(-1) + _EPSILON**2).sqrt()
        similar = ((a * b).sum(-1) / norms).mean(1)  # of each segment
        ends = torch.arange(similar.shape[1], device=similar.device) * _SEGMENT_STEP + _SEGMENT_FRAMES
        counts = ends <= spoken.sum(1, keepdim=True)
        return (1 - similar).masked_fill(~counts, 0).sum(1) / counts.sum(1).clamp_min(1)

    def _spectrum(self, audio: Tensor) -> Tensor:
        """Return the power spectrum, `(batch, bins, frames)`."""
        spectrum = torch.stft(
            audio,
            _FFT_SAMPLES,
            _HOP_SAMPLES,
            win_length=_FRAME_SAMPLES,
            window=self.window,
            center=False,
            return_complex=True,
        )
        return spectrum.real.square() + spectrum.imag.square()
