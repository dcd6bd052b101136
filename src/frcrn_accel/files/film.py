"""Replace the sound of films: picture, subtitles, chapters and the rest are copied, packet by packet."""

from __future__ import annotations

import errno
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from frcrn_accel.atomic import replacing
from frcrn_accel.errors import AudioError, OutputExistsError
from frcrn_accel.files.chunks import family_of
from frcrn_accel.files.ffmpeg import open_input
from frcrn_accel.files.film_copy import GENERATED_TIMES, CopiedStream, avi_step_s, is_untimed
from frcrn_accel.files.film_sound import Sound, Track, sound_start_s
from frcrn_accel.files.film_streams import can_hold, is_cover, stream_name, suffix_for
from frcrn_accel.files.film_text import film_text, find_lost, stream_text
from frcrn_accel.files.formats import FILM_MUXERS, MATROSKA, MP4, keeps_codec, plan_track
from frcrn_accel.files.joined import find_parts
from frcrn_accel.files.mp4 import is_item
from frcrn_accel.files.reading import open_audio
from frcrn_accel.files.reasons import reason_of
from frcrn_accel.notices import notify

__all__ = ["FILM_SUFFIXES", "check_film", "film_suffix", "is_film", "write_film"]

FILM_SUFFIXES = frozenset(FILM_MUXERS)
_AUDIBLE_SHIFT_S = 0.002
_MAX_WAIT_S = 60  # three windows of 20 s
_ERRORS_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_IMAGES = {"mjpeg": ("image/jpeg", ".jpg"), "png": ("image/png", ".png"), "bmp": ("image/bmp", ".bmp")}


