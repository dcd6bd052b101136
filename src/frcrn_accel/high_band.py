"""The band above the model's: scaled frame by frame, never invented.

The model works at 16 kHz. A signal of a higher rate also has a band above 8 kHz: the part that resampling to 16 kHz
and back loses. It is added to the model's output again, after noise is attenuated in it. Two things decide the gain:

- The *gate*, one gain for the whole band, from what the model did below it: where the model leaves nothing in any of
  its own bands, there is no speech above them either. WebRTC's noise suppressor treats its upper bands in this way
  (`modules/audio_processing/ns/noise_suppressor.cc`, `ComputeUpperBandsGain`). The gain below 8 kHz shows well
  whether there is speech, but not how much noise there is above.
- The *floor*, the power of the noise in each bin, averaged over frames in which the model finds no speech, as in
  I. Cohen, B. Berdugo, "Noise estimation by minima controlled recursive averaging", IEEE Signal Processing Letters
  9(1), 2002, with the model in place of its detector. For speech without pauses, it is at least twice the lowest
  power of the last second, or less where the model attenuates little (R. Martin, "Noise power spectral density
  estimation based on optimal smoothing and minimum statistics", IEEE Trans. Speech and Audio Processing 9(5), 2001).
  The square root of a Wiener filter over the floor is the gain of a bin (J. S. Lim, A. V. Oppenheim, "Enhancement
  and bandwidth compression of noisy speech", Proc. IEEE 67(12), 1979).

RNNoise and later full-band networks predict gains up to 20 kHz themselves (J.-M. Valin, "A hybrid DSP/deep
learning approach to real-time full-band speech enhancement", MMSP 2018). X. Zhang et al. train a second network for
the band above 8 kHz ("A two-step backward compatible fullband speech enhancement system", ICASSP 2022). This module
needs no training. `benchmarks/high_band.py` measures it.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["HIGH_BANDS", "HighBand", "HighBandMode", "check_high_band", "has_high_band"]

HighBandMode = Literal["follow", "drop"]
HIGH_BANDS: tuple[str, ...] = get_args(HighBandMode)

_HOP_S = 0.004  # the look-ahead of the resampler that follows the model in a stream: it adds no delay
# Edges of the bands of the model's output that decide whether there is speech.
_EDGES_HZ = (1200, 2000, 3400, 4800, 6200, 7600)
_SMOOTHED_FRAMES = 3  # over which their energies are averaged
_LOWEST_HZ = 7000  # the band above the model's has nothing below: resampling filters are flat up to 7.3 kHz
_QUIET = 0.3  # the model finds no speech in a frame in which its gain is below this in all bands
_OPEN = 0.1  # at this gain, the gate is open; below, it closes with the gain
_OPEN_LATELY = 0.3  # the same for the largest recent gain; below, the gate closes with its square
_RELEASE_S = 0.05  # time constant with which a gain is forgotten
_LATE_RELEASE_S = 0.4
_FLOOR_S = 0.5  # time constant of the floor
_LOWEST_BLOCKS = 10  # in each part of the time over which the lowest power is searched
_LOWEST_PARTS = 5
_LOWEST_PARTS_AT_LEAST = 2
_LOWEST_BIAS = 2.0  # ratio of the floor to the lowest power of a block
_BLOCK_FRAMES = 5  # frames for which the floor stays the same
_SMOOTHED_BINS = 9  # over which power is averaged: single bins would flicker, which is heard as musical noise
_FRAMES_AT_A_TIME = 250  # their spectra stay in the cache
_SILENT_ENERGY = 2e-6  # of a band: noise at -90 dBFS, where the model's output does not show whether there is speech
_TINY_POWER = 1e-20


def check_high_band(mode: str) -> None:
    """Check a mode of the band above the model's.

    Raises:
        ValueError: `mode` is not in `HIGH_BANDS`.
    """
    if mode not in HIGH_BANDS:
        raise ValueError(f"high_band must be one of {', '.join(HIGH_BANDS)}, got {mode!r}")


def has_high_band(sample_rate_hz: int, model_rate_hz: int) -> bool:
    """Return whether a signal has a band above the model's."""
    return sample_rate_hz > model_rate_hz


