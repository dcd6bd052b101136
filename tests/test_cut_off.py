"""A file that was cut off is an error, or is read to its end with a notice, in every format that states a length."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

import coded
from frcrn_accel.errors import AudioError
from frcrn_accel.files import open_audio
from frcrn_accel.files.boxes import fragments_s
from frcrn_accel.files.decode_sndfile import find_repair, open_patched
from frcrn_accel.files.joined import mp4_starts
from frcrn_accel.files.stated import is_joined, missing_bytes, stated_end

SECONDS = 1.5
LONGEST_FRAME = 4_200  # of ALAC in CAF, and what a codec needs to end
# By the formats' own design, or, in XI, because libsndfile writes 0: nobody can see that the end is missing.
SNDFILE_STATES_NOTHING = ("IRCAM", "PAF", "PVF", "XI")
STARTS = (
    *(b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0AVI ", b"RIFX\0\0\0\0WAVE", b"FORM", b"\0\0\0\x08ftyp", b"\x1a\x45\xdf\xa3"),
    *(
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0\x62\xce\x6c",
        b"FLV\0\x08filesize\0\x7f\xf0",
        b".RMF",
        b"Crea",
    ),
    *(
        bytes.fromhex("060e2b34020501010d01020101"),
        b"2BIT",
        b"\x01\x04",
        b"Exte",
        b"MATL",
        b"\0\0\0\0",
        b"NIST",
        b"\xf0\x7e",
    ),
    *(b"\x80\0", b"ALaw", b"MMMD", b"DSD ", b"FRM8", b".SoX", b"XoS.", b".snd", b""),
)
CODED = {
    **dict.fromkeys(("adx", "apm", "argo_asf", "kvag", "mmf", "sox", "voc", "au", "caf"), ("",)),
    "aiff": ("", "adpcm_ima_ws"),
    "wsaud": ("adpcm_ima_ws",),
    "flac": ("",),
    "tta": ("",),
    "wv": ("",),
    "mp3": ("libmp3lame",),
    "ogg": ("libvorbis", "libopus", "flac"),
    "wav": ("mp2", "ac3", "adpcm_ms", "adpcm_yamaha", "libmp3lame", "g726"),
    "mov": ("aac", "alac", "pcm_s16le"),
    "matroska": ("aac", "flac", "libopus", "pcm_s16le"),
    "avi": ("mp2", "pcm_s16le"),
    "asf": ("wmav2",),
    "flv": ("aac", "adpcm_swf", "libmp3lame"),
    "rm": ("ac3",),
    "rso": ("pcm_u8",),
    "smjpeg": ("pcm_s16le",),
}
CODED_STATES_NOTHING = {
    "ac3": ("ac3",),
    "mp2": ("mp2",),
    "mpeg": ("mp2",),
    "mpegts": ("mp2", "ac3"),
    "nut": ("libmp3lame", "pcm_s16le", "adpcm_ima_wav"),
    "truehd": ("truehd",),
}
# fmt: off
RATES = {"adpcm_swf": 44_100, "apm": 22_050, "argo_asf": 22_050, "g726": 8_000, "ac3": 48_000, "mmf": 8_000}
# fmt: on


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    return coded.read(path)[1:]


def read_at_one_rate(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read a file; Opus that was cut off has another rate than a whole one."""
    audio, notices = read(path)
    return audio[:, :: open_audio(path).sample_rate_hz // 16_000 if path.suffix == ".ogg" else 1], notices


def sndfile_forms() -> list[tuple[str, str]]:
    left_out = ("RAW", "SD2", "MP3", "OGG", "FLAC", "HTK")
    forms = soundfile.available_formats().keys() - left_out
    return sorted((form, subtype) for form in forms for subtype in soundfile.available_subtypes(form))


def make(path: Path, form: str, subtype: str) -> None:
    for rate, channels in ((16_000, 1), (44_100, 2), (8_000, 1)):
        audio = np.float64(coded.noise(round(SECONDS * rate), channels).T)
        try:
            soundfile.write(path, audio, rate, subtype, format=form)
        except soundfile.LibsndfileError:
            continue
        return
    pytest.skip("this build of libsndfile does not write it")


def check(path: Path, *, states_length: bool) -> None:
    try:
        whole, before = read_at_one_rate(path)
    except AudioError:
        pytest.skip("it cannot be read back whole, either")
    assert not any("cut off" in notice for notice in before)
    content = path.read_bytes()
    check_joined(path, content, whole)
    path.write_bytes(content[: len(content) * 7 // 10])
    try:
        audio, notices = read_at_one_rate(path)
    except AudioError:
        return
    assert 0.3 * whole.shape[1] < audio.shape[1] < 0.8 * whole.shape[1]
    settled = max(0, audio.shape[1] - LONGEST_FRAME)
    tolerance = 0.1 if path.suffix == ".ogg" else 1e-3
    np.testing.assert_allclose(audio[:, :settled], whole[:, :settled], atol=tolerance)
    assert any("cut off" in notice for notice in notices) or not states_length
    missing = [notice for notice in notices if "s at its end are missing" in notice]
    if missing:
        said_s = float(missing[0].split(" s at its end")[0].split()[-1])
        rate_hz = open_audio(path).sample_rate_hz
        assert said_s == pytest.approx((whole.shape[1] - audio.shape[1]) / rate_hz, abs=0.3)


def check_joined(path: Path, content: bytes, whole: np.ndarray) -> None:
    """Check that a file that was joined with itself is read whole, or that a notice names the second part."""
    path.write_bytes(2 * content)
    audio, notices = read_at_one_rate(path)
    if audio.shape[1] < 1.9 * whole.shape[1] - 2 * LONGEST_FRAME:
        assert audio.shape[1] == whole.shape[1]
        assert any("holds another file behind the first" in notice for notice in notices)


@pytest.mark.parametrize(("form", "subtype"), sndfile_forms())
def test_formats_of_libsndfile(tmp_path, form, subtype):
    path = tmp_path / f"a.{form.lower()}"
    make(path, form, subtype)
    check(path, states_length=form not in SNDFILE_STATES_NOTHING)


@pytest.mark.parametrize(
    ("muxer", "codec", "states_length"),
    [
        *((muxer, codec, True) for muxer, codecs in CODED.items() for codec in codecs),
        *((muxer, codec, False) for muxer, codecs in CODED_STATES_NOTHING.items() for codec in codecs),
    ],
)
def test_formats_of_ffmpeg(tmp_path, muxer, codec, states_length):
    rate = RATES.get(codec, RATES.get(muxer, 16_000 if muxer != "flv" else 44_100))
    soundfile.write(tmp_path / "a.wav", coded.noise(round(SECONDS * rate), 1).T, rate)
    path = tmp_path / f"a.{muxer}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "a.wav", "-strict", "-2"]
    command += [*(("-c:a", codec) if codec else ()), *(("-page_duration", "100000") if muxer == "ogg" else ())]
    if subprocess.run([*command, "-f", muxer, path], capture_output=True).returncode:
        pytest.skip("this build of FFmpeg lacks the encoder or the container")
    check(path, states_length=states_length)


def test_an_mp4_whose_index_is_in_front(tmp_path):
    make_mp4(tmp_path, "+faststart")
    check(tmp_path / "a.mp4", states_length=True)


def test_an_mp4_of_fragments_states_only_the_end_of_the_last(tmp_path):
    path = make_mp4(tmp_path, "+frag_keyframe+empty_moov+delay_moov", "-frag_duration", "200000")
    whole, before = read(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 7 // 10])
    audio, notices = read(path)
    assert 0.5 * whole.shape[1] < audio.shape[1] < 0.8 * whole.shape[1]
    assert before == []
    assert any("cut off" in notice for notice in notices)


def make_mp4(folder: Path, flags: str, *arguments: str) -> Path:
    soundfile.write(folder / "a.wav", coded.noise(40_000, 1).T, 16_000)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", folder / "a.wav", "-movflags", flags]
    subprocess.run([*command, *arguments, folder / "a.mp4"], check=True)
    return folder / "a.mp4"


def test_the_footer_of_an_mxf_is_no_second_file(tmp_path):
    path = tmp_path / "a.mxf"
    soundfile.write(tmp_path / "a.wav", coded.noise(96_000, 1).T, 48_000)
    coded.ffmpeg("-i", tmp_path / "a.wav", "-f", "mxf_opatom", path)
    whole, notices = read(path)
    assert (whole.shape[1], notices) == (96_000, [])
    path.write_bytes(2 * path.read_bytes())
    audio, notices = read(path)
    assert audio.shape[1] >= 2 * 96_000 or any("holds another file behind" in notice for notice in notices)


def test_gxf_states_its_length_in_fields(tmp_path):
    path = tmp_path / "a.gxf"
    soundfile.write(tmp_path / "a.wav", coded.noise(240_000, 1).T, 48_000)
    picture = ("-f", "lavfi", "-i", "color=size=720x576:rate=25:duration=5")
    coded.ffmpeg(*picture, "-i", tmp_path / "a.wav", "-c:v", "mpeg2video", "-c:a", "pcm_s16le", path)
    whole, before = read(path)
    assert (whole.shape[1] >= 240_000, before) == (True, [])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    audio, (notice,) = read(path)
    missing_s = 5 - audio.shape[1] / 48_000
    assert 1 < missing_s < 4
    assert notice.endswith(f"is cut off: {missing_s:.1f} s at its end are missing")


@pytest.mark.parametrize("offset_s", [0, 0.7])
@pytest.mark.parametrize("codec", ["flac", "aac", "libmp3lame", "libopus", "pcm_s16le"])
def test_matroska_of_which_damage_hides_the_rest(tmp_path, codec, offset_s):
    """Damage to the header of a cluster hides all of it, and the last one leaves no gap in the times behind it."""
    path = tmp_path / "a.mka"
    soundfile.write(tmp_path / "a.wav", coded.noise(80_000, 1).T, 16_000)
    shorter = ("-cluster_time_limit", "1000", "-c:a", codec)
    coded.ffmpeg("-itsoffset", offset_s, "-i", tmp_path / "a.wav", *shorter, path)
    whole, before = read(path)
    content = bytearray(path.read_bytes())
    for _ in range(2):  # the very last one is short
        last = content.rindex(bytes.fromhex("1f43b675"))
        content[last : last + 12] = bytes(12)
    path.write_bytes(content)
    audio, notices = read(path)
    missing_s = (whole.shape[1] - audio.shape[1]) / open_audio(path).sample_rate_hz
    assert (missing_s > 0.3, before) == (True, [])
    (notice,) = (notice for notice in notices if "cut off" in notice)
    said_s = float(notice.split(" s at its end are missing")[0].split()[-1])
    assert said_s == pytest.approx(missing_s, abs=0.15)


class TestFilmsOfMatroska:
    """Films of which the end is zeros, as of a download that was broken off, so that no size is wrong."""

    KINDS = (("mkv", "mpeg4", "aac"), ("mkv", "mpeg4", "flac"), ("webm", "libvpx", "libopus"))

    @pytest.fixture(params=KINDS, ids="-".join)
    def make_film(self, tmp_path, request):
        """Make a film with 8 s of sound and some of picture."""
        suffix, video, audio = request.param

        def make(picture_s: float, *arguments: str, sound_at_s: float = 0) -> Path:
            path = tmp_path / f"a.{suffix}"
            soundfile.write(tmp_path / "a.wav", coded.noise(128_000, 1).T, 16_000)
            picture = ("-f", "lavfi", "-i", f"testsrc=size=64x48:rate=25:duration={picture_s}")
            shorter = ("-cluster_time_limit", "400", "-c:v", video, "-c:a", audio)
            sound = ("-itsoffset", sound_at_s, "-i", tmp_path / "a.wav")
            coded.ffmpeg(*picture, *sound, *shorter, *arguments, path)
            return path

        return make

    @staticmethod
    def tag(path: Path, change: Callable[[bytes], bytes]) -> None:
        """Change the end of the track of the sound that the tags state."""
        content = path.read_bytes()
        at = content.rindex(b"DURATION") + 11
        path.write_bytes(content[:at] + change(content[at : at + 18]) + content[at + 18 :])

    @staticmethod
    def check(path: Path, share: float) -> tuple[float, list[str]]:
        """Replace the end of a film by zeros; return how much of its sound is lost, and what is said about it."""
        whole, before = read(path)
        content = path.read_bytes()
        size = round(share * len(content))
        path.write_bytes(content[:size] + bytes(len(content) - size))
        audio, notices = read(path)
        assert before == []
        missing_s = (whole.shape[1] - audio.shape[1]) / open_audio(path).sample_rate_hz
        return missing_s, [notice.partition(" is cut off: ")[2] for notice in notices if "is cut off" in notice]

    @pytest.mark.parametrize("sound_at_s", [0, 0.7])
    @pytest.mark.parametrize("picture_s", [5, 8, 12])
    def test_what_is_missing_by_the_tags(self, make_film, picture_s, sound_at_s):
        path = make_film(picture_s, sound_at_s=sound_at_s)
        assert open_audio(path).samples == pytest.approx(8 * open_audio(path).sample_rate_hz, rel=0.02)
        missing_s, (notice,) = self.check(path, 0.5)
        assert missing_s > 0.5
        said_s, rest = notice.split(" ", 1)
        assert rest == "s at its end are missing"
        assert float(said_s) == pytest.approx(missing_s, abs=0.2)

    @pytest.mark.parametrize("picture_s", [5, 8, 12])
    def test_what_is_missing_at_most_without_tags(self, make_film, picture_s):
        path = make_film(picture_s)
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"OTHERTAG"))
        missing_s, (notice,) = self.check(path, 0.5)
        assert missing_s > 0.5
        before, said_s, rest = notice.replace("up to ", "up to|").replace(" s at", "|s at").split("|")
        assert (before, rest) == ("up to", "s at its end are missing")
        assert float(said_s) == pytest.approx(missing_s + max(0, picture_s - 8), abs=0.2)

    @pytest.mark.parametrize("has_tags", [False, True])
    def test_sound_that_ends_before_what_is_lost(self, make_film, has_tags):
        path = make_film(40)
        if not has_tags:
            path.write_bytes(path.read_bytes().replace(b"DURATION", b"OTHERTAG"))
        assert self.check(path, 0.9) == (0, [])

    @pytest.mark.parametrize("text", [b"00:00:50.000000000", b"00:00:03.000000000", b"99999999999999999.", bytes(18)])
    @pytest.mark.parametrize("picture_s", [6, 12])
    def test_tags_of_another_film(self, make_film, picture_s, text):
        """They stay if a program that does not know them cuts the film."""
        path = make_film(picture_s)
        whole, _ = read(path)
        self.tag(path, lambda _: text)
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert notices == []

    def test_mkvmerge_states_the_length(self, make_film):
        path = make_film(8, sound_at_s=0.7)
        self.tag(path, lambda stated: b"%012.9f".join([b"00:00:", b""]) % (float(stated[6:]) - 0.7))
        assert read(path)[1] == []
        missing_s, (notice,) = self.check(path, 0.5)
        assert float(notice.split(" ")[0]) == pytest.approx(missing_s - 0.7, abs=0.2)


@given(content=st.binary(max_size=400), start=st.sampled_from(STARTS))
def test_any_header_states_an_end_or_none(tmp_path_factory, content, start):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(start + content)
    with path.open("rb") as file:
        assert stated_end(file) >= 0
        assert missing_bytes(file) >= 0
        assert is_joined(file) in (False, True)


@pytest.mark.parametrize("size", [1 << 40, 1 << 61, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_sizes_that_no_file_system_has(tmp_path, size):
    number = struct.pack(">Q", size)
    headers = (
        b"\0\0\0\x08ftyp\0\0\0\1mdat" + number,
        b"\0\0\0\x08ftyp\0\0\0\x20moov\0\0\0\1mvex" + number,
        b"FRM8" + number,
        b"DSD " + bytes(8) + number[::-1],
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + number[1:],
        b".SoX" + bytes(4) + number[::-1],
    )
    for header in headers:
        (tmp_path / "any").write_bytes(header + bytes(100))
        with (tmp_path / "any").open("rb") as file:
            assert 0 <= stated_end(file) < 1 << 62
            assert not is_joined(file)
            assert fragments_s(file) is None


@pytest.mark.parametrize("form", ["AVR", "MAT5", "MPC2K", "NIST", "WVE"])
def test_what_follows_the_audio(tmp_path, form):
    path = tmp_path / f"a.{form.lower()}"
    make(path, form, "ALAW" if form == "WVE" else "PCM_16")
    with path.open("rb") as file:
        assert stated_end(file) == path.stat().st_size
    whole, _ = read(path)
    content = path.read_bytes()
    for tag in (
        bytes(700),
        b"TAG" + bytes(125),
        b"ID3\x04\0\0\0\0\0\0",
        3_000 * "Grüße, dies ist Text.\r\n".encode(),
    ):
        path.write_bytes(content + tag)
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert notices == []
    path.write_bytes(content + bytes(range(1, 101)))
    audio, (notice,) = read(path)
    assert audio.shape[1] == whole.shape[1] + (100 if form == "WVE" else 50)
    assert "its header says that its audio ends 100 bytes before the end of the file" in notice


TITLE = b"\3" + "Käse".encode()
FRAME = b"TIT2" + struct.pack(">I", len(TITLE)) + b"\0\0" + TITLE
TAG = b"ID3\4\0\0" + bytes([0, 0, 0, len(FRAME)]) + FRAME


# Arguments of FFmpeg for each kind of MP4.
MP4 = {
    "p.mp4": (),
    "front.mp4": ("-movflags", "+faststart"),
    "f.mp4": ("-movflags", "frag_keyframe+empty_moov", "-frag_duration", "200000"),
    "pcm.mov": ("-c:a", "pcm_s16le"),
}


# QuickTime files of before 2005, by what they start with: what takes the place of the mark of later ones (nothing if
# it is taken out), and arguments of FFmpeg.
QUICKTIME = {
    "data": ("", ("-c:a", "pcm_s16le")),
    "index": ("", ("-c:a", "pcm_s16le", "-movflags", "+faststart")),
    "wide": ("wide", ("-c:a", "pcm_s16le")),
    "skip": ("skip", ("-c:a", "pcm_s16le", "-movflags", "+faststart")),
    "free behind": ("behind", ("-c:a", "pcm_s16le")),
    "aac": ("free", ("-c:a", "aac")),
}


def as_quicktime(content: bytes, kind: str) -> bytes:
    """Return a MOV file without its mark: with another box in its place, or at its end."""
    size = int.from_bytes(content[:4], "big")
    assert content[4:8] == b"ftyp"
    if kind not in ("", "behind"):
        return content[:4] + kind.encode() + content[8:]
    at = content.index(b"stco") + 8
    (count,) = struct.unpack_from(">I", content, at)
    moved = bytearray(content)
    for place in range(at + 4, at + 4 + 4 * count, 4):
        struct.pack_into(">I", moved, place, struct.unpack_from(">I", content, place)[0] - size)
    return bytes(moved[size:]) + (struct.pack(">I4s", 24, b"free") + bytes(16)) * (kind == "behind")


class TestJoinedOrTagged:
    """Files as `cat` and programs for MP3 leave them."""

    @pytest.fixture
    def make_file(self, tmp_path):
        return partial(make_with_ffmpeg, tmp_path)

    def test_a_long_avi_has_several_parts(self, make_file):
        path = make_file("a.avi")
        content = path.read_bytes()
        path.write_bytes(content + b"RIFF" + struct.pack("<I", 4) + b"AVIX")
        audio, notices = read(path)
        assert audio.shape[1] >= 20_000
        assert notices == []

    @pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.wma"])
    def test_a_second_file_is_named(self, make_file, tmp_path, name):
        whole, before = read(make_file(name))
        path = tmp_path / f"joined-{name}"
        path.write_bytes((tmp_path / name).read_bytes() * 2)
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert before == []
        assert [notice for notice in notices if "holds another file behind the first" in notice] == notices[-1:]

    @pytest.mark.parametrize("tags", [1, 2])
    @pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.caf", "a.mka", "a.wma", "a.wv", "a.m4a", "a.w64"])
    def test_id3_tags_in_front_of_any_container(self, make_file, tmp_path, name, tags):
        whole, _ = read(make_file(name))
        path = tmp_path / f"tagged-{name}"
        path.write_bytes(tags * TAG + (tmp_path / name).read_bytes())
        audio, notices = read(path)
        np.testing.assert_allclose(audio, whole, atol=1e-6)
        assert notices == []
        assert open_audio(path).tags == {"title": "Käse"}

    @pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.caf", "a.mka", "a.wma", "a.w64", "a.m4a"])
    def test_a_file_behind_a_tag_that_is_cut_off(self, make_file, tmp_path, name):
        codec = {"a.mka": ("-c:a", "flac"), "a.m4a": ("-movflags", "+faststart")}
        content = make_file(name, *codec.get(name, ())).read_bytes()
        path = tmp_path / f"tagged-{name}"
        path.write_bytes(TAG + content[: len(content) * 7 // 10])
        audio, notices = read(path)
        assert 0.6 * 20_000 < audio.shape[1] < 0.75 * 20_000
        (notice,) = (notice for notice in notices if "is cut off" in notice)
        missing_s = 1.25 - audio.shape[1] / 16_000
        assert float(notice.split(" s at its end")[0].split()[-1]) == pytest.approx(missing_s, abs=0.15)

    @pytest.mark.parametrize("between", [b"", TAG, bytes(20), b"TAG" + bytes(125)])
    @pytest.mark.parametrize("name", ["a.tta", "a.wma", "a.au", "a.w64"])
    def test_tags_between_two_files(self, make_file, tmp_path, name, between):
        content = make_file(name).read_bytes()
        path = tmp_path / f"joined-{name}"
        path.write_bytes(content + between + content)
        audio, notices = read(path)
        assert audio.shape[1] == read(tmp_path / name)[0].shape[1]
        assert [notice for notice in notices if "holds another file behind the first" in notice] == notices[-1:]

    @pytest.mark.parametrize("between", [b"", TAG, b"TAG" + bytes(range(125)), 2 * TAG + b"TAG" + bytes(range(125))])
    @pytest.mark.parametrize("arguments", [(), ("-write_xing", "0")])
    def test_no_frame_of_mp3_is_lost_with_the_tags_before_it(self, make_file, tmp_path, arguments, between):
        content = make_file("a.mp3", *arguments, "-id3v2_version", "0").read_bytes()
        path = tmp_path / "joined.mp3"
        path.write_bytes(content + content)
        whole, before = read(path)
        path.write_bytes(content + between + content)
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert before == notices == []

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("a.avi", ()),
            ("a.nut", ("-c:a", "pcm_s16le")),
            ("a.rm", ("-c:a", "ac3")),
            ("a.amr", ("-c:a", "libopencore_amrnb", "-ar", "8000")),
        ],
    )
    def test_files_that_are_read_whole_if_they_were_joined(self, make_file, tmp_path, name, arguments):
        try:
            path = make_file(name, *arguments)
        except subprocess.CalledProcessError:
            pytest.skip("this build of FFmpeg lacks the encoder")
        whole, before = read(path)
        path.write_bytes(2 * path.read_bytes())
        audio, notices = read(path)
        assert audio.shape[1] == 2 * whole.shape[1]
        np.testing.assert_array_equal(audio[:, : whole.shape[1]], whole)
        assert before == notices == []

    @pytest.mark.parametrize("between", [b"", TAG, bytes(20), b"TAG" + bytes(125)])
    @pytest.mark.parametrize("second", MP4)
    @pytest.mark.parametrize("first", MP4)
    def test_joined_mp4_is_read_part_by_part(self, make_file, tmp_path, first, second, between):
        names = [f"{number}.{name}" for number, name in enumerate((first, second))]
        parts = [read(make_file(name, *MP4[name[2:]])) for name in names]
        path = tmp_path / "joined.mp4"
        path.write_bytes(between.join((tmp_path / name).read_bytes() for name in names))
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, np.concatenate([part for part, _ in parts], axis=1))
        assert notices == []
        assert open_audio(path).samples == audio.shape[1]

    @pytest.mark.parametrize("first", MP4)
    def test_a_later_part_of_mp4_in_another_format(self, make_file, tmp_path, first):
        whole, _ = read(make_file(first, *MP4[first]))
        make_file("b.mp4", *MP4["f.mp4"], "-ar", "48000", "-ac", "2")
        (tmp_path / "joined.mp4").write_bytes((tmp_path / first).read_bytes() + (tmp_path / "b.mp4").read_bytes())
        audio, (notice,) = read(tmp_path / "joined.mp4")
        np.testing.assert_array_equal(audio[:, : whole.shape[1]], whole)
        assert audio.shape[1] - whole.shape[1] == pytest.approx(read(tmp_path / "b.mp4")[0].shape[1] / 3, abs=1)
        assert "changes to 48,000 Hz, stereo" in notice

    @pytest.mark.parametrize("name", ["f.mp4", "front.mp4"])
    def test_a_later_part_of_mp4_that_is_cut_off(self, make_file, tmp_path, name):
        whole, _ = read(make_file(name, *MP4[name]))
        content = (tmp_path / name).read_bytes()
        (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 7 // 10])
        rest, said = read(tmp_path / "cut.mp4")
        path = tmp_path / "joined.mp4"
        path.write_bytes(content + (tmp_path / "cut.mp4").read_bytes())
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, np.concatenate([whole, rest], axis=1))
        (wanted,) = (notice.replace(repr(str(tmp_path / "cut.mp4")), "") for notice in said if "cut off" in notice)
        assert f"part 2 of {str(path)!r}{wanted}" in notices

    def test_a_later_part_of_mp4_that_cannot_be_read(self, make_file, tmp_path):
        whole, _ = read(make_file("a.m4a"))
        content = (tmp_path / "a.m4a").read_bytes()
        path = tmp_path / "joined.m4a"
        path.write_bytes(content + content[: len(content) // 2])
        audio, (notice,) = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert notice.startswith(f"part 2 of {str(path)!r} cannot be read as audio: ")

    @pytest.mark.parametrize("between", [b"", TAG, bytes(20)])
    @pytest.mark.parametrize("second", QUICKTIME)
    @pytest.mark.parametrize("first", QUICKTIME)
    def test_joined_quicktime_of_before_2005(self, make_file, tmp_path, first, second, between):
        contents, parts = [], []
        for number, (kind, arguments) in enumerate((QUICKTIME[first], QUICKTIME[second])):
            path = make_file(f"{number}.mov", *arguments, "-af", f"volume={1 - number / 2}")
            path.write_bytes(as_quicktime(path.read_bytes(), kind))
            contents.append(path.read_bytes())
            parts.append(coded.decode(path, 1))
        path = tmp_path / "joined.mov"
        path.write_bytes(between.join(contents))
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, np.concatenate(parts, axis=1))
        assert notices == []
        assert open_audio(path).samples == audio.shape[1]

    @pytest.mark.parametrize("kind", ["data", "free behind", "aac"])
    def test_quicktime_with_an_index_that_is_no_longer_used(self, make_file, kind):
        path = make_file("a.mov", *QUICKTIME[kind][1])
        content = as_quicktime(path.read_bytes(), QUICKTIME[kind][0])
        path.write_bytes(content)
        whole, before = read(path)
        at = content.index(b"moov") - 4
        path.write_bytes(content + content[at : at + int.from_bytes(content[at : at + 4], "big")])
        audio, notices = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert before == notices == []

    @pytest.mark.parametrize("table", [b"stco", b"co64"])
    @pytest.mark.parametrize("size", [0, 8, 1 << 20, (1 << 32) - 1])
    def test_an_index_with_sizes_that_no_file_has(self, tmp_path, table, size):
        index = b""
        for kind in (table, b"stbl", b"minf", b"mdia", b"trak", b"moov"):
            index = struct.pack(">I4s", size if kind == table else 8 + len(index), kind) + index
        path = tmp_path / "a.mov"
        path.write_bytes(2 * (struct.pack(">I4s", 108, b"mdat") + bytes(range(100)) + index))
        with path.open("rb") as file:
            assert mp4_starts(file) == [0]
        with pytest.raises(AudioError):
            read(path)

    def test_quicktime_whose_samples_do_not_start_its_data(self, make_file, tmp_path):
        path = make_file("a.mov", "-c:a", "pcm_s16le")
        content = as_quicktime(path.read_bytes(), "")
        at = content.index(b"stco") + 12
        (start,) = struct.unpack_from(">I", content, at)
        content = content[:at] + struct.pack(">I", start + 400) + content[at + 4 :]
        path.write_bytes(content)
        whole = coded.decode(path, 1)
        path = tmp_path / "joined.mov"
        path.write_bytes(content + content)
        audio, _ = read(path)
        assert audio.shape[1] == 2 * whole.shape[1]
        np.testing.assert_array_equal(audio, np.concatenate([whole, whole], axis=1))

    def test_quicktime_of_before_2005_that_is_cut_off(self, make_file, tmp_path):
        path = make_file("a.mov", "-c:a", "pcm_s16le", "-movflags", "+faststart")
        content = as_quicktime(path.read_bytes(), "")
        whole, _ = read(path)
        cut = content[: len(content) * 7 // 10]
        for path, front in ((tmp_path / "cut.mov", b""), (tmp_path / "joined.mov", content)):
            path.write_bytes(front + cut)
            audio, notices = read(path)
            present = len(cut) - cut.index(b"mdat") - 4
            assert audio.shape[1] == whole.shape[1] * bool(front) + present // 2
            (notice,) = (notice for notice in notices if "cut off" in notice)
            missing_s = (40_000 - present) / 32_000
            assert f"{missing_s:.1f} s at its end are missing" in notice

    def test_an_au_file_that_is_longer_than_it_states(self, make_file):
        path = make_file("a.au")
        whole, _ = read(path)
        content = bytearray(path.read_bytes())
        struct.pack_into(">I", content, 8, 2_000)
        path.write_bytes(content)
        audio, (notice,) = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert "has only 2,000 of 40,000 bytes of audio" in notice

    @pytest.mark.parametrize("tag", [b"TAG" + bytes(125), bytes(1_000), b"APETAGEX" + bytes(24)])
    def test_what_follows_the_samples_of_w64_is_not_read_as_samples(self, make_file, tag):
        path = make_file("a.w64")
        path.write_bytes(path.read_bytes() + tag)
        audio, notices = read(path)
        assert (audio.shape[1], notices) == (20_000, [])

    def test_pcm_in_mov_is_not_cut_to_rounded_milliseconds(self, make_file, tmp_path):
        make_file("a.mov", "-c:a", "pcm_s16le", "-ar", "44100")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", "0.3", "-i", tmp_path / "a.mov"]
        subprocess.run([*command, "-c", "copy", tmp_path / "b.mov"], check=True)
        audio, notices = read(tmp_path / "b.mov")
        assert (audio.shape, notices) == (coded.decode(tmp_path / "b.mov", 1).shape, [])


class TestVocAnd8svx:
    def test_text_behind_the_sound_of_a_voc_is_not_read_as_sound(self, tmp_path):
        soundfile.write(tmp_path / "a.voc", coded.noise(20_000, 1).T, 16_000)
        content = (tmp_path / "a.voc").read_bytes()
        assert content[-1] == 0
        (tmp_path / "b.voc").write_bytes(content[:-1] + b"\5\x40\0\0" + b"t" * 64 + b"\0")
        np.testing.assert_array_equal(read(tmp_path / "b.voc")[0], read(tmp_path / "a.voc")[0])

    @pytest.mark.parametrize(("subtype", "dtype"), [("PCM_S8", ">i1"), ("PCM_16", ">i2")])
    def test_chunks_behind_the_body_and_two_channels(self, tmp_path, subtype, dtype):
        left, right = coded.noise(10_000, 2)
        soundfile.write(tmp_path / "a.svx", left, 16_000, subtype, format="SVX")
        content = (tmp_path / "a.svx").read_bytes()
        (tmp_path / "b.svx").write_bytes(content + b"ANNO\0\0\x0f\xa0" + b"text" * 1_000)
        for name in ("a.svx", "b.svx"):
            audio, notices = read(tmp_path / name)
            np.testing.assert_array_equal(audio, soundfile.read(tmp_path / "a.svx", dtype="float32")[0][None])
            assert notices == []
        scale = 127 if subtype == "PCM_S8" else 32_767
        halves = [(scale * channel).astype(dtype).tobytes() for channel in (left, right)]
        at = content.index(b"BODY")
        body = b"CHAN\0\0\0\4\0\0\0\6BODY" + struct.pack(">I", sum(map(len, halves))) + b"".join(halves)
        form = bytearray(content[:at] + body)
        struct.pack_into(">I", form, 4, len(form) - 8)
        (tmp_path / "two.svx").write_bytes(form)
        audio, _ = read(tmp_path / "two.svx")
        wanted = [np.frombuffer(half, dtype).astype(np.float32) / (scale + 1) for half in halves]
        np.testing.assert_allclose(audio, wanted, atol=1e-6)


@pytest.mark.parametrize("subtype", ["DWVW_16", "DWVW_24"])
def test_dwvw_which_can_only_be_read_in_order(tmp_path, subtype):
    samples = np.random.default_rng(0).integers(-20_000, 20_000, 100_000)
    soundfile.write(tmp_path / "a.aiff", (samples << 16).astype(np.int32), 16_000, subtype)
    np.testing.assert_array_equal(read(tmp_path / "a.aiff")[0][0] * 32_768, samples)


class TestFragments:
    """Fragmented MP4 that is cut off between two fragments, so that no size of a box is wrong."""

    FLAGS = "+frag_keyframe+empty_moov+default_base_moof"

    @staticmethod
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"moof", len(content) // 2) - 4])

    @staticmethod
    def state_length(path: Path, length_s: float) -> None:
        content = path.read_bytes()
        (units_per_s,) = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)
        box = struct.pack(">I4sII", 16, b"mehd", 0, round(length_s * units_per_s))
        for kind, addition in ((b"mvex", box), (b"moov", b"")):
            at = content.index(kind) - 4
            size = struct.pack(">I", int.from_bytes(content[at : at + 4], "big") + 16)
            content = content[:at] + size + kind + addition + content[at + 8 :]
        path.write_bytes(content)

    def test_the_length_in_the_header(self, tmp_path):
        path = make_mp4(tmp_path, self.FLAGS, "-frag_duration", "200000")
        self.state_length(path, 2.5)
        whole, notices = read(path)
        assert notices == []
        self.cut(path)
        audio, (notice,) = read(path)
        missing_s = (whole.shape[1] - audio.shape[1]) / 16_000
        assert missing_s > 0.5
        assert float(notice.split(" s at its end")[0].split()[-1]) == pytest.approx(missing_s, abs=0.15)

    def test_the_length_in_the_index(self, tmp_path):
        path = make_mp4(tmp_path, f"{self.FLAGS}+global_sidx", "-frag_duration", "200000")
        whole, notices = read(path)
        assert notices == []
        self.cut(path)
        audio, (notice,) = read(path)
        missing_s = (whole.shape[1] - audio.shape[1]) / 16_000
        assert "cut off: at least" in notice
        assert float(notice.split(" s at its end")[0].split()[-1]) == pytest.approx(missing_s, abs=0.15)

    def test_what_is_not_a_box_behind_the_last(self, tmp_path):
        path = make_mp4(tmp_path, "+faststart")
        path.write_bytes(path.read_bytes() + b"x" * 3_000)
        assert read(path)[1] == []


class TestBigEndianWav:
    @pytest.mark.parametrize(
        ("subtype", "scale"),
        [
            *((subtype, 1.0) for subtype in ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "ULAW", "ALAW", "IMA_ADPCM")),
            *((subtype, 1e-3) for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW", "ALAW", "IMA_ADPCM")),
            *((subtype, 0.0) for subtype in ("PCM_U8", "ULAW", "ALAW")),
        ],
    )
    def test_samples_behind_a_size_that_is_too_small_are_not_taken_for_text(self, tmp_path, subtype, scale):
        path = tmp_path / "a.wav"
        soundfile.write(path, scale * coded.noise(20_000, 1).T, 16_000, subtype)
        whole, _ = read(path)
        content = bytearray(path.read_bytes())
        struct.pack_into("<I", content, content.index(b"data") + 4, 1_024)
        path.write_bytes(content)
        audio, (notice,) = read(path)
        np.testing.assert_array_equal(audio, whole)
        assert "its header says that it has only 1,024 of" in notice

    @pytest.mark.parametrize("name", [b"LIST", b"id3 "])
    def test_a_chunk_behind_the_samples_that_is_cut_off_is_not_read_as_samples(self, tmp_path, name):
        path = make_with_ffmpeg(tmp_path, "a.wav", "-bitexact")
        path.write_bytes(path.read_bytes() + name + struct.pack("<I", 1 << 20) + bytes(range(1, 200)) * 100)
        audio, (notice,) = read(path)
        assert audio.shape[1] == 20_000
        assert notice.endswith(f"chunks left out, cut off or too large: {name.decode().strip()}")

    @pytest.mark.parametrize("form", ["WAV", "AU", "CAF", "MAT4"])
    def test_a_name_for_samples_without_a_header(self, tmp_path, form):
        path = tmp_path / "a.raw"
        soundfile.write(path, coded.noise(1_000, 1).T, 16_000, "PCM_16", format=form)
        assert read(path)[0].shape == (1, 1_000)
        path.write_bytes(bytes(5_000))
        with pytest.raises(AudioError):
            read(path)

    @pytest.mark.parametrize("samples", [801, 802])
    def test_a_chunk_behind_an_odd_size_without_padding(self, tmp_path, samples):
        path = tmp_path / "a.wav"
        soundfile.write(path, coded.noise(samples, 1).T, 16_000, "PCM_U8")
        content = path.read_bytes()[: 44 + samples]
        title = b"LIST\x12\0\0\0INFOINAM\5\0\0\0Talk\0\0"
        path.write_bytes(content[:4] + struct.pack("<I", len(content + title) - 8) + content[8:] + title)
        audio, notices = read(path)
        assert (audio.shape[1], notices) == (samples, [])

    @pytest.mark.parametrize(("form", "size"), [("w64", (1 << 63) - 1), ("w64", (1 << 64) - 1), ("avi", 0xFFFFFFFF)])
    def test_sizes_that_are_not_known_yet(self, tmp_path, form, size):
        path = make_with_ffmpeg(tmp_path, f"a.{form}", "-c:a", "pcm_s16le")
        whole, _ = read(path)
        content = bytearray(path.read_bytes())
        if form == "w64":
            struct.pack_into("<Q", content, 16, size)
            struct.pack_into("<Q", content, content.index(b"data\xf3\xac") + 16, size)
        else:
            struct.pack_into("<I", content, 4, size)
        path.write_bytes(content)
        audio, notices = read(path)
        assert notices == []
        np.testing.assert_array_equal(audio, whole)


def make_with_ffmpeg(folder: Path, name: str, *arguments: str) -> Path:
    soundfile.write(folder / "source.wav", coded.noise(20_000, 1).T, 16_000)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", folder / "source.wav", *arguments]
    subprocess.run([*command, folder / name], check=True)
    return folder / name


@pytest.mark.parametrize("codec", ["adpcm_yamaha", "libmp3lame", "ac3", "mp2", "g722", "g726"])
@pytest.mark.parametrize("data", [0, 2_000, 0xFFFFFFFF, 0x7FFFF000])
def test_wrong_sizes_of_a_wav_that_ffmpeg_reads(tmp_path, codec, data):
    rate = RATES.get(codec, 16_000)
    soundfile.write(tmp_path / "source.wav", coded.noise(30_000, 1).T, rate)
    path = tmp_path / "a.wav"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "source.wav", "-c:a", codec, path]
    subprocess.run(command, check=True)
    whole, _ = read(path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"data") + 4, data)
    path.write_bytes(content)
    audio, notices = read(path)
    assert audio.shape[1] == pytest.approx(whole.shape[1], abs=2)  # a byte of padding is read
    np.testing.assert_allclose(audio[:, : whole.shape[1] - 2], whole[:, : audio.shape[1]][:, : whole.shape[1] - 2])
    assert any("its header says that it" in notice for notice in notices) == (data in (0, 2_000))
    assert not any("cut off" in notice for notice in notices)


@pytest.mark.skipif(sys.platform == "win32", reason="a file with a hole would fill the disk")
@pytest.mark.parametrize("stated", [0, 0x1234_5678, 0xFFFF_FFFF])
@pytest.mark.parametrize(
    ("endian", "subtype", "one"),
    [
        ("LITTLE", "PCM_16", b"\1\0"),
        ("BIG", "PCM_16", b"\0\1"),
        ("BIG", "PCM_24", b"\0\1\0"),
        ("BIG", "PCM_32", b"\0\1\0\0"),
        ("BIG", "FLOAT", struct.pack(">f", 2.0**-15)),
        ("BIG", "DOUBLE", struct.pack(">d", 2.0**-15)),
        ("BIG", "PCM_U8", b"\x81"),
    ],
)
def test_a_wav_of_more_than_4_gib_whose_size_is_wrong_is_read_whole(tmp_path, stated, endian, subtype, one):
    path, frames, tail = tmp_path / "a.wav", (1 << 32) // (2 * len(one)) + 5_000, 500
    soundfile.write(path, np.zeros((0, 2)), 48_000, subtype, endian=endian)
    content = path.read_bytes()
    head = content[: content.index(b"data") + 4]
    with path.open("wb") as file:
        file.write(head + struct.pack("<I" if endian == "LITTLE" else ">I", stated))
        file.truncate(len(head) + 4 + 2 * len(one) * (frames - tail))
        file.seek(0, 2)
        file.write(one * 2 * tail)
    opened = open_audio(path)
    assert (opened.samples, opened.sample_rate_hz, opened.channels, opened.subtype) == (frames, 48_000, 2, subtype)
    repair = find_repair(path)
    assert repair.missing_bytes == 0
    assert len(repair.notices) == 1
    with open_patched(path, repair) as sound:
        sound.seek(frames - tail)
        scale = 128 if subtype == "PCM_U8" else 32_768
        assert (scale * sound.read(2 * tail)).sum(axis=0).tolist() == [tail, tail]
