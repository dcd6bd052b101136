"""The picture of a film goes into every container that can hold it; another container is refused before any work."""

from __future__ import annotations

import hashlib
import re
import subprocess
import warnings

import av
import numpy as np
import pytest
import soundfile

from coded import ffmpeg
from frcrn_accel.errors import AudioError, AudioWarning
from frcrn_accel.files import Sound, open_audio, write_film
from frcrn_accel.files.film import check_film, film_suffix

RATE_HZ = 48_000
FAST = ("-preset", "ultrafast")
CODECS = {
    "h264": ("libx264", *FAST, "-bf", "2"),
    "hevc": ("libx265", *FAST, "-x265-params", "log-level=none"),
    "vp8": ("libvpx", "-deadline", "realtime"),
    "vp9": ("libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8"),
    "av1": ("libsvtav1", "-preset", "12"),
    "mpeg4": ("mpeg4",),
    "mpeg1video": ("mpeg1video", "-r", "25"),
    "mpeg2video": ("mpeg2video", "-r", "25", "-bf", "2"),
    "mjpeg": ("mjpeg", "-pix_fmt", "yuvj420p"),
    "theora": ("libtheora",),
    "wmv2": ("wmv2",),
    "flv1": ("flv",),
    "h263": ("h263", "-s", "128x96"),
    "prores": ("prores",),
    "ffv1": ("ffv1",),
}
SOURCES = {"wmv2": ".wmv", "flv1": ".flv", "h263": ".3gp", "prores": ".mov"}
TARGETS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".ts")
ALL = ("mp4", "mov", "mkv", "avi", "wmv", "flv", "ts")
HOLDS = {
    "h264": ALL,
    "hevc": ("mp4", "mov", "mkv", "flv", "ts"),
    "vp8": ("mkv", "webm", "avi", "wmv"),
    "vp9": ("mp4", "mkv", "webm", "avi", "wmv", "flv"),
    "av1": ("mp4", "mkv", "webm", "avi", "wmv", "flv"),
    "mpeg4": ("mp4", "mov", "mkv", "avi", "wmv", "ts"),
    "mpeg1video": ("mp4", "mov", "mkv", "avi", "wmv", "ts"),
    "mpeg2video": ("mp4", "mov", "mkv", "avi", "wmv", "ts"),
    "mjpeg": ("mp4", "mov", "mkv", "avi", "wmv"),
    "theora": ("mkv", "avi", "wmv"),
    "wmv2": ("avi", "wmv"),
    "flv1": ("avi", "wmv", "flv"),
    "h263": ("mov", "avi", "wmv"),
    "prores": ("mov", "mkv"),
    "ffv1": ("mp4", "mkv", "avi", "wmv"),
}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that makes a film of 12 pictures, once, or skips the test."""
    folder = tmp_path_factory.mktemp("pictures")

    def made(codec: str, suffix: str = ""):
        suffix = suffix or SOURCES.get(codec, ".mkv")
        path = folder / f"{codec}{suffix}"
        if not path.exists():
            sound = {".wmv": "wmav2", ".avi": "pcm_s16le"}.get(suffix, "aac")
            picture = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=0.48")
            try:
                tone = ("-f", "lavfi", "-i", "sine=r=44100:d=0.48")
                ffmpeg(*picture, *tone, "-c:v", *CODECS[codec], "-c:a", sound, path)
            except subprocess.CalledProcessError:
                path.unlink(missing_ok=True)
                pytest.skip(f"this FFmpeg does not write {codec} in {suffix}")
        return path

    return made


def replaced(source, target) -> list[str]:
    """Write a film with the sound that it has, and return the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioWarning)
        file = open_audio(source)
        write_film(target, source, {0: Sound(file, file.blocks())}, overwrite=False)
    return [str(found.message) for found in caught]


def pictures(path) -> list[str]:
    """Return format and digest of each decoded picture."""
    with av.open(str(path)) as film:
        return [
            f"{frame.format.name} {hashlib.sha256(frame.to_ndarray(format='rgb48le').tobytes()).hexdigest()}"
            for frame in film.decode(video=0)
        ]


def packets(path) -> list[bytes]:
    with av.open(str(path)) as film:
        return [bytes(packet) for packet in film.demux(film.streams.video[0]) if packet.size]


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("codec", CODECS)
def test_a_picture_comes_out_whole_or_is_refused_before_any_work(make, tmp_path, codec, suffix):
    source, target = make(codec), tmp_path / f"new{suffix}"
    if suffix[1:] in HOLDS[codec]:
        check_film(target, source)
        replaced(source, target)
        assert pictures(target) == pictures(source)
        return
    with pytest.raises(AudioError, match=rf"cannot hold video stream \d \({codec}\); try \.") as refused:
        check_film(target, source)
    other = tmp_path / f"new{str(refused.value).rpartition(' ')[2]}"
    with pytest.raises(AudioError, match="cannot hold video stream"):
        replaced(source, target)
    assert list(tmp_path.iterdir()) == []
    replaced(source, other)
    assert pictures(other) == pictures(source)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".flv", ".ts"])
