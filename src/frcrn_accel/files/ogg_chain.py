"""Find the links of chained Ogg files: recordings of radio, in which one logical stream follows another.

Sources: RFC 3533, "The Ogg Encapsulation Format", sections 4 and 6; RFC 6716 (Opus), section 3.1; RFC 7845 (Opus in
Ogg), sections 4.2 and 4.4; RFC 9639 (FLAC), sections 9.1 and 10.1.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from frcrn_accel.files.parts import FilePart
from frcrn_accel.ogg import is_page_right

__all__ = ["Link", "find_links", "flac_at", "is_header_apart", "is_opus_late"]

_HEADER = struct.Struct("<4sBBqIIIB")  # pattern, version, type, position, serial number, page, checksum, segments
_PATTERN = b"OggS"
_CONTINUED, _FIRST_PAGE, _LAST_PAGE = 1, 2, 4
_MAX_LINKS = 10_000
_SERIAL = slice(14, 18)
_PACKET_BYTES = 16  # of a packet, in which its number of samples is
_FULL_SEGMENT = 255  # bytes; the packet continues in the next segment
_VORBIS_HEADERS, _OPUS_HEADERS, _FLAC_HEADERS = 3, 2, 1
# Samples at 48 kHz in a frame of Opus, by the mode and the last bits of its configuration.
_SILK_SAMPLES, _CELT_SAMPLES = (480, 960, 1_920, 2_880), (120, 240, 480, 960)
_FIRST_HYBRID, _FIRST_CELT = 12, 16
# The header of a frame of FLAC: its first two bytes, where the number of the frame lies, samples by the code for
# them, and bytes of the number of samples behind the number of the frame for the other codes.
_FLAC_SYNC, _FLAC_NUMBER_AT = b"\xff\xf8", 4
_FLAC_SAMPLES, _FLAC_STATED = (0, 192, 576, 1_152, 2_304, 4_608), {6: 1, 7: 2}


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
    return (_audio_at(file, 0, b"OpusHead", _OPUS_HEADERS, _opus_samples) or 0) > 0


def flac_at(file: BinaryIO, stream: int) -> int | None:
    """Return the position of the first sample of FLAC in Ogg; None if it is unknown, and for other codecs.

    FFmpeg counts the first page from 0, and the others from where the stream began.

    Args:
        file: The file, or one link of a chain.
        stream: Number of the logical stream.

    Raises:
        OSError: The file cannot be read.
    """
    return _audio_at(file, stream, b"\x7fFLAC", _FLAC_HEADERS, _flac_samples)


def _audio_at(
    file: BinaryIO, stream: int, magic: bytes, headers: int, samples_of: Callable[[bytes], int]
) -> int | None:
    """Return the position of the first sample by the first page on which audio ends; None if no page states it.

    Args:
        file: The file.
        stream: Number of the logical stream.
        magic: How its first packet starts.
        headers: How many packets at its start are certainly headers.
        samples_of: Returns how many samples a packet holds, from its first bytes.
    """
    file.seek(0)
    streams = packets = samples = 0
    serial, packet, is_known = b"", b"", True
    while len(header := file.read(_HEADER.size)) == _HEADER.size and header[:4] == _PATTERN:
        lengths = file.read(header[-1])
        body = file.read(sum(lengths))
        if header[5] & _FIRST_PAGE:
            if streams == stream:
                serial = header[_SERIAL]
            streams += 1
        if header[_SERIAL] != serial:
            continue
        if not is_page_right(header + lengths + body):
            packet = b""
            continue
        if bool(header[5] & _CONTINUED) != bool(packet):
            packet, is_known = b"", not header[5] & _CONTINUED  # the start of the first packet is missing, or its end
        at = 0
        for length in lengths:
            packet = (packet + body[at : at + length])[:_PACKET_BYTES]
            at += length
            if length == _FULL_SEGMENT:
                continue
            if not packets and not packet.startswith(magic):
                return None
            packets += 1
            samples += samples_of(packet) if is_known and packets > headers else 0
            packet, is_known = b"", True
        position: int = _HEADER.unpack(header)[3]
        if samples and position >= 0:
            return max(0, position - samples)
    return None


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


def _flac_samples(packet: bytes) -> int:
    """Return how many samples a packet of FLAC holds: 0 for a header."""
    if len(packet) < _FLAC_NUMBER_AT + 1 or packet[0] != _FLAC_SYNC[0] or packet[1] & 0xFE != _FLAC_SYNC[1]:
        return 0
    code = packet[2] >> 4
    if code in _FLAC_STATED:
        lead = packet[_FLAC_NUMBER_AT]  # of a number that is coded like a character of UTF-8
        at = _FLAC_NUMBER_AT + max(1, 8 - (lead ^ 0xFF).bit_length())
        return int.from_bytes(packet[at : at + _FLAC_STATED[code]], "big") + 1
    return 256 << code - 8 if code >= 8 else _FLAC_SAMPLES[code]


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
