"""Levels, filters and rooms for training examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.network.topology import SAMPLE_RATE_HZ

__all__ = [
    "Audio",
    "active_level",
    "convolve",
    "filter_by",
    "low_pass",
    "lower_floor",
    "random_eq_db",
    "room",
    "to_level",
]

Audio = NDArray[np.float32]

_QUIET = 1e-5
_EXPANDER_FRAME = 512
_EXPANDER_HOP = 256


def active_level(audio: Audio) -> float:
    """Return the RMS of the samples whose power is above the mean."""
    power = audio.astype(np.float64) ** 2
    active = power > power.mean()
    return float(np.sqrt(power[active].mean())) if active.any() else float(np.sqrt(power.mean()))


def to_level(audio: Audio, rms: float) -> Audio:
    """Scale audio to an RMS. Nearly silent audio stays nearly silent."""
    level = float(np.sqrt(np.mean(audio.astype(np.float64) ** 2)))
    return audio * np.float32(rms / max(level, _QUIET))


def filter_by(audio: Audio, gain_db: NDArray[np.float64]) -> Audio:
    """Filter with zero phase; `gain_db` has a gain for each bin of the signal's spectrum."""
    spectrum = np.fft.rfft(audio) * 10 ** (gain_db / 20)
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


def random_eq_db(rng: np.random.Generator, samples: int, most_db: float) -> NDArray[np.float64]:
    """Return a gain for each bin that changes smoothly along a logarithmic frequency axis."""
    knots_hz = np.geomspace(60, SAMPLE_RATE_HZ / 2, 7)
    gains_db = rng.uniform(-most_db, most_db, len(knots_hz))
    frequencies_hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    eq_db: NDArray[np.float64] = np.interp(np.log(np.maximum(frequencies_hz, 1)), np.log(knots_hz), gains_db)
    return eq_db


def low_pass(audio: Audio, edge_hz: float) -> Audio:
    """Remove what is above a frequency."""
    frequencies_hz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ)
    return filter_by(audio, -80 * np.clip((frequencies_hz - edge_hz) / 300, 0, 1))


def room(rng: np.random.Generator) -> Audio:
    """Return the impulse response of a synthetic room: direct sound, then decaying noise whose highs decay faster."""
    decay_s = rng.uniform(0.15, 0.9)  # to -60 dB
    time_s = np.arange(int(decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / decay_s)
    dull = np.convolve(tail, np.full(8, 1 / 8), "same") * 2
    share = time_s / time_s[-1]
    tail = tail * (1 - share) + dull * share
    delay = int(rng.uniform(0.002, 0.02) * SAMPLE_RATE_HZ)
    tail[:delay] = 0
    direct_over_tail_db = rng.uniform(-3, 15)
    tail *= 10 ** (-direct_over_tail_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1
    response: Audio = tail.astype(np.float32)
    return response


def convolve(audio: Audio, response: Audio) -> Audio:
    """Convolve audio with the response of a room, and cut the reverberation after its end."""
    length = 1 << (len(audio) + len(response)).bit_length()  # transforms of prime lengths take many times as long
    spectrum = np.fft.rfft(audio, length) * np.fft.rfft(response, length)
    return np.fft.irfft(spectrum, length)[: len(audio)].astype(np.float32)


def lower_floor(audio: Audio, by_db: float) -> Audio:
    """Lower the steady noise below speech with a soft expander.

    The floor of each bin is the 10th percentile of its levels, smoothed over 3 frames and 9 bins. Levels within 6 dB
    of the floor are lowered by `by_db`, those 18 dB or more above it are unchanged. Audio whose loud frames are less
    than 18 dB above its soft ones is unchanged: it has no pauses that would show a floor.
    """
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_EXPANDER_FRAME) / _EXPANDER_FRAME))
    padded = np.pad(audio.astype(np.float64), (_EXPANDER_FRAME, 2 * _EXPANDER_FRAME))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _EXPANDER_FRAME)[::_EXPANDER_HOP]
    spectrum = np.fft.rfft(frames * window)
    power = _smoothed(_smoothed(np.abs(spectrum) ** 2, 3, axis=0), 9, axis=1) + 1e-14
    level_db = 10 * np.log10(power)
    inside = slice(2, 2 + len(audio) // _EXPANDER_HOP)  # without the padding
    soft_db, loud_db = np.percentile(10 * np.log10(power[inside].sum(axis=1)), [10, 95])
    if loud_db - soft_db < 18:
        return audio
    above_db = level_db - np.percentile(level_db[inside], 10, axis=0)
    gain = 10 ** (-by_db * np.clip((18 - above_db) / 12, 0, 1) / 20)
    pieces = np.fft.irfft(spectrum * gain) * window
    output = np.zeros(len(padded))
    for i, piece in enumerate(pieces):
        output[i * _EXPANDER_HOP : i * _EXPANDER_HOP + _EXPANDER_FRAME] += piece
    return output[_EXPANDER_FRAME : _EXPANDER_FRAME + len(audio)].astype(np.float32)


def _smoothed(values: NDArray[np.float64], width: int, axis: int) -> NDArray[np.float64]:
    """Return means over `width` neighbours along an axis; the edges are repeated."""
    pads = [(0, 0), (0, 0)]
    pads[axis] = (width // 2, width // 2)
    sums = np.cumsum(np.pad(values, pads, mode="edge"), axis=axis)
    sums = np.insert(sums, 0, 0, axis=axis)
    later, earlier = np.split(np.arange(sums.shape[axis]), [width])[1], np.arange(sums.shape[axis] - width)
    means: NDArray[np.float64] = (np.take(sums, later, axis) - np.take(sums, earlier, axis)) / width
    return np.maximum(means, 0)
