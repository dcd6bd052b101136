"""Find where a file ends by its own header, to notice that it was cut off.

libsndfile and FFmpeg read most formats to the end that they find, without an error.

Sources: RFC 8794 (EBML), sections 5 and 6; Microsoft's "Advanced Systems Format (ASF) Specification", section 3.2;
ISO/IEC 14496-12 (boxes of MP4), section 4.2; Adobe's FLV specification; "EA IFF 85" and "8SVX";
Creative's VOC, NIST SPHERE, MIDI Sample Dump Standard; SMPTE 377-1 (MXF), section 7; Sony's "DSF File Format
Specification" and Philips' DSDIFF; The MathWorks' "MAT-File Format"; "TTA Lossless Audio Codec", format 1; the
readers of libsndfile, SoX and FFmpeg for the others.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import BinaryIO, Literal, cast

from frcrn_accel.files.boxes import is_start, walk_boxes
from frcrn_accel.files.chunks import family_of, id3_end, walk
from frcrn_accel.files.parts import FilePart
from frcrn_accel.numerals import to_whole

__all__ = [
    "SDS_HEADER_BYTES",
    "SDS_PACKET_BYTES",
    "begins_again",
    "behind_id3",
    "behind_tags",
    "is_joined",
    "is_placeholder",
    "joined_at",
    "matroska_s",
    "missing_bytes",
    "sds_packet_samples",
    "stated_end",
]

# Sizes that programs write before they know the length: SoX 0x7F000000 in AIFF and 0x7FFFF000 in WAV, arecord
# 0x80000000, FFmpeg 0xFFFFFFFF, each give or take a header or a part of a sample.
_PLACEHOLDERS = (range(0x7EFF_0000, 0x8001_0000), range(0xFFFF_0000, 0x1_0000_0000))
_LARGEST_BYTES = 1 << 62  # programs also write the largest number of 63 or 64 bits, or that number of samples
_HEADER_BYTES = 1 << 16
_Endian = Literal["big", "little"]
_MAX_PARTS = 100_000
_ROUNDED_BYTES = 16  # FFmpeg states 10 too many in RealMedia
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
_INFO = bytes.fromhex("1549a966")
_DURATION = re.compile(rb"\x44\x89(?:\x84(?P<single>.{4})|\x88(?P<double>.{8}))", re.S)
_SCALE = re.compile(rb"\x2a\xd7\xb1[\x81-\x88]", re.S)
_INFO_BYTES, _USUAL_SCALE_NS = 512, 1_000_000
_LONGEST_NS = 10**9 * 86_400 * 365  # a year: a longer duration is damage
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MXF = bytes.fromhex("060e2b34020501010d01020101")
_NIST_FIELDS = re.compile(rb"^(channel_count|sample_count|sample_n_bytes) -(?:i|s1) (\d{1,15})$", re.M)
_NIST_SIZE = slice(8, 16)  # of the header, in bytes
SDS_HEADER_BYTES, SDS_PACKET_BYTES, _SDS_CONTENT_BYTES = 21, 127, 120
_AVR_HEADER_BYTES, _MPC2K_HEADER_BYTES, _WVE_HEADER_BYTES = 128, 42, 32
_XI_SAMPLES_AT, _XI_SAMPLE_HEADER_BYTES = 296, 40
_MAT4_SAMPLE_BYTES = (8, 4, 4, 2, 2, 1)
_ADX_BLOCK_SAMPLES = 32
_AUD_HEADER_BYTES, _AUD_CHUNK, _AUD_MARK = 12, slice(16, 20), b"\xaf\xde\0\0"
_TTA_HEADER_BYTES, _TTA_RATE_AT, _TTA_CHECKSUM_BYTES = 22, 10, 4
_TOP_BOXES = frozenset(
    (
        *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"free", b"skip", b"wide", b"uuid"),
        *(b"meta", b"udta", b"emsg", b"prft", b"pdin", b"pnot"),
    )
)
_MAX_TAGS, _ID3V1_BYTES, _APE_HEADER_BYTES = 16, 128, 32
_READ_WHOLE = (_EBML, b".RMF")  # FFmpeg reads on behind the end, or each part is opened
_KIND_BYTES, _START_BYTES, _REST_BYTES = 20, 24, 1 << 20
_TS_SYNC = b"\x47"
_VOC_SOUNDS = (1, 2, 9)


def is_placeholder(size: int, *, bits: int = 32) -> bool:
    """Return whether a size in a header, a field of 32 or 64 bits, is not a length."""
    return size >= _LARGEST_BYTES or (bits == 32 and any(size in placeholders for placeholders in _PLACEHOLDERS))


def missing_bytes(file: BinaryIO) -> int:
    """Return how many bytes a header states beyond the end of the file; 0 if it states none, or hardly any."""
    missing = stated_end(file) - file.seek(0, os.SEEK_END)
    return missing if missing > _ROUNDED_BYTES else 0


def stated_end(file: BinaryIO) -> int:
    """Return the position behind the last byte of audio, or of the whole file, by its header; 0 if it states none."""
    front, file = behind_id3(file)
    end = _end_of(_start_of(file), file)
    return front + end if 0 < end < _LARGEST_BYTES else 0


def is_joined(file: BinaryIO) -> bool:
    """Return whether another file of the same kind follows behind the end that a header states, as after `cat`.

    Of such files, programs read the first one only, except for the streams of frames, Ogg, FLAC, Matroska, AVI,
    RealMedia and MP4, which are read whole.
    """
    return joined_at(file) > 0


def joined_at(file: BinaryIO) -> int:
    """Return where another file of the same kind starts, see `is_joined`; 0 if there is none.

    Tags and padding may lie between them.
    """
    front, file = behind_id3(file)
    start = _start_of(file)
    if start.startswith(_READ_WHOLE) or is_start(start) or (start[:4] == b"RIFF" and start[8:12] == b"AVI "):
        return 0
    end = _end_of_file(start, file)
    if not 0 < end < file.seek(0, os.SEEK_END):
        return 0
    second = _second_at(file, start, end)
    return front + second if second else 0


def begins_again(file: BinaryIO, position: int, *, is_simple: bool) -> bool:
    """Return whether the start of a file is found again behind its audio: another one follows that is not read.

    Args:
        file: The file.
        position: Where its audio ends, not counting ID3v2 tags in front.
        is_simple: Whether nothing but tags follows the audio, so that a few equal bytes are enough.
    """
    _, file = behind_id3(file)
    file.seek(0)
    start = file.read(_START_BYTES)
    if is_simple and _second_at(file, start, position):
        return True
    file.seek(position)
    is_stream = start[:1] == _TS_SYNC  # packets of MPEG-TS are alike
    return len(set(start)) > 1 and not is_stream and start in file.read(_REST_BYTES)


def behind_tags(file: BinaryIO, position: int) -> int:
    """Return where the padding and the tags end that start at a position."""
    for _ in range(_MAX_TAGS):
        file.seek(position)
        head = file.read(_APE_HEADER_BYTES)
        if head.startswith(b"TAG"):
            position += _ID3V1_BYTES
        elif head.startswith(b"APETAGEX"):
            has_header = head[23] >> 7 if len(head) == _APE_HEADER_BYTES else 0
            position += int.from_bytes(head[12:16], "little") + has_header * _APE_HEADER_BYTES
        elif (behind := id3_end(file, position)) > position:
            position = behind
        elif padding := len(head) - len(head.lstrip(b"\0")):
            position += padding
        else:
            break
    return position


def behind_id3(file: BinaryIO) -> tuple[int, BinaryIO]:
    """Return the size of the ID3v2 tags in front of a file, and the file without them."""
    front = id3_end(file)
    if not front:
        return 0, file
    return front, cast(BinaryIO, FilePart(file, front, max(front, file.seek(0, os.SEEK_END))))


def _start_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(_HEADER_BYTES)


def _end_of(start: bytes, file: BinaryIO) -> int:
    if is_start(start):
        return _boxes_end(file)
    if start[_AUD_CHUNK] == _AUD_MARK:
        return _AUD_HEADER_BYTES + int.from_bytes(start[2:6], "little")
    for magic, find_end in _ENDS:
        if start.startswith(magic):
            try:
                return find_end(start, file)
            except (struct.error, IndexError, ValueError, ArithmeticError):  # the header is cut off or damaged
                return 0
    return 0


def _end_of_file(start: bytes, file: BinaryIO) -> int:
    """Return the position behind a file by its header, with what follows its audio."""
    if family_of(start):
        file.seek(0)
        heads = {b"riff": 24, b"caff": 12}
        for identity, position, _ in walk(file):
            if identity == start[:4]:
                return position - heads.get(identity, 8)
    if start[:4] in (b"RIFF", b"FORM"):
        size = int.from_bytes(start[4:8], "little" if start[:1] == b"R" else "big")
        return 8 + size + size % 2
    if start[:4] == b".snd":
        return int.from_bytes(start[4:8], "big") + int.from_bytes(start[8:12], "big")
    return _end_of(start, file)


def _second_at(file: BinaryIO, start: bytes, end: int) -> int:
    """Return where another file of the same kind starts, at a position or behind tags there; 0 if none does."""
    for position in (end, behind_tags(file, end)):
        file.seek(position)
        if _is_same_kind(start, file.read(_KIND_BYTES)):
            return position
    return 0


def _is_same_kind(start: bytes, second: bytes) -> bool:
    """Return whether two files are of one kind by their first bytes."""
    if start[:4] in (b"RIFF", b"FORM"):  # a long AVI has more parts of another kind
        return start[:4] == second[:4] and start[8:12] == second[8:12]
    size = 4 if any(start[:4]) else _KIND_BYTES  # MAT4 starts with zeros
    if start.startswith(_MXF):  # whose last part starts like the first, up to the kind of the part
        size = len(_MXF) + 1
    return any(start[:size]) and start[:size] == second[:size]


def _riff_end(start: bytes, file: BinaryIO) -> int:
    if start[8:12] == b"AVI ":
        size = int.from_bytes(start[4:8], "little")
        return 0 if is_placeholder(size) else 8 + size
    if family_of(start) != "RIFF":
        return 0
    file.seek(0)
    for identity, position, size in walk(file):
        if identity == b"data":
            return 0 if is_placeholder(size) else position + size
    return 0


def _caf_end(start: bytes, file: BinaryIO) -> int:
    file.seek(0)
    return next((position + size for identity, position, size in walk(file) if identity == b"data"), 0)


def _form_end(start: bytes, file: BinaryIO) -> int:
    size = int.from_bytes(start[4:8], "big")
    return 0 if is_placeholder(size) else 8 + size


def _ebml_end(start: bytes, file: BinaryIO) -> int:
    return _end_of_element(start, _end_of_element(start, 0, _EBML), _SEGMENT)


def _end_of_element(start: bytes, position: int, identity: bytes) -> int:
    """Return the position behind an element of EBML; 0 if it is not there or does not state its size."""
    head = start[position : position + 12]
    if not head.startswith(identity) or len(head) < 12 or not head[4]:
        return 0
    length = 9 - head[4].bit_length()
    unknown = (1 << 7 * length) - 1
    content = int.from_bytes(head[4 : 4 + length], "big") & unknown
    return 0 if content == unknown else position + 4 + length + content


def matroska_s(file: BinaryIO) -> Fraction | None:
    """Return the time at which a Matroska file ends by its header; None if the header does not state it.

    Its clusters have sizes of their own: nothing else says that the last ones cannot be found behind damage.
    """
    _, file = behind_id3(file)
    start = _start_of(file)
    at = start.find(_INFO)
    if not start.startswith(_EBML) or at < 0:
        return None
    info = start[at : at + _INFO_BYTES]
    duration, scale = _DURATION.search(info), _SCALE.search(info)
    if duration is None:
        return None
    (units,) = (
        struct.unpack(">f", duration["single"]) if duration["single"] else struct.unpack(">d", duration["double"])
    )
    scale_ns = _USUAL_SCALE_NS
    if scale is not None:
        size = info[scale.end() - 1] & 0x7F
        scale_ns = int.from_bytes(info[scale.end() : scale.end() + size], "big")
    return Fraction(units) * scale_ns / 10**9 if 0 < units * scale_ns < _LONGEST_NS else None


def _asf_end(start: bytes, file: BinaryIO) -> int:
    at = start.find(_ASF_PROPERTIES)
    if not 0 <= at <= len(start) - 92:
        return 0
    is_live = start[at + 88] & 1
    return 0 if is_live else int.from_bytes(start[at + 40 : at + 48], "little")


def _boxes_end(file: BinaryIO) -> int:
    """Return the end of the last box of an MP4 file that starts within it; 0 for a box up to the end of the file."""
    boxes = [box for box in walk_boxes(file) if box[0] in _TOP_BOXES]  # not what looks like one behind them
    end = max((position + length for _, position, length in boxes), default=0)
    return end if end >= file.seek(0, os.SEEK_END) else 0


def _flv_end(start: bytes, file: BinaryIO) -> int:
    at = start.find(b"\0\x08filesize\0") + 11
    return int(struct.unpack(">d", start[at : at + 8])[0]) if at > 10 else 0


def _real_end(start: bytes, file: BinaryIO) -> int:
    position = 0
    while position < len(start):
        identity, size = start[position : position + 4], int.from_bytes(start[position + 4 : position + 8], "big")
        position += size
        if identity == b"DATA":
            return position
        if size < 8:
            break
    return 0


def _voc_end(start: bytes, file: BinaryIO) -> int:
    size, position, end = file.seek(0, os.SEEK_END), int.from_bytes(start[20:22], "little"), 0
    for _ in range(_MAX_PARTS):
        file.seek(position)
        block = file.read(4)
        if len(block) < 4 or not block[0]:
            break
        position += 4 + int.from_bytes(block[1:], "little")
        if block[0] in _VOC_SOUNDS:
            end = position
        if position > size:
            break
    return end


def _mxf_end(start: bytes, file: BinaryIO) -> int:
    at = 17 + (start[16] & 0x7F if start[16] & 0x80 else 0)  # behind the key and the length of the first partition
    return int.from_bytes(start[at + 24 : at + 32], "big")


def _adx_end(start: bytes, file: BinaryIO) -> int:
    offset, block_bytes, channels = int.from_bytes(start[2:4], "big"), start[5], start[7]
    samples = int.from_bytes(start[12:16], "big")
    return offset + 4 + -(-samples // _ADX_BLOCK_SAMPLES) * block_bytes * channels if start[4] == 3 else 0


def _avr_end(start: bytes, file: BinaryIO) -> int:
    stereo, bits = int.from_bytes(start[12:14], "big"), int.from_bytes(start[14:16], "big")
    frames = int.from_bytes(start[26:30], "big")
    return _AVR_HEADER_BYTES + frames * (2 if stereo else 1) * (bits // 8)


def _mpc2k_end(start: bytes, file: BinaryIO) -> int:
    return _MPC2K_HEADER_BYTES + 2 * (start[21] + 1) * int.from_bytes(start[30:34], "little")


def _xi_end(start: bytes, file: BinaryIO) -> int:
    count = int.from_bytes(start[_XI_SAMPLES_AT : _XI_SAMPLES_AT + 2], "little")
    heads = range(_XI_SAMPLES_AT + 2, _XI_SAMPLES_AT + 2 + count * _XI_SAMPLE_HEADER_BYTES, _XI_SAMPLE_HEADER_BYTES)
    size = sum(int.from_bytes(start[at : at + 4], "little") for at in heads)
    return heads.stop + size if size else 0  # libsndfile writes 0


def _mat4_end(start: bytes, file: BinaryIO) -> int:
    at = start.find(b"wavedata\0")
    if at < 0:
        return 0  # HTK can start with these bytes
    endian: _Endian = "big" if start[:4] == b"\0\0\x03\xe8" else "little"
    kind, rows, columns = (int.from_bytes(start[place : place + 4], endian) for place in range(at - 20, at - 8, 4))
    return at + 9 + rows * columns * _MAT4_SAMPLE_BYTES[kind // 10 % 10]


def _mat5_end(start: bytes, file: BinaryIO) -> int:
    at = start.find(b"wavedata")
    endian: _Endian = "little" if start[126:128] == b"IM" else "big"
    return at + 16 + int.from_bytes(start[at + 12 : at + 16], endian) if at >= 0 else 0


def _nist_end(start: bytes, file: BinaryIO) -> int:
    head = to_whole(start[_NIST_SIZE].decode("latin-1").strip())
    if head is None:
        return 0
    fields = {name: int(value) for name, value in _NIST_FIELDS.findall(start[:head])}
    size = fields.get(b"channel_count", 1) * fields.get(b"sample_count", 0) * fields.get(b"sample_n_bytes", 0)
    return head + size if size else 0


def _tta_end(start: bytes, file: BinaryIO) -> int:
    rate_hz, samples = struct.unpack_from("<II", start, _TTA_RATE_AT)
    frames = -(-samples // (rate_hz * 256 // 245))
    file.seek(_TTA_HEADER_BYTES)
    table = file.read(4 * min(frames, _MAX_PARTS))
    sizes = struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4])
    return int(_TTA_HEADER_BYTES + 4 * frames + _TTA_CHECKSUM_BYTES + sum(sizes))


def _sds_end(start: bytes, file: BinaryIO) -> int:
    samples = start[10] | start[11] << 7 | start[12] << 14
    return SDS_HEADER_BYTES + -(-samples // sds_packet_samples(start)) * SDS_PACKET_BYTES


def sds_packet_samples(start: bytes) -> int:
    """Return the samples in each packet of a Sample Dump file, by its first bytes."""
    return _SDS_CONTENT_BYTES // max(1, -(-start[6] // 7))


_ENDS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes, BinaryIO], int]], ...] = (
    ((b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff"), _riff_end),
    (b"FORM", _form_end),
    (b"caff", _caf_end),
    (_EBML, _ebml_end),
    (_ASF, _asf_end),
    (b"FLV", _flv_end),
    (b".RMF", _real_end),
    (b"Crea", _voc_end),
    (_MXF, _mxf_end),
    (b"2BIT", _avr_end),
    (b"\x01\x04", _mpc2k_end),
    (b"Exte", _xi_end),
    (b"MATL", _mat5_end),
    ((b"\0\0\0\0", b"\0\0\x03\xe8", b"\xe8\x03\0\0"), _mat4_end),
    (b"NIST", _nist_end),
    (b"TTA1", _tta_end),
    (b"\xf0\x7e", _sds_end),
    (b"\x80\0", _adx_end),
    (b"ALaw", lambda start, _: _WVE_HEADER_BYTES + int.from_bytes(start[18:22], "big")),
    (b"MMMD", lambda start, _: 8 + int.from_bytes(start[4:8], "big")),
    (b"DSD ", lambda start, _: int.from_bytes(start[12:20], "little")),
    (b"FRM8", lambda start, _: 12 + int.from_bytes(start[4:12], "big")),
    (
        b".SoX",
        lambda start, _: 4 + int.from_bytes(start[4:8], "little") + 4 * int.from_bytes(start[8:16], "little"),
    ),
    (b"XoS.", lambda start, _: 4 + int.from_bytes(start[4:8], "big") + 4 * int.from_bytes(start[8:16], "big")),
)
