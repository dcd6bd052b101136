"""Make the noisy speech for calibration and for the quality gate, with its credits.

    apt-get download flite libflite1
    for package in *.deb; do dpkg-deb -x $package flite; done
    python scripts/make_quantize_audio.py flite

Debian's version 2.2-5 of the two packages, with the seed below, gives the set in the package: sentences read by
Flite's voices in synthetic noise, so that no one else's recording is in it. The gate and the calibration set share
neither sentences nor kinds of noise.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

import frcrn_accel.quantize

FOLDER = Path(frcrn_accel.quantize.__file__).parent / "audio"
RATE_HZ = 16_000
# Flite's voices by name, each at two pitches: the mean of its fundamental frequency, Hz, as recorded or else.
VOICES = ("slt", "rms", "awb", "slt:235", "rms:80", "awb:150")
CLIP_S = 4.0
PAUSE_S = 0.3
LEVEL = 10 ** (-26 / 20)  # RMS of a mixture
BITS_PER_S = {"clean": 34_000, "noisy": 36_000, "calibration": 29_000}

Audio = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, "Voices"], Audio]

CREDITS = """\
# Speech in noise for quantizing

The recordings in this folder are made by `scripts/make_quantize_audio.py`, and
are under this package's licence, Apache-2.0.

`gate/` holds pairs of noisy and clean speech: a quantized model is compared
with its source on them. `calibration/` holds other sentences in other noise,
from which ranges of activations are measured. 16 kHz, mono, Opus.

## Speech

Read by Flite 2.2 (Carnegie Mellon University, <http://cmuflite.org>, Debian's
packages `flite` and `libflite1` 2.2-5) with its voices `slt`, `rms` and `awb`,
each at its own pitch and at another. Flite and its voices may be used and
distributed free of charge, without restriction. The text is the first two
chapters of "Alice's Adventures in Wonderland" by Lewis Carroll, in the public
domain, as it comes with Flite.

## Changes

The sentences were trimmed, joined with pauses of 0.3 s, cut to 4 s, mixed with
noise at the ratio in the table (speech while active to noise, dB), scaled to
-26 dBFS RMS and encoded with Opus. Babble and crowd are six and twelve more of
the sentences at once.

| file | noise | ratio, dB | voice | sentences begin with |
|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the audio for calibration and for the quality gate.")
    parser.add_argument("flite", type=Path, help="the folder with the unpacked packages")
    rng = np.random.default_rng(20_000)
    voices = Voices(parser.parse_args().flite, rng)
    rows = []
    for number, (noise, snr_db) in enumerate(
        [(pink, 0), (babble, 5), (hum, 10), (gusts, 10), (pink, 15), (babble, 20), (hum, 20), (gusts, 25)]
    ):
        voice = VOICES[number % len(VOICES)]
        clean, noisy, sentences = mixture(voices, voice, noise, snr_db, rng)
        name = f"{number:02}.opus"
        write("clean", FOLDER / "gate" / "clean" / name, clean)
        write("noisy", FOLDER / "gate" / "noisy" / name, noisy)
        rows.append((f"gate/{{clean,noisy}}/{name}", noise, snr_db, voice, sentences))
    for number, (noise, snr_db) in enumerate(
        [(white, 0), (crowd, 5), (rumble, 10), (clicks, 10), (white, 15), (crowd, 15), (rumble, 25), (clicks, 20)]
    ):
        voice = VOICES[number % len(VOICES)]
        _, noisy, sentences = mixture(voices, voice, noise, snr_db, rng)
        name = f"{number:02}.opus"
        write("calibration", FOLDER / "calibration" / name, noisy)
        rows.append((f"calibration/{name}", noise, snr_db, voice, sentences))
    table = "".join(
        f"| `{name}` | {noise.__name__} | {snr_db} | `{voice}` | {' / '.join(map(beginning, sentences))} |\n"
        for name, noise, snr_db, voice, sentences in rows
    )
    (FOLDER / "CREDITS.md").write_text(CREDITS + table, encoding="utf-8")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*.opus"))
    print(f"{len(list(FOLDER.rglob('*.opus')))} files, {size} bytes")


