"""Training examples, mixed on the fly. Needs no engine.

Every example is a function of the seed, the step and its row in the batch, and of nothing else: a run that resumes
after a kill, or with another number of processes, gets the same examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import load_soxr, measure_levels
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.train import noises
from frcrn_accel.train.acoustics import (
    Audio,
    active_level,
    convolve,
    filter_by,
    low_pass,
    lower_floor,
    random_eq_db,
    room,
    to_level,
)
from frcrn_accel.train.config import Mixing
from frcrn_accel.train.sources import Corpus

__all__ = ["Example", "Mixer"]

_EARLY_S = 0.05  # these reflections belong to the target: they make speech easier to understand


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
            noise = to_level(noise, 1) + to_level(self._one_noise(rng, samples), 10 ** rng.uniform(-0.6, 0))
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
            noise = to_level(noise, active_level(speech) * 10 ** (-drawn_db / 20))
        noisy = speech + noise
        if noise.any():
            noisy = noisy + self._low_and_loud(rng, active_level(speech if speech.any() else noise), samples)
        if _happens(rng, mixing.lowered_floor) and target.any():
            target = lower_floor(target, rng.uniform(*mixing.lowered_floor_db))
        if rng.random() < mixing.band_limit:
            edge_hz = rng.uniform(3000, 7000)
            noisy, target = low_pass(noisy, edge_hz), low_pass(target, edge_hz)
        jitter = 10 ** (np.clip(rng.normal(0, mixing.level_jitter_db), -12, 12) / 20)
        gain = jitter * (_live_gains(noisy) if _happens(rng, mixing.live_level) else _gain(noisy))
        return Example((noisy * gain).astype(np.float32), (target * gain).astype(np.float32))

    def batch(self, seed: int, step: int, rows: range) -> tuple[Audio, Audio]:
        """Make rows of a step's batch: noisy and target, `float32 (len(rows), samples)` each."""
        examples = [self.example((seed, step, row)) for row in rows]
        return np.stack([e.noisy for e in examples]), np.stack([e.target for e in examples])

    def _low_and_loud(self, rng: np.random.Generator, level: float, samples: int) -> Audio:
        """Return rumble and bangs. Their levels do not depend on the noise: they may be far above the speech."""
        mixing = self._mixing
        sound = np.zeros(samples, np.float32)
        if _happens(rng, mixing.rumble):
            gain_db = rng.uniform(*mixing.rumble_over_speech_db)
            sound += to_level(noises.rumble(rng, samples), level * 10 ** (gain_db / 20))
        if _happens(rng, mixing.bangs):
            peak_db = rng.uniform(*mixing.bangs_over_speech_db)
            sound += noises.bangs(rng, samples) * np.float32(level * 10 ** (peak_db / 20))
        return sound

    def _speech_and_target(self, rng: np.random.Generator, samples: int) -> tuple[Audio, Audio]:
        mixing = self._mixing
        speech = self._played(self._speech, rng, samples, mixing.speech_speed, 1.12)
        if rng.random() < mixing.speech_eq:
            speech = filter_by(speech, random_eq_db(rng, samples, mixing.eq_db))
        if rng.random() < mixing.pause:
            edge = int(rng.uniform(0.1, 0.6) * samples)
            fade = np.clip((np.arange(samples) - edge) / 400 + 0.5, 0, 1).astype(np.float32)
            speech = speech * (fade if rng.random() < 0.5 else 1 - fade)
        if rng.random() < mixing.reverberation:
            response = room(rng)
            early = response.copy()
            early[int(_EARLY_S * SAMPLE_RATE_HZ) :] = 0
            return convolve(speech, response), convolve(speech, early)
        return speech, speech

    def _one_noise(self, rng: np.random.Generator, samples: int) -> Audio:
        """Return a noise, or several of different kinds in a row."""
        if not _happens(rng, self._mixing.noises_in_a_row):
            return self._single_noise(rng, samples)
        starts = [rng.uniform(0.2, 0.8)] if rng.random() < 0.5 else [rng.uniform(0.2, 0.4), rng.uniform(0.6, 0.8)]
        noise = to_level(self._single_noise(rng, samples), 1)
        for start in (int(share * samples) for share in starts):
            level = 10 ** rng.uniform(-0.5, 0.5)
            following = to_level(self._single_noise(rng, samples - start), level)
            fade = np.clip(np.arange(samples - start) / 800, 0, 1).astype(np.float32)  # 50 ms, so that nothing clicks
            noise[start:] = (1 - fade) * noise[start:] + fade * following
        return noise

    def _single_noise(self, rng: np.random.Generator, samples: int) -> Audio:
        mixing = self._mixing
        kind = rng.random()
        for share, make in (
            (mixing.coloured, noises.coloured),
            (mixing.tones, noises.tones),
            (mixing.babble, self._babble),
            (mixing.keystrokes, noises.keystrokes),
            (mixing.cries, noises.cries),
            (mixing.gusts, noises.gusts),
            (mixing.speech_shaped, self._speech_shaped),
            (1.0, self._recorded),
        ):
            kind -= share
            if kind < 0:
                noise = make(rng, samples)
                break
        if _happens(rng, mixing.noise_room):
            noise = convolve(noise, room(rng))
        if rng.random() < mixing.noise_eq:
            noise = filter_by(noise, random_eq_db(rng, samples, mixing.eq_db))
        if rng.random() < mixing.noise_swell:
            knots = rng.integers(3, 10)
            gain_db = np.interp(np.linspace(0, knots - 1, samples), np.arange(knots), rng.uniform(-20, 0, knots))
            noise = noise * (10 ** (gain_db / 20)).astype(np.float32)
        return noise

    def _babble(self, rng: np.random.Generator, samples: int) -> Audio:
        least, most = self._mixing.babble_voices
        voices = [self._played(self._speech, rng, samples, 0.5, 1.2) for _ in range(rng.integers(least, most + 1))]
        levels = 10 ** rng.uniform(-0.4, 0, len(voices))
        noise: Audio = np.sum(
            [to_level(*pair) for pair in zip(voices, levels, strict=True)], axis=0, dtype=np.float32
        )
        return convolve(noise, room(rng)) if rng.random() < 0.5 else noise

    def _speech_shaped(self, rng: np.random.Generator, samples: int) -> Audio:
        return noises.speech_shaped(rng, self._speech.draw(rng, samples))

    def _recorded(self, rng: np.random.Generator, samples: int) -> Audio:
        noise = self._played(self._noise, rng, samples, self._mixing.noise_speed, 1.4)
        return noise[::-1].copy() if _happens(rng, self._mixing.noise_backwards) else noise

    @staticmethod
    def _played(corpus: Corpus, rng: np.random.Generator, samples: int, probability: float, most: float) -> Audio:
        """Draw a stretch of a corpus, sometimes played faster or slower."""
        if rng.random() >= probability:
            return corpus.draw(rng, samples)
        speed = most ** rng.uniform(-1, 1)
        stretch = corpus.draw(rng, int(samples * speed) + 32)
        played: Audio = load_soxr().resample(stretch, speed * SAMPLE_RATE_HZ, SAMPLE_RATE_HZ, "LQ")
        return np.resize(played, samples)


def _gain(audio: Audio) -> NDArray[np.float64]:
    """Return the gain that brings a recording to the level of the model, `(1,)`."""
    return measure_levels(lambda: [audio[None]], channels=1).gains


def _live_gains(audio: Audio) -> Audio:
    """Return the gain of each sample of a stream."""
    hops = -(-len(audio) // HOP_SAMPLES)
    padded = np.pad(audio, (0, hops * HOP_SAMPLES - len(audio))).astype(np.float32)
    (gains,), _ = RunningLevel.silent(channels=1).update(padded.reshape(1, hops, HOP_SAMPLES))
    return np.repeat(gains, HOP_SAMPLES)[: len(audio)]


def _happens(rng: np.random.Generator, probability: float) -> bool:
    """Draw whether something happens. Probability 0 draws no number, so that new options change no older examples."""
    return probability > 0 and rng.random() < probability