class HighBand:
    """Attenuate noise in the band above the model's, block by block.

    Signals arrive in parts of any length; the result does not depend on the lengths. Sample `n` of the result needs
    the band up to two hops (8 ms) after it, and the signals at the model's rate up to 4 ms after it.

    Args:
        sample_rate_hz: Rate of the signal.
        model_rate_hz: Rate of the model, which is lower.
        channels: Number of channels; each is treated independently.
    """

    def __init__(self, sample_rate_hz: int, model_rate_hz: int, channels: int) -> None:
        self._rate_hz, self._model_rate_hz = sample_rate_hz, model_rate_hz
        self._hop = int(_HOP_S * sample_rate_hz)
        self._model_hop = round(_HOP_S * model_rate_hz)
        self._window = _sine_window(self._hop)
        self._model_window = _sine_window(self._model_hop)
        self._first_bin = 2 * self._hop * _LOWEST_HZ // sample_rate_hz
        width = 2 * self._model_hop
        self._edges = [round(edge * width / model_rate_hz) for edge in _EDGES_HZ]
        # Frame `k` is centred at sample `k * hop`: half of the first is before the signal.
        self._band = np.zeros((channels, self._hop), np.float32)
        self._dry = np.zeros((channels, self._model_hop), np.float32)
        self._wet = np.zeros((channels, self._model_hop), np.float32)
        self._dry_shares = np.zeros(self._model_hop, np.float32)
        self._tail = np.zeros((channels, self._hop), np.float32)  # of the last frame, to be added to the next
        self._frame = 0
        self._energy = np.zeros((2, channels, _SMOOTHED_FRAMES - 1, len(_EDGES_HZ) - 1), np.float32)
        self._first_gain = 0  # frame of the model's signals that the first of the gains is of
        self._gains = np.zeros((channels, 0))
        self._shares = np.zeros(0, np.float32)  # of the band that is kept, for each of the gains
        bins = self._hop + 1 - self._first_bin
        self._channels = [_Channel(bins, self._hop / sample_rate_hz) for _ in range(channels)]
        self._ready = [np.zeros((channels, 0), np.float32)]

    def write(self, band: NDArray[np.float32]) -> None:
        """Append to the band above the model's, `(channels, samples)` at the rate of the signal."""
        self._band = np.concatenate([self._band, band], axis=1)

    def write_model(
        self, dry: NDArray[np.float32], wet: NDArray[np.float32], dry_shares: NDArray[np.float32] | float = 0.0
    ) -> None:
        """Append to the input and the output of the model.

        Args:
            dry: Input of the model, `(channels, samples)` at its rate.
            wet: Its output, of the same shape.
            dry_shares: Share of the band, as amplitude, that is always kept, for an attenuation limit: one for all
                samples, or one for each.
        """
        self._dry = np.concatenate([self._dry, dry], axis=1)
        self._wet = np.concatenate([self._wet, wet], axis=1)
        shares = np.broadcast_to(np.float32(dry_shares), dry.shape[1])
        self._dry_shares = np.concatenate([self._dry_shares, shares])
        while (frames := min(self._dry.shape[1] // self._model_hop - 1, _FRAMES_AT_A_TIME)) > 0:
            self._energy = np.concatenate([self._energy, self._energies(frames)], axis=2)
            ends = self._dry_shares[2 * self._model_hop - 1 :: self._model_hop]
            self._shares = np.concatenate([self._shares, ends[:frames]])
            self._dry_shares = self._dry_shares[frames * self._model_hop :]
            self._dry = self._dry[:, frames * self._model_hop :]
            self._wet = self._wet[:, frames * self._model_hop :]
            count = self._energy.shape[2] - _SMOOTHED_FRAMES + 1
            dry_energy, wet_energy = sum(
                (self._energy[:, :, first : first + count] for first in range(1, _SMOOTHED_FRAMES)),
                start=self._energy[:, :, :count],
            )
            largest = (wet_energy / (dry_energy + np.float32(_SILENT_ENERGY))).max(axis=2)
            self._gains = np.concatenate([self._gains, np.sqrt(np.minimum(largest, 1))], axis=1)
            self._energy = self._energy[:, :, count:]

    def read(self) -> NDArray[np.float32]:
        """Return the samples that are ready, `(channels, samples)`."""
        while frames := self._complete_frames():
            self._compute(min(frames, _FRAMES_AT_A_TIME))
        out = self._ready[0] if len(self._ready) == 1 else np.concatenate(self._ready, axis=1)
        self._ready = [out[:, :0]]
        return out

    def finish(self) -> NDArray[np.float32]:
        """Return the rest, after the end of the signal; it may be longer than the signal."""
        hops = np.zeros((len(self._band), 3 * self._hop), np.float32)
        self.write(hops)
        model_hops = np.zeros((len(self._band), 4 * self._model_hop), np.float32)
        self.write_model(model_hops, model_hops)
        return self.read()

    def _energies(self, frames: int) -> NDArray[np.float32]:
        """Return the energy of the model's input and output in each band, `(2, channels, frames, bands)`."""
        signals = np.stack([self._dry, self._wet])[..., : (frames + 1) * self._model_hop]
        spectra = np.fft.rfft(_frames(signals, self._model_hop) * self._model_window)
        power = (np.square(spectra.real) + np.square(spectra.imag)).astype(np.float32)
        energy: NDArray[np.float32] = np.add.reduceat(power[..., : self._edges[-1]], self._edges[:-1], axis=-1)
        return energy

    def _complete_frames(self) -> int:
        """Return the number of frames that can be computed."""
        frames = max(self._band.shape[1] // self._hop - 1, 0)
        while frames and self._model_frame(self._frame + frames - 1) >= self._first_gain + self._gains.shape[1]:
            frames -= 1
        return frames

    def _compute(self, frames: int) -> None:
        """Scale the next frames."""
        spectra = np.fft.rfft(_frames(self._band[:, : (frames + 1) * self._hop], self._hop) * self._window)
        high = spectra[..., self._first_bin :]
        power = _smoothed((np.square(high.real) + np.square(high.imag)).astype(np.float32))
        numbers = [self._model_frame(frame) for frame in range(self._frame, self._frame + frames)]
        gains = np.empty_like(power)
        for channel, state in enumerate(self._channels):
            model_gains = [float(self._gains[channel, at - self._first_gain]) for at in numbers]
            gains[channel] = state.gains(power[channel], model_gains)
        shares = self._shares[np.array(numbers) - self._first_gain][:, None]
        if shares.any():
            gains = shares + (1 - shares) * gains
        high *= gains
        # The bins below hold only what the window smears from the lowest bins of the band.
        spectra[..., : self._first_bin] *= gains[..., :1]
        scaled = (np.fft.irfft(spectra, 2 * self._hop) * self._window).astype(np.float32)
        out = scaled[..., : self._hop]
        out[:, 1:] += scaled[:, :-1, self._hop :]
        out[:, 0] += self._tail
        self._tail = scaled[:, -1, self._hop :]
        first = 1 if self._frame == 0 else 0  # the first hop is before the signal
        self._ready.append(out[:, first:].reshape(len(out), -1))
        self._band = self._band[:, frames * self._hop :]
        self._frame += frames
        used = max(numbers[-1] - self._first_gain, 0)
        self._gains, self._shares = self._gains[:, used:], self._shares[used:]
        self._first_gain += used

    def _model_frame(self, frame: int) -> int:
        """Return the last frame of the model's signals that ends at or before the centre of a frame, or the first."""
        return max(frame * self._hop * self._model_rate_hz // (self._rate_hz * self._model_hop) - 1, 0)


class _Channel:
    """The floor and the gate of a channel.

    Args:
        bins: Number of bins.
        hop_s: Hop of the frames.
    """

    def __init__(self, bins: int, hop_s: float) -> None:
        self._keep = float(np.exp(-hop_s / _FLOOR_S))
        self._release = float(np.exp(-hop_s / _RELEASE_S))
        self._late_release = float(np.exp(-hop_s / _LATE_RELEASE_S))
        self._held = self._late = 0.0
        self._floor = np.zeros(bins, np.float32)
        self._weight = 0.0  # of the frames in the floor; 1 once it is as old as its time constant
        self._sum = np.zeros(bins, np.float32)  # over the quiet frames of this block
        self._quiet = self._position = 0
        self._block = np.zeros(bins, np.float32)  # the power of all frames of this block
        self._lowest: deque[tuple[float, NDArray[np.float32]]] = deque(maxlen=_LOWEST_PARTS)
        self._least = 1.0  # the smallest gain of the model in this part
        self._part = np.full(bins, np.inf, np.float32)  # the lowest power of the blocks of this part
        self._part_blocks = 0
        self._used = self._floor

    def gains(self, power: NDArray[np.float32], model_gains: list[float]) -> NDArray[np.float32]:
        """Return the gains of the next frames.

        Args:
            power: Smoothed power, `(frames, bins)`.
            model_gains: The model's gain in each frame.
        """
        gates = []
        share = power + np.float32(_TINY_POWER)
        block = 0  # its first frame
        for frame, gain in enumerate(model_gains):
            self._held = max(gain, self._release * self._held)
            self._late = max(gain, self._late_release * self._late)
            gates.append(min(1.0, self._held / _OPEN) * min(1.0, self._late / _OPEN_LATELY) ** 2)
            if gain < _QUIET:
                self._sum += power[frame]
                self._quiet += 1
            self._block += power[frame]
            self._least = min(gain, self._least)
            self._position += 1
            if self._position == _BLOCK_FRAMES:
                np.divide(self._used, share[block : frame + 1], out=share[block : frame + 1])
                block = frame + 1
                self._end_block()
        np.divide(self._used, share[block:], out=share[block:])
        np.subtract(1, share, out=share)
        np.maximum(share, 0, out=share)
        np.sqrt(share, out=share)
        share *= np.array(gates, np.float32)[:, None]
        return share

    def _end_block(self) -> None:
        """Add a block: average its quiet frames into the floor, and update the lowest power."""
        if self._quiet:
            weight = self._weight * self._keep**self._quiet
            added = 1 - self._keep**self._quiet
            self._weight = weight + added
            self._floor = self._floor * np.float32(weight / self._weight)
            self._floor += self._sum * np.float32(added / self._quiet / self._weight)
            self._sum = np.zeros_like(self._sum)
        self._quiet = self._position = 0
        np.minimum(self._part, self._block, out=self._part)
        self._block = np.zeros_like(self._block)
        self._part_blocks += 1
        if self._part_blocks == _LOWEST_BLOCKS:
            self._lowest.append((self._least, self._part * np.float32(_LOWEST_BIAS / _BLOCK_FRAMES)))
            self._part, self._part_blocks, self._least = np.full_like(self._part, np.inf), 0, 1.0
        self._used = self._floor
        if len(self._lowest) >= _LOWEST_PARTS_AT_LEAST:
            # If the model never attenuates, a steady sound is not noise.
            share = 1 - min(least for least, _ in self._lowest) ** 2
            lowest = np.minimum.reduce([part for _, part in self._lowest])
            self._used = np.maximum(self._floor, lowest * np.float32(share))


def _sine_window(hop: int) -> NDArray[np.float32]:
    """Return a window whose square sums to one at an overlap of a half."""
    return np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop)).astype(np.float32)


def _frames(signals: NDArray[np.float32], hop: int) -> NDArray[np.float32]:
    """Return frames of two hops, `(..., frames, 2 * hop)`."""
    return np.lib.stride_tricks.sliding_window_view(signals, 2 * hop, axis=-1)[..., ::hop, :]


def _smoothed(power: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average over neighbouring bins; the first and the last bin are repeated at the edges."""
    side = _SMOOTHED_BINS // 2
    padded = np.pad(power, [(0, 0)] * (power.ndim - 1) + [(side, side)], mode="edge")
    bins = power.shape[-1]
    thirds = padded[..., 2:] + padded[..., 1:-1] + padded[..., :-2]
    out: NDArray[np.float32] = thirds[..., :bins] + thirds[..., 3 : 3 + bins] + thirds[..., 6 : 6 + bins]
    out *= np.float32(1 / _SMOOTHED_BINS)
    return out
