"""Replace the sound of films: picture, subtitles, chapters and the rest are copied, packet by packet."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.atomic import replacing
from frcrn_accel.audio import Resampler
from frcrn_accel.errors import AudioError, OutputExistsError
from frcrn_accel.files.chunks import is_bare
from frcrn_accel.files.encode_ffmpeg import TrackEncoder, coding_for
from frcrn_accel.files.ffmpeg import open_input
from frcrn_accel.files.formats import FILM_MUXERS, Target, keeps_codec, plan_track
from frcrn_accel.files.lengths import silence_before
from frcrn_accel.files.mp4 import is_item
from frcrn_accel.files.reading import AudioFile, open_audio
from frcrn_accel.files.reasons import reason_of
from frcrn_accel.notices import notify

__all__ = ["FILM_SUFFIXES", "Sound", "check_track", "film_suffix", "is_film", "write_film"]

FILM_SUFFIXES = frozenset(FILM_MUXERS)
_MP4 = ("mp4", "mov")
_MATROSKA = ("matroska", "webm")
_WITHOUT_CHAPTERS = ("avi", "flv")
_MILLISECOND = Fraction(1, 1_000)
_MAX_WAIT_S = 60  # three windows of 20 s
_IMAGES = {"mjpeg": ("image/jpeg", ".jpg"), "png": ("image/png", ".png"), "bmp": ("image/bmp", ".bmp")}
_TAGGED = ("h264", "hevc")  # MP4 names them by where their headers are: `hvc1` plays on Apple's, `hev1` does not


@dataclass(frozen=True)
class Sound:
    """New sound for a track.

    Attributes:
        like: The track as it is in the source.
        blocks: The sound, `float32 (channels, samples)` each, at the rate and with the length of the track.
    """

    like: AudioFile
    blocks: Iterator[NDArray[np.float32]]


def is_film(path: Path) -> bool:
    """Return whether a file holds moving pictures; a cover of music does not count.

    Raises:
        AudioError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return not is_bare(file) and _has_pictures(file)
    except OSError as error:
        raise AudioError(f"{str(path)!r} cannot be read: {reason_of(error)}") from error


def _has_pictures(file: BinaryIO) -> bool:
    import av

    file.seek(0)
    try:
        with open_input(file) as container:
            return any(not _is_cover(stream) for stream in container.streams.video)
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
            temporary = stack.enter_context(replacing(target, overwrite=overwrite))
            film = open_input(stack.enter_context(source.open("rb")))
            stack.enter_context(film)
            options = _options(muxer, sounds, film)
            out = av.open(os.fspath(temporary), "w", format=muxer, container_options=options)
            with out:
                return _Remux(film, out, source, target, muxer, sounds).run()
    except (AudioError, OutputExistsError):
        raise
    except (OSError, av.FFmpegError) as error:
        raise AudioError(f"{str(target)!r} cannot be written: {reason_of(error)}") from error


def film_suffix(path: Path) -> str:
    """Return the suffix for a new film: that of this one, by name or content, or of Matroska, which holds most."""
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


def check_track(target: Path, like: AudioFile) -> None:
    """Check that the sound of a film can be written.

    Raises:
        AudioError: The container cannot hold it.
    """
    plan_track(target, FILM_MUXERS[target.suffix.lower()], like)


def sound_start_s(path: Path, track: int) -> Fraction:
    """Return where the first sample of a track that is heard lies on the time line of its film, in seconds.

    Raises:
        AudioError: The film cannot be read.
        OSError: The same.
    """
    import av

    with path.open("rb") as file, open_input(file) as film:
        for packet in film.demux(film.streams.audio[track]):
            with suppress(av.FFmpegError, EOFError):
                for frame in packet.decode():
                    if frame.pts is not None:
                        return Fraction(frame.pts * frame.time_base)
    return Fraction(0)


