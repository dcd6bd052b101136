"""Copy a stream of a film into another container, packet by packet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from frcrn_accel.files.ffmpeg import open_input
from frcrn_accel.files.film_streams import filter_for, kept_tag

__all__ = ["CopiedStream", "avi_step_s", "is_untimed"]

_MAX_GRID_HZ = 240  # FFmpeg states a finer one for a variable frame rate, and AVI has an entry for each step
_DEFAULT_HZ = 25
_NO_TAG = "\0\0\0\0"
_TRIED_PACKETS = 100
GENERATED_TIMES = {"fflags": "+genpts"}  # FFmpeg derives when a picture is shown from the pictures around it


class CopiedStream:
    """Copies the packets of a stream into a new film.

    It corrects what FFmpeg's muxers refuse or misread: times that are missing or do not increase, pictures without a
    duration, of which MP4 would lose the last one, and H.264 without start codes in AVI.

    Args:
        out: The output container of PyAV; the stream is added to it.
        muxer: FFmpeg's name of it.
        film: The source.
        stream: The stream of the source.
        origin_s: Time of the source that is the start of the new film.

    Attributes:
        stream: The new stream.

    Raises:
        ValueError: The container does not hold such streams.
    """

    def __init__(self, out: Any, muxer: str, film: Any, stream: Any, origin_s: Fraction) -> None:
        from av.bitstream import BitStreamFilterContext

        self.stream = out.add_stream_from_template(stream, opaque=True)
        self._filter = None
        name = filter_for(muxer, film, stream)
        if name:
            self._filter = BitStreamFilterContext(name, stream, self.stream)
            self.stream.codec_context.codec_tag = _NO_TAG  # the filter passes on the tag of the source
        elif tag := kept_tag(muxer, film, stream):
            self.stream.codec_context.codec_tag = tag
        self._origin_s = origin_s
        self._frame_s = _frame_s(stream) if stream.type == "video" else None
        self._is_in_order = stream.type == "video" and not stream.codec_context.has_b_frames
        self._last_dts: int | None = None
        self._last_duration = 0
        self._is_counted = muxer == "avi" and stream.type == "video"
        self._shift_s: Fraction | None = None
        if self._is_counted:
            step = avi_step_s(stream)
            self.stream.time_base = step
            self._step_s = step

    def packets(self, packet: Any) -> Iterator[Any]:
        """Yield what to write for a packet of the source."""
        if self._is_counted:
            yield from self._count(packet)
        else:
            self._mend_times(packet)
        yield from self._filtered(packet)

    def finish(self) -> Iterator[Any]:
        """Yield the packets that are left in the filter."""
        if self._filter is not None:
            yield from self._own(self._filter.filter(None), None)

    def _filtered(self, packet: Any) -> Iterator[Any]:
        if self._filter is None:
            packet.stream = self.stream
            yield packet
        else:
            yield from self._own(self._filter.filter(packet), packet.time_base)

    def _own(self, packets: list[Any], time_base: Fraction | None) -> Iterator[Any]:
        for packet in packets:
            if time_base is not None:
                packet.time_base = time_base
            packet.stream = self.stream
            yield packet

    def _mend_times(self, packet: Any) -> None:
        """Give a packet the times that muxers need: an increasing decoding time, and for a picture a duration."""
        base = packet.time_base
        if self._frame_s is not None and not packet.duration:
            packet.duration = round(self._frame_s / base)
        if packet.dts is None and packet.pts is None:  # otherwise FFmpeg derives it from the order of the pictures
            packet.dts = 0 if self._last_dts is None else self._last_dts + self._last_duration
        if packet.dts is not None:
            if self._last_dts is not None and packet.dts <= self._last_dts:
                packet.dts = self._last_dts + 1
            if packet.pts is None and self._is_in_order:
                packet.pts = packet.dts
            if packet.pts is not None and packet.pts < packet.dts:
                packet.pts = packet.dts
            self._last_dts, self._last_duration = packet.dts, packet.duration or 0

    def _count(self, packet: Any) -> Iterator[Any]:
        """Give a packet the number of its picture, which is its time in AVI.

        Pictures are in the order of their decoding there, and players show the first one as soon as it is decoded.
        A late start is an empty packet in front.
        """
        if self._shift_s is None:
            time = packet.dts if packet.dts is not None else packet.pts or 0
            shown = packet.pts if packet.pts is not None else time
            self._shift_s = (shown - time) * packet.time_base - self._origin_s
        number = 0 if self._last_dts is None else self._last_dts + 1
        time = packet.pts if packet.dts is None and self._last_dts is None else packet.dts
        if time is not None:
            number = max(number, round((time * packet.time_base + self._shift_s) / self._step_s))
        if self._last_dts is None and number > 0:
            yield self._empty()
        self._last_dts = number
        packet.time_base = self._step_s
        packet.pts = packet.dts = number
        packet.duration = 1

    def _empty(self) -> Any:
        import av

        packet = av.Packet()
        packet.stream, packet.time_base = self.stream, self._step_s
        packet.pts = packet.dts = 0
        return packet


def is_untimed(path: Path, stream: Any) -> bool:
    """Return whether a film does not say when each picture of a stream is shown.

    Pictures that are shown in the order of their decoding need no times: those between them are derived.

    Args:
        path: The film.
        stream: Its stream.

    Raises:
        FFmpegError: FFmpeg cannot open the film.
        OSError: The file cannot be read.
    """
    if stream.type != "video" or not stream.codec_context.has_b_frames:
        return False
    with path.open("rb") as file, open_input(file, container_options=GENERATED_TIMES) as film:
        packets = film.demux(film.streams[stream.index])
        tried = itertools.islice((packet for packet in packets if packet.size), _TRIED_PACKETS)
        return any(packet.pts is None and packet.dts is None for packet in tried)


def _frame_s(stream: Any) -> Fraction | None:
    rate = stream.average_rate
    return 1 / Fraction(rate) if rate else None


def avi_step_s(stream: Any) -> Fraction:
    """Return the time between two pictures of AVI: that of the source, or a short one if the rate varies."""
    rate = Fraction(stream.base_rate or stream.average_rate or _DEFAULT_HZ)
    return 1 / min(rate, Fraction(_MAX_GRID_HZ))
