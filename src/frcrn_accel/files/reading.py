"""Read audio files in blocks, whole or with a notice of what is missing."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.audio import check_format
from frcrn_accel.errors import AudioError
from frcrn_accel.files.belongings import Belongings, read_belongings
from frcrn_accel.files.chunks import id3_end
from frcrn_accel.files.decode_ffmpeg import Form, decode, probe
from frcrn_accel.files.decode_sndfile import (
    BLOCK_SAMPLES,
    Patched,
    Repair,
    decode_patched,
    find_repair,
    open_patched,
    wav_repair,
)
from frcrn_accel.files.layouts import from_vorbis
from frcrn_accel.files.ogg_chain import find_links, is_header_apart, is_opus_late
from frcrn_accel.files.reasons import IS_JOINED, reason_of
from frcrn_accel.files.stated import is_joined, stated_end
from frcrn_accel.notices import notify

__all__ = ["AudioFile", "open_audio"]

# libsndfile reads PCM of every kind bit for bit, from containers that FFmpeg lacks, and in a third of the time. It
# reads Vorbis and Opus to the sample, where FFmpeg cuts up to 128 samples off Vorbis and gives all Opus at 48 kHz.
# FFmpeg reads the rest: libsndfile ends a chained Ogg or joined MP3 after its first part, and a VBR MP3 without a
# Xing header where a constant bit rate would end, needs the length of FLAC, and fails at the first damaged frame.
_BY_FFMPEG = ("MP3", "FLAC")
_SUBTYPES_BY_FFMPEG = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
_SHORT_S = 0.05  # would be shown as 0.0
_WITH_LATE_SOUND = ("matroska", "mov,mp4")  # containers in which times do not count from the first sample
# A file that starts otherwise is tried with FFmpeg first: libsndfile would search it for MP3.
_SNDFILE_STARTS = (
    *(b"RIFF", b"RIFX", b"RF64", b"riff", b"caff", b".snd", b"dns.", b"NIST", b" paf", b"fap "),
    *(b"PVF1", b"MATL", b"Exte", b"2BIT", b"ALaw", b"\xf0\x7e", b"\x01\x04"),
    *(b"\x64\xa3", b"\0\0\xa3\x64", b"\0\0\x03\xe8", b"\0\0\0\0\1\0\0\0", b"\xe8\x03\0\0"),  # IRCAM, MAT4
)


@dataclass(frozen=True)
class _Stamp:
    """Properties that differ once a file was changed or replaced."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class AudioFile:
    """The properties of an audio file, or of one audio track of a film.

    Attributes:
        path: Path of the file.
        sample_rate_hz: Sample rate.
        channels: Number of channels.
        samples: Samples per channel by the header, or an estimate for progress; 0 if unknown.
        format: Container, by libsndfile's name, e.g. `"WAV"`, or by FFmpeg's.
        subtype: Encoding, by libsndfile's name, e.g. `"PCM_16"`, or by FFmpeg's.
        bit_rate_bps: Bits per second of the coded audio, if known.
        channel_layout: Places of the channels, by FFmpeg's name, e.g. `"5.1"`; empty if unknown.
        bits: Bits per sample of a lossless encoding that FFmpeg reads, if known.
        track: Number of the track among the audio tracks of the file, from 0.
        tracks: Number of audio tracks.
        start_s: Position of the first sample on the time line of the file.
        belongings: Text, pictures, chapters and chunks.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    samples: int
    format: str
    subtype: str
    bit_rate_bps: int | None = None
    channel_layout: str = ""
    bits: int | None = None
    track: int = 0
    tracks: int = 1
    start_s: Fraction = Fraction(0)
    belongings: Belongings = field(default_factory=Belongings)
    _form: Form | None = None  # if FFmpeg reads the file
    _order: tuple[int, ...] = ()  # of the channels in the file, if that is not the order of `channel_layout`
    _repair: Repair = field(default_factory=Repair)
    _stamp: _Stamp | None = None
    _is_joined: bool = False

    @property
    def tags(self) -> Mapping[str, str]:
        """Title, artist and other text in the file."""
        return self.belongings.tags

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Read the audio from its start to its end. What is missing or damaged is reported once, at the end.

        Yields:
            Blocks of `float32 (channels, samples)`.

        Raises:
            AudioError: The file cannot be decoded to its end, or has changed since it was opened.
        """
        with _reading(self.path):
            self._check_unchanged()
            samples = 0
            for block in self._decode():
                samples += block.shape[1]
                yield block
            self._check_unchanged()
        if self._is_joined:
            notify(f"{str(self.path)!r} {IS_JOINED}")
        for notice in self._repair.notices:
            notify(f"{str(self.path)!r}: {notice}")
        if self._repair.missing_bytes:
            present = max(1, self.path.stat().st_size)
            missing_s = samples / self.sample_rate_hz * self._repair.missing_bytes / present
            lost = f"about {missing_s:.1f} s at its end are missing"
            if missing_s < _SHORT_S:
                lost = "its last part is not whole"
            notify(f"{str(self.path)!r} is cut off: {lost}")

    def _decode(self) -> Iterator[NDArray[np.float32]]:
        if self._form is not None:
            blocks = _gathered(self._decode_with_ffmpeg(self._form))
        else:
            blocks = decode_patched(self.path, self._repair)
        return (block[list(self._order)] for block in blocks) if self._order else blocks

    def _decode_with_ffmpeg(self, form: Form) -> Iterator[NDArray[np.float32]]:
        if not self._repair.patches:
            yield from decode(self.path, self.track, form)
            return
        with Patched(self.path, self._repair) as file:
            yield from decode(self.path, self.track, form, cast(BinaryIO, file))

    def _check_unchanged(self) -> None:
        if self._stamp is not None and _Stamp.of(self.path.stat()) != self._stamp:
            raise AudioError(f"{str(self.path)!r} changed while it was read")


