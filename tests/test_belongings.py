"""What goes with the audio: tags, pictures, chapters and chunks, through every format that can hold them."""

from __future__ import annotations

import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from coded import decode, noise, source, write
from example_counts import few
from frcrn_accel import Denoiser
from frcrn_accel.errors import AudioWarning
from frcrn_accel.files import open_audio
from frcrn_accel.files.belongings import (
    MAX_PICTURE_BYTES,
    Belongings,
    Chapter,
    Picture,
    belongings_of,
    read_belongings,
)
from frcrn_accel.files.chunks import Chunk, is_bare, read_chunks
from frcrn_accel.files.ffmpeg import open_input
from frcrn_accel.files.formats import writable_suffixes
from frcrn_accel.files.layouts import places_of
from frcrn_accel.testing import FunctionBackend

RATE, SAMPLES = 48_000, 48_000
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(40))
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(range(60))
CODECS = {".mka": "flac", ".opus": "opus", ".oga": "flac"}
# Formats by what they hold.
TAGS = (
    *(".mp3", ".m4a", ".mp4", ".mov", ".flac", ".ogg", ".opus", ".oga", ".wav", ".rf64", ".w64", ".aiff", ".mka"),
    *(".webm", ".wma", ".wv", ".tta", ".aac", ".caf"),
)
PICTURES = (".mp3", ".m4a", ".flac", ".ogg", ".opus", ".oga", ".wav", ".w64", ".aiff", ".mka", ".wv", ".tta", ".aac")
CHAPTERS = (
    ".mp3",
    ".m4a",
    ".mov",
    ".flac",
    ".ogg",
    ".opus",
    ".wav",
    ".w64",
    ".aiff",
    ".mka",
    ".webm",
    ".wma",
    ".aac",
)
NAMES = (
    *(
        "title",
        "artist",
        "album",
        "album_artist",
        "composer",
        "date",
        "track",
        "disc",
        "genre",
        "comment",
        "copyright",
    ),
    *("publisher", "bpm", "isrc", "lyrics", "grouping", "performer"),
)

characters = st.characters(exclude_categories=("Cs", "Cc", "Cn"), exclude_characters="\ufeff\ufffe")
texts = st.text(characters, min_size=1, max_size=40).map(str.strip).filter(bool)
free_names = st.from_regex(r"[A-Z][A-Z0-9]{4,11}", fullmatch=True).map(lambda name: f"X-{name}")
tags = st.dictionaries(st.one_of(st.sampled_from(NAMES), free_names), texts, max_size=6)
slow = few(6)


def round_trip(path: Path, belongings: Belongings) -> tuple[Belongings, list[str]]:
    """Write a second of audio with belongings, and read them back."""
    like = source(path.suffix, RATE, 1, format="", subtype=CODECS.get(path.suffix, ""), belongings=belongings)
    warned = write(path, like, noise(SAMPLES, 1))
    return read_belongings(path), warned


def named(found: Belongings) -> dict[str, str]:
    """Return the tags under lower-case names: Matroska has upper case only, and Vorbis comments ignore case."""
    return {name.lower(): text for name, text in found.tags.items()}


