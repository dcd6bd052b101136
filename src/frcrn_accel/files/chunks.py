"""Chunks of WAV (RIFF, RF64, W64), AIFF and CAF files: what an audio file holds besides its samples.

Sources: EBU Tech 3285 (BWF), EBU Tech 3306 (RF64), Sony's "Wave 64" note, Apple's AIFF-C and CAF specifications;
"ID3 tag version 2.4.0", section 3.
"""

from __future__ import annotations

import codecs
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

__all__ = [
    "MAX_CHUNK_BYTES",
    "W64_RIFF",
    "W64_TAIL",
    "Chunk",
    "caf_info",
    "family_of",
    "id3_end",
    "is_bare",
    "is_text",
    "read_chunks",
    "walk",
    "wav_of",
]

MAX_CHUNK_BYTES = 1 << 26
_MAX_CHUNKS = 1_000
_TEXT_CHARACTERS = 8  # different ones

_OTHER_FILES = (b"RIFF", b"RIFX", b"RF64", b"FORM")  # joined with `cat`

# The chunks that describe the samples. The writer makes new ones.
_STRUCTURE = {
    "RIFF": {
        b"fmt ",
        b"data",
        b"fact",
        b"PEAK",
        b"ds64",
        b"JUNK",
        b"junk",
        b"PAD ",
        b"FLLR",
        b"levl",
        b"LEVL",
        *_OTHER_FILES,
    },
    "AIFF": {b"COMM", b"SSND", b"FVER", b"PEAK", b"CHAN", b"FLLR", *_OTHER_FILES},
    "CAF": {b"desc", b"data", b"pakt", b"kuki", b"chan", b"free", b"peak", b"ovvw", b"caff"},
}
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_UNKNOWN = 0xFFFFFFFF
_ID3_HEADER_BYTES, _ID3_HAS_FOOTER, _MAX_ID3_TAGS = 10, 0x10, 16


@dataclass(frozen=True)
class Chunk:
    """A chunk of a WAV, AIFF or CAF file, as it is in the file.

    Attributes:
        family: `"RIFF"` (WAV, RF64, W64), `"AIFF"` or `"CAF"`.
        id: Its identifier, four bytes.
        data: Its content.
    """

    family: str
    id: bytes
    data: bytes

    @property
    def name(self) -> str:
        """Return the name that users know, such as `bext` or `LIST adtl`."""
        parts = [self.id, self.data[:4]] if self.id == b"LIST" else [self.id]
        return " ".join(part.decode("latin-1").strip() for part in parts).strip()