def is_film(path: Path) -> bool:
    """Return whether a file holds sound and moving pictures; a cover of music does not count.

    A few frames of sound without a container may look like pictures without sound.

    Raises:
        AudioError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return bool(path.stat().st_size) and not family_of(file.read(16)) and _has_both(file)
    except OSError as error:
        raise AudioError(f"{str(path)!r} cannot be read: {reason_of(error)}") from error


def _has_both(file: BinaryIO) -> bool:
    import av

    file.seek(0)
    try:
        with open_input(file) as container:
            is_sounding = bool(container.streams.audio)
            return is_sounding and any(not is_cover(stream) for stream in container.streams.video)
    except av.FFmpegError:
        return False


def write_film(target: Path, source: Path, sounds: Mapping[int, Sound], *, overwrite: bool) -> int:
    """Write a film with new sound, and everything else copied.

    Times are those of the source: each sound starts where its track does.

    Args:
        target: The file to write; its suffix selects the container.
        source: The film.
        sounds: New sound by the number of the audio track; the other tracks are copied.
        overwrite: Replace an existing file.

    Returns:
        The number of samples that an integer encoding has clipped.

    Raises:
        AudioError: The source cannot be read, or the container cannot hold one of its streams.
        OutputExistsError: `target` exists and `overwrite` is false.
    """
    import av

    muxer = FILM_MUXERS.get(target.suffix.lower())
    if muxer is None:
        raise AudioError(f"{str(target)!r}: films are written as {', '.join(sorted(FILM_SUFFIXES))}")
    try:
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(target, overwrite=overwrite, like=source))
            wanted = {} if muxer == "avi" else GENERATED_TIMES  # an AVI does not state when a picture is shown
            file = stack.enter_context(source.open("rb"))
            film = stack.enter_context(open_input(file, container_options=wanted))
            _check_is_one(target, source, film.format.name)
            options = _options(muxer, sounds, film)
            out = av.open(os.fspath(temporary), "w", format=muxer, container_options=options)
            with out:
                remux = _Remux(film, out, source, target, muxer, sounds)
                try:
                    clipped = remux.run()
                except BaseException:
                    with suppress(av.FFmpegError):  # the error of an unfinished film would hide the reason
                        out.close()
                    raise
            remux.name_lost(temporary)
            return clipped
    except (AudioError, OutputExistsError):
        raise
    except (OSError, av.FFmpegError) as error:
        raise AudioError(f"{str(target)!r} cannot be written: {reason_of(error)}") from error


def film_suffix(path: Path) -> str:
    """Return the suffix for a new film: that of the source by name or content, or `.mkv`, which holds most codecs.

    If that container cannot hold the picture, it is the suffix of one that can.
    """
    suffix = _own_suffix(path)
    with path.open("rb") as file, open_input(file) as film:
        pictures = [stream for stream in film.streams.video if not is_cover(stream)]
        if all(can_hold(FILM_MUXERS[suffix.lower()], picture) for picture in pictures):
            return suffix
        return suffix_for(pictures[0]) or suffix


def _own_suffix(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(64)
    if start[:4] == b"RIFF":  # coded sound would not be in step in an AVI, and PCM is large
        keeps = keeps_codec("avi", open_audio(path))
        return (path.suffix if path.suffix.lower() == ".avi" else ".avi") if keeps else ".mkv"
    if path.suffix.lower() in FILM_SUFFIXES - {".avi"}:
        return path.suffix
    if start[4:8] == b"ftyp":
        return ".mov" if start[8:12] == b"qt  " else ".mp4"
    if start[:4] == b"\x1a\x45\xdf\xa3":
        return ".webm" if b"webm" in start else ".mkv"
    if start[:4] == b"\x30\x26\xb2\x75":
        return ".wmv"
    if start[:3] == b"FLV":
        return ".flv"
    return ".mkv"


def check_film(target: Path, source: Path, track: int | None = None) -> None:
    """Check that a film can be written with new sound, before any work is done.

    Args:
        target: The film to write.
        source: The film to read.
        track: Number of the audio track that gets new sound; None for all of them.

    Raises:
        AudioError: The source cannot be read, or the container cannot hold its sound or its picture.
    """
    muxer = FILM_MUXERS[target.suffix.lower()]
    with source.open("rb") as file, open_input(file) as film:
        _check_is_one(target, source, film.format.name)
        audio = list(film.streams.audio)
        numbers = range(len(audio)) if track is None else (track,)
        for number in numbers:
            plan_track(target, muxer, open_audio(source, number))
        copied = [stream for stream in film.streams.video if not is_cover(stream)]
        copied += [stream for number, stream in enumerate(audio) if number not in numbers]
        for stream in copied:
            if not can_hold(muxer, stream):
                raise AudioError(_refusal(target, stream))
            _check_times(target, muxer, source, stream)


def _check_is_one(target: Path, source: Path, container: str) -> None:
    """Check that a film does not consist of several that were joined: the times of their pictures start again."""
    with source.open("rb") as file:
        if len(find_parts(file, container)) > 1:
            raise AudioError(
                f"{str(target)!r} cannot be written: {str(source)!r} holds several films, as after joining them; "
                "write the sound alone, such as to a .wav"
            )


def _check_times(target: Path, muxer: str, source: Path, stream: Any) -> None:
    if muxer != "avi" and is_untimed(source, stream):
        raise AudioError(_untimed(target, stream_name(stream)))


def _untimed(target: Path, name: str) -> str:
    return (
        f"{str(target)!r} cannot be written: {name} does not say when each packet is shown; "
        "write the sound alone, such as to a .wav"
    )


class _Remux:
    """Writes the packets of a film and of its new sound in the order of their times."""

    def __init__(
        self, film: Any, out: Any, source: Path, target: Path, muxer: str, sounds: Mapping[int, Sound]
    ) -> None:
        self._film, self._out, self._target, self._muxer = film, out, target, muxer
        self._source = source
        self._tracks: list[Track] = []
        self._copies: dict[int, CopiedStream] = {}  # by the index of the source's stream
        self._places: dict[int, int] = {}  # indexes of the new streams by those of the source's
        self._left_out: list[str] = []
        self._untimed = ""  # a stream with packets that have no time, which most containers refuse
        self._subtitles_left_out = Counter[str]()  # by codec
        audio = list(film.streams.audio)
        starts = {number: sound_start_s(source, number) for number in sounds}
        # AVI does not say when a stream starts: sound gets silence in front, and the picture an empty packet.
        self._origin_s = _first_start_s(film, starts) if muxer == "avi" else Fraction(0)
        for stream in film.streams:
            number = audio.index(stream) if stream.type == "audio" else None
            if number is not None and number in sounds:
                plan = plan_track(target, muxer, sounds[number].like)
                for note in plan.notes:
                    self._say(note)
                self._tracks.append(Track(out, plan, sounds[number], starts[number] - self._origin_s))
                _describe(self._tracks[-1].encoder.stream, stream)
                self._places[stream.index] = self._tracks[-1].encoder.stream.index
            else:
                self._copy(stream)
        for codec, count in self._subtitles_left_out.items():
            self._left_out.append(f"{count} subtitle stream{'' if count == 1 else 's'} ({codec})")
        out.metadata.update(film_text(film))
        if film.chapters():
            out.set_chapters(film.chapters())
        for what in self._left_out:
            self._say(f"left out, the container cannot hold it: {what}")
        left_out = _text_left_out(muxer, film)
        if left_out:
            self._say(f"left out, MP4 holds such text only without a cover: {', '.join(left_out)}")

    def _say(self, text: str) -> None:
        notify(f"{str(self._target)!r}: {text}")

    def _copy(self, stream: Any) -> None:
        if stream.type == "attachment":
            name, mime = stream.metadata.get("filename", "attachment"), stream.metadata.get("mimetype", "")
            if self._muxer not in MATROSKA:
                self._left_out.append(f"attachment {name!r}")
                return
            self._out.add_attachment(name, mime or "application/octet-stream", bytes(stream.data or b""))
            return
        if stream.type == "data" and (self._holds_chapters(stream) or self._holds_time_code(stream)):
            return  # the muxer writes these tracks by itself
        if is_cover(stream) and self._muxer in MATROSKA:  # where a cover is an attachment, not a stream
            self._attach_cover(stream)
            return
        if is_cover(stream) and self._muxer != "mp4":
            self._left_out.append("cover")
            return
        if not can_hold(self._muxer, stream):
            if stream.type in ("video", "audio"):
                raise AudioError(_refusal(self._target, stream))
            if stream.type == "subtitle":
                self._subtitles_left_out[stream.codec_context.name if stream.codec_context else "unknown"] += 1
            else:
                self._left_out.append(stream_name(stream))
            return
        _check_times(self._target, self._muxer, self._source, stream)
        self._say_shift(stream)
        copied = CopiedStream(self._out, self._muxer, self._film, stream, self._origin_s)
        _describe(copied.stream, stream)
        self._copies[stream.index] = copied
        self._places[stream.index] = copied.stream.index

    def _say_shift(self, stream: Any) -> None:
        """Report copied sound that is moved because AVI does not say when a stream starts."""
        if self._muxer != "avi" or stream.type != "audio" or stream.start_time is None:
            return
        shift_s = float(stream.start_time * stream.time_base - self._origin_s)
        if abs(shift_s) >= _AUDIBLE_SHIFT_S:
            early = "early" if shift_s > 0 else "late"
            self._say(
                f"{stream_name(stream)} comes {abs(shift_s):.3f} s too {early}: AVI does not say when a stream "
                "starts, and it is copied"
            )

    @property
    def _is_mp4(self) -> bool:
        return "mp4" in self._film.format.name.split(",")

    def _holds_chapters(self, stream: Any) -> bool:
        """Return whether a data stream is the text track of MP4's chapters, which has one sample for each of them."""
        return self._is_mp4 and bool(self._film.chapters()) and stream.frames == len(self._film.chapters())

    def _holds_time_code(self, stream: Any) -> bool:
        return "timecode" in stream.metadata and self._muxer != "mpegts"

    def _attach_cover(self, stream: Any) -> None:
        mime, suffix = _IMAGES.get(stream.codec_context.name, ("application/octet-stream", ".bin"))
        if self._muxer == "webm":
            self._left_out.append("cover")
            return
        name = stream.metadata.get("filename", f"cover{suffix}")
        self._out.add_attachment(
            name, stream.metadata.get("mimetype", mime), _first_packet(self._source, stream.index)
        )

    def run(self) -> int:
        """Write the film. Return the number of clipped samples."""
        self._out.start_encoding()
        copied = [stream for stream in self._film.streams if stream.index in self._copies]
        for packet in self._read(copied) if copied else ():
            if packet.dts is None and packet.pts is None and not packet.size:
                continue  # the end of a stream
            time = packet.dts if packet.dts is not None else packet.pts
            if time is not None:
                self._encode_until(time * packet.time_base - self._origin_s)
            for copy in self._copies[packet.stream.index].packets(packet):
                self._mux(copy)
        for copied_stream in self._copies.values():
            for copy in copied_stream.finish():
                self._mux(copy)
        self._encode_until(None)
        for track in self._tracks:
            surplus = track.surplus()
            if surplus:
                self._say(f"track {track.number}: {surplus}")
        return sum(track.encoder.clipped_samples for track in self._tracks)

    def _read(self, streams: list[Any]) -> Iterator[Any]:
        import av

        try:
            yield from self._film.demux(streams)
        except av.FFmpegError as error:
            raise AudioError(
                f"{str(self._source)!r} cannot be read to its end: {reason_of(error)}; "
                "write the sound alone, such as to a .wav"
            ) from error

    def _mux(self, packet: Any) -> None:
        import av

        if packet.pts is None:
            self._untimed = stream_name(packet.stream)
        try:
            self._out.mux(packet)
        except av.FFmpegError as error:
            if not self._untimed or error.errno in _ERRORS_OF_DISKS:  # covers have no times, either
                raise
            raise AudioError(_untimed(self._target, self._untimed)) from error

    def name_lost(self, written: Path) -> None:
        """Report the text and flags that are not in the film that was written."""
        named = _text_left_out(self._muxer, self._film)
        lost = [name for name in find_lost(written, self._source, self._film, self._places) if name not in named]
        if lost:
            self._say(f"left out, the container cannot hold it: {', '.join(lost)}")

    def _encode_until(self, time_s: Fraction | None) -> None:
        for track in self._tracks:
            for packet in track.packets(time_s):
                self._mux(packet)


