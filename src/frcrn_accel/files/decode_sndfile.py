"""Decode audio with libsndfile: PCM in its many containers, whatever their headers say about the length.

Recorders that crash leave sizes of 0 in the header, and files that were cut off leave sizes beyond their end.
libsndfile trusts a size of 0, so it is given a header with the right size.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.files.chunks import W64_RIFF, W64_TAIL, family_of, walk
from frcrn_accel.files.stated import (
    SDS_HEADER_BYTES,
    SDS_PACKET_BYTES,
    is_joined,
    is_placeholder,
    sds_packet_samples,
    stated_end,
)

__all__ = ["BLOCK_SAMPLES", "Patched", "Repair", "decode_patched", "find_repair", "open_patched", "wav_repair"]

BLOCK_SAMPLES = 1 << 16  # of each block but the last, whichever library decodes
_MAX_32 = 0xFFFF_FFFE
_W64_START = b"riff\x2e\x91\xcf\x11"
_SDS_START = b"\xf0\x7e"
_PADDING_BYTES = 1 << 16
_IS_EMPTY = "its header says that it is empty, as after a crash: "


@dataclass
class Repair:
    """How a header differs from the file, and how to correct it.

    Attributes:
        patches: Bytes to replace, by position.
        head: A header to read instead of the bytes in front of `start`.
        start: Where the audio starts, if it gets another header.
        end: Where the audio ends, if other data follows.
        audio_at: Where the audio starts, if it reaches to the end of the file although the header states otherwise.
        notices: Warnings about the correction, without the name of the file.
        missing_bytes: Bytes of audio that are not read: the file ends before them, or no header can count them.
        samples: Length in samples, if the header states it more exactly than the size of the data; else None.
    """

    patches: dict[int, bytes] = field(default_factory=dict)
    head: bytes = b""
    start: int = 0
    end: int | None = None
    audio_at: int | None = None
    notices: list[str] = field(default_factory=list)
    missing_bytes: int = 0
    samples: int | None = None


def wav_repair(path: Path) -> Repair | None:
    """Compare the sizes in a WAV file that FFmpeg reads with the file; None if it has no other header to read it by.

    FFmpeg ends at a size that is too small, and takes SoX's placeholder for the length.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(32)
        if family_of(start) != "RIFF" or start[:8] == _W64_START:
            return None
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        repair = _riff_repair(file, start, size)
        file.seek(0)
        data = next(((at, length) for name, at, length in walk(file) if name == b"data"), None)
    repair.missing_bytes = 0  # the decoder reports what is missing
    if not repair.patches and data is not None and is_placeholder(data[1]) and start[:4] == b"RIFF":
        repair.patches[data[0] - 4] = struct.pack("<I", min(size - data[0], _MAX_32))
    return repair if repair.patches else None


def find_repair(path: Path) -> Repair:
    """Compare the sizes in a header with the file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(32)
        size = file.seek(0, os.SEEK_END)
        family = family_of(start)
        file.seek(0)
        if family == "RIFF":
            return _riff_repair(file, start, size)
        if family == "AIFF":
            return _aiff_repair(file, size)
        if family == "CAF":
            return _caf_repair(file, size)
        if start[:4] in (b".snd", b"dns."):
            return _au_repair(file, start, size)
        return _stated_repair(file, start, size)


def open_patched(path: Path, repair: Repair) -> soundfile.SoundFile:
    """Open a file with libsndfile.

    Raises:
        SoundFileError: libsndfile does not recognize the file.
        OSError: The file cannot be read.
    """
    if not repair.patches and not repair.head and repair.end is None:
        return _Sequential(os.fsencode(path))
    return _Sequential(Patched(path, repair))


def decode_patched(path: Path, repair: Repair) -> Iterator[NDArray[np.float32]]:
    """Decode a file to its end.

    Yields:
        Blocks of `float32 (channels, samples)`.

    Raises:
        SoundFileError: libsndfile does not recognize the file.
        OSError: The file cannot be read.
    """
    with open_patched(path, repair) as file:
        left = file.frames if repair.samples is None else min(file.frames, repair.samples)
        while left and len(block := file.read(min(left, BLOCK_SAMPLES), dtype="float32", always_2d=True)):
            left -= len(block)
            yield np.ascontiguousarray(block.T)


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from its start to its end. Some encodings, such as DWVW, have no other way."""

    def seekable(self) -> bool:
        """Return False, so that reading a block does not end with a seek to where it ended."""
        return False


