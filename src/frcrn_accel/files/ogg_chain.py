"""Find the links of chained Ogg files: recordings of radio, in which one logical stream follows another.

Source: RFC 3533, "The Ogg Encapsulation Format", sections 4 and 6.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["FilePart", "Link", "find_links"]

_HEADER = struct.Struct("<4sBBqIIIB")  # pattern, version, type, position, serial number, page, checksum, segments
_FIRST_PAGE, _LAST_PAGE = 2, 4
_MAX_LINKS = 10_000


@dataclass(frozen=True)
class Link:
    """One link of a chain.

    Attributes:
        start: Position of its first byte.
        end: Position after its last byte.
        form: What its first packets say about codec, rate and channels.
        is_whole: Whether it is pages without anything between or after them, up to one that is marked as the last.
    """

    start: int
    end: int
    form: tuple[bytes, ...]
    is_whole: bool

    def view(self, file: BinaryIO) -> FilePart:
        """Return the link as a file of its own."""
        return FilePart(file, self.start, self.end)


class FilePart:
    """Part of a file, to be read as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._size = file, start, end - start
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        left = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seekable(self) -> bool:
        """Return True."""
        return True


def find_links(file: BinaryIO) -> list[Link]:
    """Return the links of an Ogg file; one for a file that is not chained.

    Only the headers of pages are read. Data between pages is skipped by the decoder, so the search ends there.

    Raises:
        OSError: The file cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    starts: list[int] = []
    forms: list[list[bytes]] = []
    position, in_headers, kind = 0, False, 0
    while len(starts) <= _MAX_LINKS:
        file.seek(position)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:4] != b"OggS":
            break
        kind, segments = header[5], header[-1]
        lengths = file.read(segments)
        if kind & _FIRST_PAGE:
            if not in_headers:
                starts.append(position)
                forms.append([])
            forms[-1].append(_form(file.read(min(sum(lengths), 80))))
        in_headers = bool(kind & _FIRST_PAGE)
        position += _HEADER.size + segments + sum(lengths)
    ends = [*starts[1:], size]
    is_whole = position == size and bool(kind & _LAST_PAGE)
    return [Link(start, end, tuple(form), is_whole) for start, end, form in zip(starts, ends, forms, strict=True)]


def _form(packet: bytes) -> bytes:
    """Return codec, rate and channels from the first packet of a logical stream."""
    if packet[:7] == b"\x01vorbis":
        return packet[:7] + packet[11:16]
    if packet[:8] == b"OpusHead":
        return packet[:8] + packet[9:10]
    if packet[:5] == b"\x7fFLAC":
        return packet[:5] + packet[27:30]
    if packet[:8] == b"Speex   ":
        return packet[:8] + packet[36:40] + packet[48:52]
    return packet[:16]
