"""Make the examples of the web page: `python scripts/make_page_examples.py AUDIO_FOLDER`.

Speech and noise are in the public domain (CC0), see `CREDITS.md` beside the files. The speakers' sentences were not
used to train the models; the noises are from the ends of recordings of which other parts may have been.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

TARGET = Path(__file__).parents[1] / "src" / "frcrn_accel" / "serve" / "page" / "examples"
RATE_HZ = 16_000
PAUSE_S = 0.6
PEAK = 0.3
BITS = 13  # FLAC does not store the rest of 16 bits; the recordings are noisier than that
# Name: speech, noise, its first second, and the ratio in dB.
EXAMPLES: dict[str, tuple[list[str], str, float, float]] = {
    "train": (["asr/clean/02.flac", "asr/clean/08.flac"], "train/noise/noisekun.opus", 1065, 3),
    "rain": (["asr/clean/04.flac", "asr/clean/00.flac"], "train/noise/alarm-clock.opus", 198, 3),
    "night": (["wide/clean/3.flac"], "train/noise/noisekun.opus", 288, 0),
}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio", type=Path)
    audio = parser.parse_args().audio
    for name, (speech, noise, start_s, snr_db) in EXAMPLES.items():
        clean = np.concatenate([part for path in speech for part in (silence(), read(audio / path))] + [silence()])
        around = read(audio / noise)[round(start_s * RATE_HZ) :][: len(clean)]
        ratio = np.sqrt(power(clean, 0.1) / np.mean(around**2)) * 10 ** (-snr_db / 20)
        noisy = clean + ratio * around
        full = 2 ** (BITS - 1)
        samples = np.rint(PEAK * noisy / np.abs(noisy).max() * full) / full
        soundfile.write(TARGET / f"{name}.flac", samples, RATE_HZ, "PCM_16")


def silence() -> NDArray[np.float64]:
    """Return a pause."""
    return np.zeros(round(PAUSE_S * RATE_HZ))


def power(signal: NDArray[np.float64], share: float) -> float:
    """Return the mean power of the samples that are above a share of the RMS."""
    return float(np.mean(signal[np.abs(signal) > share * np.sqrt(np.mean(signal**2))] ** 2))


def read(path: Path) -> NDArray[np.float64]:
    """Read a file at the rate of the examples."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-ac", "1", "-f", "f32le", "-ar", "48000", "-"]
    content = subprocess.run(command, check=True, capture_output=True).stdout
    samples: NDArray[np.float64] = soxr.resample(np.frombuffer(content, np.float32), 48_000, RATE_HZ)
    return samples.astype(np.float64)


if __name__ == "__main__":
    main()
