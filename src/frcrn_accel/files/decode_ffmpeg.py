"""Decode audio with FFmpeg's libraries: everything that libsndfile does not read, or not completely."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import MAX_SAMPLE_RATE_HZ
from frcrn_accel.errors import AudioError
from frcrn_accel.files.boxes import fragments_s
from frcrn_accel.files.chunks import id3_end
from frcrn_accel.files.ffmpeg import DSD, fix_layout, open_input
from frcrn_accel.files.joined import find_parts, mp4_parts
from frcrn_accel.files.lame import DELAYS_AT, ENCODER_AT
from frcrn_accel.files.mp3_checksum import is_frame_right
from frcrn_accel.files.ogg_chain import Link, flac_at
from frcrn_accel.files.reasons import IS_JOINED, reason_of
from frcrn_accel.files.stated import (
    begins_again,
    behind_tags,
    is_joined,
    is_placeholder,
    matroska_s,
    missing_bytes,
)
from frcrn_accel.notices import notify

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

__all__ = ["Form", "decode", "probe"]

_PLAYLISTS = {"concat", "hls", "dash", "imf", "sdp", "rtsp", "webm_dash_manifest", "lrc", "tty"}
_FIRST_FRAME_PACKETS = 5_000  # how far to look for a frame that can be decoded
_MAX_TAIL_SAMPLES = 4_096  # two frames of AAC: what older versions of FFmpeg leave beyond the end of an edit list
_PADDING_BYTES = 8  # to which W64 fills up its audio, all but one at most
_WITHOUT_PADDING = ("pcm_", "alac", "flac")
_ROUNDED_S = 0.001  # the unit in which many programs write edit lists
_MAX_GAP_S = 3_600
_TOLERANCE_S = 0.2  # Matroska and ASF count milliseconds, and frames need not be whole
_FILM_TOLERANCE_S = 1.0  # how far apart a film can have the sound and the picture of the same time
# The sample formats of FFmpeg, and the value that stands for 1.0.
_SAMPLES: Mapping[str, tuple[type[np.number[Any]], float]] = {
    "u8": (np.uint8, 2.0**7),
    "s16": (np.int16, 2.0**15),
    "s32": (np.int32, 2.0**31),
    "s64": (np.int64, 2.0**63),
    "flt": (np.float32, 1.0),
    "dbl": (np.float64, 1.0),
}
_USUAL_LAYOUTS = {1: "mono", 2: "stereo"}
_MIN_SILENCE_S = 0.1  # a shorter jump of the time stamps is rounding or jitter; FFmpeg's aresample has this limit
_MIN_GAP_S = 0.0195  # a shorter gap is rounding of time stamps: less than a frame, or up to half a block of Vorbis
# Raw streams of frames have no time stamps: FFmpeg counts the frames that it finds.
_WITHOUT_TIMES = ("mp3", "aac", "ac3", "eac3", "dts", "loas", "amr", "sbc", "gsm")
# AVI has no time stamps either. FFmpeg counts bytes, which is wrong for some codecs, or if the header is.
_TIMES_ARE_BYTES = "avi"
# Codecs whose decoders compare checksums only on demand: else damage is decoded as noise. A damaged frame of FLAC is
# an error; one of AC-3 is concealed and marked.
_CHECKS = {"flac": "crccheck+explode", "ac3": "crccheck", "eac3": "crccheck"}
# Where FFmpeg looks for the frames within packets. For FLAC, it reads ten ahead, and gives each the time of the last.
_PARSED = ("asf", "wtv")
_TIMES_ARE_SAMPLES = ("flac", "ogg")  # where a gap between frames is data that FFmpeg dropped without an error
_STATE_DELAYS = (b"LAME", b"Lavf", b"Lavc")  # encoders whose delays FFmpeg believes
_MP4, _MATROSKA = "mov,mp4", "matroska"
# Containers of a single stream that nothing but tags follows.
_SIMPLE = (
    *("wv", "tta", "tak", "ape", "mpc", "aiff", "wav", "w64", "caf", "au"),
    *("smjpeg", "kvag", "apm", "argo_asf", "rso"),
)
_COUNTED = tuple(name for name in _SIMPLE if name != "wav")  # whose length may be derived from a bit rate
_FRAME_HEADER_BYTES, _XING_BYTES = 6, 256  # with a checksum; within which a Xing header starts
_TAGS = (b"ID3", b"TAG", b"APETAGEX")
_EXACT_DURATION = (_MP4, "flac", "gxf", *_SIMPLE)
_TAGGED = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", re.ASCII)
_FLAC_UNKNOWN = (1 << 36) - 1  # samples: the largest number that its header holds


@dataclass(frozen=True)
class Form:
    """The format of the audio in a file, as its first frame has it.

    Attributes:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the decoder.
        sample_rate_hz: Sample rate that the audio is returned at.
        decoded_rate_hz: Sample rate of the decoder. It is higher for DSD only.
        channels: Number of channels.
        layout: FFmpeg's name of the channel layout; empty if unknown.
        order: For each place of the layout, the channel that is decoded for it; empty if they are in this order.
        bits: Bits per sample of an integer encoding; None for others.
        bit_rate_bps: Bits per second; None if unknown.
        expected_samples: Length by the header; None if the header does not say it exactly.
        likely_samples: Estimate of the length, for progress; 0 if there is none.
        missing_share: Bytes that the header states beyond the end of the file, over those in the file.
        start_s: Position of the first sample on the container's time line.
        tracks: Number of audio tracks.
        is_open_ended: Whether the file has fragments, and does not state how many.
        film_s: Time at which the longest track of a film ends, if its header does not say when this one does.
    """

    container: str
    codec: str
    sample_rate_hz: int
    decoded_rate_hz: int
    channels: int
    layout: str
    order: tuple[int, ...]
    bits: int | None
    bit_rate_bps: int | None
    expected_samples: int | None
    likely_samples: int
    missing_share: float
    start_s: Fraction
    tracks: int
    is_open_ended: bool
    film_s: Fraction | None


def probe(path: Path, track: int, opened: BinaryIO | None = None) -> Form:
    """Read the format of a track; of joined files, that of the first.

    Args:
        path: The file.
        track: Number of the track.
        opened: What to read instead of the file itself, such as one whose header is corrected.

    Raises:
        AudioError: FFmpeg does not recognize the file, it has no such track, or its codec cannot be decoded.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        parts = mp4_parts(file)
    form = _probe(path, track, parts[0] if parts else None, opened)
    samples = form.likely_samples
    for part in parts[1:]:
        with suppress(AudioError):  # which `decode` reports
            own = _probe(path, track, part)
            samples += round(own.likely_samples * form.sample_rate_hz / own.sample_rate_hz)
    return replace(form, likely_samples=samples)


