"""Hostile request bodies, generated from a seed: damaged, with false headers, huge, or not audio."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Iterator

import numpy as np
import soundfile

__all__ = ["hostile_bodies"]

_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wavfloat": ("WAV", "FLOAT"),
    "wavadpcm": ("WAV", "IMA_ADPCM"),
    "wavgsm": ("WAV", "GSM610"),
    "wavex": ("WAVEX", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "voc": ("VOC", "PCM_16"),
    "nist": ("NIST", "PCM_16"),
    "mat5": ("MAT5", "PCM_16"),
    "ircam": ("IRCAM", "PCM_16"),
    "avr": ("AVR", "PCM_16"),
    "paf": ("PAF", "PCM_16"),
    "svx": ("SVX", "PCM_16"),
}


def hostile_bodies(seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield more than 300 names and bodies, each a few kilobytes or less.

    Args:
        seed: Seed of the random parts.
    """
    rng = np.random.default_rng(seed)
    whole = {name: _encoded(rng, name) for name in _FORMATS}
    for name, body in whole.items():
        for share in (0.02, 0.2, 0.6, 0.95):
            yield f"{name}, cut at {share:g}", body[: int(share * len(body))]
        for start in (4, 20, 200):
            yield f"{name}, without its first {start} bytes", body[start:]
        for number in range(6):
            yield f"{name}, damaged in its first 100 bytes, {number}", _damaged(rng, body, 100, 4)
        yield f"{name}, damaged everywhere", _damaged(rng, body, len(body), 40)
        yield f"{name}, with garbage after it", body + rng.bytes(3000)
    yield from _lying(whole)
    yield from _odd(rng)
    yield from _no_audio(rng, whole)


def _encoded(
    rng: np.random.Generator, name: str, samples: int = 4000, channels: int = 1, rate: int = 16_000
) -> bytes:
    return _written(0.1 * rng.standard_normal((samples, channels)), rate, *_FORMATS[name])


def _written(audio: np.ndarray, rate: int, file_format: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate, subtype, format=file_format)
    return file.getvalue()


def _damaged(rng: np.random.Generator, body: bytes, within: int, count: int) -> bytes:
    damaged = bytearray(body)
    for place in rng.integers(0, min(within, len(body)), count):
        damaged[place] = rng.integers(256)
    return bytes(damaged)