def open_audio(path: Path, track: int | None = None) -> AudioFile:
    """Read the properties of an audio file, or of a track of a film.

    Args:
        path: The file. Its content decides how it is read, not its suffix.
        track: Number of the audio track, from 0; None for the first.

    Raises:
        AudioError: The file does not exist, holds no audio that can be decoded, or has no such track, or the rate or
            the number of channels is not supported.
    """
    if not path.is_file():
        raise AudioError(f"{str(path)!r} {'is not a file' if path.exists() else 'does not exist'}")
    with _reading(path):
        stamp = _Stamp.of(path.stat())
        if not stamp.size:
            raise AudioError(f"{str(path)!r} cannot be read as audio: it is empty")
        found = _open(path, track or 0, stamp)
        with path.open("rb") as file:
            found = replace(found, _is_joined=is_joined(file))
    check_format(found.sample_rate_hz, found.channels)
    return found


def _open(path: Path, track: int, stamp: _Stamp) -> AudioFile:
    known = _is_for_sndfile(path)
    found = _open_with_sndfile(path, track, stamp) if known else None
    if found is not None:
        return found
    try:
        return _open_with_ffmpeg(path, track, stamp)
    except AudioError:
        # HTK has no mark at its start. libsndfile would search any other file for MP3, and print what it finds.
        is_mp3 = _is_free_format(path)
        is_known = is_mp3 or path.suffix.lower() == ".htk"
        found = _open_with_sndfile(path, track, stamp, or_mp3=is_mp3) if is_known else None
        if found is None:
            raise
        return found


def _is_free_format(path: Path) -> bool:
    """Return whether a file is MP3 whose bit rate is not one of the usual ones, which FFmpeg does not decode.

    Source: ISO/IEC 11172-3, section 2.4.2.3.
    """
    with path.open("rb") as file:
        file.seek(id3_end(file))
        head = file.read(4)
    is_frame = len(head) == 4 and head[0] == 0xFF and head[1] >= 0xE0 and head[1] & 6 and head[2] & 0xC != 0xC
    return bool(is_frame) and head[2] >> 4 == 0


def _open_with_sndfile(path: Path, track: int, stamp: _Stamp, *, or_mp3: bool = False) -> AudioFile | None:
    """Read the properties of a file that libsndfile reads best, or of MP3; return None for any other."""
    repair = find_repair(path)
    try:
        file = open_patched(path, repair)
    except soundfile.SoundFileError:
        return None
    with file:
        if (file.format in _BY_FFMPEG or file.subtype in _SUBTYPES_BY_FFMPEG) and not or_mp3:
            return None
        if track:
            raise AudioError(f"{str(path)!r} has only track 0, not {track}")
        belongings = read_belongings(path, end=repair.audio_at)
        layout, order = _layout(path, file.channels, repair)
        if file.subtype in ("VORBIS", "OPUS"):  # FFmpeg changes their order to its own, and libsndfile does not
            order = from_vorbis(layout)
        return AudioFile(
            path=path,
            sample_rate_hz=file.samplerate,
            channels=file.channels,
            samples=file.frames if repair.samples is None else min(file.frames, repair.samples),
            format=file.format,
            subtype=file.subtype,
            bit_rate_bps=_bit_rate(file, stamp.size) if file.format in ("OGG", "MP3") else None,
            channel_layout=layout,
            belongings=belongings,
            _order=order,
            _repair=repair,
            _stamp=stamp,
        )