def _probe(path: Path, track: int, link: Link | None, opened: BinaryIO | None = None) -> Form:
    with _opened(path, link, opened) as (container, file):
        stream = _stream(path, container, track)
        context = stream.codec_context
        stated, order = fix_layout(context)
        frame = _first_frame(path, container, stream)
        decoded_rate = frame.sample_rate if frame else context.sample_rate
        if not decoded_rate:
            raise AudioError(f"{str(path)!r} cannot be read as audio: its sample rate is unknown")
        rate = _rate_for(context.name, decoded_rate)
        layout = frame.layout if frame else context.layout
        layout_name = layout.name
        if "channels" not in layout_name or "(" in layout_name:  # the decoder has its own
            order = ()
        else:
            layout_name = stated
        format_name = frame.format.name if frame else (context.format.name if context.format else "")
        duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        if duration is None and container.duration:
            duration = Fraction(container.duration, 1_000_000)
        samples = round(duration * rate) if duration else 0
        name = container.format.name
        if name == "aiff" and not context.name.startswith("pcm_"):  # its header may count packets
            samples = 0
        if name == "ogg":
            samples = max(0, samples - round((_first_s(file, stream) or 0) * rate))
        exact = samples if name.startswith(_EXACT_DURATION) and stream.duration else None
        if name == "flac" and stream.duration == _FLAC_UNKNOWN:
            exact = None
        if name == "mp3":
            exact = _declared_samples(file)
        whole_s = fragments_s(file) if name.startswith(_MP4) else None
        if exact and whole_s:
            exact += round(_missing_fragments_s(whole_s, container) * rate)
        start = Fraction(0)
        if frame is not None and frame.pts is not None:  # behind what a decoder drops, such as half a block of Vorbis
            start = Fraction(frame.pts * frame.time_base)
        film_s = matroska_s(file) if name.startswith(_MATROSKA) else None
        if film_s:
            end_s = film_s if len(container.streams) == 1 else _tagged_s(stream, film_s)
            if end_s:
                film_s, exact = None, round((end_s - start) * rate)
                samples = max(0, exact)
        return Form(
            container=name,
            codec=context.name,
            sample_rate_hz=rate,
            decoded_rate_hz=decoded_rate,
            channels=layout.nb_channels,
            layout=_USUAL_LAYOUTS.get(layout.nb_channels, layout_name),
            order=order,
            bits=_bits(context, format_name),
            bit_rate_bps=_bit_rate(container, context, stream),
            expected_samples=max(0, exact or 0) or None,
            likely_samples=samples,
            missing_share=missing_bytes(file) / max(1, file.tell()),  # which is at its end
            start_s=start,
            tracks=len(container.streams.audio),
            is_open_ended=whole_s == 0,
            film_s=film_s,
        )


