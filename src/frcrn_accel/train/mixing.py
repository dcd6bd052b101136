"""Training examples, mixed on the fly. Needs no engine.

Every example is a function of the seed, the step and its row in the batch, and of nothing else: a run that resumes
after a kill, or with another number of processes, gets the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from frcrn_accel.audio import measure_levels
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.train.config import Mixing
from frcrn_accel.train.sources import Corpus

__all__ = ["Example", "Mixer"]

Audio = NDArray[np.float32]

_EARLY_S = 0.05  # these reflections belong to the target: they make speech easier to understand
_QUIET = 1e-5


@dataclass(frozen=True)
class Example:
    """An input of the network and the output to learn, `float32 (samples,)` each.

    Attributes:
        noisy: Speech and noise, at about the level to which `Denoiser` scales recordings.
        target: The speech in it, with the first 50 ms of its reverberation; zeros for noise alone.
    """

    noisy: Audio
    target: Audio


class Mixer:
    """Mixes examples out of speech and noise.

    Args:
        speech: Corpus to draw speech from.
        noise: Corpus to draw noise from.
        mixing: How to mix them.
    """

    def __init__(self, speech: Corpus, noise: Corpus, mixing: Mixing) -> None:
        self._speech = speech
        self._noise = noise
        self._mixing = mixing

    def example(self, seed: tuple[int, ...], snr_db: float | None = None) -> Example:
        """Make one example.

        Args:
            seed: Seed of everything random in it.
            snr_db: Signal-to-noise ratio; None draws it too, and whether the example has both speech and noise.
        """
        rng = np.random.default_rng(seed)
        mixing = self._mixing
        samples = round(mixing.clip_s * SAMPLE_RATE_HZ)
        speech, target = self._speech_and_target(rng, samples)
        noise = self._one_noise(rng, samples)
        if rng.random() < mixing.second_noise:
            noise = _to_level(noise, 1) + _to_level(self._one_noise(rng, samples), 10 ** rng.uniform(-0.6, 0))
        kind = rng.random()
        drawn_db = rng.uniform(*mixing.snr_db)
        high_db = rng.uniform(*mixing.high_snr_db)
        if snr_db is not None:
            drawn_db = snr_db
        elif kind < mixing.noise_only:
            speech, target = np.zeros_like(speech), np.zeros_like(target)
        elif kind < mixing.noise_only + mixing.clean:
            noise = np.zeros_like(noise)
        elif kind < mixing.noise_only + mixing.clean + mixing.high_snr:
            drawn_db = high_db
        if speech.any() and noise.any():
            noise = _to_level(noise, _active_level(speech) * 10 ** (-drawn_db / 20))
        noisy = speech + noise
        if rng.random() < mixing.band_limit:
            edge_hz = rng.uniform(3000, 7000)
            noisy, target = _low_pass(noisy, edge_hz), _low_pass(target, edge_hz)
        gain = measure_levels(lambda: [noisy[None]], channels=1).gains[0]
        gain *= 10 ** (np.clip(rng.normal(0, mixing.level_jitter_db), -12, 12) / 20)
        return Example((noisy * gain).astype(np.float32), (target * gain).astype(np.float32))

    def batch(self, seed: int, step: int, rows: range) -> tuple[Audio, Audio]:
        """Make rows of a step's batch: noisy and target, `float32 (len(rows), samples)` each."""
        examples = [self.example((seed, step, row)) for row in rows]
        return np.stack([e.noisy for e in examples]), np.stack([e.target for e in examples])

    def _speech_and_target(self, rng: np.random.Generator, samples: int) -> tuple[Audio, Audio]:
        mixing = self._mixing
        speech = self._played(self._speech, rng, samples, mixing.speech_speed, 1.12)
        if rng.random() < mixing.speech_eq:
            speech = _filtered(speech, _random_eq_db(rng, samples, mixing.eq_db))
        if rng.random() < mixing.pause:
            edge = int(rng.uniform(0.1, 0.6) * samples)
            fade = np.clip((np.arange(samples) - edge) / 400 + 0.5, 0, 1).astype(np.float32)
            speech = speech * (fade if rng.random() < 0.5 else 1 - fade)
        if rng.random() < mixing.reverberation:
            room = _room(rng)
            early = room.copy()
            early[int(_EARLY_S * SAMPLE_RATE_HZ) :] = 0
            return _convolved(speech, room), _convolved(speech, early)
        return speech, speech

    def _one_noise(self, rng: np.random.Generator, samples: int) -> Audio:
        mixing = self._mixing
        kind = rng.random()
        if kind < mixing.coloured:
            noise = _coloured(rng, samples)
        elif kind < mixing.coloured + mixing.tones:
            noise = _tones(rng, samples)
        elif kind < mixing.coloured + mixing.tones + mixing.babble:
            voices = [self._played(self._speech, rng, samples, 0.5, 1.2) for _ in range(rng.integers(3, 9))]
            levels = 10 ** rng.uniform(-0.4, 0, len(voices))
            noise = np.sum([_to_level(*pair) for pair in zip(voices, levels, strict=True)], axis=0, dtype=np.float32)
            if rng.random() < 0.5:
                noise = _convolved(noise, _room(rng))
        else:
            noise = self._played(self._noise, rng, samples, mixing.noise_speed, 1.4)
        if rng.random() < mixing.noise_eq:
            noise = _filtered(noise, _random_eq_db(rng, samples, mixing.eq_db))
        if rng.random() < mixing.noise_swell:
            knots = rng.integers(3, 10)
            gain_db = np.interp(np.linspace(0, knots - 1, samples), np.arange(knots), rng.uniform(-20, 0, knots))
            noise = noise * (10 ** (gain_db / 20)).astype(np.float32)
        return noise

    @staticmethod
    def _played(corpus: Corpus, rng: np.random.Generator, samples: int, probability: float, most: float) -> Audio:
        """Draw a stretch of a corpus, sometimes played faster or slower."""
        if rng.random() >= probability:
            return corpus.draw(rng, samples)
        speed = most ** rng.uniform(-1, 1)
        stretch = corpus.draw(rng, int(samples * speed) + 32)
        played: Audio = soxr.resample(stretch, speed * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ, "LQ")
        return np.resize(played, samples)