class TestRoundTrip:
    @pytest.mark.parametrize("suffix", TAGS)
    @slow
    @given(tags=tags)
    def test_text(self, tmp_path, suffix, tags):
        if tags.get("genre", "").lstrip(" +-")[:1] in "(0123456789":
            tags.pop("genre", None)  # ID3 has numbers of genres
        found, warned = round_trip(tmp_path / f"a{suffix}", Belongings(MappingProxyType(tags)))
        assert named(found) == {name.lower(): text for name, text in tags.items()}
        assert warned == []

    @pytest.mark.parametrize("suffix", PICTURES)
    @slow
    @given(
        tail=st.binary(min_size=1, max_size=70_000),
        start=st.sampled_from([PNG, JPEG]),
        kind=st.integers(0, 20),
        description=texts,
    )
    def test_pictures(self, tmp_path, suffix, tail, start, kind, description):
        picture = Picture(start + tail, "image/png" if start == PNG else "image/jpeg", kind, description)
        found, warned = round_trip(tmp_path / f"a{suffix}", Belongings(pictures=(picture,)))
        assert [(one.data, one.mime) for one in found.pictures] == [(picture.data, picture.mime)]
        if suffix not in (".m4a", ".mka", ".wv", ".tta"):  # these have no kinds
            assert (found.pictures[0].kind, found.pictures[0].description) == (kind, description)
        assert warned == []

    @pytest.mark.parametrize("suffix", CHAPTERS)
    @slow
    @given(
        starts=st.lists(st.integers(1, 999), min_size=1, max_size=5, unique=True),
        titles=st.lists(texts, min_size=6, max_size=6),
    )
    def test_chapters(self, tmp_path, suffix, starts, titles):
        edges = [0, *sorted(starts), 1_000]
        chapters = tuple(
            Chapter(Fraction(start, 1_000), Fraction(end, 1_000), title)
            for start, end, title in zip(edges, edges[1:], titles, strict=False)
        )
        found, warned = round_trip(tmp_path / f"a{suffix}", Belongings(chapters=chapters))
        assert [chapter.title for chapter in found.chapters] == [chapter.title for chapter in chapters]
        for one, other in zip(found.chapters, chapters, strict=True):
            assert float(one.start_s) == pytest.approx(float(other.start_s), abs=0.0011)
        assert warned == []

    @pytest.mark.parametrize("suffix", TAGS)
    def test_everything_at_once_and_the_audio_is_whole(self, tmp_path, suffix):
        belongings = Belongings(
            MappingProxyType({"title": "Käse 🎵", "X-FREE": "ü" * 70_000, "track": "3/9"}),
            (Picture(PNG, "image/png"), Picture(JPEG + bytes(300_000), "image/jpeg", 4)),
            (Chapter(Fraction(0), Fraction(1, 2), "é"), Chapter(Fraction(1, 2), Fraction(1), "→")),
        )
        found, warned = round_trip(tmp_path / f"a{suffix}", belongings)
        if suffix == ".wma":
            assert "X-FREE" in warned[0]
            belongings = Belongings(MappingProxyType({"title": "Käse 🎵", "track": "3/9"}))
        assert named(found) == {name.lower(): text for name, text in belongings.tags.items()}
        assert len(found.pictures) == (2 if suffix in PICTURES or suffix in (".mp4", ".rf64") else 0)
        decoded = decode(tmp_path / f"a{suffix}", 1)
        assert SAMPLES <= decoded.shape[1] <= SAMPLES + 3_000
        assert np.corrcoef(decoded[0][2_000:40_000], noise(SAMPLES, 1)[0][2_000:40_000])[0, 1] > (
            -1 if suffix == ".aac" else 0.9
        )

    def test_the_same_belongings_give_the_same_file(self, tmp_path):
        belongings = Belongings(
            MappingProxyType({"title": "a", "X-FREE": "b"}),
            (Picture(PNG, "image/png"),),
            (Chapter(Fraction(0), Fraction(1), "c"),),
        )
        for suffix in TAGS:
            for name in ("a", "b"):
                round_trip(tmp_path / f"{name}{suffix}", belongings)
            assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


class TestLeftOut:
    @pytest.mark.parametrize("suffix", [".au", ".voc", ".nist", ".ac3", ".mat5", ".3gp", ".amr"])
    def test_formats_without_tags_name_them_once(self, tmp_path, suffix):
        belongings = Belongings(
            MappingProxyType({"title": "a", "artist": "b"}),
            (Picture(PNG, "image/png"),),
            (Chapter(Fraction(0), Fraction(1), "c"),),
            (Chunk("RIFF", b"bext", bytes(602)), Chunk("RIFF", b"cue ", bytes(4))),
        )
        if suffix not in writable_suffixes():
            pytest.skip("this build of FFmpeg does not encode AMR")
        like = source(suffix, 8_000, 1, format="", subtype="", belongings=belongings)
        warned = [text for text in write(tmp_path / f"a{suffix}", like, noise(8_000, 1)) if "left out" in text]
        (warning,) = warned
        assert warning.endswith("left out, the format cannot hold it: title, artist, picture, chapters, bext, cue")

    def test_names_that_vorbis_comments_cannot_have(self, tmp_path):
        found, (warning,) = round_trip(
            tmp_path / "a.flac", Belongings(MappingProxyType({"a=b": "x", "größe": "y", "title": "z"}))
        )
        assert warning.endswith("cannot hold it: a=b, größe")
        assert found.tags == {"title": "z"}

    def test_mp3_to_m4a_keeps_tags_art_and_chapters(self, tmp_path):
        belongings = Belongings(
            MappingProxyType({"title": "Käse", "album_artist": "A", "bpm": "120", "Mood": "calm"}),
            (Picture(JPEG, "image/jpeg"),),
            (Chapter(Fraction(0), Fraction(1), "c"),),
        )
        first, _ = round_trip(tmp_path / "a.mp3", belongings)
        second, warned = round_trip(tmp_path / "a.m4a", first)
        assert (second.tags, second.pictures[0].data, second.chapters) == (
            belongings.tags,
            JPEG,
            belongings.chapters,
        )
        assert warned == []


