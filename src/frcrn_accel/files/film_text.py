"""Compare the text of a new film with that of its source, to name what the container could not hold."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from frcrn_accel.files.belongings import tags_of
from frcrn_accel.files.ffmpeg import open_input
from frcrn_accel.files.film_streams import is_cover

__all__ = ["film_text", "find_lost", "stream_text"]

_FOR_MUXERS = ("timecode",)  # a track of its own
_ROTATION_PACKETS = 50  # how far to look for a first picture
_EXPECTED = ("default", "attached_pic")  # muxers set the first by themselves, and covers are counted elsewhere


def find_lost(written: Path, source: Path, film: Any, places: Mapping[int, int]) -> list[str]:
    """Return the names of text and flags of a film that are missing, or different, in the one that was written.

    What a container holds depends on its kind, on the name of a field and on the version of FFmpeg, so the new film
    is read.

    Args:
        written: The new film.
        source: The film that it was made from.
        film: The open container of `source`.
        places: Index of each stream of the source in the new film.

    Raises:
        FFmpegError: FFmpeg cannot read the new film.
        OSError: The file cannot be read.
    """
    with written.open("rb") as file, open_input(file) as new:
        lost = _different(film.metadata, new.metadata)
        if len(new.chapters()) < len(film.chapters()):
            lost.insert(0, f"{len(film.chapters())} chapters")
        for index, place in places.items():
            if place >= len(new.streams) or is_cover(film.streams[index]):
                continue
            old_stream, new_stream = film.streams[index], new.streams[place]
            names = _different(stream_text(old_stream), stream_text(new_stream)) + _lost_flags(old_stream, new_stream)
            if names:
                lost.append(f"{', '.join(names)} of {old_stream.type} stream {index}")
    for index, place in places.items():
        stream = film.streams[index]
        if stream.type == "video" and not is_cover(stream):
            degrees = _rotation(source, index)
            if degrees and _rotation(written, place) != degrees:
                lost.append(f"rotation by {degrees} degrees of video stream {index}")
    return lost


def film_text(film: Any) -> dict[str, str]:
    """Return the text of a film by the names that FFmpeg's muxers know, without what they write by themselves."""
    return {**_without_date(tags_of(film.metadata)), **_for_muxers(film.metadata)}


def _for_muxers(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: text for key, text in metadata.items() if key in _FOR_MUXERS}


def _without_date(tags: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in tags.items() if name.lower() != "creation_time"}


def stream_text(stream: Any) -> dict[str, str]:
    """Return the text of a stream, without what is about its coding."""
    found = {key: text for key, text in stream.metadata.items() if key in _FOR_MUXERS or tags_of({key: text})}
    if "name" in found:  # what FFmpeg calls the title of a track of MP4 when it reads one
        found["title"] = found.pop("name")
    if found.get("language") == "und":
        del found["language"]
    return found


def _different(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    there = {name.lower(): text.strip() for name, text in {**tags_of(new), **_for_muxers(new)}.items()}
    wanted = {**_without_date(tags_of(old)), **_for_muxers(old)}
    return [name for name, text in wanted.items() if there.get(name.lower()) != text.strip()]


def _lost_flags(old: Any, new: Any) -> list[str]:
    missing = old.disposition & ~new.disposition
    return [flag.name for flag in type(missing) if flag & missing and flag.name and flag.name not in _EXPECTED]


def _rotation(path: Path, index: int) -> int:
    """Return by how many degrees the picture of a film is turned for display."""
    import av

    with suppress(av.FFmpegError, OSError), path.open("rb") as file, open_input(file) as film:
        for number, packet in enumerate(film.demux(film.streams[index])):
            for frame in packet.decode():
                return int(frame.rotation)
            if number > _ROTATION_PACKETS:
                break
    return 0
