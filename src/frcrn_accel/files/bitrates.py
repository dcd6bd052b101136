"""Bit rates: which ones a codec allows, and which one to use for a source."""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["OPUS_CHANNEL_BPS", "bit_rate_for", "is_constant", "vorbis_quality"]

_MPEG1_III = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG1_II = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
_AC3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_AMR = (4_750, 5_150, 5_900, 6_700, 7_400, 7_950, 10_200, 12_200)
# For a source without a bit rate: bits per second of one channel at 44.1 kHz or more.
_DEFAULTS = {"mp3": 96_000, "mp2": 96_000, "aac": 80_000, "opus": 64_000, "ac3": 96_000, "eac3": 80_000}
_WMA = 80_000
OPUS_CHANNEL_BPS = (6_000, 256_000)
# Bit rates of libvorbis in kbit/s at the qualities 0, 0.1, ... 1, measured on six recordings of speech in noise.
_VORBIS_MONO = {
    8_000: (12, 14, 17, 19, 21, 23, 25, 27, 29, 31, 33),
    16_000: (23, 25, 29, 33, 37, 42, 47, 52, 57, 63, 68),
    22_050: (28, 31, 36, 41, 46, 52, 58, 66, 73, 81, 89),
    32_000: (41, 50, 55, 61, 64, 71, 84, 106, 123, 153, 192),
    44_100: (46, 57, 61, 66, 71, 80, 94, 118, 139, 175, 226),
}
_VORBIS_STEREO = {
    8_000: (17, 21, 25, 30, 34, 39, 43, 47, 51, 56, 60),
    16_000: (31, 36, 42, 50, 58, 70, 81, 93, 107, 120, 133),
    22_050: (39, 43, 50, 59, 69, 83, 98, 115, 133, 151, 171),
    32_000: (55, 68, 83, 99, 110, 134, 165, 210, 255, 314, 393),
    44_100: (61, 76, 91, 107, 118, 147, 184, 235, 292, 372, 473),
}


def bit_rate_for(codec: str, rate_hz: int, channels: int, source_bps: int | None, *, same_codec: bool) -> int | None:
    """Return the bit rate to encode with, in bits per second; None for codecs without one.

    Args:
        codec: FFmpeg's name of the codec.
        rate_hz: Sample rate.
        channels: Number of channels.
        source_bps: Bit rate of the source, if its codec has one.
        same_codec: Whether the source has this codec. A different codec may need more for the same quality.
    """
    if codec == "amr_nb":
        return _nearest(_AMR, source_bps or _AMR[-1])
    if codec not in _DEFAULTS and not codec.startswith("wma"):
        return None
    default = round(_DEFAULTS.get(codec, _WMA) * channels * min(1.0, max(rate_hz, 16_000) / 44_100))
    wanted = source_bps if source_bps and same_codec else max(default, source_bps or 0)
    if codec == "mp3":
        kbps: tuple[int, ...] = _MPEG1_III if rate_hz >= 32_000 else _MPEG2 if rate_hz >= 16_000 else _MPEG2[:8]
        return min(max(wanted, kbps[0] * 1_000), kbps[-1] * 1_000)
    if codec == "mp2":
        kbps = _MPEG1_II if rate_hz >= 32_000 else _MPEG2
        if rate_hz >= 32_000:  # the standard has no low rates for stereo, and no high ones for mono
            kbps = kbps[4:] if channels == 2 else kbps[:10]
        return 1_000 * _nearest(kbps, wanted / 1_000)
    if codec == "ac3":
        return 1_000 * _nearest(_AC3[4:] if channels > 2 else _AC3, wanted / 1_000)
    if codec == "eac3":
        return min(max(wanted, 32_000), 640_000)
    low, high = {
        "aac": (8_000, 6 * rate_hz),
        "opus": OPUS_CHANNEL_BPS,
    }.get(codec, (24_000, 192_000))
    return min(max(wanted, low * channels), high * channels)


def is_constant(codec: str, bit_rate: int) -> bool:
    """Return whether a bit rate is one that MP3 can use for every frame. Others are averages of variable rates."""
    return codec == "mp3" and bit_rate in {1_000 * kbps for kbps in (*_MPEG1_III, *_MPEG2)}


def vorbis_quality(bit_rate: int, rate_hz: int, channels: int) -> float:
    """Return the quality of Vorbis, 0 to 1, that gives about this bit rate."""
    table = _VORBIS_MONO if channels == 1 else _VORBIS_STEREO
    rates = table[min(table, key=lambda measured: abs(measured - rate_hz))]
    kbps = bit_rate / 1_000 if channels == 1 else bit_rate / 500 / channels
    above = bisect_left(rates, kbps)
    if above in (0, len(rates)):
        return float(above > 0)
    low, high = rates[above - 1], rates[above]
    return (above - 1 + (kbps - low) / (high - low)) / 10


def _nearest(allowed: tuple[int, ...], wanted: float) -> int:
    return min(allowed, key=lambda rate: abs(rate - wanted))