def riff(*chunks: tuple[bytes, bytes], form: bytes = b"RIFF") -> bytes:
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return form + struct.pack("<I", len(body)) + body


FORMAT = (b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
DATA = (b"data", np.arange(2_000, dtype="<i2").tobytes())
TIME_REFERENCE = 48_000 * 3_600 * 10
BEXT = (
    b"A description".ljust(256, b"\0")
    + b"Recorder".ljust(32, b"\0")
    + b"REF".ljust(32, b"\0")
    + b"2024-05-06"
    + b"07:08:09"
    + struct.pack("<QH", TIME_REFERENCE, 1)
    + bytes(254)
    + b"A=PCM,F=48000\r\n"
)
BROADCAST = (
    (b"bext", BEXT),
    (b"iXML", b"<BWFXML><PROJECT>p</PROJECT></BWFXML>"),
    (b"cue ", struct.pack("<IIIIIII", 1, 1, 100, 0x61746164, 0, 0, 100)),
    (b"smpl", bytes(36)),
    (b"LIST", b"adtl" + b"labl" + struct.pack("<II", 6, 1) + b"a\0"),
    (b"axml", b"<ebuCoreMain/>x"),
    (b"LIST", b"INFO" + b"INAM" + struct.pack("<I", 8) + b"M\xfcller\0\0"),
    (b"_PMX", b"<x:xmpmeta/>"),
)


# Names in use; libsndfile takes some others of W64 for chunks that it knows.
CHUNK_NAMES = [
    b"iXML",
    b"cue ",
    b"smpl",
    b"axml",
    b"_PMX",
    b"chna",
    b"cart",
    b"umid",
    b"acid",
    b"inst",
    b"DISP",
    b"minf",
]


class TestChunks:
    def test_wav_to_wav_keeps_all_of_them(self, tmp_path):
        (tmp_path / "a.wav").write_bytes(riff(*BROADCAST[:2], FORMAT, DATA, *BROADCAST[2:]))
        like = open_audio(tmp_path / "a.wav")
        assert like.tags["title"] == "Müller"
        write(tmp_path / "b.wav", like, noise(2_000, 1))
        chunks, left_out = read_chunks(tmp_path / "b.wav")
        assert [(chunk.id, chunk.data) for chunk in chunks] == [*BROADCAST]
        assert left_out == []
        assert soundfile.info(tmp_path / "b.wav").frames == 2_000
        with open_input(str(tmp_path / "b.wav")) as container:
            assert container.metadata["time_reference"] == str(TIME_REFERENCE)

    @pytest.mark.parametrize("suffix", [".rf64", ".w64", ".wav"])
    @few(10)
    @given(
        chunks=st.lists(st.tuples(st.sampled_from(CHUNK_NAMES), st.binary(max_size=301)), max_size=6),
        samples=st.integers(1, 500),
    )
    def test_any_chunks(self, tmp_path, suffix, chunks, samples):
        belongings = Belongings(chunks=tuple(Chunk("RIFF", name, data) for name, data in chunks))
        write(tmp_path / f"a{suffix}", source(".wav", RATE, 1, belongings=belongings), noise(samples, 1))
        found, _ = read_chunks(tmp_path / f"a{suffix}")
        assert sorted((chunk.id, chunk.data) for chunk in found) == sorted(chunks)
        assert soundfile.info(tmp_path / f"a{suffix}").frames == samples

    def test_wav_to_flac_keeps_the_text_of_bext(self, tmp_path):
        (tmp_path / "a.wav").write_bytes(riff(*BROADCAST, FORMAT, DATA))
        (warning,) = write(tmp_path / "b.flac", open_audio(tmp_path / "a.wav"), noise(2_000, 1))
        assert warning.endswith("cannot hold it: iXML, cue, smpl, LIST adtl, axml, _PMX")
        found = read_belongings(tmp_path / "b.flac")
        assert found.tags["time_reference"] == str(TIME_REFERENCE)
        assert found.tags["title"] == "Müller"

    def test_aiff_and_caf_keep_theirs(self, tmp_path):
        for suffix, family, name in ((".aiff", "AIFF", b"APPL"), (".caf", "CAF", b"umid")):
            chunk = Chunk(family, name, b"content")
            found, warned = round_trip(tmp_path / f"a{suffix}", Belongings(chunks=(chunk,)))
            assert (found.chunks, warned) == ((chunk,), [])

    @pytest.mark.parametrize(
        ("text", "expected"), [(b"M\xfcller", "Müller"), ("Müller 🎵".encode(), "Müller 🎵"), (b"plain", "plain")]
    )
    def test_info_is_latin_1_or_utf_8(self, tmp_path, text, expected):
        data = b"INFOIART" + struct.pack("<I", len(text) + 1) + text + b"\0" * (2 - len(text) % 2)
        (tmp_path / "a.wav").write_bytes(riff(FORMAT, DATA, (b"LIST", data)))
        assert read_belongings(tmp_path / "a.wav").tags == {"artist": expected}

    def test_a_chunk_that_is_cut_off_is_named(self, tmp_path):
        (tmp_path / "a.wav").write_bytes(riff(FORMAT, DATA) + b"iXML" + struct.pack("<I", 1 << 31) + b"<x/>")
        with pytest.warns(AudioWarning, match="chunks left out, cut off or too large: iXML"):
            assert read_belongings(tmp_path / "a.wav").chunks == ()

    @given(
        content=st.binary(max_size=400),
        start=st.sampled_from([b"RIFF\0\0\0\0WAVE", b"FORM\0\0\0\0AIFF", b"caff\0\1\0\0"]),
    )
    @few(200)
    def test_any_bytes_are_read_or_left_out(self, tmp_path, content, start):
        (tmp_path / "a").write_bytes(start + content)
        chunks, _ = read_chunks(tmp_path / "a")
        assert sum(len(chunk.data) for chunk in chunks) <= len(content)


STRUCTURE = [b"fmt ", b"data", b"fact", b"PEAK", b"JUNK", b"COMM", b"SSND", b"FVER", b"desc", b"free", b"\0\0\0\0"]


class TestBareFiles:
    """A file with nothing but its samples is not shown to FFmpeg, which would find nothing in it."""

    @pytest.mark.parametrize("suffix", [".wav", ".rf64", ".w64", ".aiff", ".caf"])
    @few(20)
    @given(named=st.booleans(), samples=st.integers(1, 500), channels=st.integers(1, 2))
    def test_what_is_written(self, tmp_path, suffix, named, samples, channels):
        belongings = Belongings(MappingProxyType({"title": "a"} if named else {}))
        write(
            tmp_path / f"a{suffix}", source(".wav", RATE, channels, belongings=belongings), noise(samples, channels)
        )
        with (tmp_path / f"a{suffix}").open("rb") as file:
            assert is_bare(file) == (not named and suffix != ".w64")
        assert read_belongings(tmp_path / f"a{suffix}").tags == belongings.tags

    @few(300)
    @given(
        start=st.sampled_from([b"RIFF\0\0\0\0WAVE", b"RF64\0\0\0\0WAVE", b"FORM\0\0\0\0AIFF", b"caff\0\1\0\0"]),
        chunks=st.lists(
            st.tuples(
                st.sampled_from([*STRUCTURE, b"LIST", b"ID3 ", b"bext", b"info", b"NAME"]), st.binary(max_size=40)
            ),
            max_size=5,
        ),
        tail=st.sampled_from(
            [b"", b"TAG" + b"title".ljust(125, b"\0"), b"APETAGEX" + bytes(24), b"ID3\4\0\0\0\0\0\0"]
        ),
    )
    def test_ffmpeg_finds_nothing_in_one(self, tmp_path, start, chunks, tail):
        wav, caf = start[8:] == b"WAVE", start[:4] == b"caff"
        front = FORMAT[0] + struct.pack("<I", len(FORMAT[1])) + FORMAT[1] if wav else b""
        if caf:
            front = b"desc" + struct.pack(">Qd4s5I", 32, RATE, b"lpcm", 0, 2, 1, 1, 16)
        body = b"".join(
            name
            + (struct.pack("<I", len(data)) if wav else struct.pack(">Q" if caf else ">I", len(data)))
            + data
            + (b"" if caf else b"\0" * (len(data) % 2))
            for name, data in chunks
        )
        (tmp_path / "a").write_bytes(start + front + body + tail)
        with (tmp_path / "a").open("rb") as file:
            if not is_bare(file):
                return
        try:
            with open_input(str(tmp_path / "a")) as container:
                assert belongings_of(container) == Belongings()
                # FFmpeg can take the bytes of a chunk for a picture, and so the file for one of another format.
                if container.format.name in ("wav", "aiff", "caf"):
                    assert {stream.type for stream in container.streams} <= {"audio"}
        except (av.FFmpegError, ValueError):  # it reads no such file
            pass

    def test_places_of_few_channels_are_those_of_ffmpeg(self):
        for layout in ("mono", "stereo"):
            assert places_of(layout) == tuple(channel.name for channel in av.AudioLayout(layout).channels)


def test_chapters_of_late_sound_stay_in_step(tmp_path):
    """The new file has no time before the sound, so its chapters come as much earlier."""
    soundfile.write(tmp_path / "a.wav", noise(2 * RATE, 1).T, RATE)
    (tmp_path / "text").write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=1000\nEND=2000\ntitle=One\n")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-itsoffset", "0.5", "-i", tmp_path / "a.wav"]
    command += ["-i", tmp_path / "text", "-map", "0:a", "-map_chapters", "1", "-c:a", "flac", tmp_path / "a.mka"]
    subprocess.run(command, check=True)
    (chapter,) = open_audio(tmp_path / "a.mka").belongings.chapters
    assert (chapter.start_s, chapter.end_s) == (Fraction(1, 2), Fraction(3, 2))