def _first_start_s(film: Any, starts: Mapping[int, Fraction]) -> Fraction:
    """Return where a film starts in AVI: a whole number of pictures before the first one, and before all sound."""
    pictures = [stream for stream in film.streams.video if not is_cover(stream) and stream.start_time is not None]
    firsts = [stream.start_time * stream.time_base for stream in pictures]
    first = Fraction(min([*starts.values(), *firsts]))
    if not pictures:
        return first
    step_s = avi_step_s(pictures[0])
    steps = math.ceil((firsts[0] - first) / step_s)
    return Fraction(firsts[0] - steps * step_s)


def _refusal(target: Path, stream: Any) -> str:
    """Return the message for a stream that a container cannot hold."""
    suffix = suffix_for(stream)
    hint = f"try {suffix}" if suffix else "no container here takes it"
    return f"{str(target)!r} cannot hold {stream_name(stream)}; {hint}"


def _describe(new: Any, old: Any) -> None:
    """Give a stream the language, title and other text of another one, and its disposition."""
    new.metadata.update(stream_text(old))
    new.disposition = old.disposition


def _text_left_out(muxer: str, film: Any) -> list[str]:
    """Return the names of text that MP4 cannot hold: it has either a cover, or text with names of its own."""
    if not _holds_cover(muxer, film):
        return []
    return [name for name, text in film_text(film).items() if not is_item(name, text)]


def _holds_cover(muxer: str, film: Any) -> bool:
    return muxer == "mp4" and any(is_cover(stream) for stream in film.streams.video)


def _first_packet(path: Path, index: int) -> bytes:
    with path.open("rb") as file, open_input(file) as film:
        for packet in film.demux(film.streams[index]):
            if packet.size:
                return bytes(packet)
    return b""


def _options(muxer: str, sounds: Mapping[int, Sound], film: Any) -> dict[str, str]:
    # Sound comes in blocks of up to a window, for which FFmpeg's default is too short. Without a limit, FFmpeg would
    # hold the film in memory until the next subtitle.
    options = {"fflags": "+bitexact", "max_interleave_delta": str(_MAX_WAIT_S * 1_000_000)}
    if muxer in MP4:
        options["movflags"] = "+faststart" + ("" if _holds_cover(muxer, film) else "+use_metadata_tags")
        # The unit that MP4 counts the start of a track in: samples of all tracks, and the usual milliseconds.
        options["movie_timescale"] = str(math.lcm(1_000, *(sound.like.sample_rate_hz for sound in sounds.values())))
    return options
