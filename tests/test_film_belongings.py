"""Text, flags, chapters, covers, attachments and subtitles of a film are in the new one, or named once."""

from __future__ import annotations

import re

import av
import pytest

from coded import ffmpeg
from frcrn_accel.files import Sound, open_audio, write_film
from frcrn_accel.notices import collected_notices

TARGETS = (".mp4", ".mov", ".mkv", ".avi", ".wmv", ".flv", ".ts")
TEXT = "1\n00:00:00,100 --> 00:00:00,300\nHello\n\n2\n00:00:00,300 --> 00:00:00,400\nyou\n"
TAGS = {
    **{"title": "Ein Käse", "artist": "Somebody", "album": "Album", "date": "2020", "comment": "a remark"},
    **{"album_artist": "All", "genre": "Speech", "copyright": "nobody", "X_FREE": "free"},
}
METADATA = (
    ";FFMETADATA1\n"
    + "".join(f"{name}={text}\n" for name, text in TAGS.items())
    + "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=200\ntitle=One\n"
    + "[CHAPTER]\nTIMEBASE=1/1000\nSTART=200\nEND=400\ntitle=Two\n"
)
OF_STREAMS = (
    *("-metadata:s:v:0", "title=Picture", "-metadata:s:a:0", "language=ita", "-metadata:s:a:0", "title=Sound"),
    *("-metadata:s:s:0", "language=spa", "-disposition:s:0", "forced"),
    *("-disposition:a:0", "default+visual_impaired"),
)
SUBTITLES = {"srt": ".mkv", "ass": ".mkv", "webvtt": ".mkv", "mov_text": ".mp4"}
KEEPS = {
    "srt": (".mkv",),
    "ass": (".mkv",),
    "webvtt": (".mkv",),
    "mov_text": (".mp4", ".mov"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text, a picture, and films that have all that films can have."""
    made = tmp_path_factory.mktemp("rich")
    (made / "s.srt").write_text(TEXT)
    (made / "text").write_text(METADATA)
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=0.4")
    ffmpeg(*picture, "-frames:v", 1, made / "cover.jpg")
    inputs = (*picture, "-f", "lavfi", "-i", "sine=r=48000:d=0.4", "-i", made / "s.srt", "-i", made / "text")
    maps = ("-map", "0:v", "-map", "1:a", "-map", "2:s", "-map_metadata", 3, "-map_chapters", 3, *OF_STREAMS)
    coding = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", "-c:s")
    attached = ("-attach", made / "cover.jpg", "-metadata:s:t:0", "mimetype=image/jpeg")
    font = ("-attach", made / "s.srt", "-metadata:s:t:1", "mimetype=text/plain")
    ffmpeg(*inputs, *maps, *coding, "srt", made / "plain.mkv")
    ffmpeg(*inputs, *maps, *coding, "srt", *attached, *font, made / "rich.mkv")
    ffmpeg(*inputs, *maps, *coding, "mov_text", "-movflags", "use_metadata_tags", made / "rich.mp4")
    ffmpeg(
        "-display_rotation",
        90,
        "-i",
        made / "rich.mp4",
        "-map",
        "0:v",
        "-map",
        "0:a",
        "-c",
        "copy",
        made / "phone.mp4",
    )
    return made


def replaced(source, target) -> list[str]:
    """Write a film with the sound that it has, and return what is said, without the name of the file."""
    with collected_notices() as notices:
        file = open_audio(source)
        write_film(target, source, {0: Sound(file, file.blocks())}, overwrite=False)
    return [text.removeprefix(f"{str(target)!r}: ") for text in notices]


def things(path) -> set[str]:
    """Return what a film holds besides picture and sound, under the names used in notices."""
    with av.open(str(path)) as film:
        found = {name.lower() for name in film.metadata if name.lower() in {key.lower() for key in TAGS}}
        if film.chapters():
            found.add(f"{len(film.chapters())} chapters")
        for stream in film.streams:
            if stream.type == "attachment":
                found.add(f"attachment '{stream.metadata['filename']}'")
            elif stream.disposition & av.stream.Disposition.attached_pic:
                found.add("cover")
            elif stream.type != "data":  # of MP4, that is the text of the chapters
                text = {"title" if key == "name" else key for key in stream.metadata} & {"title", "language"}
                if stream.metadata.get("language") == "und":
                    text.discard("language")
                found |= {f"{stream.type} {name}" for name in text}
                found |= {
                    f"{stream.type} {flag.name}"
                    for flag in av.stream.Disposition
                    if flag & stream.disposition and flag.name not in ("default", "captions")
                }
                if stream.type == "subtitle":
                    found.add("subtitle stream")
    return found


def named(notices: list[str]) -> set[str]:
    """Return what the notices list as left out, under the same names."""
    found = set()
    for text in notices:
        if not text.startswith("left out"):
            continue
        waiting: list[str] = []
        for part in text.partition(": ")[2].split(", "):
            match = re.fullmatch(r"(?:(.*) of )?(\w+) stream (\d+)", part)
            if match and match[1]:
                found |= {f"{match[2]} {name}" for name in (*waiting, match[1])}
                waiting = []
            elif re.fullmatch(r"\d+ subtitle streams? .*", part):
                found.add("subtitle stream")
            elif part in ("title", "language") or part.endswith("_impaired") or part in ("forced", "captions"):
                waiting.append(part)  # of the stream that follows, or else of the film
            else:
                found |= {*waiting, part.lower()}
                waiting = []
        found |= set(waiting)
    return found


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("name", ["plain.mkv", "rich.mkv", "rich.mp4", "phone.mp4"])
def test_what_a_film_has_is_kept_or_named(folder, tmp_path, name, suffix):
    source, target = folder / name, tmp_path / f"new{suffix}"
    notices = replaced(source, target)
    assert len(notices) == len(set(notices))
    had, has, said = things(source), things(target), named(notices)
    if "subtitle stream" in said:
        had = {thing for thing in had if not thing.startswith("subtitle ") or thing == "subtitle stream"}
    assert had - has <= said
    assert not {thing for thing in said & has if not thing.startswith("rotation")} - {"title"}


@pytest.mark.parametrize("suffix", TARGETS)
def test_a_film_keeps_its_rotation_or_says_that_it_does_not(folder, tmp_path, suffix):
    def rotation(path):
        with av.open(str(path)) as film:
            return next(film.decode(video=0)).rotation

    assert rotation(folder / "phone.mp4") == 90
    notices = replaced(folder / "phone.mp4", tmp_path / f"new{suffix}")
    said = any("rotation by 90 degrees of video stream 0" in text for text in notices)
    assert rotation(tmp_path / f"new{suffix}") == (0 if said else 90)
    assert said == (suffix in (".avi", ".wmv", ".flv", ".ts"))


def test_names_of_tags_in_capitals_are_those_of_mp4(folder, tmp_path):
    notices = replaced(folder / "rich.mkv", tmp_path / "new.mp4")  # with a cover, MP4 has its own names only
    assert "left out, MP4 holds such text only without a cover: X_FREE" in notices
    with av.open(str(tmp_path / "new.mp4")) as film:
        assert {name: film.metadata.get(name) for name in TAGS if name != "X_FREE"} == {
            name: text for name, text in TAGS.items() if name != "X_FREE"
        }


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("codec", SUBTITLES)
def test_subtitles_are_kept_readable_or_named(folder, tmp_path, codec, suffix):
    source, target = folder / f"{codec}{SUBTITLES[codec]}", tmp_path / f"new{suffix}"
    if not source.exists():
        streams = (folder / "plain.mkv", "-map", "0:v", "-map", "0:a", "-map", "0:s", "-map_chapters", -1)
        ffmpeg("-i", *streams, "-c", "copy", "-c:s", codec, source)
    notices = replaced(source, target)
    said = [text for text in notices if "subtitle stream (" in text]
    with av.open(str(source)) as old, av.open(str(target)) as new:
        if suffix in KEEPS[codec]:
            assert said == []
            assert new.streams.subtitles[0].codec_context.name == old.streams.subtitles[0].codec_context.name
            assert sum(bool(packet.size) for packet in new.demux(new.streams.subtitles[0])) >= 2
        else:
            assert len(said) == 1
            assert [stream.type for stream in new.streams if stream.type not in ("video", "audio")] == []