class _Remux:
    """Writes the packets of a film and of its new sound in the order of their times."""

    def __init__(
        self, film: Any, out: Any, source: Path, target: Path, muxer: str, sounds: Mapping[int, Sound]
    ) -> None:
        self._film, self._out, self._target, self._muxer = film, out, target, muxer
        self._source = source
        self._tracks: list[_Track] = []
        self._copies: dict[int, Any] = {}  # output streams by the index of the source's
        self._subtitles_left_out = Counter[str]()  # by codec
        audio = list(film.streams.audio)
        for stream in film.streams:
            number = audio.index(stream) if stream.type == "audio" else None
            if number is not None and number in sounds:
                plan = plan_track(target, muxer, sounds[number].like)
                for note in plan.notes:
                    notify(f"{str(target)!r}: {note}")
                self._tracks.append(_Track(out, plan, sounds[number], source))
                _describe(self._tracks[-1].encoder.stream, stream)
            else:
                self._copy(stream)
        for codec, count in self._subtitles_left_out.items():
            streams = f"{count} subtitle stream{'' if count == 1 else 's'} ({codec})"
            notify(f"{str(target)!r}: left out, the container cannot hold it: {streams}")
        out.metadata.update(_text(film))
        left_out = _text_left_out(muxer, film)
        if left_out:
            notify(f"{str(target)!r}: left out, MP4 holds such text only without a cover: {', '.join(left_out)}")
        if film.chapters() and muxer in _WITHOUT_CHAPTERS:
            notify(f"{str(target)!r}: left out, the container cannot hold it: {len(film.chapters())} chapters")
        elif film.chapters():
            out.set_chapters(film.chapters())

    def _copy(self, stream: Any) -> None:
        import av

        if stream.type == "attachment":
            name, mime = stream.metadata.get("filename", "attachment"), stream.metadata.get("mimetype", "")
            if self._muxer not in _MATROSKA:
                notify(f"{str(self._target)!r}: left out, the container cannot hold it: attachment {name!r}")
                return
            self._out.add_attachment(name, mime or "application/octet-stream", bytes(stream.data or b""))
            return
        if stream.type == "data" and (self._holds_chapters(stream) or self._holds_time_code(stream)):
            return  # the muxer writes these tracks itself
        if _is_cover(stream) and self._muxer in _MATROSKA:  # where a cover is an attachment, not a stream
            self._attach_cover(stream)
            return
        if _is_cover(stream) and self._muxer != "mp4":
            notify(f"{str(self._target)!r}: left out, the container cannot hold it: cover")
            return
        try:
            copied = self._out.add_stream_from_template(stream, opaque=True)
        except (ValueError, TypeError, NotImplementedError, av.FFmpegError) as error:
            codec = stream.codec_context.name if stream.codec_context else "unknown"
            what = f"{stream.type} stream {stream.index} ({codec})"
            if stream.type == "subtitle":
                self._subtitles_left_out[codec] += 1
                return
            if stream.type in ("video", "audio"):
                raise AudioError(f"{str(self._target)!r} cannot hold {what}: {error}") from error
            notify(f"{str(self._target)!r}: left out, the container cannot hold it: {what}")
            return
        _describe(copied, stream)
        if self._muxer in _MP4 and self._is_mp4 and copied.type == "video" and copied.codec_context.name in _TAGGED:
            copied.codec_context.codec_tag = stream.codec_context.codec_tag
        self._copies[stream.index] = copied

    @property
    def _is_mp4(self) -> bool:
        return "mp4" in self._film.format.name.split(",")

    def _holds_chapters(self, stream: Any) -> bool:
        """Return whether a data stream is the text track of the chapters of MP4: it has a sample for each."""
        return self._is_mp4 and bool(self._film.chapters()) and stream.frames == len(self._film.chapters())

    def _holds_time_code(self, stream: Any) -> bool:
        return "timecode" in stream.metadata and self._muxer != "mpegts"

    def _attach_cover(self, stream: Any) -> None:
        mime, suffix = _IMAGES.get(stream.codec_context.name, ("application/octet-stream", ".bin"))
        if self._muxer == "webm":
            notify(f"{str(self._target)!r}: left out, the container cannot hold it: cover")
            return
        name = stream.metadata.get("filename", f"cover{suffix}")
        self._out.add_attachment(
            name, stream.metadata.get("mimetype", mime), _first_packet(self._source, stream.index)
        )

    def run(self) -> int:
        """Write the film. Return the number of clipped samples."""
        self._out.start_encoding()
        copied = [stream for stream in self._film.streams if stream.index in self._copies]
        for packet in self._film.demux(copied) if copied else ():
            if packet.dts is None and packet.pts is None and not packet.size:
                continue  # the end of a stream
            time = packet.dts if packet.dts is not None else packet.pts
            if time is not None:
                self._encode_until(time * packet.time_base)
            packet.stream = self._copies[packet.stream.index]
            self._out.mux(packet)
        self._encode_until(None)
        return sum(track.encoder.clipped_samples for track in self._tracks)

    def _encode_until(self, time_s: Fraction | None) -> None:
        for track in self._tracks:
            for packet in track.packets(time_s):
                self._out.mux(packet)


