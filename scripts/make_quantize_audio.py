"""Make the noisy speech for calibration and for the quality gate, with its credits.

    apt-get download asterisk-core-sounds-{en,fr,it,ru}-g722
    for package in *.deb; do dpkg-deb -x $package sounds; done
    pip install av
    python scripts/make_quantize_audio.py sounds/usr/share/asterisk/sounds

Debian's version 1.6.1-1 of the four packages, with the seed below, gives the set in the package: prompts of four
speakers in synthetic noise. The gate and the calibration set share neither prompts nor kinds of noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

import frcrn_accel.quantize

FOLDER = Path(frcrn_accel.quantize.__file__).parent / "audio"
RATE_HZ = 16_000
VOICES = ("en_US_f_Allison", "fr_CA_f_June", "it_IT_m_Carlo", "ru_RU_f_IvrvoiceRU")
CLIP_S = 4.0
PAUSE_S = 0.3
LEVEL = 10 ** (-26 / 20)  # RMS of a mixture
BITS_PER_S = {"clean": 34_000, "noisy": 36_000, "calibration": 30_000}

Audio = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, "Voices"], Audio]

CREDITS = """\
# Speech in noise for quantizing

The recordings in this folder are licensed under the Creative Commons
Attribution-ShareAlike 3.0 licence (CC BY-SA 3.0,
<https://creativecommons.org/licenses/by-sa/3.0/>), not under this package's
Apache-2.0. What a denoiser makes of them is an adaptation of the same works
and stays under that licence. A model that was calibrated on them holds ranges
of numbers that were measured on them, and nothing of the recordings.

`gate/` holds pairs of noisy and clean speech: a quantized model is compared
with its source on them. `calibration/` holds other prompts in other noise,
from which ranges of activations are measured. 16 kHz, mono, Opus.

## Speech

From the Debian packages `asterisk-core-sounds-{en,fr,it,ru}-g722` 1.6.1-1,
folder `/usr/share/asterisk/sounds/`; upstream
<http://downloads.asterisk.org/pub/telephony/asterisk/>. As their `copyright`
files say:

- `en_US_f_Allison`: copyright 2003-2010, Allison Smith
  (<http://www.theivrvoice.com>). Financial contributions by Digium, Inc.
  (<http://www.digium.com>). CC BY-SA 3.0.
- `fr_CA_f_June`: copyright 2006-2008, June Wallack
  (<http://www.junewallack.com>). Translated by Clod Patry, Kristopher
  Lalletti and June Wallack. Financial contributions by Digium, Inc.,
  Unlimitel (<http://www.unlimitel.ca>) and BGM Informatique
  (<http://www.bgm.qc.ca>). CC BY-SA 3.0.
- `it_IT_m_Carlo`: copyright 2012, Carlo Flora (<http://www.carloflora.com>,
  <http://www.segreterietelefoniche.it>). Translated by Silvia Petrin. CC BY
  3.0, <https://creativecommons.org/licenses/by/3.0/>.
- `ru_RU_f_IvrvoiceRU`: copyright 2010, Maxim Topal
  (<http://www.ivrvoice.ru>). CC BY 3.0.

## Changes

The prompts were decoded from G.722, trimmed, joined with pauses of 0.3 s, cut
to 4 s, mixed with noise at the ratio in the table (speech while active to
noise, dB), scaled to -26 dBFS RMS and encoded with Opus. The noise is made by
`scripts/make_quantize_audio.py`; babble and crowd are six and twelve more of
the prompts at once. No one named here endorses this use.

| file | noise | ratio, dB | prompts |
|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the audio for calibration and for the quality gate.")
    parser.add_argument("sounds", type=Path, help="/usr/share/asterisk/sounds of the unpacked packages")
    rng = np.random.default_rng(20_000)
    voices = Voices(parser.parse_args().sounds, rng)
    rows = []
    for number, (noise, snr_db) in enumerate(
        [(pink, 0), (babble, 5), (hum, 10), (gusts, 10), (pink, 15), (babble, 20), (hum, 20), (gusts, 25)]
    ):
        clean, noisy, prompts = mixture(voices, VOICES[number % len(VOICES)], noise, snr_db, rng)
        name = f"{number:02}.opus"
        write("clean", FOLDER / "gate" / "clean" / name, clean)
        write("noisy", FOLDER / "gate" / "noisy" / name, noisy)
        rows.append((f"gate/{{clean,noisy}}/{name}", noise, snr_db, prompts))
    for number, (noise, snr_db) in enumerate(
        [(white, 0), (crowd, 5), (rumble, 10), (clicks, 10), (white, 15), (crowd, 15), (rumble, 25), (clicks, 20)]
    ):
        _, noisy, prompts = mixture(voices, VOICES[number % len(VOICES)], noise, snr_db, rng)
        name = f"{number:02}.opus"
        write("calibration", FOLDER / "calibration" / name, noisy)
        rows.append((f"calibration/{name}", noise, snr_db, prompts))
    table = "".join(
        f"| `{name}` | {noise.__name__} | {snr_db} | {', '.join(f'`{prompt}`' for prompt in prompts)} |\n"
        for name, noise, snr_db, prompts in rows
    )
    (FOLDER / "CREDITS.md").write_text(CREDITS + table, encoding="utf-8")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*.opus"))
    print(f"{len(list(FOLDER.rglob('*.opus')))} files, {size} bytes")


class Voices:
    """The prompts of each voice in random order, each used once."""

    def __init__(self, folder: Path, rng: np.random.Generator) -> None:
        self._folder = folder
        self._left: dict[str, Iterator[Path]] = {}
        for voice in VOICES:
            paths = sorted(path for path in (folder / voice).rglob("*.g722") if path.stat().st_size > 12_000)
            rng.shuffle(paths)
            self._left[voice] = iter(paths)

    def next(self, voice: str) -> tuple[Audio, str]:
        """Return the next prompt, trimmed, with a peak of 1, and its name."""
        path = next(self._left[voice])
        with av.open(str(path), format="g722") as file:
            audio = np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)]) / 32_768
        loud = np.flatnonzero(np.abs(audio) > 0.02 * np.abs(audio).max())
        audio = audio[max(0, loud[0] - 800) : loud[-1] + 1_600]
        return audio / np.abs(audio).max(), str(path.relative_to(self._folder))


def mixture(
    voices: Voices, voice: str, noise: Noise, snr_db: float, rng: np.random.Generator
) -> tuple[Audio, Audio, list[str]]:
    """Return clean and noisy speech, and the names of its prompts."""
    samples = round(CLIP_S * RATE_HZ)
    pause = np.zeros(round(PAUSE_S * RATE_HZ))
    speech, prompts = pause, []
    while len(speech) < samples:
        prompt, name = voices.next(voice)
        speech = np.concatenate([speech, prompt, pause])
        prompts.append(name)
    speech = speech[:samples]
    fade = np.linspace(1, 0, 400)
    speech[-len(fade) :] *= fade
    active = np.abs(speech) > 0.05
    sound = noise(rng, samples, voices)
    sound *= np.sqrt(np.mean(speech[active] ** 2) / np.mean(sound**2)) * 10 ** (-snr_db / 20)
    scale = min(LEVEL / np.std(speech + sound), 0.9 / np.abs(speech + sound).max())
    return speech * scale, (speech + sound) * scale, prompts


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
        prompt, _ = voices.next(VOICES[number % len(VOICES)])
        sound += np.roll(np.resize(prompt, samples), rng.integers(samples))
    return sound


if __name__ == "__main__":
    main()
