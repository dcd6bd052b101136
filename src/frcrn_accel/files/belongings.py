"""Read what accompanies the audio in a file: tags, pictures, chapters, and the chunks of broadcast recordings."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

from frcrn_accel.files.chunks import Chunk, caf_info, id3_end, is_bare, read_chunks, wav_of
from frcrn_accel.files.ffmpeg import id3_bytes, only_id3, open_input
from frcrn_accel.files.parts import FilePart
from frcrn_accel.notices import notify

__all__ = ["MAX_PICTURE_BYTES", "Belongings", "Chapter", "Picture", "belongings_of", "read_belongings", "tags_of"]

MAX_PICTURE_BYTES = 1 << 24  # what the picture block of FLAC can hold
_MAX_TEXT = 1 << 20
_MAX_TAGS, _MAX_PICTURES, _MAX_CHAPTERS = 1_000, 32, 10_000

# One name for each field, as FFmpeg spells it. The other names are those of ID3v2, MP4, Vorbis comments, APE and ASF.
_NAMES = {
    "album artist": "album_artist",
    "albumartist": "album_artist",
    "wm/albumartist": "album_artist",
    "tbpm": "bpm",
    "tmpo": "bpm",
    "wm/beatsperminute": "bpm",
    "disk": "disc",
    "discnumber": "disc",
    "wm/partofset": "disc",
    "tracknumber": "track",
    "wm/tracknumber": "track",
    "year": "date",
    "wm/year": "date",
    "tdrc": "date",
    "wm/genre": "genre",
    "wm/composer": "composer",
    "wm/publisher": "publisher",
    "organization": "publisher",
    "tpub": "publisher",
    "tsrc": "isrc",
    "description": "description",
    "author": "artist",
}
_KNOWN = {
    *_NAMES.values(),
    *(
        "title",
        "artist",
        "album",
        "comment",
        "copyright",
        "composer",
        "performer",
        "lyrics",
        "language",
        "encoded_by",
    ),
    *("grouping", "compilation", "license"),
}
# Fields that describe the coded audio of the source, which the new file does not have.
_ABOUT_CODING = re.compile(
    r"(encoder|encoder_options|encoding_params|tool|software|major_brand|minor_version|compatible_brands|handler_name"
    r"|vendor_id|duration|bps|number_of_(frames|bytes)|_statistics_.*|itunsmpb|itunnorm|gapless_playback|iscompilation"
    r"|waveformatextensible_channel_mask|id3v2_priv\..*|device ?conformance.*|wmfsdk.*|isvbr|source_id|timecode"
    r"|deviceconformancetemplate|iswmsomething)(-[a-z]{3})?",
    re.IGNORECASE,
)
# FFmpeg names the kind of a picture in the comment of its stream; these are the kinds of ID3v2, in their order.
PICTURE_KINDS = (
    *("Other", "32x32 pixels 'file icon'", "Other file icon", "Cover (front)", "Cover (back)", "Leaflet page"),
    *("Media (e.g. label side of CD)", "Lead artist/lead performer/soloist", "Artist/performer", "Conductor"),
    *("Band/Orchestra", "Composer", "Lyricist/text writer", "Recording Location", "During recording"),
    *("During performance", "Movie/video screen capture", "A bright coloured fish", "Illustration"),
    *("Band/artist logotype", "Publisher/Studio logotype"),
)
_FRONT_COVER = 3
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
)


@dataclass(frozen=True)
class Picture:
    """A picture, such as the cover.

    Attributes:
        data: The image file.
        mime: Its type, e.g. `"image/jpeg"`.
        kind: What it shows, by the numbers of ID3v2; 3 is the front cover.
        description: Text about it.
    """

    data: bytes = field(repr=False)
    mime: str
    kind: int = _FRONT_COVER
    description: str = ""


@dataclass(frozen=True)
class Chapter:
    """A part of the audio with a title."""

    start_s: Fraction
    end_s: Fraction
    title: str


@dataclass(frozen=True)
class Belongings:
    """Everything in a file that accompanies its audio.

    Attributes:
        tags: Text, by FFmpeg's names in lower case: `title`, `artist`, `album_artist`, `track`, ... Other fields keep
            the name that they have in the file.
        pictures: Cover and other pictures.
        chapters: Chapters, in their order.
        chunks: Chunks of a WAV, AIFF or CAF file that do not describe the samples: `bext`, `iXML`, `cue `, ...
    """

    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    pictures: tuple[Picture, ...] = ()
    chapters: tuple[Chapter, ...] = ()
    chunks: tuple[Chunk, ...] = ()


def read_belongings(path: Path, track: int = 0, end: int | None = None) -> Belongings:
    """Read everything in a file that accompanies its audio. An `AudioWarning` names what cannot be read.

    Args:
        path: The file.
        track: Index of the audio stream among the audio streams.
        end: Where to stop, if what follows are samples that the header does not count; else None.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        if is_bare(file):
            return Belongings()
    import av

    chunks, dropped = read_chunks(path, end)
    try:
        with path.open("rb") as file:
            if dropped:
                reason = "their numbers are big-endian" if file.read(4) == b"RIFX" else "cut off or too large"
                notify(f"{str(path)!r}: chunks left out, {reason}: {', '.join(dropped)}")
                file.seek(0)
            # FFmpeg reads such chunks in WAV files only.
            is_apart = file.read(4) == b"riff" or end is not None
            file.seek(0)
            source: Any = file if end is None else FilePart(file, 0, end)
            if is_apart and chunks and chunks[0].family == "RIFF":
                source = io.BytesIO(wav_of(chunks))
            front = file.read(id3_bytes(file))
            file.seek(0)
            with only_id3(front) if front else open_input(source) as container:
                found = belongings_of(container, track)
    except (av.FFmpegError, ValueError):  # a format that only libsndfile reads
        found = _in_id3(path)
    tags = found.tags
    for chunk in chunks:
        if chunk.family == "CAF" and chunk.id == b"info":  # FFmpeg cuts such text after 1,023 bytes
            tags = MappingProxyType({**tags, **tags_of(caf_info(chunk.data))})
    return Belongings(tags, found.pictures, found.chapters, chunks)