class _Track:
    """New sound on its way into a film."""

    def __init__(self, out: Any, plan: Target, sound: Sound, source: Path) -> None:
        self.encoder = TrackEncoder(out, coding_for(plan, sound.like))
        self._plan, self._like, self._blocks = plan, sound.like, sound.blocks
        self._start_s = sound_start_s(source, sound.like.track)
        self._given = self._taken = 0
        self._resampler = None
        if plan.rate_hz != sound.like.sample_rate_hz:
            self._resampler = Resampler(sound.like.sample_rate_hz, plan.rate_hz, len(plan.sources))
        self._ended = self._is_aligned = self._is_led = False

    def packets(self, time_s: Fraction | None) -> Iterator[Any]:
        """Yield the packets up to a time on the film's time line; None for all that are left."""
        rate_hz = self._plan.rate_hz
        while not self._ended and (time_s is None or self._start_s + Fraction(self._given, rate_hz) < time_s):
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                if self._resampler is not None:
                    wanted = round(self._taken * rate_hz / self._like.sample_rate_hz)
                    yield from self._encoded(self._resampler.finish()[:, : max(0, wanted - self._given)])
                yield from self._shifted(self.encoder.finish())
                return
            self._taken += block.shape[1]
            silence = np.zeros(block.shape[1], np.float32)
            block = np.stack([silence if row is None else block[row] for row in self._plan.sources])
            yield from self._encoded(block if self._resampler is None else self._resampler.push(block))

    def _encoded(self, block: NDArray[np.float32]) -> Iterator[Any]:
        self._given += block.shape[1]
        if not self._is_led:
            self._is_led = True
            lead = silence_before(self._plan, self.encoder.stream.codec_context.frame_size)
            self._start_s -= Fraction(lead, self._plan.rate_hz)
            yield from self._shifted(self.encoder.encode(np.zeros((len(block), lead), np.float32)))
        yield from self._shifted(self.encoder.encode(block))

    def _shifted(self, packets: Iterator[Any]) -> Iterator[Any]:
        for packet in packets:
            if not self._is_aligned:
                self._is_aligned = True
                self._align(-packet.pts * packet.time_base)
            shift = round(self._start_s / packet.time_base)
            packet.pts += shift
            packet.dts += shift
            yield packet

    def _align(self, lead_s: Fraction) -> None:
        """Move the start to where a player of Matroska puts it, which counts milliseconds.

        It adds what the encoder puts before the sound to a rounded time, and rounds again.
        """
        if self._plan.container not in _MATROSKA:
            return
        wanted = round(self._start_s / _MILLISECOND)
        first = math.floor(wanted - lead_s / _MILLISECOND)
        while math.floor(first + lead_s / _MILLISECOND + Fraction(1, 2)) < wanted:
            first += 1
        self._start_s = first * _MILLISECOND + lead_s


# Written by the muxer.
_OWN_METADATA = {"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time"}


def _describe(new: Any, old: Any) -> None:
    """Give a stream the language, title and other text of another one, and its disposition."""
    skipped = ("duration", "handler_name", "vendor_id")
    new.metadata.update({key: text for key, text in _text(old).items() if key.lower() not in skipped})
    new.disposition = old.disposition


def _text(part: Any) -> dict[str, str]:
    return {key: text for key, text in part.metadata.items() if key.lower() not in _OWN_METADATA}


def _text_left_out(muxer: str, film: Any) -> list[str]:
    """Return the names of text that MP4 cannot hold: it has either a cover, or text with names of its own."""
    if not _holds_cover(muxer, film):
        return []
    return [name for name, text in _text(film).items() if not is_item(name, text)]


def _holds_cover(muxer: str, film: Any) -> bool:
    return muxer == "mp4" and any(_is_cover(stream) for stream in film.streams.video)


def _first_packet(path: Path, index: int) -> bytes:
    with path.open("rb") as file, open_input(file) as film:
        for packet in film.demux(film.streams[index]):
            if packet.size:
                return bytes(packet)
    return b""


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _options(muxer: str, sounds: Mapping[int, Sound], film: Any) -> dict[str, str]:
    # Sound comes in pieces of up to a window, which is longer than FFmpeg waits for the other streams by itself. It
    # must not wait for ever: until the next subtitle it would hold the film in memory.
    options = {"fflags": "+bitexact", "max_interleave_delta": str(_MAX_WAIT_S * 1_000_000)}
    if muxer in _MP4:
        options["movflags"] = "+faststart" + ("" if _holds_cover(muxer, film) else "+use_metadata_tags")
        # The unit that MP4 counts the start of a track in: samples of all tracks, and the usual milliseconds.
        options["movie_timescale"] = str(math.lcm(1_000, *(sound.like.sample_rate_hz for sound in sounds.values())))
    return options
