"""Compare the optional checksums of MP3, which FFmpeg ignores, or drops whole frames for.

Source: ISO/IEC 11172-3, sections 2.4.1.4, 2.4.1.7 and 2.4.3.1; ISO/IEC 13818-3 for the lower rates.
"""

from __future__ import annotations

__all__ = ["is_frame_right"]

_LAYER_III, _VERSION_1, _MONO = 1, 3, 3
_HEADER_BYTES, _CHECKSUM_BYTES = 4, 2
_POLYNOMIAL, _INITIAL = 0x8005, 0xFFFF
# Bytes of side information behind the checksum, which says how to decode the rest, by version 1 and mono.
_SIDE_BYTES = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}


def is_frame_right(frame: bytes) -> bool | None:
    """Return whether the checksum of a frame of layer III is right; None if it has none.

    It covers part of the header and the side information, not the coded audio itself.
    """
    if len(frame) < _HEADER_BYTES or frame[0] != 0xFF or frame[1] < 0xE0:
        return None
    if frame[1] >> 1 & 3 != _LAYER_III or frame[1] & 1:  # a bit that says that there is no checksum
        return None
    start = _HEADER_BYTES + _CHECKSUM_BYTES
    end = start + _SIDE_BYTES[frame[1] >> 3 & 3 == _VERSION_1, frame[3] >> 6 == _MONO]
    return len(frame) >= end and _checksum(frame[2:_HEADER_BYTES] + frame[start:end]) == int.from_bytes(
        frame[_HEADER_BYTES:start], "big"
    )


def _checksum(data: bytes) -> int:
    checksum = _INITIAL
    for byte in data:
        checksum = (checksum << 8 & 0xFFFF) ^ _REMAINDERS[checksum >> 8 ^ byte]
    return checksum


def _remainder(byte: int) -> int:
    value = byte << 8
    for _ in range(8):
        value = (value << 1 ^ (_POLYNOMIAL if value & 0x8000 else 0)) & 0xFFFF
    return value


_REMAINDERS = tuple(map(_remainder, range(256)))
