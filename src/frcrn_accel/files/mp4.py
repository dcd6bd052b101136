"""Add pictures and free fields to the item list of an MP4 file.

Source: Apple's QuickTime File Format (metadata item list), and what iTunes writes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from frcrn_accel.errors import AudioError
from frcrn_accel.files.belongings import Picture
from frcrn_accel.files.tags import mp4_field

__all__ = ["add_items", "is_item"]

# Fields that FFmpeg writes as standard items.
_ITEMS = {
    *("title", "artist", "album_artist", "composer", "album", "date", "comment", "genre", "copyright", "grouping"),
    *("lyrics", "description", "synopsis", "show", "episode_id", "network"),
}
_IMAGES = {"image/jpeg": 13, "image/png": 14, "image/bmp": 27}
_HANDLER = bytes(8) + b"mdirappl" + bytes(9)


def is_item(name: str, text: str) -> bool:
    """Return whether FFmpeg writes a tag as a standard item. Those that are numbers must be numbers."""
    if name in ("track", "disc"):
        return re.fullmatch(r"[1-9]\d{0,3}(/[1-9]\d{0,3})?", text, re.ASCII) is not None
    return name in _ITEMS


def add_items(file: BinaryIO, tags: Mapping[str, str], pictures: Sequence[Picture]) -> None:
    """Add items to the file's index, which is its last box."""
    items = [mp4_field(name, text) for name, text in tags.items()]
    if pictures:
        images = [
            _box(b"data", struct.pack(">II", _IMAGES.get(picture.mime, 0), 0) + picture.data) for picture in pictures
        ]
        items.append(_box(b"covr", b"".join(images)))
    if not items:
        return
    start, size = _find(file, 0, None, b"moov")
    file.seek(start)
    index = file.read(size)
    file.seek(start)
    file.write(_with(index, (b"udta", b"meta", b"ilst"), b"".join(items)))


def _with(box: bytes, path: Sequence[bytes], items: bytes) -> bytes:
    """Return a box with items at the end of the box at a path, whose boxes are made if they are missing."""
    head = 12 if box[4:8] == b"meta" else 8  # a version in front of the children
    if not path:
        return _box(box[4:8], box[8:] + items)
    position = head
    while position < len(box):
        size = int.from_bytes(box[position : position + 4], "big")
        if box[position + 4 : position + 8] == path[0]:
            inner = _with(box[position : position + size], path[1:], items)
            return _box(box[4:8], box[8:position] + inner + box[position + size :])
        if size < 8:
            break
        position += size
    new = _box(b"meta", bytes(4) + _box(b"hdlr", _HANDLER)) if path[0] == b"meta" else _box(path[0], b"")
    return _box(box[4:8], box[8:] + _with(new, path[1:], items))


def _box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + kind + data


def _find(file: BinaryIO, start: int, end: int | None, kind: bytes) -> tuple[int, int]:
    """Return position and size of a box."""
    position = start
    while end is None or position < end:
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if head[4:8] == kind:
            return position, size
        position += max(size, 8)
    raise AudioError(f"FFmpeg wrote an MP4 file without {kind.decode()!r}")