def family_of(start: bytes) -> str:
    """Return the family of chunks in a file that starts with these bytes, or an empty string."""
    if (start[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and start[8:12] == b"WAVE") or start[:16] == W64_RIFF:
        return "RIFF"
    if start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    return "CAF" if start[:4] == b"caff" else ""


def id3_end(file: BinaryIO, start: int = 0) -> int:
    """Return where the ID3v2 tags end that start at a position; the position itself if there are none."""
    for _ in range(_MAX_ID3_TAGS):
        file.seek(start)
        head = file.read(_ID3_HEADER_BYTES)
        if head[:3] != b"ID3" or len(head) < _ID3_HEADER_BYTES:
            break
        size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        start += size + (2 if head[5] & _ID3_HAS_FOOTER else 1) * _ID3_HEADER_BYTES
    return start


def walk(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Walk over the chunks of a file.

    Yields:
        Identifier, position of the content, and its size. A size may reach beyond the end of a damaged file.
    """
    start = file.read(16)
    end = file.seek(0, os.SEEK_END)
    family, w64 = family_of(start), start[:16] == W64_RIFF
    endian: Literal["big", "little"] = "big" if family == "AIFF" or start[:4] == b"RIFX" else "little"
    position = 40 if w64 else 8 if family == "CAF" else 12
    long_data = None
    for _ in range(_MAX_CHUNKS):
        if position >= end:
            return
        file.seek(position)
        if w64:
            head = file.read(24)
            identity, size, header = head[:4], int.from_bytes(head[16:24], "little") - 24, 24
            if len(head) == header and head[4:16] != W64_TAIL:
                identity = b"\0\0\0\0"  # not the GUID of a RIFF chunk
        elif family == "CAF":
            head, header = file.read(12), 12
            identity, size = head[:4], int.from_bytes(head[4:12], "big", signed=True)
        else:
            head, header = file.read(8), 8
            identity, size = head[:4], int.from_bytes(head[4:8], endian)
        if len(head) < header:
            return
        if identity == b"ds64":
            long_data = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        if identity == b"data" and size == _UNKNOWN and long_data is not None:
            size = long_data
        if size < 0:
            return  # unknown: up to the end of the file
        yield identity, position + header, size
        align = 8 if w64 else 1 if family == "CAF" else 2
        position += header + -(-size // align) * align
        if align == 2 and size % 2 and not _is_name_at(file, position) and _is_name_at(file, position - 1):
            position -= 1  # some programs forget the byte of padding


def _is_name_at(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    name = file.read(4)
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def is_bare(file: BinaryIO) -> bool:
    """Return whether a WAV, AIFF or CAF file holds nothing but its samples, so that FFmpeg need not be loaded for it.

    W64 is left to FFmpeg: text can be in a chunk that has no RIFF name.

    Args:
        file: The file, at its start.
    """
    start = file.read(16)
    family = family_of(start)
    if not family or start == W64_RIFF:
        return False
    file.seek(0)
    names = [name for name, *_ in walk(file)]
    return len(names) < _MAX_CHUNKS and _STRUCTURE[family].issuperset(names)


def is_text(data: bytes) -> bool:
    """Return whether data is text, which samples are not: they are zeros, or have a high bit that is not UTF-8."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data.rstrip(b"\0"))  # the last character may be cut
    except UnicodeDecodeError:
        return False
    # Silence in A-law is a letter.
    return len(set(text)) >= _TEXT_CHARACTERS and all(letter.isprintable() or letter.isspace() for letter in text)


def read_chunks(path: Path, end: int | None = None) -> tuple[tuple[Chunk, ...], list[str]]:
    """Read the chunks of a file besides those that describe its samples.

    Args:
        path: The file.
        end: Where to stop, if what follows are samples that the header does not count; else None.

    Returns:
        The chunks in their order, and the names of those that are left out because they are too large, cut off, or
        have their numbers in the other order of bytes than those of a new file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(16)
        family, is_swapped = family_of(start), start[:4] == b"RIFX"
        if not family:
            return (), []
        file.seek(0)
        chunks, dropped, total = [], [], 0
        for identity, position, size in walk(file):
            if end is not None and position > end:
                break
            if identity in _STRUCTURE[family] or not all(32 <= byte < 127 for byte in identity) or identity.isspace():
                continue
            data = b""
            if total + size <= MAX_CHUNK_BYTES and not is_swapped:
                file.seek(position)
                data = file.read(size)
                total += len(data)
            if len(data) < size and is_text(identity + data):
                break  # not a chunk
            if len(data) < size or is_swapped:
                dropped.append(Chunk(family, identity, b"").name)
                continue
            chunks.append(Chunk(family, identity, data))
    return tuple(chunks), dropped


def wav_of(chunks: Sequence[Chunk]) -> bytes:
    """Return a WAV file of a single sample with these chunks."""
    parts = [
        (b"fmt ", struct.pack("<HHIIHH", 1, 1, 8_000, 8_000, 1, 8)),
        (b"data", b"\x80\0"),
        *((c.id, c.data) for c in chunks),
    ]
    body = b"WAVE" + b"".join(
        key + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for key, data in parts
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def caf_info(data: bytes) -> dict[str, str]:
    """Return the text in an `info` chunk of CAF."""
    parts = data[4:].decode("utf-8", "surrogateescape").split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=False))
