"""Finish WAV, W64, AIFF and CAF files that libsndfile has written: chunks, true sizes, no time stamps.

Sources: as in `chunks`.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from frcrn_accel.files.belongings import Belongings
from frcrn_accel.files.chunks import W64_TAIL, Chunk, walk
from frcrn_accel.files.tags import id3_tag, info_list

__all__ = ["SIZE_LIMIT_BYTES", "caf_front", "finish_aiff", "finish_w64", "finish_wav", "w64_front", "wav_front"]

SIZE_LIMIT_BYTES = 1 << 32  # sizes have 32 bits
_DS64_BYTES = 28
_EXTENSIBLE = 0xFFFE
_BITMAP_LAYOUT = 1 << 16  # kAudioChannelLayoutTag_UseChannelBitmap
_FRONT = (b"bext", b"chna", b"iXML")  # programs that read a WAV as a stream need these before the samples
_COPY_BYTES = 1 << 20


def wav_front(belongings: Belongings, *, may_be_long: bool) -> bytes:
    """Return the chunks in front of the format of a WAV file, with room for 64-bit sizes if it may need them."""
    room = _chunk(b"JUNK", bytes(_DS64_BYTES)) if may_be_long else b""
    return room + b"".join(_chunk(chunk.id, chunk.data) for chunk in belongings.chunks if _is_front(chunk))


def finish_wav(
    file: BinaryIO,
    belongings: Belongings,
    *,
    samples: int,
    data_bytes: int | None,
    mask: int,
    rf64: bool = False,
    limit_bytes: int = SIZE_LIMIT_BYTES,
) -> None:
    """Complete a WAV file.

    Args:
        file: The file as libsndfile has closed it.
        belongings: What goes into it. Text and pictures that came in chunks are copied as they are.
        samples: Samples per channel.
        data_bytes: Bytes of all samples; None for the size that libsndfile has written.
        mask: Places of the channels, for a file whose format has them.
        rf64: Write 64-bit sizes even if the file is short.
        limit_bytes: Size from which 64-bit sizes are needed.
    """
    places = _walked(file)
    _set_format(file, places, samples, mask)
    start, size = places[b"data"]
    size = size if data_bytes is None else data_bytes
    file.seek(start + size)
    file.truncate()
    file.write(b"\0" * (size % 2))
    trailing = b"".join(_chunk(chunk.id, chunk.data) for chunk in _wav_trailing(belongings))
    if size:
        file.write(trailing)
    else:  # some readers take what follows an empty `data` chunk for its samples
        _shift(file, start - 8, len(trailing))
        _put(file, start - 8, trailing)
        start += len(trailing)
    total = file.seek(0, os.SEEK_END)
    if not rf64 and total < limit_bytes:
        _put(file, 4, struct.pack("<I", total - 8))
        _put(file, start - 4, struct.pack("<I", size))
        return
    if b"JUNK" not in places or places[b"JUNK"] != (20, _DS64_BYTES):
        _shift(file, 12, 8 + _DS64_BYTES)
        start, total = start + 8 + _DS64_BYTES, total + 8 + _DS64_BYTES
    _put(file, 0, b"RF64" + b"\xff" * 4)
    _put(file, 12, _chunk(b"ds64", struct.pack("<QQQI", total - 8, size, samples, 0)))
    _put(file, start - 4, b"\xff" * 4)


def _is_front(chunk: Chunk) -> bool:
    """Return whether a chunk goes in front. libsndfile cannot parse RF64 after a chunk of odd size."""
    return chunk.id in _FRONT and len(chunk.data) % 2 == 0


def _wav_trailing(belongings: Belongings) -> list[Chunk]:
    """Return the chunks behind the samples. New tags are written only if the source had none in chunks."""
    chunks = [chunk for chunk in belongings.chunks if not _is_front(chunk)]
    if not {chunk.name for chunk in belongings.chunks} & {"LIST INFO", "id3", "ID3"}:
        chunks += [Chunk("RIFF", b"LIST", text)] if (text := info_list(belongings.tags)) else []
        chunks += [Chunk("RIFF", b"id3 ", tag)] if (tag := id3_tag(belongings)) else []
    return chunks


def w64_front(belongings: Belongings) -> bytes:
    """Return the chunks in front of the format of a W64 file: libsndfile reads later ones as samples."""
    chunks = [chunk for chunk in belongings.chunks if _is_front(chunk)] + _wav_trailing(belongings)
    return b"".join(
        chunk.id + W64_TAIL + struct.pack("<Q", 24 + len(chunk.data)) + chunk.data + bytes(-len(chunk.data) % 8)
        for chunk in chunks
    )


def finish_w64(file: BinaryIO) -> None:
    """Set the size of a W64 file, and clear its time stamp."""
    _put(file, 16, struct.pack("<Q", file.seek(0, os.SEEK_END)))
    _clear_time(file, _walked(file), "<")


def finish_aiff(file: BinaryIO, belongings: Belongings, mask: int) -> None:
    """Add tags and chunks to an AIFF file.

    Args:
        file: The file as libsndfile has closed it.
        belongings: What goes into it.
        mask: Places of the channels, 0 for none.
    """
    _clear_time(file, _walked(file), ">")
    file.seek(0, os.SEEK_END)
    file.write(b"\0" * (file.tell() % 2))
    if mask:
        file.write(_chunk(b"CHAN", struct.pack(">III", _BITMAP_LAYOUT, mask, 0), ">"))
    for chunk in belongings.chunks:
        file.write(_chunk(chunk.id, chunk.data, ">"))
    if not {chunk.name for chunk in belongings.chunks} & {"ID3", "id3", "NAME", "AUTH", "ANNO", "(c)"} and (
        tag := id3_tag(belongings)
    ):
        file.write(_chunk(b"ID3 ", tag, ">"))
    _put(file, 4, struct.pack(">I", min(file.tell() - 8, SIZE_LIMIT_BYTES - 1)))


def caf_front(belongings: Belongings, mask: int) -> bytes:
    """Return the chunks that go behind the description of a CAF file."""
    chunks = [(chunk.id, chunk.data) for chunk in belongings.chunks]
    if mask:
        chunks.insert(0, (b"chan", struct.pack(">III", _BITMAP_LAYOUT, mask, 0)))
    if belongings.tags and b"info" not in dict(chunks):
        text = "".join(f"{name}\0{text}\0" for name, text in belongings.tags.items())
        chunks.append((b"info", struct.pack(">I", len(belongings.tags)) + text.encode()))
    return b"".join(name + struct.pack(">q", len(data)) + data for name, data in chunks)


def _walked(file: BinaryIO) -> dict[bytes, tuple[int, int]]:
    """Return position and size of each chunk."""
    file.seek(0)
    return {identity: (position, size) for identity, position, size in walk(file)}


def _set_format(file: BinaryIO, places: dict[bytes, tuple[int, int]], samples: int, mask: int) -> None:
    _clear_time(file, places, "<")
    start = places[b"fmt "][0]
    file.seek(start)
    if struct.unpack("<H", file.read(2))[0] == _EXTENSIBLE:
        _put(file, start + 20, struct.pack("<I", mask))
    if b"fact" in places:  # libsndfile counts whole blocks of ADPCM
        _put(file, places[b"fact"][0], struct.pack("<I", min(samples, SIZE_LIMIT_BYTES - 1)))


def _clear_time(file: BinaryIO, places: dict[bytes, tuple[int, int]], endian: str) -> None:
    """Clear the time stamp of a PEAK chunk, so that the same audio gives the same file."""
    if b"PEAK" in places:
        _put(file, places[b"PEAK"][0], struct.pack(f"{endian}II", 1, 0))


def _chunk(identity: bytes, data: bytes, endian: str = "<") -> bytes:
    return identity + struct.pack(f"{endian}I", len(data)) + data + b"\0" * (len(data) % 2)


def _put(file: BinaryIO, position: int, data: bytes) -> None:
    """Write at a position, and return to the current one."""
    before = file.tell()
    file.seek(position)
    file.write(data)
    file.seek(before)


def _shift(file: BinaryIO, start: int, distance: int) -> None:
    """Move the rest of a file towards its end."""
    end = file.seek(0, os.SEEK_END)
    while end > start:
        size = min(_COPY_BYTES, end - start)
        file.seek(end - size)
        data = file.read(size)
        file.seek(end - size + distance)
        file.write(data)
        end -= size
