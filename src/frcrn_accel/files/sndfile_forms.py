"""Find out which forms of a format libsndfile reads back as it wrote them.

Its list of what it can write is longer: some encodings come back as noise or not at all, some containers hold one
channel, and some state a rounded sample rate, or always the same one. The installed version is tried in memory.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import soundfile

from frcrn_accel.audio import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ

__all__ = ["nearest_rate_hz", "reads_back"]

_SAMPLES = 4_000
_MAX_ERROR = 0.25  # -6 dB: telephone codecs are better than that, damaged samples worse
_ROUNDING = 1e-3  # a smaller error of the speed is inaudible
_FLOATING = ("FLOAT", "DOUBLE")  # all others get integers from the encoder, which libsndfile treats differently
_USUAL_RATES_HZ = (
    *(8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000),
    *(176_400, 192_000),
)


def reads_back(file_format: str, subtype: str, channels: int, rate_hz: int) -> bool:
    """Return whether audio comes back from a form with its samples, channels and sample rate.

    Args:
        file_format: libsndfile's name of the format.
        subtype: Its name of the encoding.
        channels: Number of channels.
        rate_hz: Sample rate.
    """
    stated_hz = _stated_rate_hz(file_format, subtype, channels, rate_hz)
    return stated_hz is not None and abs(stated_hz - rate_hz) <= _ROUNDING * rate_hz


def nearest_rate_hz(file_format: str, subtype: str, channels: int, rate_hz: int) -> int | None:
    """Return the sample rate to write with: the next higher one that the form can state, or else the highest.

    Returns:
        The rate, or None if the form cannot hold such audio at any rate.
    """
    if reads_back(file_format, subtype, channels, rate_hz):
        return rate_hz
    tried = {_stated_rate_hz(file_format, subtype, channels, rate) for rate in (rate_hz, *_USUAL_RATES_HZ)}
    rates = [
        rate
        for rate in sorted({*_USUAL_RATES_HZ, *(rate for rate in tried if rate)})
        if MIN_SAMPLE_RATE_HZ <= rate <= MAX_SAMPLE_RATE_HZ and reads_back(file_format, subtype, channels, rate)
    ]
    return next((rate for rate in rates if rate >= rate_hz), rates[-1] if rates else None)


@lru_cache(maxsize=4_096)
def _stated_rate_hz(file_format: str, subtype: str, channels: int, rate_hz: int) -> int | None:
    """Write a tone for each channel. Return the rate that is read back, or None if the tones are not."""
    phases = np.arange(_SAMPLES)[:, None] * (np.arange(channels) + 1) / (40 * channels)
    tones = 0.25 * np.sin(2 * np.pi * phases)
    file = io.BytesIO()
    try:
        with soundfile.SoundFile(file, "w", rate_hz, channels, subtype, format=file_format) as written:
            written.write(tones.astype(np.float32) if subtype in _FLOATING else (tones * (1 << 31)).astype(np.int32))
        file.seek(0)
        with soundfile.SoundFile(file) as read:
            found = read.read(_SAMPLES, always_2d=True)
            stated_hz = int(read.samplerate)
    except (soundfile.SoundFileError, ValueError, TypeError):
        return None
    if found.shape != tones.shape or np.square(found - tones).sum() > _MAX_ERROR * np.square(tones).sum():
        return None
    return stated_hz if stated_hz <= MAX_SAMPLE_RATE_HZ else None