def _is_for_sndfile(path: Path) -> bool:
    """Return whether a file starts like those of libsndfile; an Ogg file must also be whole and not chained."""
    with path.open("rb") as file:
        start = file.read(12)
        if start[:4] == b"OggS":
            links = find_links(file)
            return len(links) == 1 and links[0].is_whole and is_header_apart(file) and not is_opus_late(file)
        if start[:4] == b"Crea":  # libsndfile takes what lies between or behind blocks of sound for samples
            return _voc_sounds(file) == 1 and file.seek(0, os.SEEK_END) - stated_end(file) in (0, 1)
    is_aiff = start[:4] == b"FORM" and start[8:] in (b"AIFF", b"AIFC")  # not 8SVX, whose channels it does not count
    return is_aiff or start.startswith(_SNDFILE_STARTS)


def _voc_sounds(file: BinaryIO) -> int:
    """Return how many blocks of sound a VOC file has, counting to 2."""
    file.seek(20)
    file.seek(int.from_bytes(file.read(2), "little"))
    sounds = 0
    while sounds < 2 and (block := file.read(4))[:1] not in (b"", b"\0"):
        sounds += block[:1] in (b"\1", b"\2", b"\x09")
        file.seek(int.from_bytes(block[1:], "little"), os.SEEK_CUR)
    return sounds


def _open_with_ffmpeg(path: Path, track: int, stamp: _Stamp) -> AudioFile:
    repair = wav_repair(path) or Repair()
    if repair.patches:
        with Patched(path, repair) as file:
            form = probe(path, track, cast(BinaryIO, file))
    else:
        form = probe(path, track)
    file_format, subtype = form.container, form.codec
    if form.container == "flac":
        file_format, subtype = "FLAC", f"PCM_{form.bits or 16}"
    return AudioFile(
        path=path,
        sample_rate_hz=form.sample_rate_hz,
        channels=form.channels,
        samples=form.likely_samples,
        format=file_format,
        subtype=subtype,
        bit_rate_bps=form.bit_rate_bps,
        channel_layout=form.layout,
        bits=form.bits,
        track=track,
        tracks=form.tracks,
        start_s=form.start_s,
        belongings=_from_first_sample(read_belongings(path, track, end=repair.audio_at), form),
        _form=form,
        _repair=repair,
        _order=form.order,
        _stamp=stamp,
    )


def _from_first_sample(belongings: Belongings, form: Form) -> Belongings:
    """Count the times of chapters from the first sample, where the container counts them from its own start."""
    start_s = form.start_s
    if start_s <= 0 or not form.container.startswith(_WITH_LATE_SOUND):
        return belongings
    chapters = tuple(
        replace(
            chapter,
            start_s=max(chapter.start_s - start_s, Fraction(0)),
            end_s=max(chapter.end_s - start_s, Fraction(0)),
        )
        for chapter in belongings.chapters
    )
    return replace(belongings, chapters=chapters)


def _gathered(blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Join the frames of a codec into blocks as long as libsndfile's: the costs of the caller are per block."""
    held: list[NDArray[np.float32]] = []
    samples = 0
    for block in blocks:
        held.append(block)
        samples += block.shape[1]
        if samples >= BLOCK_SAMPLES:
            joined = np.concatenate(held, axis=1)
            yield joined[:, :BLOCK_SAMPLES]
            held, samples = [joined[:, BLOCK_SAMPLES:]], samples - BLOCK_SAMPLES
    if samples:
        yield np.concatenate(held, axis=1)


def _bit_rate(file: soundfile.SoundFile, size: int) -> int | None:
    return round(8 * size * file.samplerate / file.frames) if file.frames else None


def _layout(path: Path, channels: int, repair: Repair) -> tuple[str, tuple[int, ...]]:
    """Return the places of the channels, which libsndfile does not report, and their order in the file."""
    if channels <= 2:
        return ("mono", "stereo")[channels - 1], ()
    try:
        with Patched(path, repair) as file:
            form = probe(path, 0, cast(BinaryIO, file))
    except AudioError:
        return "", ()
    return (form.layout, form.order) if form.channels == channels else ("", ())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, soundfile.SoundFileError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{str(path)!r} cannot be read as audio: {reason_of(error)}") from error
    except (ValueError, ArithmeticError, LookupError, struct.error) as error:
        # Numbers in a damaged or hostile header, which the libraries pass on unchecked.
        if isinstance(error, AudioError):
            raise
        raise AudioError(f"{str(path)!r} cannot be read as audio: it is damaged ({error})") from error