class Patched(io.RawIOBase):
    """A file that is read with its header, or some of its bytes, replaced, and up to the end of its audio."""

    def __init__(self, path: Path, repair: Repair) -> None:
        self._file = path.open("rb")
        self._repair = repair
        end = self._file.seek(0, os.SEEK_END) if repair.end is None else repair.end
        self._size = len(repair.head) + end - repair.start
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        start, left = self._position, max(0, self._size - self._position)
        size = left if size < 0 else min(size, left)
        data = bytearray(self._repair.head[start : start + size])
        if size > len(data):
            self._file.seek(self._repair.start + start + len(data) - len(self._repair.head))
            data += self._file.read(size - len(data))
        for position, patch in self._repair.patches.items():
            for at, byte in enumerate(patch, position - start):
                if 0 <= at < len(data):
                    data[at] = byte
        self._position += len(data)
        return bytes(data)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _riff_repair(file: BinaryIO, start: bytes, size: int) -> Repair:
    repair = Repair()
    is_w64, endian = start[:8] == _W64_START, ">" if start[:4] == b"RIFX" else "<"
    chunks = list(walk(file))
    found: dict[bytes, tuple[int, int]] = {}
    for identity, position, length in chunks:
        found.setdefault(identity, (position, length))
    if b"data" not in found:
        return repair
    position, declared = found[b"data"]
    present = max(0, size - position)
    if b"fmt " in found and b"fact" in found:
        repair.samples = _fact_samples(file, endian, found[b"fmt "], found[b"fact"][0], min(declared, present))
    after = [chunk for chunk in chunks if chunk[1] > position]
    rest = position + declared + (-declared % 8 if is_w64 else declared % 2)
    is_short = declared > 0 and rest < size and not _are_chunks(after[:1], size) and not _is_other(file, rest, size)
    if (declared == 0 and present and not _are_chunks(after[:1], size)) or is_short:
        repair.samples, repair.audio_at = None, position
        if is_w64:
            repair.patches[position - 8] = struct.pack("<Q", present + 24)
        elif b"ds64" in found and start[:4] != b"RIFF":
            repair.patches[found[b"ds64"][0] + 8] = struct.pack("<Q", present)
        elif present > _MAX_32 and b"fmt " in found and endian == "<":
            repair.start = position
            repair.head = _w64_head(file, found[b"fmt "], present)
        else:
            repair.patches[4] = struct.pack(f"{endian}I", min(size - 8, _MAX_32))
            repair.patches[position - 4] = struct.pack(f"{endian}I", min(present, _MAX_32))
            repair.missing_bytes = max(0, present - _MAX_32)
        says = _says_less(declared, present) if declared else _IS_EMPTY
        repair.notices.append(says + _what_is_read(repair))
    elif declared > present and (is_w64 or not is_placeholder(declared)):
        repair.missing_bytes = declared - present
    elif is_w64 and declared and rest < size:  # libsndfile would take what follows for samples
        repair.end = position + declared
    return repair


def _w64_head(file: BinaryIO, fmt: tuple[int, int], data_bytes: int) -> bytes:
    """Return the header of a W64 file, whose sizes have 64 bits, for the samples of a WAV file."""
    file.seek(fmt[0])
    content = file.read(fmt[1])
    coding = b"fmt " + W64_TAIL + struct.pack("<Q", 24 + len(content)) + content + bytes(-len(content) % 8)
    data = b"data" + W64_TAIL + struct.pack("<Q", 24 + data_bytes)
    total = len(W64_RIFF) + 24 + len(coding) + len(data) + data_bytes
    return W64_RIFF + struct.pack("<Q", total) + b"wave" + W64_TAIL + coding + data


def _says_less(declared: int, present: int) -> str:
    return f"its header says that it has only {declared:,} of {present:,} bytes of audio, as after a crash: "


def _what_is_read(repair: Repair) -> str:
    return "its first 4 GiB are read" if repair.missing_bytes else "it is read to the end of the file"