def test_h264_in_avi_has_the_start_codes_that_ffmpeg_writes(make, tmp_path, suffix):
    source = make("h264", suffix)
    replaced(source, tmp_path / "new.avi")
    ffmpeg("-i", source, "-map", "0:v", "-c", "copy", "-bsf:v", "h264_mp4toannexb", tmp_path / "annexb.h264")
    written = b"".join(packets(tmp_path / "new.avi"))
    assert written.startswith((b"\0\0\0\1", b"\0\0\1"))
    assert written == (tmp_path / "annexb.h264").read_bytes()
    assert pictures(tmp_path / "new.avi") == pictures(source)


@pytest.mark.parametrize("codec", ["vp9", "mjpeg", "h264"])
@pytest.mark.parametrize("suffix", [".flv", ".wmv"])
def test_the_last_picture_is_not_lost_in_mp4(make, tmp_path, codec, suffix):
    source = make(codec, suffix)
    replaced(source, tmp_path / "new.mp4")
    assert len(pictures(tmp_path / "new.mp4")) == 12


def test_a_picture_of_times_that_do_not_grow_is_written(make, tmp_path):
    source = make("mpeg1video", ".mkv")
    for suffix in (".mp4", ".ts", ".avi"):
        replaced(source, tmp_path / f"new{suffix}")
        assert len(pictures(tmp_path / f"new{suffix}")) == 12


def test_the_suffix_of_a_new_film_is_one_that_holds_its_picture(make):
    assert film_suffix(make("h263")) == ".3gp"
    assert film_suffix(make("h264", ".flv")) == ".flv"


@pytest.mark.parametrize(("late", "seconds"), [("sound", 0.5), ("picture", 0.3), ("sound", 0.0)])
@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".webm", ".flv", ".wmv"])
def test_sound_is_in_step_in_avi_which_states_no_start(tmp_path, suffix, late, seconds):
    """AVI says nothing about when a stream starts: sound gets silence in front, the picture an empty packet."""
    coding = {
        ".webm": ("libvpx", "-deadline", "realtime", "-c:a", "libopus"),
        ".wmv": ("wmv2", "-c:a", "wmav2"),
        ".flv": ("flv", "-c:a", "aac", "-ar", "44100"),
    }.get(suffix, ("mpeg4", "-c:a", "pcm_s16le"))
    audio = 0.01 * np.random.default_rng(0).standard_normal(RATE_HZ)
    audio[RATE_HZ // 2] = 0.9
    soundfile.write(tmp_path / "click.wav", audio, RATE_HZ)
    shifts = {late: ("-itsoffset", seconds)}
    picture = (*shifts.get("picture", ()), "-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=1.5")
    sound = (*shifts.get("sound", ()), "-i", tmp_path / "click.wav")
    source, target = tmp_path / f"film{suffix}", tmp_path / "new.avi"
    ffmpeg(*picture, *sound, "-map", "0:v", "-map", "1:a", "-c:v", *coding, source)
    replaced(source, target)
    assert click_after_the_first_picture_s(target) == pytest.approx(
        click_after_the_first_picture_s(source), abs=1.2e-3
    )
    assert pictures(target) == pictures(source)


def click_after_the_first_picture_s(path) -> float:
    with av.open(str(path)) as film:
        shown_s = next(film.decode(video=0)).time
    with av.open(str(path)) as film:
        frames = list(film.decode(audio=0))
    blocks = [np.atleast_2d(frame.to_ndarray()) for frame in frames]
    channels = [
        block[0] if frame.format.is_planar else block.reshape(-1, frame.layout.nb_channels)[:, 0]
        for frame, block in zip(frames, blocks, strict=True)
    ]
    samples = np.concatenate(channels).astype(float)
    return float(frames[0].time + int(np.abs(samples).argmax()) / frames[0].sample_rate - shown_s)


@pytest.mark.parametrize("codec", ["aac", "ac3", "eac3", "mp2", "libmp3lame", "libopus", "flac"])
@pytest.mark.parametrize("suffix", TARGETS[:3] + TARGETS[4:])
def test_the_sound_is_longer_by_as_much_as_is_said(tmp_path, codec, suffix):
    source, target = tmp_path / "film.mkv", tmp_path / f"new{suffix}"
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25:duration=0.4")
    sound = ("-f", "lavfi", "-i", "sine=r=48000:d=0.37")
    ffmpeg(*picture, *sound, "-c:v", "libx264", *FAST, "-bf", "0", "-c:a", codec, source)
    samples = sum(block.shape[1] for block in open_audio(source).blocks())
    said = [int(match[1].replace(",", "")) for text in replaced(source, target) if (match := SAID.search(text))]
    assert decoded_samples(target) - samples == sum(said)


SAID = re.compile(r"track 0: .*: ([\d,]+) samples? more than the source")


def decoded_samples(path) -> int:
    return len(ffmpeg("-i", path, "-map", "0:a:0", "-ac", 1, "-f", "s16le", "-")) // 2