def decode(path: Path, track: int, form: Form, opened: BinaryIO | None = None) -> Iterator[NDArray[np.float32]]:
    """Decode a track to its end.

    Parts with another rate or other channels than the first are converted to its format. The channels keep the order
    of the file, see `Form.order`.

    Args:
        path: The file.
        track: Number of the track.
        form: What `probe` found.
        opened: What to read instead of the file itself; see `probe`.

    Yields:
        Blocks of `float32 (channels, samples)`.

    Raises:
        AudioError: The file cannot be decoded to its end, or no audio was found in it.
        OSError: The file cannot be read.
    """
    # FFmpeg follows a chain by itself, but not to another format, and does not end each link at its last sample.
    with path.open("rb") as file:
        links: Sequence[Link | None] = find_parts(file, form.container) or [None]
    decoder = _Decoder(path, form)
    for number, link in enumerate(links, 1):
        own: Form | None = form
        if number > 1 and form.container != "ogg":  # whose header does not state a length
            own = _form_of_part(path, track, link, number)
        if own is None:
            continue
        with _opened(path, link, opened) as (container, file):
            stream = _stream(path, container, track)
            fix_layout(stream.codec_context)
            first_s = _first_s(file, stream) if form.container == "ogg" else None
            yield from decoder.decode(container, stream, own, f"part {number} of " * (len(links) > 1), first_s)
            if link is None and decoder.end and not is_joined(file):
                is_simple = form.container.startswith(_SIMPLE)
                if begins_again(file, decoder.end, is_simple=is_simple):
                    notify(f"{str(path)!r} {IS_JOINED}")
    decoder.finish()
    last = links[-1]
    if last is not None and not last.is_ended:
        if not decoder.samples:
            raise AudioError(f"{str(path)!r} cannot be read as audio: it is cut off before its first sample")
        notify(f"{str(path)!r} ends without the mark of an end: it may have been cut off")
    if any(link is not None and link.is_ended and not link.is_whole for link in links):
        notify(f"{str(path)!r} is damaged: it has pages with wrong checksums, or other data between its pages")


def _form_of_part(path: Path, track: int, link: Link | None, number: int) -> Form | None:
    """Return the format of a later part of joined files; None, with a notice, if it cannot be read."""
    try:
        return _probe(path, track, link)
    except AudioError as error:
        notify(f"part {number} of {error}")
        return None