def _aiff_repair(file: BinaryIO, size: int) -> Repair:
    repair = Repair()
    found = {identity: (position, length) for identity, position, length in walk(file)}
    if b"SSND" not in found or b"COMM" not in found:
        return repair
    position, declared = found[b"SSND"]
    comm = found[b"COMM"][0]
    file.seek(comm)
    channels, frames, bits = struct.unpack(">hIh", file.read(8).ljust(8, b"\0"))
    frame_bytes = channels * -(-bits // 8)
    present = max(0, size - position - 8)
    if present and frame_bytes > 0 and (declared <= 8 or frames == 0) and declared != present + 8:
        repair.patches[4] = struct.pack(">I", min(size - 8, _MAX_32))
        repair.patches[position - 4] = struct.pack(">I", min(present + 8, _MAX_32))
        repair.audio_at = position
        repair.patches[comm + 2] = struct.pack(">I", min(present // frame_bytes, _MAX_32))
        repair.missing_bytes = max(0, present + 8 - _MAX_32)
        repair.notices.append(_IS_EMPTY + _what_is_read(repair))
    elif declared > present + 8 and not is_placeholder(declared):
        repair.missing_bytes = declared - present - 8
    return repair


def _caf_repair(file: BinaryIO, size: int) -> Repair:
    repair = Repair()
    for identity, position, declared in walk(file):
        if identity == b"data":
            present = max(0, size - position - 4)  # a count of edits comes first
            if present and declared <= 4 and position + declared < size:
                repair.audio_at = position
                repair.patches[position - 8] = struct.pack(">q", present + 4)
                repair.notices.append(_IS_EMPTY + _what_is_read(repair))
            elif declared > present + 4:
                repair.missing_bytes = declared - present - 4
                repair.patches[position - 8] = struct.pack(">q", present + 4)  # else libsndfile refuses it
    return repair


def _au_repair(file: BinaryIO, start: bytes, size: int) -> Repair:
    repair = Repair()
    offset, declared = struct.unpack("<II" if start[:4] == b"dns." else ">II", start[4:12])
    present = max(0, size - offset)
    if declared == 0 and present:
        repair.patches[8] = b"\xff" * 4
        repair.notices.append(_IS_EMPTY + _what_is_read(repair))
    elif declared > present and not is_placeholder(declared):
        repair.missing_bytes = declared - present
    elif present - declared > 1 and not _is_other(file, offset + declared, size) and not is_joined(file):
        repair.patches[8] = b"\xff" * 4
        repair.notices.append(_says_less(declared, present) + _what_is_read(repair))
    return repair


def _stated_repair(file: BinaryIO, start: bytes, size: int) -> Repair:
    """Compare the length in a header that libsndfile ignores with the file."""
    end = stated_end(file)
    repair = Repair(missing_bytes=max(0, end - size))
    if start[:2] == _SDS_START and repair.missing_bytes:  # libsndfile would repeat the last packet
        repair.samples = (size - SDS_HEADER_BYTES) // SDS_PACKET_BYTES * sds_packet_samples(start)
    if 0 < end < size:
        if _is_other(file, end, size):
            repair.end = end
        else:
            repair.notices.append(
                f"its header says that its audio ends {size - end:,} bytes before the end of the file, as after a "
                f"crash: {_what_is_read(repair)}"
            )
    return repair


def _are_chunks(chunks: list[tuple[bytes, int, int]], size: int) -> bool:
    """Return whether these are chunks within the file, not samples that look like some."""
    return bool(chunks) and all(
        position + length <= size and all(32 <= byte < 127 for byte in identity)
        for identity, position, length in chunks
    )


def _is_other(file: BinaryIO, start: int, size: int) -> bool:
    """Return whether the rest of a file is padding or a tag, not audio."""
    file.seek(start)
    rest = file.read(_PADDING_BYTES)
    padding = size - start <= _PADDING_BYTES and not rest.strip(b"\0")
    return padding or rest.startswith((b"ID3", b"APETAGEX")) or (size - start == 128 and rest.startswith(b"TAG"))


def _fact_samples(file: BinaryIO, endian: str, fmt: tuple[int, int], fact: int, data_bytes: int) -> int | None:
    """Return the length of audio in coded blocks, the last of which need not be full; None for anything else."""
    file.seek(fmt[0])
    _, _, _, _, block_bytes, _, _, block_samples = struct.unpack(f"{endian}HHIIHHHH", file.read(20).ljust(20, b"\0"))
    if fmt[1] < 20 or not block_bytes or block_samples < 2:
        return None
    file.seek(fact)
    samples = int(struct.unpack(f"{endian}I", file.read(4).ljust(4, b"\0"))[0])
    most = -(-data_bytes // block_bytes) * block_samples
    return samples if most - block_samples < samples <= most else None
