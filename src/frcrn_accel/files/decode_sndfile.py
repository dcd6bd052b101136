"""Decode audio with libsndfile: PCM in its many containers, whatever their headers say about the length.

Recorders that crash leave sizes of 0 in the header, and files that were cut off leave sizes beyond their end.
libsndfile trusts a size of 0, so it is given a header with the right size.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.files.chunks import family_of, walk

__all__ = ["BLOCK_SAMPLES", "Repair", "decode_patched", "find_repair", "open_patched"]

BLOCK_SAMPLES = 1 << 16  # of each block but the last, whichever library decodes
# Sizes that programs write before they know the length: SoX 0x7F000000 in AIFF and 0x7FFFF000 in WAV, arecord
# 0x80000000, FFmpeg 0xFFFFFFFF, each give or take a header or a part of a sample.
_PLACEHOLDERS = (range(0x7EFF_0000, 0x8001_0000), range(0xFFFF_0000, 0x1_0000_0000))
_MAX_32 = 0xFFFF_FFFE
_W64_START = b"riff\x2e\x91\xcf\x11"
_PADDING_BYTES = 1 << 16
_IS_EMPTY = "its header says that it is empty, as after a crash: it is read to the end of the file"
_NIST_HEADER_BYTES = 1_024
_NIST_FIELDS = re.compile(rb"^(channel_count|sample_count|sample_n_bytes) -(?:i|s1) (\d{1,15})$", re.M)


@dataclass
class Repair:
    """How a header differs from the file, and how to correct it.

    Attributes:
        patches: Bytes to replace, by position.
        notices: Warnings about the correction, without the name of the file.
        missing_bytes: Bytes of audio that are not read: the file ends before them, or no header can count them.
        samples: Length in samples, if the header states it more exactly than the size of the data; else None.
    """

    patches: dict[int, bytes] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    missing_bytes: int = 0
    samples: int | None = None


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
            return _au_repair(start, size)
        if start[:4] == b"NIST":
            return _nist_repair(file.read(_NIST_HEADER_BYTES), size)
    return Repair()


def open_patched(path: Path, repair: Repair) -> soundfile.SoundFile:
    """Open a file with libsndfile.

    Raises:
        SoundFileError: libsndfile does not recognize the file.
        OSError: The file cannot be read.
    """
    if not repair.patches:
        return soundfile.SoundFile(os.fsencode(path))
    return soundfile.SoundFile(_Patched(path, repair.patches))


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


class _Patched(io.RawIOBase):
    """A file that is read with some of its bytes replaced."""

    def __init__(self, path: Path, patches: dict[int, bytes]) -> None:
        self._file = path.open("rb")
        self._patches = patches

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        start = self._file.tell()
        data = bytearray(self._file.read(size))
        for position, patch in self._patches.items():
            for at, byte in enumerate(patch, position - start):
                if 0 <= at < len(data):
                    data[at] = byte
        return bytes(data)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _riff_repair(file: BinaryIO, start: bytes, size: int) -> Repair:
    repair = Repair()
    is_w64 = start[:8] == _W64_START
    chunks = list(walk(file))
    found: dict[bytes, tuple[int, int]] = {}
    for identity, position, length in chunks:
        found.setdefault(identity, (position, length))
    if b"data" not in found:
        return repair
    position, declared = found[b"data"]
    present = max(0, size - position)
    if b"fmt " in found and b"fact" in found:
        repair.samples = _fact_samples(file, found[b"fmt "], found[b"fact"][0], min(declared, present))
    after = [chunk for chunk in chunks if chunk[1] > position]
    rest = position + declared + declared % 2
    is_short = declared > 0 and rest < size and not _are_chunks(after[:1], size) and not _is_other(file, rest, size)
    if (declared == 0 and present and not _are_chunks(after[:1], size)) or is_short:
        repair.samples = None
        if is_w64:
            repair.patches[position - 8] = struct.pack("<Q", present + 24)
        elif b"ds64" in found and start[:4] != b"RIFF":
            repair.patches[found[b"ds64"][0] + 8] = struct.pack("<Q", present)
        else:
            repair.patches[4] = struct.pack("<I", min(size - 8, _MAX_32))
            repair.patches[position - 4] = struct.pack("<I", min(present, _MAX_32))
            repair.missing_bytes = max(0, present - _MAX_32)
        says = f"has only {declared:,} of {present:,} bytes of audio" if declared else "is empty"
        what = "its first 4 GiB are read" if repair.missing_bytes else "it is read to the end of the file"
        repair.notices.append(f"its header says that it {says}, as after a crash: {what}")
    elif declared > present and (is_w64 or not _is_placeholder(declared)):
        repair.missing_bytes = declared - present
    return repair


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
        repair.patches[comm + 2] = struct.pack(">I", present // frame_bytes)
        repair.notices.append(_IS_EMPTY)
    elif declared > present + 8 and not _is_placeholder(declared):
        repair.missing_bytes = declared - present - 8
    return repair


def _caf_repair(file: BinaryIO, size: int) -> Repair:
    repair = Repair()
    for identity, position, declared in walk(file):
        if identity == b"data":
            present = max(0, size - position - 4)  # a count of edits comes first
            if present and declared <= 4 and position + declared < size:
                repair.patches[position - 8] = struct.pack(">q", present + 4)
                repair.notices.append(_IS_EMPTY)
            elif declared > present + 4:
                repair.missing_bytes = declared - present - 4
                repair.patches[position - 8] = struct.pack(">q", present + 4)  # else libsndfile refuses it
    return repair


def _au_repair(start: bytes, size: int) -> Repair:
    repair = Repair()
    offset, declared = struct.unpack("<II" if start[:4] == b"dns." else ">II", start[4:12])
    present = max(0, size - offset)
    if declared == 0 and present:
        repair.patches[8] = b"\xff" * 4
        repair.notices.append(_IS_EMPTY)
    elif declared > present and not _is_placeholder(declared):
        repair.missing_bytes = declared - present
    return repair


def _nist_repair(header: bytes, size: int) -> Repair:
    fields = {name: int(value) for name, value in _NIST_FIELDS.findall(header)}
    declared = fields.get(b"channel_count", 1) * fields.get(b"sample_count", 0) * fields.get(b"sample_n_bytes", 0)
    return Repair(missing_bytes=max(0, declared - max(0, size - _NIST_HEADER_BYTES)))


def _is_placeholder(size: int) -> bool:
    """Return whether a size in a header is not a length."""
    return any(size in placeholders for placeholders in _PLACEHOLDERS)


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


def _fact_samples(file: BinaryIO, fmt: tuple[int, int], fact: int, data_bytes: int) -> int | None:
    """Return the length of audio in coded blocks, the last of which need not be full; None for anything else."""
    file.seek(fmt[0])
    _, _, _, _, block_bytes, _, _, block_samples = struct.unpack("<HHIIHHHH", file.read(20).ljust(20, b"\0"))
    if fmt[1] < 20 or not block_bytes or block_samples < 2:
        return None
    file.seek(fact)
    samples = int.from_bytes(file.read(4), "little")
    most = -(-data_bytes // block_bytes) * block_samples
    return samples if most - block_samples < samples <= most else None
