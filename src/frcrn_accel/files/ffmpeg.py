"""Open files with PyAV, and work around what its versions do differently or wrongly."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

from frcrn_accel.files.boxes import is_start
from frcrn_accel.files.chunks import id3_end
from frcrn_accel.files.joined import mp4_starts
from frcrn_accel.files.layouts import PLACES
from frcrn_accel.files.parts import FilePart

__all__ = ["DSD", "fix_layout", "id3_bytes", "only_id3", "open_input"]

# How the names of the decoders of DSD start.
DSD = ("dsd_", "dst")

_INVALID_DATA = 0x41444E49  # AVERROR_INVALIDDATA
_CONTAINERS = (
    b"RIFF",
    b"RF64",
    b"riff",
    b"FORM",
    b"caff",
    b".snd",
    b"wvpk",
    b"\x1a\x45\xdf\xa3",
    b"\x30\x26\xb2\x75",
)
_SILENT_FRAME = b"\xff\xfb\x90\xc4" + bytes(413)  # MPEG-1 layer III, 128 kbit/s, 44.1 kHz

# From this version on, PyAV has FFmpeg 9, decodes text as UTF-8 with `surrogateescape`, and has no option for it.
_WITH_FFMPEG_9 = 19


def open_input(source: Any, **options: Any) -> Any:
    """Open an input container. Text in it that is not UTF-8 has surrogate escapes.

    An ID3v2 tag in front of a container that has no place for one is skipped, and so is what follows the first of
    joined MP4 files: FFmpeg would take their fragments for its own, or fail. From a file object, no other file or
    address is opened: a playlist in disguise must not read one.

    Args:
        source: Path as a string, or a file object.
        **options: Other arguments of `av.open`.
    """
    import av

    is_before_9 = int(av.__version__.partition(".")[0]) < _WITH_FFMPEG_9
    if is_before_9:
        options["metadata_errors"] = "surrogateescape"
    if not isinstance(source, str):
        if _is_fatal(source):
            raise av.error.InvalidDataError(_INVALID_DATA, "Invalid data found when processing input")
        starts = mp4_starts(source)
        front, size = id3_bytes(source), source.seek(0, os.SEEK_END)
        end = starts[1] if len(starts) > 1 else size
        is_part = front > 0 or end < size
        source.seek(0)
        source = _Input(FilePart(source, front, end) if is_part else source)
    given: Mapping[str, str] = options.pop("container_options", {})
    protocols = "file" if isinstance(source, str) else "none"
    options["container_options"] = {"protocol_whitelist": protocols, **given}
    container = av.open(source, "r", **options)
    if is_before_9 and any(_has_lost_channels(stream.codec_context) for stream in container.streams.audio):
        options["stream_options"] = [{"bits_per_coded_sample": "4"} for _ in container.streams]
        container.close()
        if not isinstance(source, str):
            source.seek(0)
        container = av.open(source, "r", **options)
    return container


def _has_lost_channels(context: Any) -> bool:
    """Return whether the channels of a codec are unknown: FFmpeg 8 opens it in NUT without the bits that it needs."""
    return context is not None and context.name == "adpcm_ima_wav" and not context.layout.nb_channels


def _is_fatal(file: BinaryIO) -> bool:
    """Return whether a file is ADX with a damaged header, at which FFmpeg 9 divides by zero and ends the process."""
    file.seek(0)
    start = file.read(1 << 16)
    file.seek(0)
    if start[:2] != b"\x80\0":
        return False
    offset = int.from_bytes(start[2:4], "big") + 4
    is_right = start[4:7] == b"\x03\x12\x04" and any(start[7:8]) and any(start[8:12])
    return not (is_right and start[offset - 6 : offset] == b"(c)CRI")


def id3_bytes(file: BinaryIO) -> int:
    """Return the size of an ID3v2 tag that some program put in front of WAV, AIFF, Matroska and the like; else 0.

    FFmpeg expects such a tag in front of MP3, AAC, FLAC and other streams of frames only. The file is left at its
    start.
    """
    size = id3_end(file)
    file.seek(size)
    found = file.read(8)
    file.seek(0)
    return size if size and (found.startswith(_CONTAINERS) or is_start(found)) else 0


def only_id3(tag: bytes) -> Any:
    """Open an ID3v2 tag by itself: in front of a few silent frames of MP3."""
    return open_input(io.BytesIO(tag + 3 * _SILENT_FRAME), format="mp3")


class _Input:
    """A file for PyAV, in which a seek that fails is an error of FFmpeg, not a traceback on the terminal.

    Sizes in damaged headers lead to positions that no file has, for each chunk that FFmpeg looks for.
    """

    def __init__(self, file: BinaryIO | FilePart) -> None:
        self.name = getattr(file, "name", "")  # FFmpeg looks at its suffix
        self.read = file.read
        self._file = file

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position. Return it, or a negative error number."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()


def fix_layout(context: Any) -> tuple[str, tuple[int, ...]]:
    """Return the layout of a decoder that is not open yet, and take it from the decoder if its order is not FFmpeg's.

    QuickTime, CAF and AIFF files can have their channels in any order. PyAV frees such a layout twice, once with the
    object that describes it, and that ends the process.

    Returns:
        FFmpeg's name of the layout in FFmpeg's order, empty if the places are not known; and for each of its places
        the channel of the file, nothing if the file has this order.
    """
    import av

    layout = context.layout
    name = str(layout.name)
    if "channels" not in name:
        return name, ()
    if "(" not in name:
        return "", ()
    places = [channel.name for channel in layout.channels]
    context.layout = f"{len(places)} channels"
    if not set(places) <= set(PLACES) or len(set(places)) < len(places):
        return "", ()
    order = tuple(sorted(range(len(places)), key=lambda channel: PLACES.index(places[channel])))
    own = str(av.AudioLayout("+".join(places[channel] for channel in order)).name)
    if order == tuple(range(len(places))):
        context.layout = own  # without one, some decoders assume a standard layout
        return own, ()
    return own, order
