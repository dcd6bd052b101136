"""Boxes of MP4 and QuickTime files: where they lie, and the lengths and positions that they state.

Sources: ISO/IEC 14496-12, sections 4.2, 8.2.2, 8.7.5 and 8.8.2; Apple's QuickTime File Format, where they are atoms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import BinaryIO

import numpy as np

__all__ = ["file_starts", "fragments_s", "is_start", "walk_boxes"]

Box = tuple[bytes, int, int]  # its kind, position and length

_MAX_PARTS = 100_000
_HEADER_BYTES, _LONG_HEADER_BYTES, _BOX_BYTES = 8, 16, 64
_LONG_MARK, _LONG_MARK_BYTES = b"\0\0\0\1", 4  # in place of a size: it has 64 bits
# What a file can start with. QuickTime files of before 2005 have no mark, and start with their index or their data.
_MARK = b"ftyp"
_CONTENT = (b"moov", b"mdat")
_STARTS = (_MARK, *_CONTENT, b"wide", b"free", b"skip", b"pnot")
_TABLES = {b"stco": ">u4", b"co64": ">u8"}  # positions of the chunks of samples
_TABLE_PATH = (b"trak", b"mdia", b"minf", b"stbl")
_TABLE_AT = 16  # behind the header, the version and the number of entries


def is_start(start: bytes) -> bool:
    """Return whether a file with these first bytes is MP4 or QuickTime."""
    return start[4:_HEADER_BYTES] in _STARTS


def walk_boxes(file: BinaryIO, position: int = 0, end: int | None = None) -> Iterator[Box]:
    """Yield kind, position and length of the boxes of an MP4 file, or of those within one of them."""
    size = file.seek(0, os.SEEK_END)
    end = size if end is None else min(end, size)
    for _ in range(_MAX_PARTS):
        if position >= end:
            return
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if len(head) < 8 or not head[4:8].isalnum() or length < 8:
            return
        yield head[4:8], position, length
        position += length


def file_starts(file: BinaryIO, boxes: Sequence[Box]) -> list[int]:
    """Return where files start among boxes that follow each other, as after `cat`."""
    marks = [number for number, box in enumerate(boxes) if box[0] == _MARK]
    if any(box[0] in _CONTENT for box in boxes[: marks[0] if marks else None]):
        marks.insert(0, 0)
    parts = [boxes[start:end] for start, end in zip(marks, [*marks[1:], len(boxes)], strict=True)]
    return [start for part in parts for start in (part[0][1], *_unmarked_starts(file, part))]


def _unmarked_starts(file: BinaryIO, boxes: Sequence[Box]) -> list[int]:
    """Return where more files without a mark start: the index of each says at which positions it has samples."""
    indexes = [box for box in boxes if box[0] == b"moov"]
    if len(indexes) < 2 or any(box[0] == b"moof" for box in boxes):
        return []
    data = [range(_content_at(file, at), at + length) for kind, at, length in boxes if kind == b"mdat"]
    begin, starts = boxes[0][1], []
    for before, index in pairwise(indexes):
        last = begin + _chunks(file, before)[1]
        end = max(before[1] + before[2], *(part.stop for part in data if last in part), 0)
        possible = [(kind, at) for kind, at, _ in boxes if end <= at <= index[1] and kind in _STARTS]
        first, last = _chunks(file, index)
        # Its samples usually start with its data. If not, a box must start it that cannot end the file before.
        found = [at for _, at in possible if any(at + first == part.start for part in data)]
        if not found and possible and possible[0][0] in _CONTENT:
            begin = possible[0][1]
            found = [begin] * all(any(begin + chunk in part for part in data) for chunk in (first, last))
        if not found:
            break
        begin = found[0]
        starts.append(begin)
    return starts


def _content_at(file: BinaryIO, position: int) -> int:
    file.seek(position)
    return position + (_LONG_HEADER_BYTES if file.read(_LONG_MARK_BYTES) == _LONG_MARK else _HEADER_BYTES)


def _chunks(file: BinaryIO, index: Box) -> tuple[int, int]:
    """Return the first and the last position at which an index has samples; 0 and 0 if it has none."""
    boxes = [index]
    for kinds in (*((kind,) for kind in _TABLE_PATH), tuple(_TABLES)):
        boxes = [
            inner
            for _, at, length in boxes
            for inner in walk_boxes(file, at + _HEADER_BYTES, at + length)
            if inner[0] in kinds
        ]
    found: list[int] = []
    for kind, at, length in boxes:
        file.seek(at + _TABLE_AT)
        entry = np.dtype(_TABLES[kind])
        data = file.read(max(0, length - _TABLE_AT))
        entries = np.frombuffer(data, entry, len(data) // entry.itemsize)
        found += [int(entries.min()), int(entries.max())] if entries.size else []
    return min(found, default=0), max(found, default=0)


def fragments_s(file: BinaryIO) -> Fraction | None:
    """Return the length of all fragments of an MP4 file by its header.

    Each fragment has its own sizes, so nothing else says that the last ones are missing.

    Returns:
        The length; 0 if the header does not state it; None for a file without fragments.
    """
    if all(kind != b"moof" for kind, *_ in walk_boxes(file)):
        return None
    header, extends = _content_of(file, b"moov", b"mvhd"), _content_of(file, b"moov", b"mvex", b"mehd")
    at = 20 if header[:1] == b"\1" else 12  # behind two dates of 64 or 32 bits
    units_per_s = int.from_bytes(header[at : at + 4], "big")
    units = int.from_bytes(extends[4:12] if extends[:1] == b"\1" else extends[4:8], "big")
    return Fraction(units, units_per_s) if units_per_s else Fraction(0)


def _content_of(file: BinaryIO, *path: bytes) -> bytes:
    """Return the start of the content of a box of an MP4 file; nothing if it does not exist.

    Args:
        file: The file.
        path: Its kind, behind those of the boxes that hold it.
    """
    start, end = 0, None
    for kind in path:
        found = next((box for box in walk_boxes(file, start, end) if box[0] == kind), None)
        if found is None:
            return b""
        start, end = found[1] + _HEADER_BYTES, found[1] + found[2]
    file.seek(start)
    return file.read(_BOX_BYTES)
