"""Synthetic clips that excite a network like noisy speech."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import TARGET_LEVEL
from frcrn_accel.network.topology import SAMPLE_RATE_HZ

__all__ = ["synthetic_clips"]

CLIPS = 10
CLIP_S = 4


def synthetic_clips(seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """Generate clips with the dynamics of noisy speech, `(samples,)` each, at the model's rate and level.

    They have syllables of a few harmonics with three resonances, some unvoiced, with pauses in between, in noise of
    different colours and of levels from far below the syllables to above them.

    Args:
        seed: Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    for snr_db in np.linspace(25, -5, CLIPS):
        speech, noise = _syllables(rng), _noise(rng)
        noise *= np.std(speech) / np.std(noise) * 10 ** (-snr_db / 20)
        clip = speech + noise
        active = clip[clip**2 > np.mean(clip**2)]  # the part whose level `audio.measure_levels` measures
        yield (clip * TARGET_LEVEL / np.sqrt(np.mean(active**2))).astype(np.float32)


def _syllables(rng: np.random.Generator) -> NDArray[np.float64]:
    samples = CLIP_S * SAMPLE_RATE_HZ
    speech = np.zeros(samples)
    pitch_hz = rng.uniform(90, 260)
    start = int(rng.uniform(0, 0.3) * SAMPLE_RATE_HZ)
    while start < samples:
        length = int(rng.uniform(0.08, 0.35) * SAMPLE_RATE_HZ)
        time_s = np.arange(length) / SAMPLE_RATE_HZ
        if rng.random() < 0.25:
            sound = np.diff(rng.standard_normal(length + 1))  # unvoiced: high frequencies
        else:
            glide = pitch_hz * (1 + rng.uniform(-0.2, 0.2) * time_s / time_s[-1])
            phase = 2 * np.pi * np.cumsum(glide) / SAMPLE_RATE_HZ
            harmonics = np.arange(1, int(4000 / pitch_hz))
            formants_hz = np.array([rng.uniform(300, 900), rng.uniform(900, 2300), rng.uniform(2300, 3500)])
            distance = (harmonics[:, None] * pitch_hz - formants_hz) / 150
            gains = np.sum(1 / (1 + distance**2), axis=1) / harmonics**0.5
            sound = gains @ np.sin(harmonics[:, None] * phase)
        sound *= np.hanning(length) * 10 ** (rng.uniform(-25, 0) / 20) / np.std(sound)
        end = min(start + length, samples)
        speech[start:end] += sound[: end - start]
        start += int(length * rng.uniform(0.7, 1.2)) + int(rng.choice([0, 0, 0, 0.4]) * SAMPLE_RATE_HZ)
    return speech


def _noise(rng: np.random.Generator) -> NDArray[np.float64]:
    samples = CLIP_S * SAMPLE_RATE_HZ
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ), 50)
    noise = np.fft.irfft(spectrum * frequency ** -rng.uniform(0, 1), samples)  # white to brown
    # Its level changes four times a second, by up to 20 dB.
    knots = np.linspace(0, samples, 4 * CLIP_S)
    gain_db = np.interp(np.arange(samples), knots, rng.uniform(-20, 0, len(knots)))
    shaped: NDArray[np.float64] = noise * 10 ** (gain_db / 20)
    return shaped
