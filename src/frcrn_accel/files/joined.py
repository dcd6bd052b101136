"""Find the parts of joined files, as after `cat`, that FFmpeg must open one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import BinaryIO

from frcrn_accel.files.boxes import file_starts, is_start, walk_boxes
from frcrn_accel.files.ogg_chain import Link, find_links
from frcrn_accel.files.stated import behind_id3, behind_tags

__all__ = ["find_parts", "mp4_parts", "mp4_starts"]

_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
# Containers of whose second file FFmpeg plays the header as sound, or takes it for damage.
_STARTS = {
    "amr": re.compile(rb"#!AMR(-WB)?(_MC1\.0)?\n"),
    "nut": re.compile(rb"nut/multimedia container\0NM"),
    "rm": re.compile(rb"\.RMF\0\0\0"),
}
_LONGEST_START_BYTES = 27
_FLAC_FORM_AT, _FLAC_FORM_BYTES = 18, 4  # rate, channels and bits, and the first bits of the length
_SEARCHED_BYTES = 1 << 20
_BOX_HEADER_BYTES, _ZEROS_OF_SIZE = 8, 3


def find_parts(file: BinaryIO, container: str) -> Sequence[Link]:
    """Return the parts of a file; nothing if FFmpeg reads the whole file by itself.

    Args:
        file: The file.
        container: FFmpeg's name of its container.

    Raises:
        OSError: The file cannot be read.
    """
    if container == "ogg":
        return find_links(file)
    if container == "flac":
        return _flac_parts(file)
    return _joined_at(file, _found(_STARTS[container], file)) if container in _STARTS else mp4_parts(file)


def mp4_parts(file: BinaryIO) -> Sequence[Link]:
    """Return the parts of joined MP4 files; nothing for any other file.

    FFmpeg decodes the fragments of all of them by the header of the first, in part, or opens none.

    Raises:
        OSError: The file cannot be read.
    """
    return _joined_at(file, mp4_starts(file))


def mp4_starts(file: BinaryIO) -> list[int]:
    """Return where joined MP4 and QuickTime files start, also behind tags and padding; nothing for any other file."""
    front, file = behind_id3(file)
    starts: list[int] = []
    begin, end = -1, 0
    while end > begin and _is_mp4_at(file, end):
        begin = end
        boxes = list(walk_boxes(file, begin))
        starts += [front + position for position in file_starts(file, boxes)]
        end = sum(boxes[-1][1:]) if boxes else begin
        behind = behind_tags(file, end)  # which takes the zeros of a size for padding
        possible = range(behind, max(end, behind - _ZEROS_OF_SIZE) - 1, -1)
        end = next((at for at in possible if _is_mp4_at(file, at)), end)
    return starts


def _is_mp4_at(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    return is_start(file.read(_BOX_HEADER_BYTES))


def _flac_parts(file: BinaryIO) -> Sequence[Link]:
    """Return the parts of joined FLAC files with different rates, channels or bits; nothing for any other file.

    FFmpeg decodes all of them by the header of the first, and drops the frames that do not fit.
    """
    starts = _found(_FLAC_START, file)
    forms = set()
    for start in starts:
        file.seek(start + _FLAC_FORM_AT)
        forms.add(file.read(_FLAC_FORM_BYTES)[: _FLAC_FORM_BYTES - 1])
    return _joined_at(file, starts) if len(forms) > 1 else []


def _found(pattern: re.Pattern[bytes], file: BinaryIO) -> list[int]:
    """Return the positions at which a pattern is found that has at most `_LONGEST_START_BYTES`."""
    positions: list[int] = []
    position, chunk = 0, b""
    file.seek(0)
    while more := file.read(_SEARCHED_BYTES):
        chunk = chunk[1 - _LONGEST_START_BYTES :] + more
        before = position + len(more) - len(chunk)
        positions += [at for found in pattern.finditer(chunk) if (at := before + found.start()) not in positions[-1:]]
        position += len(more)
    return positions


def _joined_at(file: BinaryIO, starts: Sequence[int]) -> Sequence[Link]:
    """Return the parts of a file that start at these positions; nothing for a single one."""
    if len(starts) < 2:
        return []
    ends = [*starts[1:], file.seek(0, os.SEEK_END)]
    return [Link(start, end, (), is_ended=True, is_whole=True) for start, end in zip(starts, ends, strict=True)]