def _active_level(audio: Audio) -> float:
    """Return the RMS of the samples whose power is above the mean."""
    power = audio.astype(np.float64) ** 2
    active = power > power.mean()
    return float(np.sqrt(power[active].mean())) if active.any() else float(np.sqrt(power.mean()))


def _to_level(audio: Audio, rms: float) -> Audio:
    level = float(np.sqrt(np.mean(audio.astype(np.float64) ** 2)))
    return audio * np.float32(rms / max(level, _QUIET))


def _filtered(audio: Audio, gain_db: NDArray[np.float64]) -> Audio:
    """Filter with zero phase; `gain_db` has a gain for each bin of the signal's spectrum."""
    spectrum = np.fft.rfft(audio) * 10 ** (gain_db / 20)
    return np.fft.irfft(spectrum, len(audio)).astype(np.float32)


def _random_eq_db(rng: np.random.Generator, samples: int, most_db: float) -> NDArray[np.float64]:
    """Return a gain for each bin that changes smoothly along a logarithmic frequency axis."""
    knots_hz = np.geomspace(60, SAMPLE_RATE_HZ / 2, 7)
    gains_db = rng.uniform(-most_db, most_db, len(knots_hz))
    frequencies_hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    eq_db: NDArray[np.float64] = np.interp(np.log(np.maximum(frequencies_hz, 1)), np.log(knots_hz), gains_db)
    return eq_db


def _low_pass(audio: Audio, edge_hz: float) -> Audio:
    frequencies_hz = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE_HZ)
    return _filtered(audio, -80 * np.clip((frequencies_hz - edge_hz) / 300, 0, 1))


def _room(rng: np.random.Generator) -> Audio:
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
    room: Audio = tail.astype(np.float32)
    return room


def _convolved(audio: Audio, response: Audio) -> Audio:
    length = len(audio) + len(response)
    spectrum = np.fft.rfft(audio, length) * np.fft.rfft(response, length)
    return np.fft.irfft(spectrum, length)[: len(audio)].astype(np.float32)


def _coloured(rng: np.random.Generator, samples: int) -> Audio:
    """Return noise between bluish and brown."""
    frequencies_hz = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ), 30)
    spectrum = np.fft.rfft(rng.standard_normal(samples)) * frequencies_hz ** -rng.uniform(-0.3, 1)
    return _to_level(np.fft.irfft(spectrum, samples).astype(np.float32), 0.1)


def _tones(rng: np.random.Generator, samples: int) -> Audio:
    """Return a siren, an alarm or a hum: harmonics of a pitch that may swing, with or without pauses."""
    time_s = np.arange(samples) / SAMPLE_RATE_HZ
    pitch_hz = float(np.exp(rng.uniform(np.log(50), np.log(2500))))
    swing = rng.choice([0, rng.uniform(0.02, 0.6)])
    rate_hz = float(np.exp(rng.uniform(np.log(0.2), np.log(6))))
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
    return _to_level(tone.astype(np.float32), 0.1)
