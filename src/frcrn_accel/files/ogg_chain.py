"""Find the links of chained Ogg files: recordings of radio, in which one logical stream follows another.

Sources: RFC 3533, "The Ogg Encapsulation Format", sections 4 and 6; RFC 6716 (Opus), section 3.1; RFC 7845 (Opus in
Ogg), sections 4.2 and 4.4.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from frcrn_accel.files.parts import FilePart
from frcrn_accel.ogg import is_page_right

__all__ = ["Link", "find_links", "is_header_apart", "is_opus_late"]

_HEADER = struct.Struct("<4sBBqIIIB")  # pattern, version, type, position, serial number, page, checksum, segments
_PATTERN = b"OggS"
_FIRST_PAGE, _LAST_PAGE = 2, 4
_MAX_LINKS = 10_000
_SERIAL = slice(14, 18)
_FULL_SEGMENT = 255  # bytes; the packet continues in the next segment
_VORBIS_HEADERS, _OPUS_HEADERS = 3, 2
# Samples at 48 kHz in a frame of Opus, by the mode and the last bits of its configuration.
_SILK_SAMPLES, _CELT_SAMPLES = (480, 960, 1_920, 2_880), (120, 240, 480, 960)
_FIRST_HYBRID, _FIRST_CELT = 12, 16


@dataclass(frozen=True)
class Link:
    """One link of a chain.

    Attributes:
        start: Position of its first byte.
        end: Position after its last byte.
        form: Codec, rate and channels, from its first packets.
        is_ended: Whether its last page is marked as the last one.
        is_whole: Whether it is ended, all checksums of its pages are right, and nothing lies between them.
    """

    start: int
    end: int
    form: tuple[bytes, ...]
    is_ended: bool
    is_whole: bool

    def view(self, file: BinaryIO) -> FilePart:
        """Return the link as a file of its own."""
        return FilePart(file, self.start, self.end)


def find_links(file: BinaryIO) -> list[Link]:
    """Return the links of an Ogg file; one for a file that is not chained.

    Data between pages is skipped, as decoders do.

    Raises:
        OSError: The file cannot be read.
    """
    size = file.seek(0, os.SEEK_END)
    starts: list[int] = []
    forms: list[list[bytes]] = []
    ended: list[bool] = []
    whole: list[bool] = []
    position, in_headers = 0, False
    while len(starts) <= _MAX_LINKS:
        file.seek(position)
        header = file.read(_HEADER.size)
        if header[:4] != _PATTERN or len(header) < _HEADER.size:
            if whole:
                whole[-1] &= not header
            position = _next_page(file, position + 1)
            if position < 0:
                break
            continue
        kind, segments = header[5], header[-1]
        lengths = file.read(segments)
        body = file.read(sum(lengths))
        is_right = len(body) == sum(lengths) and is_page_right(header + lengths + body)
        if kind & _FIRST_PAGE and is_right:
            if not in_headers or not starts:
                starts.append(position)
                forms.append([])
                ended.append(False)
                whole.append(True)
            forms[-1].append(_form(body))
        if whole:
            whole[-1] &= is_right
            ended[-1] = bool(kind & _LAST_PAGE) and len(body) == sum(lengths)
        in_headers = bool(kind & _FIRST_PAGE) and is_right
        position += _HEADER.size + segments + sum(lengths) if is_right else len(_PATTERN)
    ends = [*starts[1:], size][: len(starts)]  # without one right page there is no link
    return [
        Link(start, end, tuple(form), is_ended, is_ended and is_whole)
        for start, end, form, is_ended, is_whole in zip(starts, ends, forms, ended, whole, strict=True)
    ]


def is_header_apart(file: BinaryIO) -> bool:
    """Return whether the header of Vorbis ends with its page, as it must. True for other codecs.

    Some old encoders put the first packets of the audio on that page, too. libsndfile does not count them, and drops
    samples from the start of the audio instead.

    Source: Vorbis I specification, section A.2.

    Raises:
        OSError: The file cannot be read.
    """
    file.seek(0)
    left, serial = _VORBIS_HEADERS, None
    while left:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or header[:4] != _PATTERN:
            return True
        lengths = file.read(header[-1])
        body = file.read(sum(lengths))
        serial = serial or header[_SERIAL]
        if header[_SERIAL] != serial:
            continue
        if left == _VORBIS_HEADERS and body[:7] != b"\x01vorbis":
            return True
        ends = [number for number, length in enumerate(lengths) if length < _FULL_SEGMENT]
        if len(ends) >= left:
            return ends[left - 1] == len(lengths) - 1
        left -= len(ends)
    return True


def is_opus_late(file: BinaryIO) -> bool:
    """Return whether a file is Opus that starts after the beginning of its stream, such as a recording of radio.

    libsndfile then plays the samples that a decoder must skip, and drops as many from the end.

    Raises:
        OSError: The file cannot be read.
    """
    file.seek(0)
    packets = samples = 0
    packet = b""
    while len(header := file.read(_HEADER.size)) == _HEADER.size and header[:4] == _PATTERN:
        lengths = file.read(header[-1])
        for length in lengths:
            packet += file.read(length)
            if length == _FULL_SEGMENT:
                continue
            if not packets and not packet.startswith(b"OpusHead"):
                return False
            packets += 1
            samples += _opus_samples(packet) if packets > _OPUS_HEADERS else 0
            packet = b""
        position = _HEADER.unpack(header)[3]
        if samples and position >= 0:
            return bool(position > samples)
    return False


def _opus_samples(packet: bytes) -> int:
    """Return how many samples at 48 kHz a packet of Opus holds."""
    if not packet:
        return 0
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < _FIRST_HYBRID:
        frame = _SILK_SAMPLES[configuration & 3]
    else:
        frame = _CELT_SAMPLES[configuration & 3] if configuration >= _FIRST_CELT else _SILK_SAMPLES[configuration & 1]
    return frame * (1 if not code else 2 if code < 3 else packet[1] & 63 if len(packet) > 1 else 0)


def _next_page(file: BinaryIO, start: int) -> int:
    """Return where the next page starts; -1 if there is none."""
    before = b""
    file.seek(start)
    while chunk := file.read(1 << 16):
        if (at := (before + chunk).find(_PATTERN)) >= 0:
            return start + at - len(before)
        start += len(chunk)
        before = chunk[1 - len(_PATTERN) :]
    return -1


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