class Voices:
    """Sentences in random order, each read once, by any of the voices."""

    def __init__(self, folder: Path, rng: np.random.Generator) -> None:
        (library,) = folder.rglob("libflite.so.1")
        self._command = folder / "usr" / "bin" / "flite"
        self._environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
        text = (folder / "usr" / "share" / "doc" / "flite" / "examples" / "alice").read_text(encoding="utf-8")
        text = " ".join(re.sub(r"^ *(ALICE|CHAPTER).*$|[`']", "", text, flags=re.MULTILINE).split())
        sentences = [
            sentence for sentence in re.split(r"(?<=[.!?]) ", text) if re.fullmatch(r"\w[^*()]{29,199}", sentence)
        ]
        rng.shuffle(sentences)
        self._left: Iterator[str] = iter(sentences)

    def next(self, voice: str) -> tuple[Audio, str]:
        """Return the next sentence, trimmed, with a peak of 1, and its text."""
        text = next(self._left)
        name, _, pitch_hz = voice.partition(":")
        pitch = ("--setf", f"int_f0_target_mean={pitch_hz}") if pitch_hz else ()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sentence.wav"
            command = (self._command, "-voice", name, *pitch, "-t", text, "-o", path)
            subprocess.run(command, env=self._environment, check=True, stdout=subprocess.DEVNULL)
            audio, rate_hz = soundfile.read(path)
        assert rate_hz == RATE_HZ
        loud = np.flatnonzero(np.abs(audio) > 0.02 * np.abs(audio).max())
        audio = audio[max(0, loud[0] - 800) : loud[-1] + 1_600]
        return np.asarray(audio / np.abs(audio).max()), text


def beginning(sentence: str) -> str:
    """Return its first five words."""
    return " ".join(sentence.split()[:5])


def mixture(
    voices: Voices, voice: str, noise: Noise, snr_db: float, rng: np.random.Generator
) -> tuple[Audio, Audio, list[str]]:
    """Return clean and noisy speech, and its sentences."""
    samples = round(CLIP_S * RATE_HZ)
    pause = np.zeros(round(PAUSE_S * RATE_HZ))
    speech, sentences = pause, []
    while len(speech) < samples:
        audio, sentence = voices.next(voice)
        speech = np.concatenate([speech, audio, pause])
        sentences.append(sentence)
    speech = speech[:samples]
    fade = np.linspace(1, 0, 400)
    speech[-len(fade) :] *= fade
    active = np.abs(speech) > 0.05
    sound = noise(rng, samples, voices)
    sound *= np.sqrt(np.mean(speech[active] ** 2) / np.mean(sound**2)) * 10 ** (-snr_db / 20)
    scale = min(LEVEL / np.std(speech + sound), 0.9 / np.abs(speech + sound).max())
    return speech * scale, (speech + sound) * scale, sentences


def write(kind: str, path: Path, audio: Audio) -> None:
    """Encode as Opus; libsndfile's compression level 0 is 256 kbit/s, and 1 is 6 kbit/s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    level = 1 - (BITS_PER_S[kind] - 6_000) / 250_000
    soundfile.write(path, audio, RATE_HZ, format="OGG", subtype="OPUS", compression_level=level)


# Noise; its level is set by `mixture`.


def coloured(rng: np.random.Generator, samples: int, slope: float) -> Audio:
    """Return noise whose power falls with frequency to the power of `slope`, without anything below 40 Hz."""
    frequency = np.fft.rfftfreq(samples, 1 / RATE_HZ)
    spectrum = rng.standard_normal((2, len(frequency))) * np.maximum(frequency, 40) ** (-slope / 2)
    spectrum[:, frequency < 40] = 0
    sound = np.fft.irfft(spectrum[0] + 1j * spectrum[1], samples)
    return np.asarray(sound / np.std(sound))


def white(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    return coloured(rng, samples, 0)


def pink(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    return coloured(rng, samples, 1)


def rumble(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    return coloured(rng, samples, 2)


def gusts(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    """Return pink noise whose level rises and falls by 20 dB, about once a second."""
    seconds = np.arange(samples) / RATE_HZ
    level_db = 10 * np.sin(2 * np.pi * (0.9 * seconds + rng.uniform()) + 2 * np.sin(2 * np.pi * 0.37 * seconds))
    return np.asarray(coloured(rng, samples, 1) * 10 ** (level_db / 20))


def hum(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    """Return mains hum: 40 harmonics of 50 Hz over a quiet hiss."""
    phase = 2 * np.pi * 50 * np.arange(samples) / RATE_HZ
    tones = sum(np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k**0.7 for k in range(1, 41))
    return np.asarray(tones + 0.2 * rng.standard_normal(samples))


def clicks(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    """Return eight bursts a second of 5 ms each, over a quiet rumble."""
    sound = 0.1 * coloured(rng, samples, 2)
    for start in rng.integers(0, samples - 800, round(8 * samples / RATE_HZ)):
        sound[start : start + 800] += rng.uniform(0.3, 1) * rng.standard_normal(800) * np.exp(-np.arange(800) / 80)
    return sound


def babble(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    """Return six voices at once."""
    return voices_at_once(6, rng, samples, voices)


def crowd(rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    """Return twelve voices at once, low-pass filtered like a crowd in a room."""
    return np.asarray(np.convolve(voices_at_once(12, rng, samples, voices), np.hanning(9), mode="same"))


def voices_at_once(count: int, rng: np.random.Generator, samples: int, voices: Voices) -> Audio:
    sound = np.zeros(samples)
    for number in range(count):
        audio, _ = voices.next(VOICES[number % len(VOICES)])
        sound += np.roll(np.resize(audio, samples), rng.integers(samples))
    return sound


if __name__ == "__main__":
    main()
