"""Decode audio with libsndfile: PCM in its many containers, whatever their headers say about the length.

Recorders that crash leave sizes of 0 in the header, and files that were cut off leave sizes beyond their end.
libsndfile trusts a size of 0, so it is given a header with the right size.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.files.chunks import W64_RIFF, W64_TAIL, family_of, is_text, walk
from frcrn_accel.files.parts import FilePart
from frcrn_accel.files.stated import (
    SDS_HEADER_BYTES,
    SDS_PACKET_BYTES,
    is_joined,
    is_placeholder,
    joined_at,
    sds_packet_samples,
    stated_end,
)

__all__ = ["BLOCK_SAMPLES", "Patched", "Repair", "decode_patched", "find_repair", "open_patched", "wav_repair"]

BLOCK_SAMPLES = 1 << 16  # of each block but the last, whichever library decodes
_MAX_32 = 0xFFFF_FFFE
_W64_START = b"riff\x2e\x91\xcf\x11"
_SDS_START = b"\xf0\x7e"
_PADDING_BYTES = 1 << 16
# Encodings of AU by those of WAV: the tag of the format, and the bits of a sample.
_AU_ENCODINGS = {(1, 16): 3, (1, 24): 4, (1, 32): 5, (3, 32): 6, (3, 64): 7}
_AU_HEADER_BYTES, _AU_UNKNOWN = 24, 0xFFFF_FFFF
# Encodings of AIFC in which each sample has the same size.
_PLAIN_AIFC = (
    *(b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32"),
    *(b"fl32", b"FL32", b"fl64", b"FL64", b"ulaw", b"alaw"),
)
_NAMES = frozenset(
    (
        *(b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"axml", b"_PMX", b"cue ", b"smpl", b"cart", b"fact", b"PEAK"),
        *(b"JUNK", b"junk", b"chna", b"DISP", b"inst", b"ANNO", b"NAME", b"AUTH", b"(c) ", b"MARK", b"INST", b"info"),
    )
)
_READ_BY_HEADER = (b"\0\0\0\0", b"\0\0\x03\xe8", b"\xe8\x03\0\0")  # MAT4: the number of samples cannot be replaced
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
    """Compare the sizes in a WAV file that FFmpeg reads with the file; None if there is nothing to correct or to say.

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
    return repair if repair.patches or repair.notices else None


def find_repair(path: Path) -> Repair:
    """Compare the sizes in a header with the file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(32)
        size = file.seek(0, os.SEEK_END)
        repair = _find_repair(file, start, size)
        if repair.end is None and repair.audio_at is None:
            repair.end = joined_at(file) or None  # libsndfile refuses some of these
        return repair


def _find_repair(file: BinaryIO, start: bytes, size: int) -> Repair:
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
    is_raw = path.suffix.lower() == ".raw"  # by the name alone, soundfile expects samples without a header
    if not repair.patches and not repair.head and repair.end is None and not is_raw:
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
        if file.format == "MP3":  # whose number of samples is an estimate
            left = sys.maxsize
        while left and len(block := file.read(min(left, BLOCK_SAMPLES), dtype="float32", always_2d=True)):
            left -= len(block)
            yield np.ascontiguousarray(block.T)


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from its start to its end. Some encodings, such as DWVW, have no other way."""

    def seekable(self) -> bool:
        """Return False, so that reading a block does not end with a seek to where it ended."""
        return False


class Patched(FilePart):
    """A file that is read with its header, or some of its bytes, replaced, and up to the end of its audio."""

    def __init__(self, path: Path, repair: Repair) -> None:
        file = path.open("rb")
        end = file.seek(0, os.SEEK_END) if repair.end is None else repair.end
        super().__init__(file, repair.start - len(repair.head), end)
        self._repair = repair

    def _bytes_at(self, position: int, size: int) -> bytes:
        data = bytearray(self._repair.head[position : position + size])
        if size > len(data):
            data += super()._bytes_at(position + len(data), size - len(data))
        for start, patch in self._repair.patches.items():
            for at, byte in enumerate(patch, start - position):
                if 0 <= at < len(data):
                    data[at] = byte
        return bytes(data)

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
    if any(identity == b"data" and length for identity, _, length in after):
        repair.notices.append("it has more than one chunk of samples: only the first is read")
    rest = position + declared + (-declared % 8 if is_w64 else declared % 2)
    if _is_short(file, declared, rest, after, size):
        repair.samples, repair.audio_at = None, position
        if is_w64:
            repair.patches[position - 8] = struct.pack("<Q", present + 24)
        elif b"ds64" in found and start[:4] != b"RIFF":
            repair.patches[found[b"ds64"][0] + 8] = struct.pack("<Q", present)
        elif present > _MAX_32 and b"fmt " in found and (head := _long_head(file, found[b"fmt "], endian, present)):
            repair.start, repair.head = position, head
        else:
            repair.patches[4] = struct.pack(f"{endian}I", min(size - 8, _MAX_32))
            repair.patches[position - 4] = struct.pack(f"{endian}I", min(present, _MAX_32))
            repair.missing_bytes = max(0, present - _MAX_32)
        says = _says_less(declared, present) if declared else _IS_EMPTY
        repair.notices.append(says + _what_is_read(repair))
    elif declared > present and not is_placeholder(declared, bits=64 if is_w64 else 32):
        repair.missing_bytes = declared - present
    elif is_w64 and declared and rest < size:  # libsndfile would take what follows for samples
        repair.end = position + declared
    return repair


