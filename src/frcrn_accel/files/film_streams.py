"""Decide which streams of a film a container can hold, and how they are coded there."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Any

from frcrn_accel.files.formats import FILM_MUXERS, MP4

__all__ = ["can_hold", "filter_for", "is_cover", "kept_tag", "stream_name", "suffix_for"]

# The codecs that MPEG-TS has a stream type for. FFmpeg writes others as data that no player shows.
_MPEGTS = frozenset(
    (
        *("mpeg1video", "mpeg2video", "mpeg4", "h264", "hevc", "vvc", "cavs", "avs2", "avs3", "dirac", "vc1"),
        *("aac", "aac_latm", "mp1", "mp2", "mp3", "ac3", "eac3", "dts", "truehd", "opus", "s302m"),
        *("dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle", "klv", "timed_id3", "scte_35"),
    )
)
_OGG = frozenset(("theora", "vorbis", "opus", "flac", "speex"))  # FFmpeg also writes VP8, with each picture one late
_PLAYED = {"mpegts": _MPEGTS, "ogv": _OGG}
# What muxers leave to their caller: start codes in AVI, and headers within the stream where the container has none.
_FILTERS = {("avi", "h264"): "h264_mp4toannexb", ("mpegts", "mpeg4"): "dump_extra"}
_UNPACK = "mpeg4_unpack_bframes"  # DivX and Xvid put two pictures into a packet of AVI, and an empty one behind it
_FAMILIES = {"mp4": MP4, "avi": ("avi",), "asf": ("asf",)}  # by FFmpeg's name of the source's container
_NEEDS_TAG = "prores"  # its tag says how deep its samples are
_USUAL = (".mkv", ".mp4", ".mov", ".webm", ".avi", ".ts", ".wmv", ".flv")


def is_cover(stream: Any) -> bool:
    """Return whether a stream is an attached picture, such as a cover."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def stream_name(stream: Any) -> str:
    """Return the name of a stream for a message, such as `video stream 0 (h264)`."""
    return f"{stream.type} stream {stream.index} ({codec_of_stream(stream)})"


def codec_of_stream(stream: Any) -> str:
    """Return FFmpeg's name of the codec of a stream, whichever decoder reads it, or `unknown`."""
    return str(stream.codec_context.codec.canonical_name) if stream.codec_context else "unknown"


def can_hold(muxer: str, stream: Any) -> bool:
    """Return whether a container can hold a stream of a film: FFmpeg writes a header with it, and players show it.

    Args:
        muxer: FFmpeg's name of the container.
        stream: The stream.
    """
    played = _PLAYED.get(muxer)
    if played is not None and codec_of_stream(stream) not in played:
        return False
    if stream.type == "data" and codec_of_stream(stream) == "unknown" and not _is_related(muxer, stream.container):
        return False  # MP4 takes packets of data, and loses their kind or all of them
    return _takes(muxer, stream, "")


def suffix_for(stream: Any) -> str:
    """Return the suffix of a film that can hold a stream, or an empty string."""
    return next((suffix for suffix in _USUAL if can_hold(FILM_MUXERS[suffix], stream)), "")


def kept_tag(muxer: str, film: Any, stream: Any) -> str:
    """Return the tag of the codec that a copy of a stream keeps, or an empty string for the usual one.

    A tag states more than the codec: Apple's players play H.265 with the tag `hvc1`, but not with `hev1`.
    """
    if stream.type != "video" or not stream.codec_context:
        return ""
    related = _is_related(muxer, film)
    tag = str(stream.codec_context.codec_tag)
    if tag.strip("\0") and (related or codec_of_stream(stream) == _NEEDS_TAG) and _takes(muxer, stream, tag):
        return tag
    return ""


def filter_for(muxer: str, film: Any, stream: Any) -> str:
    """Return the bitstream filters of FFmpeg that a stream needs in a container, or an empty string.

    Args:
        muxer: FFmpeg's name of the container.
        film: The source.
        stream: The stream of the source.
    """
    codec = codec_of_stream(stream)
    unpacks = codec == "mpeg4" and film.format.name == "avi"
    return ",".join(filter(None, (_UNPACK * unpacks, _FILTERS.get((muxer, codec), ""))))


def _is_related(muxer: str, film: Any) -> bool:
    """Return whether a container is of the same family as that of a film, so that the same tags mean the same."""
    names = film.format.name.split(",")
    return any(muxer in family for name, family in _FAMILIES.items() if name in names)


def _takes(muxer: str, stream: Any, tag: str) -> bool:
    """Try to write the header of a film with one stream."""
    import av

    out = av.open(io.BytesIO(), "w", format=muxer)
    try:
        copied = out.add_stream_from_template(stream, opaque=True)
        if tag:
            copied.codec_context.codec_tag = tag
        out.start_encoding()
    except (ValueError, TypeError, NotImplementedError, OSError, av.FFmpegError):
        return False
    finally:
        with suppress(ValueError, OSError, av.FFmpegError):
            out.close()
    return True
