"""Boxes of MP4 and QuickTime files: where they lie, and the lengths and positions that they state.

Sources: ISO/IEC 14496-12, sections 4.2, 8.2.2, 8.7.5 and 8.8.2; Apple's QuickTime File Format, where they are atoms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO

import numpy as np

__all__ = ["file_starts", "fragments_s", "is_start", "walk_boxes"]

Box = tuple[bytes, int, int]  # its kind, position and length

_MAX_PARTS = 100_000
_HEADER_BYTES, _LONG_HEADER_BYTES, _BOX_BYTES = 8, 16, 64
_LONG_MARK = b"\0\0\0\1"  # in place of a size, which has 64 bits
# What a file can start with. QuickTime files of before 2005 have no mark, and start with their index or their data.
_MARK = b"ftyp"
_CONTENT, _FILLING = (b"moov", b"mdat"), (b"free", b"skip")
_STARTS = (_MARK, *_CONTENT, *_FILLING, b"wide", b"pnot")
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
    indexes = [number for number, box in enumerate(boxes) if box[0] == b"moov"]
    if len(indexes) < 2 or any(box[0] == b"moof" for box in boxes):
        return []
    begin, first_box, starts = boxes[0][1], 0, []
    for before, index, after in zip(indexes, indexes[1:], [*indexes[2:], len(boxes)], strict=False):
        last = begin + _chunks(file, boxes[before])[1]
        ends = (part.stop for part in _data(file, boxes[first_box:index]) if last in part)
        end = max(sum(boxes[before][1:]), *ends, 0)
        possible = [(kind, at) for kind, at, _ in boxes[before + 1 : index + 1] if at >= end and kind in _STARTS]
        data = _data(file, boxes[before + 1 : after])
        heads = {part.start for part in data}
        first, last = _chunks(file, boxes[index])
        # Its samples usually start with its data. If not, a box must start it that cannot end the file before.
        found = [at for _, at in possible if at + first in heads]
        if not found and possible and possible[0][0] not in _FILLING:
            at = possible[0][1]
            found = [at] * all(any(at + chunk in part for part in data) for chunk in (first, last))
        if not found or not first:
            break
        begin, first_box = found[0], before + 1
        starts.append(begin)
    return starts


def _data(file: BinaryIO, boxes: Sequence[Box]) -> list[range]:
    """Return where the content lies of those boxes that hold data."""
    parts = []
    for kind, position, length in boxes:
        if kind == b"mdat":
            file.seek(position)
            is_long = file.read(len(_LONG_MARK)) == _LONG_MARK
            parts.append(range(position + (_LONG_HEADER_BYTES if is_long else _HEADER_BYTES), position + length))
    return parts


def _chunks(file: BinaryIO, index: Box) -> tuple[int, int]:
    """Return the first and the last position at which an index has samples; 0 and 0 if it has none."""
    size = file.seek(0, os.SEEK_END)
    spans = [(b"", index[1], min(sum(index[1:]), size))]
    for kinds in (*((kind,) for kind in _TABLE_PATH), tuple(_TABLES)):
        spans = [
            (kind, at, min(at + length, end))  # no box is longer than the one that holds it
            for _, start, end in spans
            for kind, at, length in walk_boxes(file, start + _HEADER_BYTES, end)
            if kind in kinds
        ]
    found: list[int] = []
    for kind, at, end in spans:
        file.seek(at + _TABLE_AT)
        entry = np.dtype(_TABLES[kind])
        data = file.read(max(0, end - at - _TABLE_AT))
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