def _in_id3(path: Path) -> Belongings:
    """Read the ID3v2 tags in front of a file; nothing if there are none."""
    import av

    with path.open("rb") as file:
        size = id3_end(file)
        file.seek(0)
        tag = file.read(size)
    with suppress(av.FFmpegError, ValueError):
        if tag:
            with only_id3(tag) as container:
                return belongings_of(container)
    return Belongings()


def belongings_of(container: Any, track: int = 0) -> Belongings:
    """Return tags, pictures and chapters of an open input container of PyAV.

    Open it with `open_input`: text that is not UTF-8 is then read as Latin-1. The pictures are
    read from packets; seek to the start before demuxing again.
    """
    audio = container.streams.audio
    own = dict(audio[track].metadata) if track < len(audio) else {}
    if own.get("language") == "und":
        del own["language"]
    texts = {**own, **container.metadata}
    tags = tags_of(texts)
    if too_long := [_unicode(name) for name, text in texts.items() if len(text) > _MAX_TEXT]:
        notify(f"text left out, longer than {_MAX_TEXT:,} characters: {', '.join(too_long)}")
    if len(texts) > len(tags) == _MAX_TAGS:
        notify(f"fields of text after the first {_MAX_TAGS:,} are left out")
    pictures = tuple(_pictures(container))
    chapters = tuple(_chapters(container)) if hasattr(container, "chapters") else ()
    return Belongings(MappingProxyType(tags), pictures, chapters)


def tags_of(found: Mapping[str, str]) -> dict[str, str]:
    """Return tags under one name for each field, without those about the coding."""
    tags: dict[str, str] = {}
    for raw_name, raw_text in found.items():
        name, text = _unicode(raw_name).strip(), _unicode(raw_text).strip("\0")
        lower = name.lower()
        if lower == "creation_time" and text.startswith("1970-01-01T00:00:00"):
            continue  # a clock that was not set
        if _ABOUT_CODING.fullmatch(lower) or not name or not text or len(text) > _MAX_TEXT or len(tags) >= _MAX_TAGS:
            continue
        lower = "lyrics" if re.fullmatch("lyrics-[a-z]{3}", lower) else _NAMES.get(lower, lower)
        tags.setdefault(lower if lower in _KNOWN else name, text)
    return tags


def _unicode(text: str) -> str:
    """Return text that was read with `surrogateescape`; bytes that are not UTF-8 are Latin-1."""
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        # A field of fixed size can end within a character.
        cut = error.end == len(raw) and error.start >= len(raw) - 3 and not raw[: error.start].isascii()
        return raw[: error.start].decode("utf-8") if cut else raw.decode("latin-1")


def _pictures(container: Any) -> Iterator[Picture]:
    import av
    from av.stream import Disposition

    wanted: dict[int, Any] = {}
    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            if len(wanted) == _MAX_PICTURES:
                notify(f"pictures after the first {_MAX_PICTURES} are left out")
                break
            wanted[stream.index] = stream
    left = set(wanted)
    with suppress(av.FFmpegError):  # damage behind the tags, which are kept
        for packet in container.demux(list(wanted.values())) if wanted else ():
            if packet.size and packet.stream.index in left:
                left.discard(packet.stream.index)
                data = bytes(packet)
                if len(data) <= MAX_PICTURE_BYTES:
                    yield _picture(data, wanted[packet.stream.index])
                else:
                    notify(f"a picture of {len(data):,} bytes is left out: it is too large")
            if not left:
                break
    if left:
        notify(f"pictures that cannot be read are left out: {len(left)}")


def _picture(data: bytes, stream: Any) -> Picture:
    mime = next((mime for magic, mime in _MAGIC if data.startswith(magic)), f"image/{stream.codec_context.name}")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        mime = "image/webp"
    kind = _unicode(stream.metadata.get("comment", ""))
    number = PICTURE_KINDS.index(kind) if kind in PICTURE_KINDS else _FRONT_COVER
    return Picture(data, mime, number, _unicode(stream.metadata.get("title", "")))


def _chapters(container: Any) -> Iterator[Chapter]:
    chapters = container.chapters()
    if len(chapters) > _MAX_CHAPTERS:
        notify(f"chapters after the first {_MAX_CHAPTERS:,} are left out")
    for chapter in chapters[:_MAX_CHAPTERS]:
        base = chapter["time_base"] or Fraction(1)
        title = _unicode(chapter["metadata"].get("title", ""))
        yield Chapter(max(chapter["start"] * base, Fraction(0)), max(chapter["end"] * base, Fraction(0)), title)
