"""The sound of films is replaced in step to the sample, and everything else is copied."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from coded import ffmpeg, read
from frcrn_accel import AudioError, AudioWarning, Denoiser, OutputExistsError
from frcrn_accel.files import Sound, is_film, open_audio, write_film
from frcrn_accel.files.film import check_film, film_suffix
from frcrn_accel.notices import collected_notices
from frcrn_accel.testing import FunctionBackend

RATE_HZ = 48_000
SECONDS = 4
PICTURE = ("-f", "lavfi", "-i", f"testsrc=size=96x64:rate=24000/1001:duration={SECONDS}")
SUBTITLES = "1\n00:00:00,500 --> 00:00:02,000\nHello\n\n2\n00:00:03,000 --> 00:00:03,500\nThere\n"
METADATA = (
    ";FFMETADATA1\ntitle=Ein Käse\nartist=Somebody\n"
    "[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=2000\ntitle=One\n"
    "[CHAPTER]\nTIMEBASE=1/1000\nSTART=2000\nEND=4000\ntitle=Two\n"
)
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2")
FILMS = {
    "plain.mp4": ((), (*H264, "-c:a", "aac")),
    "plain.mov": ((), (*H264, "-c:a", "aac", "-timecode", "01:00:00:00")),
    "plain.mkv": ((), (*H264, "-c:a", "aac")),
    "plain.webm": ((), ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus")),
    "plain.ts": ((), (*H264, "-c:a", "mp2")),
    "pcm.mov": ((), (*H264, "-c:a", "pcm_s16le")),
    "flac.mkv": ((), (*H264, "-c:a", "flac")),
    "late.mp4": (("-itsoffset", "0.5"), (*H264, "-c:a", "aac")),
    "late.mov": (("-itsoffset", "0.123"), (*H264, "-c:a", "aac")),
    "late.mkv": (("-itsoffset", "0.5"), (*H264, "-c:a", "libopus")),
    "plain.3gp": ((), (*H264, "-c:a", "aac")),
    "late.3gp": (("-itsoffset", "0.5"), (*H264, "-c:a", "aac")),
    "plain.ogv": ((), ("-c:v", "libtheora", "-c:a", "libopus")),
    "late.ogv": (("-itsoffset", "0.5"), ("-c:v", "libtheora", "-c:a", "libopus")),
    "plain.wmv": ((), ("-c:v", "wmv2", "-c:a", "wmav2")),
    "late.wmv": (("-itsoffset", "0.5"), ("-c:v", "wmv2", "-c:a", "wmav2")),
    "pcm.avi": ((), ("-c:v", "mpeg4", "-c:a", "pcm_s16le")),
    "late.webm": (("-itsoffset", "0.123"), ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus")),
}


@pytest.fixture(scope="module")
def clicks(tmp_path_factory) -> Path:
    """Noise with a click near its start and one near its end, at 48 kHz."""
    audio = 0.01 * np.random.default_rng(0).standard_normal(3 * RATE_HZ)
    audio[[4_801, len(audio) - 9_601]] = 0.9
    path = tmp_path_factory.mktemp("clicks") / "clicks.wav"
    soundfile.write(path, audio, RATE_HZ)
    return path


@pytest.fixture(scope="module")
def make(tmp_path_factory, clicks):
    """Return a function that makes one of the films, once."""
    folder = tmp_path_factory.mktemp("films")

    def made(name: str) -> Path:
        path = folder / name
        if not path.exists():
            before, coding = FILMS[name]
            ffmpeg(*PICTURE, *before, "-i", clicks, "-map", "0:v", "-map", "1:a", *coding, path)
        return path

    return made


def replaced(source: Path, target: Path) -> None:
    """Write a film with the sound that it has: what differs then is the fault of writing."""
    first = open_audio(source)
    sounds = {}
    for number in range(first.tracks):
        file = open_audio(source, number)
        sounds[number] = Sound(file, file.blocks())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".* more than the source at ", AudioWarning)
        write_film(target, source, sounds, overwrite=False)


def copied(path: Path) -> dict[str, tuple[int, str]]:
    """Return number and digest of the packets of each kind of stream except audio."""
    digests: dict[str, list[bytes]] = defaultdict(list)
    with av.open(path) as film:
        streams = [stream for stream in film.streams if stream.type in ("video", "subtitle")]
        for packet in film.demux(streams):
            if packet.size:
                digests[packet.stream.type].append(bytes(packet))
    return {kind: (len(found), hashlib.sha256(b"".join(found)).hexdigest()) for kind, found in digests.items()}


def picture_times(path: Path) -> np.ndarray:
    with av.open(path) as film:
        times = [packet.pts * packet.time_base for packet in film.demux(film.streams.video[0]) if packet.size]
    return np.array(sorted(times), float)


def heard(path: Path, track: int = 0) -> np.ndarray:
    """Decode a track as a player places it on the time line."""
    options = (
        "-map",
        f"0:a:{track}",
        "-af",
        "aresample=async=1:first_pts=0",
        "-ac",
        1,
        "-ar",
        RATE_HZ,
        "-f",
        "f32le",
    )
    return np.frombuffer(ffmpeg("-copyts", "-i", path, *options, "-"), np.float32)


def lags(expected: np.ndarray, found: np.ndarray) -> list[int]:
    """Return the delays in samples at the first and the last click, the two loudest places far from each other."""
    first = int(np.abs(expected).argmax())
    others = np.abs(expected).copy()
    others[max(0, first - RATE_HZ // 2) : first + RATE_HZ // 2] = 0
    result = []
    for at in sorted((first, int(others.argmax()))):
        piece = expected[max(0, at - 2_000) : at + 2_000]
        around = found[max(0, at - 4_000) : at + 4_000]
        start = max(0, at - 2_000) - max(0, at - 4_000)
        result.append(int(np.correlate(around, piece).argmax()) - start)
    return result


@pytest.mark.parametrize("name", FILMS)
def test_the_picture_is_copied_and_the_sound_stays_in_step(make, tmp_path, name):
    source, target = make(name), tmp_path / f"new{Path(name).suffix}"
    assert is_film(source)
    with collected_notices() as notices:
        replaced(source, target)
    assert copied(target) == copied(source)
    np.testing.assert_allclose(np.diff(picture_times(target)), np.diff(picture_times(source)), atol=1e-6)
    assert picture_times(target)[0] == pytest.approx(picture_times(source)[0], abs=1e-6)
    expected, found = heard(source), heard(target)
    assert np.abs(lags(expected, found)).max() <= 1
    with av.open(source) as old, av.open(target) as new:
        if name != "plain.ts":  # its sound is MP2 in both
            assert new.streams.audio[0].codec_context.name == old.streams.audio[0].codec_context.name
        kept = [stream.type for stream in old.streams]
        if "timecode of video stream 0" in " ".join(notices):  # PyAV before 18.1 does not tell it to the muxer
            kept.remove("data")
            assert tuple(map(int, av.__version__.split(".")[:2])) < (18, 1)
        assert [stream.type for stream in new.streams] == kept


def test_speech_of_phones_stays_in_step(tmp_path, clicks):
    source, target = tmp_path / "old.3gp", tmp_path / "new.3gp"
    try:
        av.Codec("libopencore_amrnb", "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this build of FFmpeg does not encode AMR")
    coding = (*H264, "-c:a", "libopencore_amrnb", "-ar", 8_000, "-ac", 1)
    ffmpeg(*PICTURE, "-itsoffset", 0.5, "-i", clicks, "-map", "0:v", "-map", "1:a", *coding, source)
    replaced(source, target)
    assert copied(target) == copied(source)
    assert np.abs(lags(heard(source), heard(target))).max() <= 6  # one sample of 8 kHz


def test_sound_that_an_avi_cannot_start_late_is_named(tmp_path, clicks):
    source = tmp_path / "two.mkv"
    second = ("-itsoffset", 0.5, "-i", clicks, "-map", "0:v", "-map", "1:a", "-map", "2:a")
    ffmpeg(*PICTURE, "-i", clicks, *second, "-c:v", "mpeg4", "-c:a", "pcm_s16le", source)
    file = open_audio(source, 0)
    with collected_notices() as notices:
        write_film(tmp_path / "new.avi", source, {0: Sound(file, file.blocks())}, overwrite=False)
    assert any("audio stream 2 (pcm_s16le) comes 0.500 s too early: AVI does not say" in text for text in notices)


def test_ogg_takes_theora_and_vorbis_becomes_opus(tmp_path, clicks):
    inputs = (*PICTURE, "-i", clicks, "-map", "0:v", "-map", "1:a")
    ffmpeg(*inputs, "-c:v", "libtheora", "-c:a", "libvorbis", tmp_path / "a.ogv")
    ffmpeg(*inputs, "-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus", tmp_path / "a.webm")
    assert film_suffix(tmp_path / "a.ogv") == ".ogv"
    with collected_notices() as notices:
        replaced(tmp_path / "a.ogv", tmp_path / "new.ogv")
    assert any("track 0: vorbis becomes opus" in text for text in notices)
    assert np.abs(lags(heard(tmp_path / "a.ogv"), heard(tmp_path / "new.ogv"))).max() <= 1
    with pytest.raises(AudioError, match=r"cannot hold video stream 0 \(vp8\); try \.mkv"):
        replaced(tmp_path / "a.webm", tmp_path / "b.ogv")


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "aac"), (".mp4", "libmp3lame"), (".mov", "aac")])
@pytest.mark.parametrize("offset_s", [0, 0.01, 0.5])
def test_late_sound_is_longer_by_as_much_as_is_said(tmp_path, clicks, suffix, codec, offset_s):
    source, target = tmp_path / "old.mkv", tmp_path / f"new{suffix}"
    late = ("-itsoffset", offset_s, "-i", clicks, "-map", "0:v", "-map", "1:a")
    ffmpeg(*PICTURE, *late, *H264, "-c:a", codec, source)
    file = open_audio(source)
    before = sum(block.shape[1] for block in file.blocks())
    with collected_notices() as notices:
        write_film(target, source, {0: Sound(file, file.blocks())}, overwrite=False)
    after = sum(block.shape[1] for block in open_audio(target).blocks())
    said = re.findall(r"([\d,]+) samples? more than the source", " ".join(notices))
    assert [int(number.replace(",", "")) for number in said] == ([after - before] if after != before else [])


def test_channels_of_pcm_keep_their_places_in_mkv(tmp_path):
    source, target = tmp_path / "old.mov", tmp_path / "new.mkv"
    sound = ("-f", "lavfi", "-i", "anoisesrc=r=48000:d=1,aformat=channel_layouts=mono,pan=quad|c0=c0|c3=0.1*c0")
    ffmpeg(*PICTURE, *sound, "-map", "0:v", "-map", "1:a", *H264, "-c:a", "pcm_s16le", source)
    file = open_audio(source)
    assert file.channel_layout == "quad"
    with collected_notices() as notices:
        write_film(target, source, {0: Sound(file, file.blocks())}, overwrite=False)
    assert any("track 0: pcm_s16le becomes flac" in text for text in notices)
    new = open_audio(target)
    assert new.channel_layout == "quad"
    blocks = [np.concatenate(list(one.blocks()), axis=1) for one in (file, new)]
    np.testing.assert_array_equal(*blocks)


@pytest.mark.parametrize("last", [0, 21, 46, 47, 1_151])
def test_mp3_in_mp4_is_as_long_as_the_audio(make, tmp_path, last):
    """LAME ends some lengths with a packet without a duration, which the muxer would take for a whole frame."""
    source, target = make("pcm.mov"), tmp_path / "new.mp4"
    samples = 20 * 1_152 + last
    audio = 0.1 * np.random.default_rng(0).standard_normal((1, samples)).astype(np.float32)
    like = dataclasses.replace(open_audio(source), subtype="mp3float")
    with collected_notices() as notices:
        write_film(target, source, {0: Sound(like, iter([audio]))}, overwrite=False)
    assert not any("more than the source" in text for text in notices)
    assert sum(block.shape[1] for block in open_audio(target).blocks()) == samples


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_private_film_stays_private(make, tmp_path):
    source, target = tmp_path / "old.mkv", tmp_path / "new.mkv"
    source.write_bytes(make("flac.mkv").read_bytes())
    source.chmod(0o600)
    replaced(source, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_an_interrupt_is_not_an_error_of_the_film(make, tmp_path):
    def interrupted():
        yield np.zeros((1, 4_800), np.float32)
        raise KeyboardInterrupt

    source, target = make("plain.mp4"), tmp_path / "new.mp4"
    with pytest.raises(KeyboardInterrupt):
        write_film(target, source, {0: Sound(open_audio(source), interrupted())}, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_two_pictures_in_a_packet_of_xvid_are_taken_apart(tmp_path, clicks):
    source, target = tmp_path / "old.avi", tmp_path / "new.avi"
    picture = ("-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=1")
    ffmpeg(*picture, "-i", clicks, "-c:v", "libxvid", "-bf", 1, "-q:v", 2, "-c:a", "pcm_s16le", "-t", 1, source)
    assert pictures_in_packets(source) > 1
    replaced(source, target)
    assert pictures_in_packets(target) == 1
    assert decoded_pictures(target) == decoded_pictures(source)


def pictures_in_packets(path: Path) -> int:
    with av.open(path) as film:
        return max(bytes(packet).count(b"\0\0\1\xb6") for packet in film.demux(film.streams.video[0]))


def decoded_pictures(path: Path) -> list[str]:
    with av.open(path) as film:
        return [hashlib.sha256(frame.to_ndarray().tobytes()).hexdigest() for frame in film.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".ts", ".wmv", ".flv"])
def test_pictures_without_times_are_an_error_that_says_so(tmp_path, clicks, suffix):
    source = tmp_path / "old.mpg"
    ffmpeg(*PICTURE, "-i", clicks, "-map", "0:v", "-map", "1:a", *H264, "-r", 25, "-c:a", "mp2", "-f", "vob", source)
    asked: list[int] = []
    sounds = {0: Sound(open_audio(source), asked_blocks(asked))}
    for check in (check_film, lambda *paths: write_film(*paths, sounds, overwrite=False)):
        with pytest.raises(AudioError, match=r"video stream 0 \(h264\) does not say when each packet is shown"):
            check(tmp_path / f"new{suffix}", source)
    assert not asked  # the model has not run
    assert [path.name for path in tmp_path.iterdir()] == ["old.mpg"]


def asked_blocks(asked: list[int]) -> Iterator[np.ndarray]:
    """Yield a block, and note that it was asked for."""
    asked.append(1)
    yield np.zeros((1, 100), np.float32)


def test_pictures_in_order_get_their_times_from_those_around_them(tmp_path, clicks):
    source, target = tmp_path / "old.mpg", tmp_path / "new.mkv"
    in_order = ("-c:v", "libx264", "-preset", "ultrafast", "-profile:v", "baseline", "-pix_fmt", "yuv420p")
    ffmpeg(
        *PICTURE, "-i", clicks, "-map", "0:v", "-map", "1:a", *in_order, "-r", 25, "-c:a", "mp2", "-f", "vob", source
    )
    with av.open(source, container_options={"fflags": "+genpts"}) as film:
        times = [packet.pts for packet in film.demux(video=0) if packet.size]
    assert None in times
    replaced(source, target)
    with av.open(target) as film:
        shown = [packet.pts * packet.time_base for packet in film.demux(video=0) if packet.size]
    steps = np.diff([float(time) for time in shown])
    assert len(shown) == len(times)
    np.testing.assert_allclose(steps, 0.04, atol=0.0015)


def test_packets_of_data_are_named_where_they_would_be_lost(tmp_path, clicks):
    source = tmp_path / "old.ts"
    (tmp_path / "data.bin").write_bytes(bytes(300))
    inputs = (*PICTURE, "-i", clicks, "-f", "data", "-i", tmp_path / "data.bin")
    ffmpeg(*inputs, "-map", "0", "-map", "1", "-map", "2", *H264, "-c:a", "aac", "-c:d", "copy", source)
    for suffix in (".mov", ".mp4", ".mkv", ".ts"):
        with pytest.warns(AudioWarning, match=r"cannot hold it: data stream 2 \(unknown\)"):
            replaced(source, tmp_path / f"new{suffix}")


@pytest.mark.parametrize("offset_s", [0, 0.5])
@pytest.mark.parametrize("picture", [("-c:v", "flv"), H264])
def test_flash_stays_in_step_to_its_milliseconds(tmp_path, clicks, picture, offset_s):
    source, target = tmp_path / "old.flv", tmp_path / "new.flv"
    ffmpeg(
        *PICTURE, "-itsoffset", offset_s, "-i", clicks, "-map", "0:v", "-map", "1:a", *picture, "-c:a", "aac", source
    )
    replaced(source, target)
    assert copied(target) == copied(source)
    late_s = picture_times(target) - picture_times(source)  # what an encoder puts in front cannot lie before 0
    assert np.ptp(late_s) < 1e-6
    assert 0 <= late_s[0] < 1_024 / RATE_HZ + 1e-3
    found_s = np.array(lags(heard(source), heard(target))) / RATE_HZ
    np.testing.assert_allclose(found_s, late_s[0], atol=1.01e-3)


@pytest.mark.parametrize(
    ("name", "coding", "suffix"),
    [
        ("a.avi", ("-c:v", "mpeg4", "-c:a", "pcm_s16le"), ".avi"),
        ("a.divx", ("-c:v", "mpeg4", "-c:a", "pcm_s16le", "-f", "avi"), ".avi"),
        ("a.avi", ("-c:v", "mpeg4", "-c:a", "mp3"), ".mkv"),
        ("a.wmv", ("-c:v", "wmv2", "-c:a", "wmav2"), ".wmv"),
        ("a.flv", ("-c:v", "flv", "-c:a", "mp3", "-ar", "44100"), ".flv"),
        ("a", ("-c:v", "mpeg4", "-c:a", "aac", "-f", "mp4"), ".mp4"),
        ("a", ("-c:v", "mpeg4", "-c:a", "aac", "-f", "mov"), ".mov"),
        ("a", ("-c:v", "libvpx", "-c:a", "libopus", "-f", "webm"), ".webm"),
        ("a", ("-c:v", "mpeg4", "-c:a", "mp2", "-f", "matroska"), ".mkv"),
        ("a.mpg", ("-c:v", "mpeg1video", "-r", "25", "-c:a", "mp2"), ".mkv"),
    ],
)
def test_the_container_of_a_new_film(tmp_path, clicks, identity, name, coding, suffix):
    source = tmp_path / name
    ffmpeg(*PICTURE, "-t", 0.5, "-i", clicks, "-map", "0:v", "-map", "1:a", *coding, "-t", 0.5, source)
    assert film_suffix(source) == suffix
    target = tmp_path / f"new{suffix}"
    with collected_notices():
        report = identity.denoise_file(source, target, overwrite=True)
    assert report.is_film
    assert copied(target) == copied(source)


def test_an_avi_gets_pcm_and_says_so(tmp_path, clicks, identity):
    ffmpeg(*PICTURE, "-i", clicks, "-map", "0:v", "-map", "1:a", "-c:v", "mpeg4", "-c:a", "mp3", tmp_path / "a.avi")
    (tmp_path / "text").write_text(METADATA)
    both = ("-i", tmp_path / "text", "-map_metadata", 1, "-map_chapters", 1, "-c", "copy")
    ffmpeg("-i", tmp_path / "a.avi", *both, tmp_path / "a.mkv")
    with pytest.warns(AudioWarning) as caught:
        identity.denoise_file(tmp_path / "a.mkv", tmp_path / "new.avi")
    said = [str(warning.message) for warning in caught]
    assert any("track 0: mp3 becomes pcm_s16le" in text for text in said)
    assert any("left out, the container cannot hold it: 2 chapters" in text for text in said)
    assert copied(tmp_path / "new.avi") == copied(tmp_path / "a.mkv")


@pytest.mark.parametrize(("suffix", "subtitles"), [(".mp4", "mov_text"), (".mkv", "srt")])
def test_subtitles_chapters_attachments_and_text_come_along(tmp_path, clicks, suffix, subtitles):
    (tmp_path / "s.srt").write_text(SUBTITLES)
    (tmp_path / "m.txt").write_text(METADATA)
    source, target = tmp_path / f"film{suffix}", tmp_path / f"new{suffix}"
    inputs = (*PICTURE, "-i", clicks, "-i", tmp_path / "s.srt", "-i", tmp_path / "m.txt")
    maps = ("-map", "0:v", "-map", "1:a", "-map", "2:s", "-map_metadata", 3, "-map_chapters", 3)
    language = ("-metadata:s:a:0", "language=deu", "-metadata:s:s:0", "language=fra", "-disposition:s:0", "forced")
    attached = ("-attach", tmp_path / "s.srt", "-metadata:s:t", "mimetype=text/plain") if suffix == ".mkv" else ()
    ffmpeg(*inputs, *maps, *H264, "-c:a", "aac", "-c:s", subtitles, *language, *attached, source)
    replaced(source, target)
    assert copied(target) == copied(source)
    with av.open(source) as old, av.open(target) as new:
        titles = [[chapter["metadata"]["title"] for chapter in film.chapters()] for film in (old, new)]
        assert titles == [["One", "Two"]] * 2
        starts = [[chapter["start"] * chapter["time_base"] for chapter in film.chapters()] for film in (old, new)]
        assert starts == [[0, 2]] * 2
        assert new.metadata["title"] == "Ein Käse"
        assert new.streams.audio[0].metadata["language"] == "deu"
        assert new.streams.subtitles[0].metadata["language"] == "fra"
        assert new.streams.subtitles[0].disposition == old.streams.subtitles[0].disposition
        assert [stream.data for stream in new.streams if stream.type == "attachment"] == [
            stream.data for stream in old.streams if stream.type == "attachment"
        ]


def test_several_tracks_and_a_choice(tmp_path, clicks):
    source = tmp_path / "two.mkv"
    tracks = ("-i", clicks, "-i", clicks, "-map", "0:v", "-map", "1:a", "-map", "2:a")
    ffmpeg(*PICTURE, *tracks, *H264, "-c:a:0", "aac", "-c:a:1", "ac3", "-metadata:s:a:1", "language=ita", source)
    silent = Denoiser(backend=FunctionBackend(np.zeros_like))
    with pytest.warns(AudioWarning, match="track 1: the format does not state where ac3 ends"):
        both = silent.denoise_file(source, tmp_path / "both.mkv", high_band="drop")
    assert both.tracks == (0, 1)
    assert [text.partition(": ")[2] for text in both.warnings] == [
        "track 1: the format does not state where ac3 ends: 128 samples more than the source at 48,000 Hz (2.7 ms)"
    ]
    assert [np.abs(heard(both.target, track)).max() < 1e-3 for track in (0, 1)] == [True, True]
    with pytest.warns(AudioWarning, match="track 1: the format does not state where ac3 ends"):
        one = silent.denoise_file(source, tmp_path / "one.mkv", track=1, high_band="drop")
    assert one.tracks == (1,)
    np.testing.assert_array_equal(heard(one.target, 0), heard(source, 0))
    assert np.abs(heard(one.target, 1)).max() < 1e-3
    with av.open(one.target) as film:
        assert [stream.codec_context.name for stream in film.streams.audio] == ["aac", "ac3"]
        assert film.streams.audio[1].metadata["language"] == "ita"
    with pytest.raises(AudioError, match=r"two\.mkv' has tracks 0 to 1, not 2"):
        silent.denoise_file(source, tmp_path / "x.mkv", track=2)
    with pytest.warns(AudioWarning, match="has 2 audio tracks: the first is used"):
        report = silent.denoise_file(source, tmp_path / "sound.wav")
    assert report.tracks == (0,)
    assert soundfile.info(tmp_path / "sound.wav").frames == open_audio(source, 0).samples or report.duration_s > 2.9


def test_the_model_hears_it_as_it_hears_a_recording(make, tmp_path, denoiser):
    report = denoiser.denoise_file(make("pcm.mov"), tmp_path / "new.mov")
    denoiser.denoise_file(make("pcm.mov"), tmp_path / "new.wav")
    expected, _ = soundfile.read(tmp_path / "new.wav", dtype="float32")
    assert report.duration_s == len(expected) / RATE_HZ == 3
    np.testing.assert_allclose(heard(tmp_path / "new.mov"), expected, atol=2e-4)


def test_what_cannot_be_written_is_an_error_and_leaves_nothing(make, tmp_path, identity):
    film = make("plain.mp4")
    (tmp_path / "there.mp4").write_bytes(b"x")
    with pytest.raises(OutputExistsError, match=r"there\.mp4' exists"):
        identity.denoise_file(film, tmp_path / "there.mp4")
    with pytest.raises(AudioError, match=r"new\.webm' cannot hold video stream 0 \(h264\)"):
        identity.denoise_file(film, tmp_path / "new.webm")
    with pytest.raises(AudioError, match="write its noise to another film"):
        identity.denoise_file(film, tmp_path / "new.mp4", noise_target=tmp_path / "noise.mp4")
    ffmpeg(*PICTURE, *H264, tmp_path / "mute.mp4")
    with pytest.raises(AudioError, match=r"mute\.mp4' holds no audio"):
        identity.denoise_file(tmp_path / "mute.mp4", tmp_path / "new.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mute.mp4", "there.mp4"]


@pytest.mark.parametrize("name", [name for name in FILMS if name.startswith("late")] + ["vorbis.ogv"])
def test_the_start_is_that_of_the_first_sample(make, tmp_path, clicks, name):
    if name == "vorbis.ogv":
        path = tmp_path / name
        coding = ("-c:v", "libtheora", "-c:a", "libvorbis")
        ffmpeg(*PICTURE, "-itsoffset", "0.5", "-i", clicks, "-map", "0:v", "-map", "1:a", *coding, path)
    else:
        path = make(name)
    file, audio, _ = read(path)
    shift = round(file.start_s * RATE_HZ)
    expected = heard(path)[shift : shift + audio.shape[1]]
    assert np.abs(lags(expected, audio[0])).max() <= 48  # some containers count milliseconds


def test_joined_films_are_an_error_that_names_them(make, tmp_path):
    whole = read(make("plain.mp4"))[1]
    joined = tmp_path / "joined.mp4"
    joined.write_bytes(2 * make("plain.mp4").read_bytes())
    assert is_film(joined)
    np.testing.assert_array_equal(read(joined)[1], np.hstack([whole, whole]))
    for call in (lambda target: check_film(target, joined), lambda target: replaced(joined, target)):
        with pytest.raises(AudioError, match=r"new\.mp4' cannot be written: .*joined\.mp4' holds several films"):
            call(tmp_path / "new.mp4")
    assert not (tmp_path / "new.mp4").exists()


def test_the_cover_of_music_makes_no_film(tmp_path, clicks):
    ffmpeg(*PICTURE, "-frames:v", 1, tmp_path / "cover.png")
    picture = ("-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic")
    ffmpeg("-i", clicks, "-i", tmp_path / "cover.png", *picture, tmp_path / "song.m4a")
    assert not is_film(tmp_path / "song.m4a")
    assert not is_film(clicks)


def test_frames_that_look_like_a_picture_make_no_film(tmp_path, clicks, identity):
    source = tmp_path / "recording"
    frames = ffmpeg(
        "-i", clicks, "-c:a", "libmp3lame", "-b:a", "64k", "-write_xing", 0, "-id3v2_version", 0, "-f", "mp3", "-"
    )[:800]
    source.write_bytes(frames + ffmpeg(*PICTURE, "-c:v", "mpeg1video", "-f", "mpeg1video", "-"))
    with av.open(str(source)) as found:
        assert [stream.type for stream in found.streams] == ["video"]
    assert not is_film(source)
    with pytest.warns(AudioWarning, match="damaged"):
        report = identity.denoise_file(source, tmp_path / "a.mkv")
    assert not report.is_film
    assert read(tmp_path / "a.mkv")[1].shape == read(source)[1].shape


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "aac"), (".mkv", "flac")])
def test_gaps_in_the_sound_stay_gaps(tmp_path, clicks, suffix, codec):
    source, target = tmp_path / f"film{suffix}", tmp_path / f"new{suffix}"
    cut = ("-af", "aselect='not(between(t,1,1.5))'")
    ffmpeg(*PICTURE, "-i", clicks, "-map", "0:v", "-map", "1:a", *cut, *H264, "-c:a", codec, source)
    with pytest.warns(AudioWarning, match=r"has gaps in its sound: 0\.5\d s are silent"):
        replaced(source, target)
    assert np.flatnonzero(np.abs(heard(target)) > 0.5).tolist() == [4_801, 3 * RATE_HZ - 9_601]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_covers_stay_covers(tmp_path, clicks, suffix):
    image, source, target = tmp_path / "c.jpg", tmp_path / f"film{suffix}", tmp_path / f"new{suffix}"
    ffmpeg(*PICTURE, "-frames:v", 1, image)
    if suffix == ".mkv":
        cover = (*H264, "-attach", image, "-metadata:s:t", "mimetype=image/jpeg")
    else:
        streams = ("-map", 0, "-map", 1, "-map", 2)
        cover = ("-i", image, *streams, *H264, "-c:v:1", "copy", "-disposition:v:1", "attached_pic")
    ffmpeg(*PICTURE, "-i", clicks, *cover, "-c:a", "aac", source)
    replaced(source, target)
    assert copied(target) == copied(source)
    with av.open(source) as old, av.open(target) as new:
        assert new.streams.video[1].disposition == old.streams.video[1].disposition
        assert new.streams.video[1].disposition & av.stream.Disposition.attached_pic


def test_hevc_keeps_the_name_that_apple_plays(tmp_path, clicks):
    hevc = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error", "-tag:v", "hvc1")
    ffmpeg(*PICTURE, "-i", clicks, *hevc, "-c:a", "aac", tmp_path / "film.mp4")
    replaced(tmp_path / "film.mp4", tmp_path / "new.mp4")
    assert b"hvc1" in (tmp_path / "new.mp4").read_bytes()


def test_a_film_is_not_held_in_memory_until_its_only_subtitle(tmp_path):
    (tmp_path / "s.srt").write_text("1\n00:01:39,000 --> 00:01:39,500\nBye\n")
    sound = ("-f", "lavfi", "-i", "anoisesrc=r=48000:d=100", "-i", tmp_path / "s.srt")
    picture = ("-f", "lavfi", "-i", "testsrc=size=32x32:rate=1:duration=100")
    coding = ("-map", 0, "-map", 1, "-map", 2, *H264, "-c:a", "pcm_s16le", "-c:s", "srt")
    source, target = tmp_path / "film.mkv", tmp_path / "new.mkv"
    ffmpeg(*picture, *sound, *coding, source)
    file = open_audio(source)
    before, sizes = set(tmp_path.iterdir()), []

    def watched():
        for block in file.blocks():
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir() if path not in before))
            yield block

    write_film(target, source, {0: Sound(file, watched())}, overwrite=False)
    assert sizes[len(sizes) * 9 // 10] > 2_000_000  # bytes of 9.6 million, after 90 s
