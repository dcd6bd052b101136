"""Synthetic noises. All return `(samples,)` at the model's rate; only their spectrum and their timing matter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.train.acoustics import Audio, to_level

__all__ = ["bangs", "coloured", "cries", "gusts", "keystrokes", "rumble", "speech_shaped", "tones"]

_LEVEL = 0.1  # RMS; the mixture sets its own


def coloured(rng: np.random.Generator, samples: int) -> Audio:
    """Return noise of a random colour, from slightly blue to brown."""
    return _shaped(rng, samples, np.maximum(_bins_hz(samples), 30) ** -rng.uniform(-0.3, 1))


def tones(rng: np.random.Generator, samples: int) -> Audio:
    """Return a siren, an alarm or a hum: harmonics of a pitch that may swing, with or without pauses."""
    time_s = _times_s(samples)
    pitch_hz = _log_uniform(rng, 50, 2500)
    swing = rng.choice([0, rng.uniform(0.02, 0.6)])
    rate_hz = _log_uniform(rng, 0.2, 6)
    wave = np.sin(2 * np.pi * rate_hz * time_s + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.4:
        wave = np.sign(wave)  # two tones in turn
    phase = 2 * np.pi * np.cumsum(pitch_hz * 2 ** (swing * wave)) / SAMPLE_RATE_HZ
    top_hz = pitch_hz * 2**swing
    harmonics = range(1, max(2, min(12, int(SAMPLE_RATE_HZ / 2 / top_hz))))
    steepness = rng.uniform(0.3, 2)
    tone = np.sum([np.sin(k * phase + rng.uniform(0, 6)) / k**steepness for k in harmonics], axis=0)
    if rng.random() < 0.3:
        tone = tone * (np.sin(2 * np.pi * rng.uniform(0.5, 5) * time_s) > 0)
    return to_level(tone.astype(np.float32), _LEVEL)


def rumble(rng: np.random.Generator, samples: int) -> Audio:
    """Return noise below the band of speech: wind and traffic, knocks on a table, or mains or railway hum.

    Wind and traffic fall with frequency from 5 to 80 Hz, with or without swelling. Knocks are one to three a second,
    and last 50 to 300 ms. Hum is 16.7, 50 or 60 Hz with up to four harmonics.
    """
    kind = rng.random()
    if kind < 0.25:
        pitch_hz = rng.choice([50 / 3, 50, 60])
        time_s = _times_s(samples)
        strengths = 10 ** rng.uniform(-2, 0, rng.integers(0, 5))
        found = np.sin(2 * np.pi * pitch_hz * time_s)
        for k, strength in enumerate(strengths, start=2):
            found = found + strength * np.sin(2 * np.pi * k * pitch_hz * time_s + rng.uniform(0, 6))
        return to_level(found.astype(np.float32), _LEVEL)
    hz = _bins_hz(samples)
    lowest_hz, highest_hz = rng.uniform(5, 20), rng.uniform(30, 80)
    slope = rng.uniform(0.5, 1.5)
    gain = np.maximum(hz, lowest_hz) ** -slope / np.sqrt(1 + (lowest_hz / np.maximum(hz, 1)) ** 8)
    noise = _shaped(rng, samples, gain / np.sqrt(1 + (hz / highest_hz) ** 12))
    if kind < 0.5:
        envelope = np.zeros(samples)
        for start in _starts(rng, samples, rng.uniform(1, 3)):
            length = int(rng.uniform(0.05, 0.3) * SAMPLE_RATE_HZ)
            knock = np.exp(-4 * np.arange(length) / length) * np.clip(np.arange(length) / 160, 0, 1)
            _add(envelope, rng.uniform(0.3, 1) * knock, start)
        noise = noise * (envelope + 0.03).astype(np.float32)
    elif kind < 0.75:
        noise = noise * _swell(rng, samples, 0.1, 1.0, 25)
    return to_level(noise, _LEVEL)


def bangs(rng: np.random.Generator, samples: int) -> Audio:
    """Return one to four bangs of 5 to 200 ms, with peaks at 1.0 or up to 10 dB below."""
    found = np.zeros(samples)
    for start in rng.integers(0, max(1, samples - 1600), rng.integers(1, 5)):
        length = int(_log_uniform(rng, 0.005, 0.2) * SAMPLE_RATE_HZ)
        bang = rng.standard_normal(length)
        if rng.random() < 0.4:  # ringing metal or wood
            time_s = _times_s(length)
            pitches_hz = np.exp(rng.uniform(np.log(150), np.log(4000), rng.integers(2, 6)))
            bang = 0.3 * bang + np.sum([np.sin(2 * np.pi * hz * time_s + rng.uniform(0, 6)) for hz in pitches_hz], 0)
        elif rng.random() < 0.5:  # a thud
            bang = np.convolve(bang, np.hanning(int(rng.integers(4, 40))), "same")
        bang = bang * np.exp(-rng.uniform(0, 5) * np.arange(length) / length)
        attack = rng.integers(1, 32)
        bang[:attack] *= np.arange(attack) / attack
        _add(found, bang / np.abs(bang).max() * 10 ** rng.uniform(-0.5, 0), int(start))
    peak = np.abs(found).max()
    limited: Audio = (found / max(1, peak)).astype(np.float32)
    return limited


def keystrokes(rng: np.random.Generator, samples: int) -> Audio:
    """Return typing, three to nine keys a second: a click for each, and a softer one when the key is released."""
    found = np.zeros(samples)
    pitch_hz = _log_uniform(rng, 1000, 5000)
    body_hz = _log_uniform(rng, 200, 600)
    for start in _starts(rng, samples, rng.uniform(3, 9)):
        loudness = rng.uniform(0.4, 1)
        release = start + int(rng.uniform(0.05, 0.12) * SAMPLE_RATE_HZ)
        for at, strength in ((start, loudness), (release, loudness * rng.uniform(0.2, 0.6))):
            length = int(rng.uniform(0.004, 0.015) * SAMPLE_RATE_HZ)
            time_s = _times_s(length)
            click = rng.standard_normal(length) + np.sin(2 * np.pi * pitch_hz * rng.uniform(0.9, 1.1) * time_s)
            click = click + 0.5 * np.sin(2 * np.pi * body_hz * time_s)
            _add(found, strength * click * np.exp(-5 * np.arange(length) / length), at)
    return to_level(found.astype(np.float32), _LEVEL)


def cries(rng: np.random.Generator, samples: int) -> Audio:
    """Return cries: 6 to 12 harmonics of 300 to 1,500 Hz, with vibrato, in calls of 0.15 to 1.2 s."""
    found = np.zeros(samples)
    pitch_hz = _log_uniform(rng, 300, 1500)
    harmonics, steepness = rng.integers(6, 13), rng.uniform(0.3, 1.5)
    start = int(rng.uniform(0, 0.5) * SAMPLE_RATE_HZ)
    while start < samples:
        length = int(rng.uniform(0.15, 1.2) * SAMPLE_RATE_HZ)
        share = np.arange(length) / length
        glide = rng.uniform(-0.3, 0.3) * share + rng.uniform(-0.4, 0.4) * np.sin(np.pi * share)
        vibrato = rng.uniform(0.005, 0.05) * np.sin(2 * np.pi * rng.uniform(4, 8) * _times_s(length))
        hz = np.clip(pitch_hz * rng.uniform(0.85, 1.2) * 2 ** (glide + vibrato), 300, 1500)
        phase = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE_HZ
        audible = [k for k in range(1, harmonics + 1) if k * hz.max() < SAMPLE_RATE_HZ / 2]
        call = np.sum([np.sin(k * phase + rng.uniform(0, 6)) / k**steepness for k in audible], axis=0)
        rise = rng.uniform(0.05, 0.4)
        envelope = np.minimum(share / rise, 1) * np.minimum((1 - share) / 0.2, 1)
        _add(found, rng.uniform(0.3, 1) * call * envelope, start)
        start += length + int(rng.uniform(0.05, 0.8) * SAMPLE_RATE_HZ)
    return to_level(found.astype(np.float32), _LEVEL)


def gusts(rng: np.random.Generator, samples: int) -> Audio:
    """Return wind in gusts: a swell every 1 to 5 s, with more high frequencies while it is loud."""
    hz = np.maximum(_bins_hz(samples), 10)
    slope = rng.uniform(0.7, 1.2)
    swell = _swell(rng, samples, 0.2, 1.0, rng.uniform(12, 30))
    low = _shaped(rng, samples, hz**-slope / np.sqrt(1 + (hz / 300) ** 4))
    high = _shaped(rng, samples, hz**-slope / np.sqrt(1 + (200 / hz) ** 4))
    return to_level(low * swell + rng.uniform(0.1, 0.5) * high * swell**2, _LEVEL)


def speech_shaped(rng: np.random.Generator, speech: Audio) -> Audio:
    """Return noise with the spectrum of speech, whose level changes 2 to 8 times a second.

    Args:
        rng: Source of everything random.
        speech: Speech as long as the noise.
    """
    samples = len(speech)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(speech, (0, 512)), 512)[::256] * np.hanning(512)
    spectrum = np.sqrt((np.abs(np.fft.rfft(frames)) ** 2).mean(0))
    noise = _shaped(rng, samples, np.interp(_bins_hz(samples), _bins_hz(512), spectrum) + 1e-9)
    return to_level(noise * _swell(rng, samples, 2, 8, rng.uniform(5, 20)), _LEVEL)


def _times_s(samples: int) -> NDArray[np.float64]:
    return np.arange(samples) / SAMPLE_RATE_HZ


def _bins_hz(samples: int) -> NDArray[np.float64]:
    return np.asarray(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _shaped(rng: np.random.Generator, samples: int, gain: NDArray[np.float64]) -> Audio:
    """Return noise whose spectrum has a gain in each bin."""
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples)
    return to_level(noise.astype(np.float32), _LEVEL)


def _swell(rng: np.random.Generator, samples: int, slowest_hz: float, fastest_hz: float, depth_db: float) -> Audio:
    """Return an envelope of peak 1 that changes at rates between two frequencies, by `depth_db` in all."""
    hz = _bins_hz(samples)
    inside = (hz >= slowest_hz) & (hz <= fastest_hz)
    if not inside.any():  # shorter than a period
        inside[1] = True
    spectrum = np.where(inside, rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz)), 0)
    wave = np.fft.irfft(spectrum, samples)
    share = (wave - wave.min()) / max(float(np.ptp(wave)), 1e-12)
    envelope: Audio = (10 ** (depth_db * (share - 1) / 20)).astype(np.float32)
    return envelope


def _starts(rng: np.random.Generator, samples: int, rate_hz: float) -> list[int]:
    """Return the starts of events whose distances vary by up to half of their mean in both directions."""
    most = 2 + int(2 * rate_hz * samples / SAMPLE_RATE_HZ)
    times_s = np.cumsum(rng.uniform(0.5, 1.5, most) / rate_hz) - 0.5 / rate_hz * rng.random()
    return [int(time_s * SAMPLE_RATE_HZ) for time_s in times_s if time_s * SAMPLE_RATE_HZ < samples]


def _add(signal: NDArray[np.float64], sound: NDArray[np.float64], start: int) -> None:
    """Add a sound that begins at a sample; cut what reaches beyond the end."""
    part = signal[start : start + len(sound)]
    part += sound[: len(part)]