def _is_short(file: BinaryIO, declared: int, rest: int, after: list[tuple[bytes, int, int]], size: int) -> bool:
    """Return whether a header states less audio than there is, as after a crash.

    Args:
        file: The file.
        declared: Bytes of audio by the header.
        rest: Where they end.
        after: The chunks behind them, if what is there are chunks.
        size: Size of the file.
    """
    if rest >= size or _are_chunks(after[:1], size):
        return False
    return declared == 0 or not (_is_other(file, rest, size) or is_joined(file))


def _long_head(file: BinaryIO, fmt: tuple[int, int], endian: str, data_bytes: int) -> bytes:
    """Return a header that can count more than 4 GiB, for the samples of a WAV file; nothing if there is none.

    It is that of W64, which has 64 bits for sizes, or for big-endian samples that of AU, which need not state a size.
    """
    file.seek(fmt[0])
    content = file.read(fmt[1])
    if endian == ">":
        tag, channels, rate_hz, rate_bytes, block_bytes, bits = struct.unpack_from(">HHIIHH", content)
        encoding = _AU_ENCODINGS.get((tag, bits))
        if encoding is not None:
            return b".snd" + struct.pack(">IIIII", _AU_HEADER_BYTES, _AU_UNKNOWN, encoding, rate_hz, channels)
        if bits != 8:
            return b""
        content = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_bytes, block_bytes, bits)
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
    chunks = list(walk(file))
    found: dict[bytes, tuple[int, int]] = {}
    for identity, position, length in chunks:
        found.setdefault(identity, (position, length))
    if b"SSND" not in found or b"COMM" not in found:
        return repair
    position, length = found[b"SSND"]
    declared, present = max(0, length - 8), max(0, size - position - 8)  # an offset and a size of blocks come first
    comm, comm_bytes = found[b"COMM"]
    file.seek(comm)
    description = file.read(22).ljust(22, b"\0")
    channels, frames, bits = struct.unpack(">hIh", description[:8])
    frame_bytes = channels * -(-bits // 8)
    is_plain = comm_bytes < 22 or description[18:] in _PLAIN_AIFC
    rest = position + 8 + declared + declared % 2
    after = [chunk for chunk in chunks if chunk[1] > position]
    is_short = (is_plain or not declared) and _is_short(file, declared, rest, after, size)
    audio = present if is_short else min(declared, present)
    if audio and frame_bytes > 0 and (is_short or not frames):
        repair.patches[4] = struct.pack(">I", min(size - 8, _MAX_32))
        repair.patches[position - 4] = struct.pack(">I", min(audio + 8, _MAX_32))
        repair.patches[comm + 2] = struct.pack(">I", min(audio // frame_bytes, _MAX_32))
        repair.audio_at = position if audio == present else None
        repair.missing_bytes = max(0, audio + 8 - _MAX_32)
        says = _says_less(declared, present) if declared and frames else _IS_EMPTY
        repair.notices.append(says + _what_is_read(repair))
    elif declared > present and not is_placeholder(length):
        repair.missing_bytes = declared - present
    return repair


def _caf_repair(file: BinaryIO, size: int) -> Repair:
    repair = Repair()
    chunks = list(walk(file))
    for number, (identity, position, length) in enumerate(chunks):
        if identity == b"data":
            declared, present = max(0, length - 4), max(0, size - position - 4)  # a count of edits comes first
            if _is_short(file, declared, position + 4 + declared, chunks[number + 1 :], size):
                repair.audio_at = position
                repair.patches[position - 8] = struct.pack(">q", present + 4)
                says = _says_less(declared, present) if declared else _IS_EMPTY
                repair.notices.append(says + _what_is_read(repair))
            elif declared > present:
                repair.missing_bytes = declared - present
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
        if _is_other(file, end, size) or is_joined(file):
            repair.end = end
        else:
            what = "the rest is left out" if start.startswith(_READ_BY_HEADER) else _what_is_read(repair)
            repair.notices.append(
                f"its header says that its audio ends {size - end:,} bytes before the end of the file, as after a "
                f"crash: {what}"
            )
    return repair


def _are_chunks(chunks: list[tuple[bytes, int, int]], size: int) -> bool:
    """Return whether these are chunks, not samples that look like some. One that is cut off needs a known name."""
    return bool(chunks) and all(
        identity in _NAMES or (position + length <= size and all(32 <= byte < 127 for byte in identity))
        for identity, position, length in chunks
    )


def _is_other(file: BinaryIO, start: int, size: int) -> bool:
    """Return whether the rest of a file is padding, a tag or text, not audio."""
    file.seek(start)
    rest = file.read(_PADDING_BYTES)
    padding = size - start <= _PADDING_BYTES and not rest.strip(b"\0")
    is_tag = rest.startswith((b"ID3", b"APETAGEX")) or (size - start == 128 and rest.startswith(b"TAG"))
    return padding or is_tag or is_text(rest)


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
