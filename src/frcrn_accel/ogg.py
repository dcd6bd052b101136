"""Rewrite Ogg pages while they are written: constant serial numbers, and a comment header of our own.

libsndfile gives the logical stream in a file a random serial number, which is part of each page and its checksum.
Without this module, the same audio would be written to a different file each time.

Sources: RFC 3533, "The Ogg Encapsulation Format", section 6; RFC 7845, section 5; the Ogg mapping of FLAC.
"""

from __future__ import annotations

import struct
import zlib
from typing import Protocol

__all__ = ["OggPages", "is_page_right"]

_HEADER = struct.Struct("<4sBBqIIIB")  # pattern, version, type, position, serial number, page, checksum, segments
_CHECKSUM_AT = 22
_STREAM = 1
_CONTINUED, _FIRST = 1, 2
_MAX_SEGMENTS = 255  # of a page, and bytes of a segment
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
# Packets with comments, by their start, and what follows the comments. FLAC has the size of a metadata block, too.
_VORBIS, _OPUS, _FLAC_COMMENTS = b"\x03vorbis", b"OpusTags", 4


class _File(Protocol):
    def write(self, data: bytes) -> int: ...


class OggPages:
    """A sequential file for the encoder of one logical stream, which rewrites the pages on their way.

    Args:
        file: Where the pages go.
        comments: Body of the Vorbis comments. The vendor string in it is replaced by the encoder's.
    """

    def __init__(self, file: _File, comments: bytes) -> None:
        self._file = file
        self._fields = comments[4 + int.from_bytes(comments[:4], "little") :]
        self._position = 0  # as the encoder counts
        self._rest = bytearray()
        self._page = 0
        self._packets: list[bytes] = []  # header packets, up to the one with the comments
        self._packet = bytearray()
        self._done = False  # whether the comments are written

    def write(self, data: bytes) -> int:
        """Take bytes from the encoder."""
        self._rest += data
        self._position += len(data)
        while len(self._rest) >= _HEADER.size:
            header = _HEADER.unpack_from(self._rest)
            lengths = self._rest[_HEADER.size : _HEADER.size + header[-1]]
            size = _HEADER.size + header[-1] + sum(lengths)
            if len(lengths) < header[-1] or len(self._rest) < size:
                break
            body = bytes(self._rest[size - sum(lengths) : size])
            del self._rest[:size]
            self._take(header[2], header[3], bytes(lengths), body)
        return len(data)

    def tell(self) -> int:
        """Return the position, as the encoder counts."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Stay in place; an encoder only asks for the size."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return nothing: an encoder does not read."""
        return b""

    def _take(self, kind: int, position: int, lengths: bytes, body: bytes) -> None:
        """Pass a page on. The pages of the headers are made again, with the new comments."""
        if self._done:
            self._emit(kind, position, lengths, body)
            return
        start = 0
        for length in lengths:
            self._packet += body[start : start + length]
            start += length
            if length < _MAX_SEGMENTS:
                self._packets.append(self._with_comments(bytes(self._packet)))
                self._packet.clear()
        needed = 3 if self._packets and self._packets[0].startswith(b"\x01vorbis") else 2
        if len(self._packets) >= needed:
            self._emit_headers()
            self._done = True

    def _with_comments(self, packet: bytes) -> bytes:
        """Return a header packet, with our fields if it is the one with comments."""
        if packet.startswith((_VORBIS, _OPUS)):
            start = len(_VORBIS) if packet.startswith(_VORBIS) else len(_OPUS)
            end = start + 4 + int.from_bytes(packet[start : start + 4], "little")
            return packet[:end] + self._fields + (b"\x01" if packet.startswith(_VORBIS) else b"")
        if (
            self._packets
            and self._packets[0].startswith(b"\x7fFLAC")
            and packet[:1]
            and packet[0] & 0x7F == _FLAC_COMMENTS
        ):
            end = 8 + int.from_bytes(packet[4:8], "little")
            body = packet[4:end] + self._fields
            return packet[:1] + len(body).to_bytes(3, "big") + body
        return packet

    def _emit_headers(self) -> None:
        """Write the header packets: the first on a page of its own, then the others."""
        self._emit(_FIRST, 0, bytes([len(self._packets[0])]), self._packets[0])
        segments = [
            packet[start : start + _MAX_SEGMENTS] for packet in self._packets[1:] for start in _starts(packet)
        ]
        kind = 0
        for start in range(0, len(segments), _MAX_SEGMENTS):
            part = segments[start : start + _MAX_SEGMENTS]
            ends = any(len(segment) < _MAX_SEGMENTS for segment in part)
            self._emit(kind, 0 if ends else -1, bytes(map(len, part)), b"".join(part))
            kind = _CONTINUED if len(part[-1]) == _MAX_SEGMENTS else 0

    def _emit(self, kind: int, position: int, lengths: bytes, body: bytes) -> None:
        header = _HEADER.pack(b"OggS", 0, kind, position, _STREAM, self._page, 0, len(lengths))
        page = bytearray(header + lengths + body)
        struct.pack_into("<I", page, _CHECKSUM_AT, _checksum(page))
        self._file.write(bytes(page))
        self._page += 1


def _starts(packet: bytes) -> range:
    """Return where the segments of a packet start. The last one is not full, and may be empty."""
    return range(0, len(packet) + 1, _MAX_SEGMENTS)


def is_page_right(page: bytes) -> bool:
    """Return whether the checksum of a whole page is right."""
    cleared = bytearray(page)
    struct.pack_into("<I", cleared, _CHECKSUM_AT, 0)
    return _checksum(cleared) == int.from_bytes(page[_CHECKSUM_AT : _CHECKSUM_AT + 4], "little")


def _checksum(page: bytearray) -> int:
    """Return the CRC of an Ogg page: zlib's, with the bits of all bytes reversed, initial value 0, not inverted."""
    reflected = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