class TestLimits:
    def test_a_huge_picture_is_left_out_and_said(self, tmp_path):
        picture = Picture(JPEG + bytes(MAX_PICTURE_BYTES), "image/jpeg")
        with pytest.warns(AudioWarning, match=r"a picture of 16,777,2\d\d bytes is left out"):
            found, _ = round_trip(tmp_path / "a.mp3", Belongings(MappingProxyType({"title": "a"}), (picture,)))
        assert (found.tags, found.pictures) == ({"title": "a"}, ())

    def test_long_text_is_left_out_and_said(self, tmp_path):
        tags = {"title": "a", "X-LONG": "x" * ((1 << 20) + 1)}
        with pytest.warns(AudioWarning, match="text left out, longer than 1,048,576 characters: X-LONG"):
            found, _ = round_trip(tmp_path / "a.mp3", Belongings(MappingProxyType(tags)))
        assert found.tags == {"title": "a"}

    def test_flac_blocks_have_a_limit(self, tmp_path):
        tags = {"title": "a", "X-LARGE": "x" * (1 << 24)}
        found, (warning,) = round_trip(tmp_path / "a.flac", Belongings(MappingProxyType(tags)))
        assert warning.endswith("cannot hold it: X-LARGE")
        assert found.tags == {"title": "a"}

    @few(30)
    @given(
        where=st.floats(0, 1),
        cut=st.integers(1, 400),
        seed=st.integers(0, 9),
        suffix=st.sampled_from([".mp3", ".flac", ".ogg", ".wav", ".m4a"]),
    )
    def test_damaged_tags_never_raise(self, tmp_path, where, cut, seed, suffix):
        belongings = Belongings(MappingProxyType({"title": "a" * 300, "X-Y": "b"}), (Picture(PNG, "image/png"),))
        round_trip(tmp_path / f"a{suffix}", belongings)
        content = bytearray((tmp_path / f"a{suffix}").read_bytes())
        at = int(where * min(len(content), 2_000))
        content[at : at + cut] = np.random.default_rng(seed).bytes(cut)
        (tmp_path / f"b{suffix}").write_bytes(content)
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            found = read_belongings(tmp_path / f"b{suffix}")
        assert sum(map(len, found.tags.values())) <= len(content)


def test_denoise_file_keeps_them(tmp_path):
    (tmp_path / "a.wav").write_bytes(riff(*BROADCAST, FORMAT, DATA))
    Denoiser(backend=FunctionBackend()).denoise_file(tmp_path / "a.wav", tmp_path / "b.wav")
    assert {chunk.id: chunk.data for chunk in read_chunks(tmp_path / "b.wav")[0]} == dict(BROADCAST)
