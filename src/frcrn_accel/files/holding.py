"""Decide which belongings a format can hold, and which are left out."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from frcrn_accel.files.belongings import Belongings
from frcrn_accel.files.chunks import Chunk
from frcrn_accel.files.formats import Target
from frcrn_accel.files.tags import is_comment_name

__all__ = ["holds", "keep"]

_ALL = frozenset({"tags", "pictures", "chapters"})
_TEXT = frozenset({"tags"})
# By muxer of FFmpeg or format of libsndfile; the others hold nothing but audio.
_HOLDS = {
    **dict.fromkeys(("mp3", "mp2", "adts"), _ALL),  # an ID3v2 tag in front
    **dict.fromkeys(("ipod", "mp4"), _ALL),
    **dict.fromkeys(("ogg", "opus", "OGG", "FLAC"), _ALL),  # Vorbis comments
    **dict.fromkeys(("WAV", "WAVEX", "RF64", "W64", "AIFF"), _ALL),  # an ID3v2 tag in a chunk
    **dict.fromkeys(("wv", "tta"), _TEXT | {"pictures"}),  # APEv2
    "matroska": _ALL,
    "webm": _TEXT | {"chapters"},
    "asf": _TEXT | {"chapters"},
    "mov": _TEXT | {"chapters"},
    "CAF": _TEXT,
}
_FAMILIES = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64", "W64"), "RIFF"),
    "AIFF": "AIFF",
    "CAF": "CAF",
}
_COMMENTS = ("ogg", "opus", "OGG", "FLAC", "wv", "tta")
# Chunks whose text is also in the tags.
_TEXT_CHUNKS = ("LIST INFO", "id3", "ID3", "NAME", "AUTH", "(c)", "ANNO", "info", "bext")
_MAX_COMMENT_CHAPTERS = 1_000  # three digits count them
_MAX_BLOCK_BYTES = (1 << 24) - 1
_MAX_ASF_BYTES = (1 << 16) - 2  # with the end of the text


def holds(container: str) -> frozenset[str]:
    """Return what a container can hold: some of `tags`, `pictures` and `chapters`."""
    return _HOLDS.get(container, frozenset())


def keep(belongings: Belongings, target: Target) -> tuple[Belongings, list[str]]:
    """Return the belongings that a new file will hold, and the names of those that are left out."""
    held, left_out = holds(target.container), []
    tags = dict(belongings.tags) if "tags" in held else {}
    if target.container in _COMMENTS:
        tags = {name: text for name, text in tags.items() if is_comment_name(name)}
    if target.container in ("OGG", "ogg", "opus", "FLAC"):
        tags = _fitting(tags)
    if target.container == "asf":
        tags = {name: text for name, text in tags.items() if len(text.encode("utf-16-le")) < _MAX_ASF_BYTES}
    left_out += [name for name in belongings.tags if name not in tags]
    pictures = belongings.pictures if "pictures" in held else ()
    if target.container in ("wv", "tta"):
        covers = {4 if picture.kind == 4 else 3: picture for picture in reversed(pictures)}
        pictures = tuple(covers.values())
    if target.container == "FLAC":
        pictures = tuple(picture for picture in pictures if len(picture.data) < _MAX_BLOCK_BYTES - 1_000)
    if missing := len(belongings.pictures) - len(pictures):
        left_out.append("picture" if missing == 1 else f"{missing} pictures")
    chapters = belongings.chapters if "chapters" in held else ()
    if target.container in _COMMENTS:
        chapters = chapters[:_MAX_COMMENT_CHAPTERS]
    if len(chapters) < len(belongings.chapters):
        left_out.append("chapters")
    family = _FAMILIES.get(target.container)
    chunks = tuple(chunk for chunk in belongings.chunks if chunk.family == family)
    left_out += [
        chunk.name for chunk in belongings.chunks if chunk.family != family and not _in_tags(chunk, bool(held))
    ]
    return replace(
        belongings, tags=MappingProxyType(tags), pictures=pictures, chapters=chapters, chunks=chunks
    ), left_out


def _in_tags(chunk: Chunk, held: bool) -> bool:
    """Return whether the text of a chunk is named, or kept, among the tags."""
    return chunk.name in _TEXT_CHUNKS and (held or chunk.name != "bext")


def _fitting(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags that fit into a block of FLAC, the largest left out."""
    while sum(len(name) + len(text.encode()) + 5 for name, text in tags.items()) > _MAX_BLOCK_BYTES - 100_000:
        del tags[max(tags, key=lambda name: len(tags[name]))]
    return tags
