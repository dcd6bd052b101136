"""The standard forms of tags: ID3v2, Vorbis comments, APEv2, INFO lists, and free fields of MP4.

Sources: id3.org's "ID3v2.4.0" and "Chapter Frame Addendum"; RFC 9639 (FLAC), sections 8.6 and 8.8; the APEv2
specification of Monkey's Audio; Microsoft's "Multimedia Programming Interface" (RIFF INFO); Apple's QuickTime File
Format (metadata item list).
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping, Sequence

from frcrn_accel.files.belongings import Belongings, Chapter, Picture

__all__ = [
    "INFO_NAMES",
    "ape_tag",
    "flac_picture",
    "id3_tag",
    "info_list",
    "is_comment_name",
    "mp4_field",
    "vorbis_comments",
]

_ID3_FRAMES = {
    "title": "TIT2",
    "artist": "TPE1",
    "album": "TALB",
    "album_artist": "TPE2",
    "composer": "TCOM",
    "date": "TDRC",
    "track": "TRCK",
    "disc": "TPOS",
    "genre": "TCON",
    "copyright": "TCOP",
    "publisher": "TPUB",
    "performer": "TPE3",
    "encoded_by": "TENC",
    "language": "TLAN",
    "grouping": "TIT1",
    "compilation": "TCMP",
    "bpm": "TBPM",
    "isrc": "TSRC",
}
_UTF8 = b"\x03"
_MAX_TOC = 255
_ID3V1_BYTES = 128
_COMMENT_NAMES = {
    "track": "TRACKNUMBER",
    "disc": "DISCNUMBER",
    "album_artist": "ALBUMARTIST",
    "publisher": "ORGANIZATION",
}
_APE_NAMES = {"album_artist": "Album Artist", "date": "Year", "bpm": "BPM", "isrc": "ISRC"}
INFO_NAMES = {
    "title": b"INAM",
    "artist": b"IART",
    "album": b"IPRD",
    "comment": b"ICMT",
    "copyright": b"ICOP",
    "date": b"ICRD",
    "genre": b"IGNR",
    "language": b"ILNG",
    "track": b"IPRT",
    "encoded_by": b"ITCH",
}


def id3_tag(belongings: Belongings) -> bytes:
    """Return an ID3v2.4 tag with the text, pictures and chapters, or nothing if there are none."""
    frames = [_id3_text(name, text) for name, text in belongings.tags.items()]
    frames += [
        _id3_frame(
            "APIC",
            b"".join((_UTF8, _latin(picture.mime), bytes([picture.kind]), _utf8(picture.description), picture.data)),
        )
        for picture in belongings.pictures
    ]
    chapters = belongings.chapters
    if 0 < len(chapters) <= _MAX_TOC:
        children = b"".join(_latin(f"chp{number}") for number in range(len(chapters)))
        frames.append(_id3_frame("CTOC", _latin("toc") + bytes([3, len(chapters)]) + children))
    frames += [_id3_chapter(number, chapter) for number, chapter in enumerate(chapters)]
    body = b"".join(frames)
    return b"ID3\x04\0\0" + _synchsafe(len(body)) + body if body else b""


def _id3_text(name: str, text: str) -> bytes:
    if name in ("comment", "lyrics"):
        return _id3_frame("COMM" if name == "comment" else "USLT", _UTF8 + b"und" + b"\0" + text.encode())
    frame = _ID3_FRAMES.get(name)
    if frame is None and re.fullmatch(r"T(?!XXX)[A-Z0-9]{3}", name):
        frame = name
    return (
        _id3_frame(frame, _UTF8 + text.encode()) if frame else _id3_frame("TXXX", _UTF8 + _utf8(name) + text.encode())
    )


def _id3_chapter(number: int, chapter: Chapter) -> bytes:
    times = [min(round(time * 1000), 0xFFFFFFFE) for time in (chapter.start_s, chapter.end_s)]
    head = _latin(f"chp{number}") + struct.pack(">IIII", *times, 0xFFFFFFFF, 0xFFFFFFFF)
    return _id3_frame("CHAP", head + _id3_frame("TIT2", _UTF8 + chapter.title.encode()))


def _id3_frame(name: str, data: bytes) -> bytes:
    return name.encode() + _synchsafe(len(data)) + b"\0\0" + data


def _synchsafe(size: int) -> bytes:
    return bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))


def _latin(text: str) -> bytes:
    return text.encode("latin-1", "replace") + b"\0"


def _utf8(text: str) -> bytes:
    return text.encode() + b"\0"


def is_comment_name(name: str) -> bool:
    """Return whether Vorbis comments and APEv2 tags can hold a field of this name."""
    return re.fullmatch(r"[ -<>-}]{2,255}", name) is not None


def vorbis_comments(
    tags: Mapping[str, str], chapters: Sequence[Chapter] = (), pictures: Sequence[Picture] = (), vendor: str = ""
) -> bytes:
    """Return the body of a Vorbis comment header, without the framing bit.

    FLAC has blocks of their own for pictures; Ogg has them in the comments.
    """
    fields = [f"{_COMMENT_NAMES.get(name, name)}={text}" for name, text in tags.items()]
    for number, chapter in enumerate(chapters):
        milliseconds = round(chapter.start_s * 1000)
        seconds, thousandths = divmod(milliseconds, 1000)
        time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{thousandths:03}"
        fields += [f"CHAPTER{number:03}={time}", f"CHAPTER{number:03}NAME={chapter.title}"]
    fields += [f"METADATA_BLOCK_PICTURE={base64.b64encode(flac_picture(picture)).decode()}" for picture in pictures]
    coded = [text.encode() for text in [vendor, *fields]]
    parts = [struct.pack("<I", len(text)) + text for text in coded]
    return b"".join([parts[0], struct.pack("<I", len(fields)), *parts[1:]])


def flac_picture(picture: Picture) -> bytes:
    """Return the body of FLAC's picture block. Its size and depth are left unknown."""
    mime, description = picture.mime.encode("ascii", "replace"), picture.description.encode()
    return b"".join(
        (
            struct.pack(">II", picture.kind, len(mime)),
            mime,
            struct.pack(">I", len(description)),
            description,
            struct.pack(">IIIII", 0, 0, 0, 0, len(picture.data)),
            picture.data,
        )
    )


