"""Subtitles that the container of a new film cannot hold are left out, and named by kind and count."""

from __future__ import annotations

import subprocess
import warnings

import av
import imageio_ffmpeg
import pytest

from frcrn_accel.errors import AudioWarning
from frcrn_accel.files import Sound, open_audio, write_film

TEXT = "1\n00:00:00,100 --> 00:00:00,300\nHello\n\n2\n00:00:00,300 --> 00:00:00,400\nyou\n"
HOLDS = {("mkv", codec) for codec in ("subrip", "ass", "webvtt")}
NAMES = {"subrip": "srt", "ass": "ssa"}


def make_film(folder, subtitles, picture):
    (folder / "a.srt").write_text(TEXT)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "testsrc=d=0.5:s=64x48:r=10"]
    command += ["-f", "lavfi", "-i", "sine=d=0.5", "-i", folder / "a.srt", "-i", folder / "a.srt"]
    command += ["-map", "0", "-map", "1", "-map", "2", "-map", "3", "-c:v", picture, "-c:a", "aac"]
    subprocess.run([*command, "-c:s", subtitles, folder / "a.mkv"], check=True)
    return folder / "a.mkv"


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov", "avi", "flv", "wmv"])
@pytest.mark.parametrize("codec", ["subrip", "ass", "webvtt"])
def test_what_is_left_out_is_named(tmp_path, codec, suffix):
    path = make_film(tmp_path, codec, "libx264" if suffix == "flv" else "mpeg4")
    target = tmp_path / f"new.{suffix}"
    audio = open_audio(path, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioWarning)
        write_film(target, path, {0: Sound(audio, audio.blocks())}, overwrite=False)
    said = [str(found.message) for found in caught if "subtitle" in str(found.message)]
    with av.open(str(target)) as written:
        kept = len(written.streams.subtitles)
        assert len(written.streams.video) == len(written.streams.audio) == 1
    if (suffix, codec) in HOLDS:
        assert (kept, said) == (2, [])
    else:
        name = f"2 subtitle streams ({NAMES.get(codec, codec)})"
        assert kept == 0
        assert said == [f"{str(target)!r}: left out, the container cannot hold it: {name}"]