class _Decoder:
    """Decodes consecutive streams to one format.

    Attributes:
        samples: Number of samples so far.
        end: Position in the file behind the last packet; 0 if that is unknown.
    """

    def __init__(self, path: Path, form: Form) -> None:
        self.samples = self.end = 0
        self._film_s = Fraction(0)  # where the last packet of any track ends, if that is compared
        self._gaps_are_errors = form.container in _TIMES_ARE_SAMPLES
        self._gaps_are_filled = form.container not in _WITHOUT_TIMES
        self._fitting = self._timed_samples = 0
        self._time_s: float | None = None
        self._path, self._form = path, form
        self._converter: Any = None
        self._converted: tuple[str, str, int] | None = None
        self._changes: set[tuple[str, str, int]] = set()  # of the format, that have been reported
        self._limit: int | None = None  # samples at the end of this part, if it is MP4
        self._held: list[NDArray[np.float32]] = []  # what lies beyond the length that an MP4 file declares
        self._held_samples = 0
        self._checksums: Counter[bool | None] = Counter()  # of MP3: whether they are right
        self._errors = self._new_errors = self._marked = self._concealed = self._paused = self._packets = 0

    def decode(
        self, container: InputContainer, stream: av.AudioStream, own: Form, part: str, first_s: float | None = None
    ) -> Iterator[NDArray[np.float32]]:
        """Decode a stream, and report what is missing at its end.

        Args:
            container: Its container.
            stream: The stream.
            own: What `probe` found of it.
            part: Which part of the file it is, for messages; empty for the whole.
            first_s: Position of its first sample on its time line, if that is not the time of its first frame.

        Raises:
            AudioError: The stream cannot be decoded to its end, or is cut off before its first sample.
        """
        start, self.end = self.samples, 0
        origin = first_s
        expected = round((own.expected_samples or 0) * self._form.sample_rate_hz / own.sample_rate_hz)
        self._limit = start + expected if own.container.startswith(_MP4) and expected else None
        for packet in self._packets_of(container, stream, is_film=own.film_s is not None):
            for frame in self._frames_of(packet):
                self._marked += frame.is_corrupt
                if origin is None and frame.time is not None:
                    origin = frame.time
                if self._form.container == _TIMES_ARE_BYTES:
                    self._compare_times(frame)
                if self._gaps_are_errors or (self._new_errors and self._gaps_are_filled):
                    yield from self._conceal(frame, origin, start)
                elif self._gaps_are_filled:
                    yield from self._fill(frame, origin, start)
                for block in self._blocks_of(frame):
                    yield from self._limited(block)
        for block in self._flush():
            yield from self._limited(block)
        rate = self._form.sample_rate_hz
        if 0 < self._held_samples <= _ROUNDED_S * rate and own.codec.startswith(_WITHOUT_PADDING):
            self.samples += self._held_samples
            yield from self._held
        self._held, self._held_samples = [], 0
        if self.samples > start or part:
            self._say_missing(f"{part}{str(self._path)!r}", own, expected, self.samples - start)

    def _say_missing(self, name: str, own: Form, expected: int, samples: int) -> None:
        """Report what is missing at the end of a part of the file that gave so many samples."""
        rate = self._form.sample_rate_hz
        missing_s = (expected - samples) / rate
        likely_s = own.missing_share * samples / rate
        if missing_s > _TOLERANCE_S:
            least = "at least " * own.is_open_ended
            notify(f"{name} is cut off: {least}{missing_s:.1f} s at its end are missing")
        elif likely_s > _TOLERANCE_S:
            notify(f"{name} is cut off: about {likely_s:.1f} s at its end are missing")
        elif own.missing_share:
            notify(f"{name} is cut off: its last part is not whole")
        elif own.film_s is not None and own.film_s - self._film_s > _FILM_TOLERANCE_S:
            end_s = float(own.start_s) + samples / rate
            if end_s > self._film_s - _FILM_TOLERANCE_S:
                notify(f"{name} is cut off: up to {float(own.film_s) - end_s:.1f} s at its end are missing")
        elif expected and missing_s < -_TOLERANCE_S and own.container.startswith(_COUNTED):
            notify(
                f"{name}: its header says that it has only {expected / rate:.1f} s of {samples / rate:.1f} s: it is "
                "read to its end"
            )

    def finish(self) -> None:
        """Report what was damaged.

        Raises:
            AudioError: There is data, but not one sample could be decoded.
        """
        form, rate = self._form, self._form.sample_rate_hz
        if self._packets and not self.samples:
            raise AudioError(f"{str(self._path)!r} cannot be read as audio: not one frame of {form.codec} is whole")
        if form.expected_samples and not self.samples:
            raise AudioError(f"{str(self._path)!r} cannot be read as audio: it is cut off before its first sample")
        if self._errors or self._concealed or self._marked:
            lost = "they are skipped" if self._errors else "the decoder conceals them"
            if self._concealed:
                lost = f"{self._concealed / rate:.2f} s are silent instead"
            frames = self._errors + self._marked or "some"
            notify(f"{str(self._path)!r} is damaged: {frames} of its frames are not whole, {lost}")
        wrong = self._checksums[False]
        if 0 < wrong < self._checksums[True]:  # else the encoder counts differently
            lost = "they are decoded as they are"
            notify(f"{str(self._path)!r} is damaged: {wrong} of its frames have wrong checksums, {lost}")
        if self._paused:
            notify(f"{str(self._path)!r} has gaps in its sound: {self._paused / rate:.2f} s are silent")

    def _packets_of(self, container: InputContainer, stream: av.AudioStream, *, is_film: bool) -> Iterator[Any]:
        import av

        packets: Iterator[Any] = container.demux() if is_film else container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                if not self.samples:
                    raise
                if 0 < container.size <= self.end:  # some demuxers call the end of the file an error
                    return
                position_s = self.samples / self._form.sample_rate_hz
                text = f"{str(self._path)!r} cannot be read past {position_s:.1f} s: {reason_of(error)}"
                if not isinstance(error, av.error.InvalidDataError | EOFError):
                    raise AudioError(text) from error
                notify(f"{text}; it is damaged or cut off")
                return
            if packet is None:
                return
            if is_film and packet.pts is not None:
                end_s = (packet.pts + (packet.duration or 0)) * packet.time_base
                self._film_s = max(self._film_s, end_s)
            if packet.stream.index == stream.index:
                yield packet

    def _frames_of(self, packet: Any) -> Sequence[Any]:
        import av

        self._packets += bool(packet.size)
        if packet.size and packet.pos is not None:
            self.end = max(self.end, packet.pos + packet.size)
        if packet.size and self._form.container == "mp3":
            packet = _without_headers(packet)
        try:
            frames: list[Any] = packet.decode() if packet is not None else []
            if frames and self._form.codec.startswith("mp3"):
                self._checksums[is_frame_right(bytes(packet))] += 1
            return frames
        except EOFError:
            return []
        except av.FFmpegError:
            if _has_sound(packet):
                self._errors += 1
                self._new_errors += 1
            return []

    def _compare_times(self, frame: Any) -> None:
        """Count by how many more of the steps in time so far fit the samples than do not."""
        if frame.time is None:
            return
        samples = self.samples - self._concealed - self._paused
        length_s = (samples - self._timed_samples) / self._form.sample_rate_hz
        if self._time_s is not None and length_s:
            fits = abs(frame.time - self._time_s - length_s) <= length_s / 2
            self._fitting += 1 if fits else -1
        self._time_s, self._timed_samples = frame.time, samples

    def _conceal(self, frame: Any, origin: float | None, start: int) -> Iterator[NDArray[np.float32]]:
        """Replace packets that could not be decoded by silence, so that the rest stays in its place."""
        self._new_errors = 0
        gap = self._gap(frame, origin, start, _MIN_GAP_S)
        self._concealed += gap
        yield from self._silence(gap)

    def _fill(self, frame: Any, origin: float | None, start: int) -> Iterator[NDArray[np.float32]]:
        """Fill a gap in the time stamps of the container with silence, as a player does."""
        gap = self._gap(frame, origin, start, _MIN_SILENCE_S)
        self._paused += gap
        yield from self._silence(gap)

    def _gap(self, frame: Any, origin: float | None, start: int, shortest_s: float) -> int:
        """Return how many samples are missing before a frame by its time; 0 if that is too little or too much."""
        if frame.time is None or origin is None or self._fitting < 0:
            return 0
        rate = self._form.sample_rate_hz
        gap = round((frame.time - origin) * rate) - (self.samples + max(0, self._held_samples) - start)
        return gap if shortest_s * rate < gap < _MAX_GAP_S * rate else 0

    def _silence(self, samples: int) -> Iterator[NDArray[np.float32]]:
        while samples:
            size = min(samples, 1 << 16)
            yield from self._limited(np.zeros((self._form.channels, size), np.float32))
            samples -= size

    def _blocks_of(self, frame: Any) -> Iterator[NDArray[np.float32]]:
        import av

        form = self._form
        if frame.sample_rate == form.sample_rate_hz and frame.layout.nb_channels == form.channels:
            yield from self._flush()
            yield _samples_of(frame)
            return
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._converted != kind:
            yield from self._flush()
            if frame.sample_rate == form.decoded_rate_hz and frame.layout.nb_channels == form.channels:
                notify(f"{str(self._path)!r} is DSD: it is converted to PCM of {form.sample_rate_hz:,} Hz")
            elif kind not in self._changes:
                self._say_change(frame)
            self._changes.add(kind)
            layout = form.layout or frame.layout.name
            self._converter = av.AudioResampler(format="fltp", layout=layout, rate=form.sample_rate_hz)
            self._converted = kind
        frame.pts = None
        for converted in self._converter.resample(frame):
            yield _samples_of(converted)

    def _say_change(self, frame: Any) -> None:
        form = self._form
        notify(
            f"{str(self._path)!r} changes to {frame.sample_rate:,} Hz, {frame.layout.name}, after its start: all "
            f"of it is converted to {form.sample_rate_hz:,} Hz, {form.layout or form.channels}"
        )
        if not form.layout:
            raise AudioError(
                f"{str(self._path)!r} changes its channels after its start, and their places are unknown"
            )

    def _flush(self) -> Iterator[NDArray[np.float32]]:
        if self._converter is not None:
            for frame in self._converter.resample(None):
                yield _samples_of(frame)
            self._converter = self._converted = None

    def _limited(self, block: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Hold back what lies beyond the end of an edit list: older versions of FFmpeg do not cut it off."""
        limit = self._limit
        if limit is None or self._held_samples < 0:
            self.samples += block.shape[1]
            yield block
            return
        room = max(0, limit - self.samples)
        if room:
            self.samples += block[:, :room].shape[1]
            yield block[:, :room]
        if block.shape[1] > room:
            self._held.append(block[:, room:])
            self._held_samples += block.shape[1] - room
            if self._held_samples > _MAX_TAIL_SAMPLES:  # the header is wrong
                held, self._held, self._held_samples = self._held, [], -1
                for part in held:
                    self.samples += part.shape[1]
                    yield part


@contextmanager
def _opened(
    path: Path, link: Link | None, opened: BinaryIO | None = None
) -> Iterator[tuple[InputContainer, BinaryIO]]:
    import av

    with nullcontext(opened) if opened is not None else path.open("rb") as file:
        source = file if link is None else cast(BinaryIO, link.view(file))
        try:
            with _open(source, _raw_format(file) if link is None else None) as container:
                if container.format.name in _PLAYLISTS:
                    raise AudioError(f"{str(path)!r} is a playlist or text, not audio")
                yield container, source
        except av.FFmpegError as error:
            raise AudioError(f"{str(path)!r} cannot be read as audio: {reason_of(error)}") from error


def _open(source: Any, raw_format: str | None) -> InputContainer:
    """Open a container. FFmpeg does not recognize a few frames without one; it then gets their format."""
    import av

    container: InputContainer
    try:
        container = open_input(source)
    except av.FFmpegError:
        if raw_format is None:
            raise
    else:
        if container.format.name in _PARSED and any(_is_flac(stream) for stream in container.streams.audio):
            container.close()
            source.seek(0)
            return cast("InputContainer", open_input(source, container_options={"fflags": "+noparse"}))
        if raw_format is None or container.streams.audio:
            return container
        container.close()
    source.seek(0)
    container = open_input(source, format=raw_format)
    return container


def _is_flac(stream: av.AudioStream) -> bool:
    return stream.codec_context is not None and stream.codec_context.name == "flac"


def _raw_format(file: BinaryIO) -> str | None:
    """Return FFmpeg's name for frames without a container, by their first bytes; None for anything else."""
    start = file.read(6)
    file.seek(0)
    if start[:2] == b"\x0b\x77" and len(start) == 6:
        return "ac3" if start[5] >> 3 <= 10 else "eac3"
    if start[:1] != b"\xff" or len(start) < 6 or start[1] < 0xE0:
        return None
    layer = start[1] >> 1 & 3  # 3 is layer I, and the mark of UTF-16
    return {0: "aac" if start[1] >= 0xF0 else None, 1: "mp3", 2: "mp3"}.get(layer)


def _stream(path: Path, container: InputContainer, track: int) -> av.AudioStream:
    streams = container.streams.audio
    if not streams:
        raise AudioError(f"{str(path)!r} holds no audio")
    if not 0 <= track < len(streams):
        there = "only track 0" if len(streams) == 1 else f"tracks 0 to {len(streams) - 1}"
        raise AudioError(f"{str(path)!r} has {there}, not {track}")
    stream = streams[track]
    if stream.codec_context is None:
        raise AudioError(f"{str(path)!r} cannot be read as audio: its codec is unknown, or it is encrypted")
    if (checks := _CHECKS.get(stream.codec_context.name)) is not None:
        stream.codec_context.options = {"err_detect": checks}
    return stream


def _first_frame(path: Path, container: InputContainer, stream: av.AudioStream) -> Any:
    """Return the first frame that can be decoded; None for a track without any data."""
    import av

    packets = 0
    with suppress(EOFError):
        for packet in container.demux(stream):
            packets += bool(packet.size)
            with suppress(av.FFmpegError):
                for frame in packet.decode():
                    if frame.samples:
                        return frame
            if packets > _FIRST_FRAME_PACKETS:
                break
    if packets:
        raise AudioError(f"{str(path)!r} cannot be read as audio: no frame of {stream.codec_context.name} is whole")
    return None


def _first_s(file: BinaryIO, stream: av.AudioStream) -> float | None:
    """Return where FLAC in Ogg starts on its time line, which is not what FFmpeg says; None for other codecs."""
    position = file.tell()  # FFmpeg reads on from there
    first = flac_at(file, stream.index)
    file.seek(position)
    return first / stream.codec_context.sample_rate if first and stream.codec_context.sample_rate else None


def _tagged_s(stream: av.AudioStream, film_s: Fraction) -> Fraction | None:
    """Return the time at which a track of Matroska ends by its tags; None if they do not say, or are of another film.

    mkvmerge states the length of the track instead, which is less if it starts late.
    """
    stated = _TAGGED.fullmatch(stream.metadata.get("DURATION", ""))
    if stated is None:
        return None
    hours, minutes, seconds = map(Fraction, stated.groups())
    end_s = 3_600 * hours + 60 * minutes + seconds
    return end_s if 0 < end_s <= film_s + Fraction(_TOLERANCE_S) else None


def _without_headers(packet: Any) -> Any:
    """Return a packet of MP3 without what joined files have in front of their audio; None if nothing is left.

    FFmpeg drops a frame with the tags in front of it, and plays a Xing header as silence.
    """
    import av

    data = bytes(packet)
    rest = data[behind_tags(io.BytesIO(data), 0) :] if data.startswith(_TAGS) else data
    at = _xing_at(rest)
    if not rest or (at >= 0 and not any(rest[_FRAME_HEADER_BYTES:at])):
        return None
    if rest is data:
        return packet
    frame = av.Packet(rest)
    frame.stream, frame.pts, frame.time_base = packet.stream, packet.pts, packet.time_base
    return frame


def _has_sound(packet: Any) -> bool:
    """Return whether a packet that cannot be decoded is more than a new header without a frame, or padding."""
    return packet.size >= _PADDING_BYTES or any(bytes(packet))


def _samples_of(frame: Any) -> NDArray[np.float32]:
    """Return the samples of a frame with full scale at 1.0, `(channels, samples)`."""
    channels, is_planar = frame.layout.nb_channels, frame.format.is_planar
    dtype, full_scale = _SAMPLES[frame.format.name.removesuffix("p")]
    count = frame.samples * (1 if is_planar else channels)
    # Of more than eight channels, PyAV takes the memory behind the list of planes for more of them, and so would its
    # `to_ndarray`. Nor does that convert 64-bit integers.
    planes = frame.planes[: channels if is_planar else 1]
    array: NDArray[Any] = np.stack([np.frombuffer(plane, dtype)[:count] for plane in planes])
    if not is_planar:
        array = array.reshape(-1, channels).T
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # float64 values beyond float32 become inf
            return np.ascontiguousarray(array, np.float32)
    if array.dtype.kind == "u":
        array = array.astype(np.int16) - 128
    return np.ascontiguousarray(array, np.float32) / np.float32(full_scale)


def _rate_for(codec: str, decoded_hz: int) -> int:
    """Return the rate for audio of a codec. DSD has bits instead of samples, and FFmpeg makes 352.8 kHz or more."""
    while codec.startswith(DSD) and decoded_hz > MAX_SAMPLE_RATE_HZ and not decoded_hz % 2:
        decoded_hz //= 2
    return decoded_hz


def _bits(context: Any, format_name: str) -> int | None:
    """Return the bits per sample of an integer format; FLAC's are in its header, since FFmpeg widens 24 to 32."""
    if context.name == "flac" and context.extradata and len(context.extradata) >= 14:
        return int((context.extradata[12] & 1) << 4 | context.extradata[13] >> 4) + 1
    if format_name[:1] not in ("s", "u"):
        return None
    width = int("".join(filter(str.isdigit, format_name)))
    return min(width, getattr(context, "bits_per_coded_sample", 0) or width)


def _bit_rate(container: InputContainer, context: Any, stream: av.AudioStream) -> int | None:
    """Return what the decoder states, or the mean over a file with one track only if that is lower."""
    if len(container.streams) == 1 and container.size and container.duration:
        whole = int(container.size * 8_000_000 / container.duration)
        if not context.bit_rate or whole < context.bit_rate:
            return whole
    return context.bit_rate or None


def _declared_samples(file: BinaryIO) -> int | None:
    """Return the length of an MP3 file by the Xing header in its first frame; None if there is no such header.

    FFmpeg's duration is an estimate when files were joined, and whenever there is no such header. It drops the delay
    and the padding of the encoder where the header states them, which at 8 kHz can be more than the tolerance.

    Source: "Mp3 Info Tag rev 1 specifications", G. Bouvigne.
    """
    file.seek(id3_end(file))
    first = file.read(_XING_BYTES)
    at = _xing_at(first)
    if at < 0 or len(first) < at + 12 or not first[at + 7] & 1:
        return None
    samples_per_frame = 1_152 if first[1] & 8 else 576
    frames = int.from_bytes(first[at + 8 : at + 12], "big")
    if is_placeholder(frames):
        return None
    samples = frames * samples_per_frame
    if first[at + 7] & 0xF == 0xF and first[at + ENCODER_AT :].startswith(_STATE_DELAYS):
        delays = int.from_bytes(first[at + DELAYS_AT : at + DELAYS_AT + 3], "big")
        samples -= (delays >> 12) + (delays & 0xFFF)
    return max(samples, 0)


def _xing_at(frame: bytes) -> int:
    """Return where the Xing header is in a frame of MP3, which then has no sound; -1 if there is none."""
    return max(frame.find(b"Xing", 0, _XING_BYTES), frame.find(b"Info", 0, _XING_BYTES))


def _missing_fragments_s(whole_s: Fraction, container: InputContainer) -> Fraction:
    """Return by how much the fragments of an MP4 file are shorter than its header states."""
    lengths_s = [s.duration * s.time_base for s in container.streams if s.duration and s.time_base]
    missing_s = whole_s - max(lengths_s, default=whole_s)
    return missing_s if missing_s > _TOLERANCE_S else Fraction(0)