def ape_tag(tags: Mapping[str, str], pictures: Sequence[Picture] = ()) -> bytes:
    """Return an APEv2 tag with the text and a front and a back cover, or nothing if there are none."""
    items = [_ape_item(_APE_NAMES.get(name, name), text.encode(), 0) for name, text in tags.items()]
    for picture in pictures:
        side = "Back" if picture.kind == 4 else "Front"
        name = f"cover.{picture.mime.rpartition('/')[2].replace('jpeg', 'jpg')}"
        items.append(_ape_item(f"Cover Art ({side})", _utf8(name) + picture.data, 2))
    body = b"".join(items)
    if not body:
        return b""
    for has_header in (1, 0):
        flags = has_header << 31
        ends = [
            struct.pack("<8sIIII8x", b"APETAGEX", 2_000, len(body) + 32, len(items), flags | is_header << 29)
            for is_header in (1, 0)
        ]
        tag = ends[0] * has_header + body + ends[1]
        if tag[-_ID3V1_BYTES:][:3] != b"TAG":  # otherwise readers take the middle of "APETAGEX" for an ID3v1 tag
            break
    return tag


def _ape_item(name: str, value: bytes, flags: int) -> bytes:
    return struct.pack("<II", len(value), flags) + name.encode() + b"\0" + value


def info_list(tags: Mapping[str, str]) -> bytes:
    """Return the content of a LIST INFO chunk, in UTF-8, or nothing if there is no such text."""
    items = [(INFO_NAMES[name], _utf8(text)) for name, text in tags.items() if name in INFO_NAMES]
    body = b"".join(key + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2) for key, text in items)
    return b"INFO" + body if body else b""


def mp4_field(name: str, text: str) -> bytes:
    """Return a free field of an MP4 item list, in the form of iTunes."""
    parts = (
        (b"mean", b"\0\0\0\0com.apple.iTunes"),
        (b"name", b"\0\0\0\0" + name.encode()),
        (b"data", struct.pack(">II", 1, 0) + text.encode()),
    )
    body = b"".join(struct.pack(">I", 8 + len(data)) + kind + data for kind, data in parts)
    return struct.pack(">I", 8 + len(body)) + b"----" + body