def _wav(
    data: bytes, *, rate: int = 16_000, channels: int = 1, bits: int = 16, tag: int = 1, declared: int | None = None
) -> bytes:
    """Return a WAV with the given header fields, true or not."""
    block = max(1, channels * bits // 8) & 0xFFFF
    form = struct.pack("<HHIIHH", tag, channels, rate, (rate * block) & 0xFFFFFFFF, block, bits)
    size = len(data) if declared is None else declared
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", (len(head) + size) & 0xFFFFFFFF) + head + data


def _lying(whole: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield files with false headers."""
    data = bytes(range(256)) * 8
    for declared in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1):
        yield f"WAV that declares {declared} bytes", _wav(data, declared=declared)
    for rate in (0, 1, 4_000, 7_999, 192_001, 384_000, 2**31, 2**32 - 1):
        yield f"WAV of {rate} Hz", _wav(data, rate=rate)
    for channels in (0, 9, 64, 65, 1024, 65_535):
        yield f"WAV of {channels} channels", _wav(data, channels=channels)
    for bits in (0, 1, 7, 12, 64, 65_535):
        yield f"WAV of {bits} bits", _wav(data, bits=bits)
    for tag in (0, 2, 3, 6, 7, 17, 49, 85, 0xFFFE, 0xFFFF):
        yield f"WAV of encoding {tag}", _wav(data, tag=tag)
    wav = whole["wav"]
    yield "WAV whose RIFF size is 0", wav[:4] + bytes(4) + wav[8:]
    yield "WAV whose format chunk is 4 GB", wav[:16] + b"\xff\xff\xff\xff" + wav[20:]
    yield "WAV with two data chunks", wav + wav[36:]
    yield "WAV in a WAV", _wav(wav)
    yield "WAV named RIFX", b"RIFX" + wav[4:]
    flac = whole["flac"]
    for samples in (0, 1, 2**36 - 1):  # STREAMINFO: 36 bits from the lower half of byte 21 on
        bits = int.from_bytes(flac[21:26], "big") & ~(2**36 - 1) | samples
        yield f"FLAC that declares {samples} samples", flac[:21] + bits.to_bytes(5, "big") + flac[26:]
    au = whole["au"]
    for declared in (0, 1, 2**31, 2**32 - 1):
        yield f"AU that declares {declared} bytes", au[:8] + struct.pack(">I", declared) + au[12:]
    aiff = whole["aiff"]
    yield "AIFF whose FORM is 4 GB", aiff[:4] + b"\xff\xff\xff\xff" + aiff[8:]
    for size in (2**28 - 1, 10_000):
        syncsafe = bytes((size >> shift) & 0x7F for shift in (21, 14, 7, 0))
        yield f"MP3 after a tag of {size} bytes", b"ID3\x04\0\0" + syncsafe + whole["mp3"]
    yield "OGG whose serial number changes", whole["ogg"][:14] + b"abcd" + whole["ogg"][18:]


def _odd(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yield valid but unusual audio."""
    for samples in (0, 1, 2, 319, 320, 321):
        yield f"{samples} samples", _written(np.full((samples, 1), 0.5), 16_000, "WAV", "PCM_16")
    for name, value in (("NaN", np.nan), ("infinity", np.inf), ("3e38", 3e38), ("1e-45", 1e-45)):
        audio = np.full((4000, 1), value)
        yield f"nothing but {name}", _written(audio, 16_000, "WAV", "FLOAT")
    yield "1e300 in float64", _written(np.full((4000, 1), 1e300), 16_000, "WAV", "DOUBLE")
    loud = 100 * rng.standard_normal((4000, 2))
    yield "40 dB over full scale", _written(loud, 44_100, "WAV", "FLOAT")
    yield "8 channels at 192 kHz", _written(0.1 * rng.standard_normal((19_200, 8)), 192_000, "FLAC", "PCM_16")
    yield "8 channels at 192 kHz, one sample", _written(np.zeros((1, 8)), 192_000, "WAV", "DOUBLE")
    for minutes in (2, 10):
        silence = np.zeros((minutes * 60 * 8_000, 1), np.int16)
        yield f"{minutes} minutes of silence", _written(silence, 8_000, "FLAC", "PCM_16")
    yield (
        "a minute of silence in 8 channels",
        _written(np.zeros((60 * 48_000, 8), np.int16), 48_000, "FLAC", "PCM_16"),
    )
    yield "2 minutes of silence, Vorbis", _written(np.zeros((120 * 8_000, 1)), 8_000, "OGG", "VORBIS")


def _no_audio(rng: np.random.Generator, whole: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "a byte", b"R"
    yield "zeros", bytes(5000)
    yield "HTML", b"<!DOCTYPE html><html><body><script>alert(1)</script></body></html>" * 20
    yield "JSON", b'{"audio": "UklGRg=="}'
    yield "a data URL", b"data:audio/wav;base64,UklGRiQAAABXQVZF"
    yield "UTF-16", "audio".encode("utf-16") * 200
    yield "a PNG", b"\x89PNG\r\n\x1a\n" + rng.bytes(500)
    yield "an ELF", b"\x7fELF\x02\x01\x01" + rng.bytes(500)
    yield "gzip of a WAV", gzip.compress(whole["wav"], mtime=0)
    yield "gzip of 10 MB of zeros", gzip.compress(bytes(10_000_000), mtime=0)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("a.wav"), whole["wav"])
    yield "a ZIP", file.getvalue()
    for magic in (b"RIFF", b"fLaC", b"OggS", b"FORM", b".snd", b"caff", b"ID3", b"\xff\xfb\x90\x00", b"NIST_1A\n"):
        yield f"{magic!r} and noise", magic + rng.bytes(2000)
    for size in (10, 1000, 20_000):
        yield f"{size} bytes of noise", rng.bytes(size)
