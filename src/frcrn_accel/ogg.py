"""Make Ogg files reproducible.

libsndfile gives the logical stream in a file a random serial number, which is part of each page and its checksum.
Without this module, the same audio would be written to a different file each time.

Source: RFC 3533, "The Ogg Encapsulation Format", section 6.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

__all__ = ["number_stream"]

_HEADER = struct.Struct("<4sBBqIIIB")  # pattern, version, type, position, serial number, page, checksum, segments
_STREAM_AT, _CHECKSUM_AT = 14, 22
_STREAM = 1
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def number_stream(path: Path) -> None:
    """Set the serial number of the single logical stream in an Ogg file to a constant.

    Raises:
        OSError: The file cannot be read or written.
    """
    with path.open("r+b") as file:
        start = 0
        while len(header := file.read(_HEADER.size)) == _HEADER.size:
            lengths = file.read(_HEADER.unpack(header)[-1])
            page = bytearray(header + lengths + file.read(sum(lengths)))
            struct.pack_into("<I", page, _STREAM_AT, _STREAM)
            struct.pack_into("<I", page, _CHECKSUM_AT, 0)
            struct.pack_into("<I", page, _CHECKSUM_AT, _checksum(page))
            file.seek(start)
            file.write(page)
            start += len(page)


def _checksum(page: bytearray) -> int:
    """Return the CRC of an Ogg page: zlib's, with the bits of all bytes reversed, initial value 0, not inverted."""
    reflected = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
