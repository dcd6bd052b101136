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
        first, *edges = (round(edge * width / model_rate_hz) for edge in _EDGES_HZ)
        self._deciding_bins = slice(first, edges[-1])
        self._deciding_starts = np.array([0, *(edge - first for edge in edges[:-1])])
        # Frame `k` is centred at sample `k * hop`: half of the first is before the signal.
        self._band = np.zeros((channels, self._hop), np.float32)
        # The model's input, its output, and the share of the band that is kept, in the last row.
        self._model = np.zeros((2 * channels + 1, self._model_hop), np.float32)
        # The second half of the last frame, to be added to the next.
        self._tail: NDArray[np.floating] = np.zeros((channels, self._hop), np.float32)
        self._frame = 0
        self._energy: NDArray[np.floating] = np.zeros(
            (2 * channels, _SMOOTHED_FRAMES - 1, len(_EDGES_HZ) - 1), np.float32
        )
        self._first_gain = 0  # frame of the model's signals that the first of the gains is of
        self._gains: list[list[float]] = [[] for _ in range(channels)]
        self._shares: list[float] = []  # of the band that is kept, for each of the gains
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
        rows, held = self._model.shape
        model = np.empty((rows, held + dry.shape[1]), np.float32)
        model[:, :held] = self._model
        model[: len(dry), held:] = dry
        model[len(dry) : -1, held:] = wet
        model[-1, held:] = dry_shares
        hop = self._model_hop
        while (frames := min(model.shape[1] // hop - 1, _FRAMES_AT_A_TIME)) > 0:
            energy = np.concatenate([self._energy, self._energies(model[:-1, : (frames + 1) * hop])], axis=1)
            self._energy = energy[:, frames:]
            smoothed = energy[:, :frames] + energy[:, 1 : frames + 1]
            smoothed += energy[:, 2:]
            dry_energy, wet_energy = smoothed[: len(dry)], smoothed[len(dry) :]
            dry_energy += _SILENT_ENERGY
            largest = np.maximum.reduce(wet_energy / dry_energy, axis=2)
            for own, new in zip(self._gains, np.sqrt(np.minimum(largest, 1)).tolist(), strict=True):
                own.extend(new)
            self._shares.extend(model[-1, 2 * hop - 1 : (frames + 1) * hop : hop].tolist())
            model = model[:, frames * hop :]
        self._model = model

    def read(self) -> NDArray[np.float32]:
        """Return the samples that are ready, `(channels, samples)`."""
        frames = self._complete_frames()
        for first in range(0, frames, _FRAMES_AT_A_TIME):
            self._compute(min(frames - first, _FRAMES_AT_A_TIME))
        out = self._ready[0] if len(self._ready) == 1 else np.concatenate(self._ready, axis=1)
        self._ready = [out[:, :0]]
        return out

    def finish(self) -> NDArray[np.float32]:
        """Return the rest, after the end of the signal; it may be longer than the signal."""
        channels = len(self._channels)
        self.write(np.zeros((channels, 3 * self._hop), np.float32))
        model_hops = np.zeros((channels, 4 * self._model_hop), np.float32)
        self.write_model(model_hops, model_hops)
        return self.read()

    def _energies(self, signals: NDArray[np.float32]) -> NDArray[np.floating]:
        """Return the energy of signals at the model's rate in each band, `(signals, frames, bands)`."""
        spectra = np.fft.rfft(_frames(signals, self._model_window))[..., self._deciding_bins]
        energies: NDArray[np.floating] = np.add.reduceat(_power(spectra), self._deciding_starts, axis=-1)
        return energies

    def _complete_frames(self) -> int:
        """Return the number of frames that can be computed."""
        frames = max(self._band.shape[1] // self._hop - 1, 0)
        while frames and self._model_frame(self._frame + frames - 1) >= self._first_gain + len(self._shares):
            frames -= 1
        return frames

    def _compute(self, frames: int) -> None:
        """Scale the next frames."""
        hop = self._hop
        spectra = np.fft.rfft(_frames(self._band[:, : (frames + 1) * hop], self._window))
        power = _smoothed_power(spectra[..., self._first_bin :])
        numbers = [self._model_frame(frame) - self._first_gain for frame in range(self._frame, self._frame + frames)]
        gains = np.empty(spectra.shape, np.float32)
        high = gains[..., self._first_bin :]
        for channel, (own, state) in enumerate(zip(self._gains, self._channels, strict=True)):
            state.gains(power[channel], [own[number] for number in numbers], high[channel])
        # The bins below hold only what the window smears from the lowest bins of the band.
        gains[..., : self._first_bin] = high[..., :1]
        shares = [self._shares[number] for number in numbers]
        if any(shares):
            kept = np.array(shares, np.float32)[:, None]
            gains = kept + (1 - kept) * gains
        spectra *= gains
        scaled = np.fft.irfft(spectra, 2 * hop)
        scaled *= self._window
        out = np.empty((len(scaled), frames, hop), np.float32)
        np.add(scaled[:, 1:, :hop], scaled[:, :-1, hop:], out=out[:, 1:])
        np.add(scaled[:, 0, :hop], self._tail, out=out[:, 0])
        self._tail = scaled[:, -1, hop:]
        first = 1 if self._frame == 0 else 0  # the first hop is before the signal
        self._ready.append(out[:, first:].reshape(len(out), -1))
        self._band = self._band[:, frames * hop :]
        self._frame += frames
        if (used := numbers[-1]) > 0:
            for values in (*self._gains, self._shares):
                del values[:used]
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
        self._begun = np.zeros((0, bins), np.float32)  # the power of the frames of this block
        self._begun_gains: list[float] = []  # and the model's gain in them
        self._part = np.full(bins, np.inf, np.float32)  # the lowest power of the blocks of this part
        self._part_blocks = 0
        self._least = 1.0  # the smallest gain of the model in this part
        self._lowest: deque[tuple[float, NDArray[np.float32]]] = deque(maxlen=_LOWEST_PARTS)
        self._lasting = np.zeros(bins, np.float32)  # the floor that is used is at least this power
        self._used = self._floor

    def gains(self, power: NDArray[np.float32], model_gains: list[float], out: NDArray[np.float32]) -> None:
        """Compute the gains of the next frames.

        Args:
            power: Smoothed power, `(frames, bins)`, which is not zero.
            model_gains: The model's gain in each frame.
            out: Receives the gains, in the shape of `power`.
        """
        begun, bins = self._begun.shape
        power = np.concatenate([self._begun, power])
        known_gains = self._begun_gains + model_gains
        blocks = len(power) // _BLOCK_FRAMES
        whole = blocks * _BLOCK_FRAMES
        of_blocks = power[:whole].reshape(blocks, _BLOCK_FRAMES, bins)
        used = np.empty((blocks + 1, 1, bins), np.float32)
        used[0] = self._used
        for block, total in enumerate(np.add.reduce(of_blocks, axis=1)):
            first = block * _BLOCK_FRAMES
            self._end_block(of_blocks[block], total, known_gains[first : first + _BLOCK_FRAMES])
            used[block + 1] = self._used
        self._begun, self._begun_gains = power[whole:], known_gains[whole:]
        shares = np.empty_like(power)
        np.minimum(used[:-1], of_blocks, out=shares[:whole].reshape(of_blocks.shape))
        np.minimum(used[-1], power[whole:], out=shares[whole:])
        np.divide(shares, power, out=shares)
        np.subtract(1, shares, out=shares)
        np.sqrt(shares, out=shares)
        np.multiply(shares[begun:], self._gates(model_gains)[:, None], out=out)

    def _gates(self, model_gains: list[float]) -> NDArray[np.float32]:
        """Return the gates of the next frames."""
        held, late = self._held, self._late
        gates = []
        for gain in model_gains:
            held *= self._release
            late *= self._late_release
            held = gain if gain > held else held
            late = gain if gain > late else late
            gate = held / _OPEN if held < _OPEN else 1.0
            gates.append(gate * (late / _OPEN_LATELY) ** 2 if late < _OPEN_LATELY else gate)
        self._held, self._late = held, late
        return np.array(gates, np.float32)

    def _end_block(self, power: NDArray[np.float32], total: NDArray[np.float32], model_gains: list[float]) -> None:
        """Average the quiet frames of a block into the floor, and update the lowest power.

        Args:
            power: Of its frames, `(frames, bins)`.
            total: The sum of the frames.
            model_gains: The model's gain in each frame.
        """
        is_quiet = [gain < _QUIET for gain in model_gains]
        if quiet := is_quiet.count(True):
            quiet_total = total if quiet == _BLOCK_FRAMES else np.add.reduce(power[is_quiet], axis=0)
            kept = self._keep**quiet
            weight = self._weight * kept
            self._weight = weight + 1 - kept
            self._floor = self._floor * (weight / self._weight)
            self._floor += quiet_total * ((1 - kept) / quiet / self._weight)
        np.minimum(self._part, total, out=self._part)
        self._least = min(self._least, *model_gains)
        self._part_blocks += 1
        if is_last := self._part_blocks == _LOWEST_BLOCKS:
            self._lowest.append((self._least, self._part * (_LOWEST_BIAS / _BLOCK_FRAMES)))
            self._part, self._part_blocks, self._least = np.full_like(self._part, np.inf), 0, 1.0
            if len(self._lowest) >= _LOWEST_PARTS_AT_LEAST:
                # If the model never attenuates, a steady sound is not noise.
                share = 1 - min(least for least, _ in self._lowest) ** 2
                np.minimum.reduce([part for _, part in self._lowest], out=self._lasting)
                self._lasting *= share
        if quiet or is_last:
            self._used = np.maximum(self._floor, self._lasting)


def _sine_window(hop: int) -> NDArray[np.float32]:
    """Return a window of two hops whose square sums to one at an overlap of a half."""
    return np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop)).astype(np.float32)


def _frames(signals: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the windowed frames of whole hops, `(signals, frames, 2 * hop)`."""
    hops = signals.reshape(len(signals), -1, len(window) // 2)
    frames = np.concatenate([hops[:, :-1], hops[:, 1:]], axis=2)
    frames *= window
    return frames


def _power(spectra: NDArray[np.complexfloating], out: NDArray[np.float32] | None = None) -> NDArray[np.floating]:
    """Return the power of each bin."""
    power: NDArray[np.floating] = np.add(np.square(spectra.real), np.square(spectra.imag), out=out)
    return power


def _smoothed_power(spectra: NDArray[np.complexfloating]) -> NDArray[np.float32]:
    """Return the power, averaged over neighbouring bins; the first and the last bin are repeated at the edges.

    A tiny power is added, so that no bin is zero.
    """
    side = _SMOOTHED_BINS // 2
    bins = spectra.shape[-1]
    padded = np.empty((*spectra.shape[:-1], bins + 2 * side), np.float32)
    _power(spectra, padded[..., side:-side])
    padded[..., :side] = padded[..., side : side + 1]
    padded[..., -side:] = padded[..., -side - 1 : -side]
    thirds = padded[..., 2:] + padded[..., 1:-1]
    thirds += padded[..., :-2]
    out: NDArray[np.float32] = thirds[..., :bins] + thirds[..., 3 : 3 + bins]
    out += thirds[..., 6 : 6 + bins]
    out *= 1 / _SMOOTHED_BINS
    out += _TINY_POWER
    return out
