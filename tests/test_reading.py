"""Reading: all the audio of a file, or an error, or a notice of what is missing."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

import coded
from coded import read
from example_counts import few
from frcrn_accel.errors import AudioError, AudioWarning
from frcrn_accel.files import open_audio
from frcrn_accel.files.decode_ffmpeg import decode, probe

SAMPLES, RATE = 40_000, 16_000
PAGES = dict.fromkeys((".ogg", ".oga", ".opus"), ("-page_duration", "100000"))


def ffmpeg(*arguments: str | Path, data: bytes | None = None) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-bitexact", *map(str, arguments)]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a file of noise in the format of its name, once."""
    folder = tmp_path_factory.mktemp("made")
    audio = coded.noise(SAMPLES, 1)

    def make(name: str, *arguments: str, rate: int = RATE, channels: int = 1) -> Path:
        path = folder / f"{rate}-{channels}-{'-'.join(arguments)}{name}"
        if not path.exists():
            wav = folder / f"{rate}-{channels}.wav"
            soundfile.write(wav, np.repeat(audio.T, channels, axis=1), rate, subtype="PCM_16")
            if path != wav:
                ffmpeg("-i", wav, *arguments, path)
        return path

    return make


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(
            (name, ())
            for name in (".wav", ".aiff", ".au", ".caf", ".w64", ".voc", ".flac", ".tta", ".wv", ".mp3", ".mp2")
        ),
        *((name, ()) for name in (".m4a", ".aac", ".ac3", ".eac3", ".mka", ".webm", ".wma", ".opus", ".oga", ".mov")),
        (".m4a", ("-c:a", "alac")),
        (".ogg", ("-c:a", "libvorbis")),
        (".ogg", ("-c:a", "libspeex")),
        (".mp3", ("-q:a", "2", "-write_xing", "0")),
        (".wav", ("-c:a", "libmp3lame")),
        (".wav", ("-c:a", "adpcm_ms")),
        (".wav", ("-c:a", "adpcm_ima_wav")),
        (".wav", ("-c:a", "pcm_mulaw")),
        (".wav", ("-c:a", "pcm_f32le")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
def test_as_many_samples_as_ffmpeg_decodes(made, name, arguments):
    try:
        path = made(name, *arguments)
    except subprocess.CalledProcessError:
        pytest.skip("this build of FFmpeg lacks the encoder")
    file, audio, notices = read(path)
    expected = coded.decode(path, 1)
    if file.subtype.endswith("ADPCM"):  # FFmpeg gives whole blocks
        assert audio.shape[1] == SAMPLES
    elif file.subtype != "OPUS":  # libsndfile gives it at the rate of its source
        assert audio.shape == expected.shape
        np.testing.assert_allclose(audio, expected, atol=2e-3)
    assert audio.shape[1] >= SAMPLES * file.sample_rate_hz // RATE - 1_000
    assert notices == []
    if name in (".flac", ".tta", ".wv", ".oga", ".aiff", ".w64", ".opus", ".m4a", ".mp3") and "0" not in arguments:
        assert audio.shape[1] == SAMPLES * file.sample_rate_hz // RATE


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *((".avi", codec) for codec in ("g722", "g726", "eac3", "dca", "libvorbis", "libopencore_amrnb")),  # times
        *((".flv", codec) for codec in ("flac", "ac3", "libopus")),  # new headers without a frame
        (".nut", "flac"),
        *((suffix, "flac") for suffix in (".wma", ".wtv")),  # times of later packets
        *((".w64", codec) for codec in ("libmp3lame", "mp2")),  # padding
    ],
)
def test_what_is_neither_damage_nor_a_pause(made, name, codec):
    """Check files whose times FFmpeg counts wrongly, and packets that hold no sound."""
    try:
        path = made(
            name, "-c:a", codec, "-strict", "-2", rate={"g726": 8_000, "libopencore_amrnb": 8_000}.get(codec, RATE)
        )
    except subprocess.CalledProcessError:
        pytest.skip("this build of FFmpeg lacks the encoder")
    _, audio, notices = read(path)
    expected = coded.decode(path, 1)
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio, expected, atol=2e-3)
    assert notices == []


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("name", "codec"),
    [(".aiff", "adpcm_ima_ws"), (".aifc", "adpcm_ima_ws"), (".aud", "adpcm_ima_ws"), (".nut", "adpcm_ima_wav")],
)
def test_adpcm_whose_containers_do_not_describe_it(made, name, codec, channels):
    muxer = {".aifc": "aiff", ".aud": "wsaud"}.get(name, name[1:])
    path = made(name, "-c:a", codec, "-f", muxer, channels=channels)
    file, audio, notices = read(path)
    np.testing.assert_allclose(audio, coded.decode(path, channels), atol=1e-6)
    assert (file.channels, file.channel_layout) == (channels, ("mono", "stereo")[channels - 1])
    assert (audio.shape[1] >= SAMPLES, notices) == (True, [])


def test_damage_where_times_are_counted_wrongly(made, tmp_path):
    source = made(".avi", "-c:a", "dca", "-strict", "-2")
    _, whole, _ = read(source)
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3_000] = bytes(3_000)
    (tmp_path / "damaged.avi").write_bytes(content)
    _, audio, notices = read(tmp_path / "damaged.avi")
    assert whole.shape[1] - 4_000 < audio.shape[1] <= whole.shape[1]
    assert any("is damaged" in notice for notice in notices)


@pytest.mark.parametrize("codec", ["ac3", "eac3"])
@pytest.mark.parametrize("suffix", ["", ".mka", ".mp4", ".wav", ".avi"])
def test_one_wrong_byte_in_ac3_is_reported(made, tmp_path, codec, suffix):
    source = made(suffix or f".{codec}", "-c:a", codec, rate=48_000)
    _, whole, before = read(source)
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 0x55
    path = tmp_path / f"damaged{source.suffix}"
    path.write_bytes(content)
    _, audio, notices = read(path)
    assert audio.shape == whole.shape
    error = np.abs(audio - whole)[0]
    at = int(error.argmax())
    settled = np.delete(error, slice(max(0, at - 3 * 1_536), at + 3 * 1_536))
    assert settled.max() < error[at] / 3  # the noise that its decoder adds is another one
    assert before == []
    assert [notice.partition(" is damaged: ")[2] for notice in notices] == [
        "1 of its frames are not whole, the decoder conceals them"
    ]


class TestChecksumsOfMp3:
    @pytest.fixture(params=[(44_100, 2), (44_100, 1), (24_000, 2), (16_000, 1), (8_000, 1)], ids=str)
    def frames(self, made, request):
        """Make frames with checksums (ISO/IEC 11172-3, section 2.4.3.1), in place of two bytes of padding."""
        rate, channels = request.param
        padded = ("-reservoir", "0", "-b:a", "320k" if rate > 32_000 else "160k" if rate > 8_000 else "64k")
        plain = ("-af", "volume=0.01", "-write_xing", "0", "-id3v2_version", "0", "-write_id3v1", "0")
        path = made(".mp3", *padded, *plain, rate=rate, channels=channels)
        with av.open(str(path)) as container:
            frames = [bytes(packet) for packet in container.demux() if packet.size]
        assert b"".join(frames) == path.read_bytes()
        side = slice(4, 4 + {(44_100, 2): 32, (24_000, 2): 17, (44_100, 1): 17}.get((rate, channels), 9))
        protected = []
        for frame in frames:
            checksum = 0xFFFF
            for byte in frame[2:4] + frame[side]:
                for bit in range(7, -1, -1):
                    checksum = (checksum << 1 ^ (0x8005 if (checksum >> 15 ^ byte >> bit) & 1 else 0)) & 0xFFFF
            assert frame.endswith(bytes(2))
            protected.append(
                frame[:1] + bytes([frame[1] & 0xFE]) + frame[2:4] + checksum.to_bytes(2, "big") + frame[4:-2]
            )
        return protected

    @staticmethod
    def mismatches(path: Path) -> bool:
        """Return whether a checksum is wrong by FFmpeg."""
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-err_detect", "crccheck", "-i", path]
        said = subprocess.run([*command, "-f", "null", "-"], capture_output=True, check=True, text=True).stderr
        return "CRC mismatch" in said

    @pytest.mark.parametrize("suffix", [".mp3", ".mka", ".avi"])
    @pytest.mark.parametrize("wrong", [0, 1, 3])
    def test_wrong_ones_are_counted(self, frames, tmp_path, suffix, wrong):
        path = tmp_path / "a.mp3"
        for number in range(5, 5 + wrong):
            frames[number] = frames[number][:9] + bytes([frames[number][9] ^ 0x10]) + frames[number][10:]
        path.write_bytes(b"".join(frames))
        assert self.mismatches(path) == bool(wrong)
        if suffix != ".mp3":
            coded.ffmpeg("-i", path, "-c", "copy", tmp_path / f"a{suffix}")
            path = tmp_path / f"a{suffix}"
        file, audio, notices = read(path)
        np.testing.assert_allclose(audio, coded.decode(path, file.channels), atol=2e-3)
        said = f"is damaged: {wrong} of its frames have wrong checksums, they are decoded as they are"
        assert [notice.endswith(said) for notice in notices] == [True] * bool(wrong)

    def test_an_encoder_that_counts_differently(self, frames, tmp_path):
        path = tmp_path / "a.mp3"
        path.write_bytes(b"".join(frame[:4] + bytes([frame[4] ^ 1]) + frame[5:] for frame in frames))
        assert self.mismatches(path)
        assert read(path)[2] == []


@pytest.mark.parametrize("name", [".wav", ".flac", ".mp3", ".m4a", ".webm", ".wma"])
def test_blocks_are_long_in_every_format(made, name):
    rate = 44_100 if name != ".webm" else 48_000
    path = made(name, "-af", "apad=whole_len=150000", rate=rate)
    sizes = [block.shape[1] for block in open_audio(path).blocks()]
    assert sizes[:2] == [1 << 16, 1 << 16]
    assert len(sizes) == 3
    assert 149_000 < sum(sizes) < 155_000


@pytest.mark.parametrize("inside", [".mp3", ".m4a", ".flac", ".ogg"])
@pytest.mark.parametrize("suffix", [".wav", ".mp3", ""])
def test_the_content_decides_and_not_the_suffix(made, tmp_path, inside, suffix):
    path = tmp_path / f"name{suffix}"
    path.write_bytes(made(inside).read_bytes())
    assert read(path)[1].shape == (1, SAMPLES)


def ogg_pages(content: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Return head, lengths and body of each page."""
    pages, at = [], 0
    while at < len(content):
        lengths = content[at + 27 : at + 27 + content[at + 26]]
        body = at + 27 + len(lengths)
        pages.append((content[at : at + 26], lengths, content[body : body + sum(lengths)]))
        at = body + sum(lengths)
    return pages


def ogg_page(parts: tuple[bytes, bytes, bytes]) -> bytes:
    """Make a page with its checksum (RFC 3533, section 6)."""
    head, lengths, body = parts
    page = bytearray(head[:22] + bytes(4) + bytes([len(lengths)]) + lengths + body)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum & 0x80000000 else 0)) & 0xFFFFFFFF
    page[22:26] = checksum.to_bytes(4, "little")
    return bytes(page)


class TestJoined:
    @pytest.mark.parametrize("parts", [2, 3])
    @pytest.mark.parametrize("between", [b"", b"TAG" + bytes(125), b"ID3\x03\0\0\0\0\0\x0a" + bytes(10), bytes(700)])
    def test_mp3(self, made, tmp_path, parts, between):
        path = tmp_path / "joined.mp3"
        path.write_bytes(between.join([made(".mp3").read_bytes()] * parts))
        audio = read(path)[1]
        assert audio.shape == coded.decode(path, 1).shape
        assert audio.shape[1] >= parts * SAMPLES

    @pytest.mark.parametrize(("rate", "channels"), [(RATE, 2), (44_100, 1), (48_000, 2)])
    @pytest.mark.parametrize("name", [".mp3", ".ogg", ".oga"])
    def test_a_change_of_form(self, made, tmp_path, name, rate, channels):
        first, second = made(name), made(name, rate=rate, channels=channels)
        path = tmp_path / f"joined{name}"
        path.write_bytes(first.read_bytes() + second.read_bytes())
        file, audio, notices = read(path)
        assert (file.sample_rate_hz, file.channels) == (RATE, 1)
        expected = SAMPLES + SAMPLES * RATE / rate
        assert audio.shape[1] == pytest.approx(expected, abs=2_500 if name == ".mp3" else 64)
        assert "after its start: all of it is converted to 16,000 Hz, mono" in notices[0]
        assert audio[0, -8_000:].std() > 0.05

    @pytest.mark.parametrize("name", [".ogg", ".oga", ".opus"])
    def test_chained_ogg(self, made, tmp_path, name):
        path = tmp_path / f"chain{name}"
        path.write_bytes(made(name).read_bytes() * 3)
        file, audio, notices = read(path)
        assert audio.shape[1] == 3 * SAMPLES * file.sample_rate_hz // RATE
        assert notices == []


class TestOpusFromTheMiddle:
    """Recordings of radio: granule positions do not start at 0, and pre-skip is dropped all the same (RFC 7845)."""

    @pytest.fixture
    def pages(self, made):
        return ogg_pages(made(".opus", "-page_duration", "100000", rate=48_000).read_bytes())

    @pytest.mark.parametrize("parts", [1, 2])
    @pytest.mark.parametrize("end", [None, -2])
    @pytest.mark.parametrize("first", [2, 3, 5])
    def test_pages_from_the_middle(self, pages, tmp_path, first, end, parts):
        path = tmp_path / "a.opus"
        path.write_bytes(b"".join(map(ogg_page, pages[:2] + pages[first:end])) * parts)
        _, audio, notices = read(path)
        expected = coded.decode(path, 1)
        assert audio.shape == expected.shape
        np.testing.assert_allclose(audio[0, :1_000], expected[0, :1_000], atol=1e-3)
        np.testing.assert_allclose(audio[0, -1_000:], expected[0, -1_000:], atol=1e-3)
        assert len(notices) == (end is not None)

    def test_a_stream_that_counts_from_elsewhere(self, made, pages, tmp_path):
        path = tmp_path / "a.opus"
        moved = [
            (head[:6] + struct.pack("<q", int.from_bytes(head[6:14], "little") + 10**6) + head[14:], *rest)
            for head, *rest in pages[2:]
        ]
        path.write_bytes(b"".join(map(ogg_page, pages[:2] + moved)))
        whole = read(made(".opus", "-page_duration", "100000", rate=48_000))[1]
        _, audio, notices = read(path)
        assert (audio.shape, notices) == (whole.shape, [])
        np.testing.assert_allclose(audio, whole, atol=1e-3)


class TestFlacInOggFromTheMiddle:
    """Granule positions that do not start at 0: what FFmpeg decodes, without silence for what came before."""

    @pytest.fixture
    def pages(self, made):
        return ogg_pages(made(".oga", "-page_duration", "200000", "-frame_size", "1000").read_bytes())

    @staticmethod
    def write(path: Path, pages: list[tuple[bytes, bytes, bytes]]) -> Path:
        path.write_bytes(b"".join(map(ogg_page, pages)))
        return path

    @pytest.mark.parametrize("parts", [1, 2])
    @pytest.mark.parametrize("first", [2, 3, 5])
    def test_pages_from_the_middle(self, pages, tmp_path, first, parts):
        path = self.write(tmp_path / "a.oga", parts * (pages[:2] + pages[first:]))
        file, audio, notices = read(path)
        np.testing.assert_array_equal(audio, coded.decode(path, 1))
        assert audio.shape[1] == parts * (SAMPLES - 4_000 * (first - 2))
        assert (file.samples, notices) == (audio.shape[1] // parts, [])

    @pytest.mark.parametrize("frame_size", [192, 576, 1_024, 1_152, 4_096, 4_608, 4_097])
    def test_a_stream_that_counts_from_elsewhere(self, made, tmp_path, frame_size):
        whole = made(".oga", "-page_duration", "500000", "-frame_size", str(frame_size))
        pages = ogg_pages(whole.read_bytes())
        moved = [
            (head[:6] + struct.pack("<q", int.from_bytes(head[6:14], "little") + 10**6) + head[14:], *rest)
            for head, *rest in pages[2:]
        ]
        _, audio, notices = read(self.write(tmp_path / "a.oga", pages[:2] + moved))
        np.testing.assert_array_equal(audio, read(whole)[1])
        assert notices == []

    @pytest.mark.parametrize("lost", [5, 7])
    def test_what_is_lost_behind_the_start_is_silent(self, pages, tmp_path, lost):
        path = self.write(tmp_path / "a.oga", pages[:2] + pages[4:lost] + pages[lost + 1 :])
        _, audio, (notice,) = read(path)
        whole = read(self.write(tmp_path / "b.oga", pages))[1][:, 8_000:]
        assert audio.shape == whole.shape
        around = slice(4_000 * (lost - 4), 4_000 * (lost - 2))  # FFmpeg gives the page behind a gap an earlier time
        np.testing.assert_array_equal(np.delete(audio, around, axis=1), np.delete(whole, around, axis=1))
        assert "0.25 s are silent instead" in notice

    def test_a_frame_whose_start_is_on_a_page_that_is_missing(self, pages, tmp_path):
        head, lengths, body = pages[4]
        cut = sum(lengths[:2])
        assert cut == 2 * 255
        continued = (head[:5] + b"\1" + head[6:], lengths[2:], body[cut:])
        path = self.write(tmp_path / "a.oga", [*pages[:2], continued, *pages[5:]])
        _, audio, notices = read(path)
        np.testing.assert_array_equal(audio, coded.decode(path, 1))
        assert (audio.shape[1], notices) == (SAMPLES - 8_000 - 1_000, [])


def test_sizes_that_no_file_has_print_nothing(made, tmp_path, capfd):
    path = tmp_path / "a.w64"
    content = made(".w64").read_bytes()
    path.write_bytes(content + b"ANNO" + struct.pack(">I", 4_000) + b"abcd" * 1_000)
    audio = read(path)[1]
    np.testing.assert_array_equal(audio[:, :SAMPLES], read(made(".w64"))[1])
    with contextlib.suppress(AudioError):
        probe(path, 0)
    assert capfd.readouterr().err == ""


class TestWrongSizes:
    @pytest.mark.parametrize("riff", [None, 0, 0xFFFFFFFF, 100])
    @pytest.mark.parametrize(
        "data",
        [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xC0000000, 2_000, 2 * SAMPLES + 1_000, 2 * SAMPLES],
    )
    def test_wav(self, made, tmp_path, riff, data):
        content = bytearray(made(".wav").read_bytes())
        at = content.index(b"data")
        struct.pack_into("<I", content, at + 4, data)
        if riff is not None:
            struct.pack_into("<I", content, 4, riff)
        path = tmp_path / "wrong.wav"
        path.write_bytes(content)
        _, audio, notices = read(path)
        np.testing.assert_array_equal(audio, read(made(".wav"))[1])
        assert len(notices) == (data in (0, 0xC0000000, 2_000, 2 * SAMPLES + 1_000))

    @pytest.mark.parametrize(
        "after",
        [b"LIST\x04\0\0\0INFO", b"junk" + struct.pack("<I", 1_000) + bytes(1_000), bytes(3_000), b"TAG" + bytes(125)],
    )
    def test_what_follows_the_audio_is_not_read_as_audio(self, made, tmp_path, after):
        path = tmp_path / "after.wav"
        path.write_bytes(made(".wav").read_bytes() + after)
        assert read(path)[1].shape == (1, SAMPLES)

    def test_a_file_of_no_bytes_is_an_error(self, tmp_path):
        (tmp_path / "none.mp3").touch()
        with pytest.raises(AudioError, match=r"none\.mp3' cannot be read as audio: it is empty"):
            open_audio(tmp_path / "none.mp3")

    def test_an_mp4_that_is_cut_off_before_its_first_sample_is_an_error(self, made, tmp_path):
        content = made(".m4a").read_bytes()
        start = content.index(b"mdat") + 4
        end = content.index(b"moov") - 4
        path = tmp_path / "cut.m4a"
        path.write_bytes(content[:start] if start > end else content[:start] + bytes(end - start) + content[end:])
        with pytest.raises(AudioError, match="cannot be read as audio"):
            read(path)

    def test_vorbis_whose_audio_begins_on_the_page_of_its_header(self, tmp_path):
        soundfile.write(tmp_path / "a.ogg", np.random.default_rng(0).uniform(-0.1, 0.1, 100_000), 44_100)
        pages = ogg_pages((tmp_path / "a.ogg").read_bytes())
        number = next(i for i, (head, *_) in enumerate(pages) if int.from_bytes(head[6:14], "little"))
        (before, lengths, body), (after, moved, rest) = pages[number - 1 : number + 1]
        first = next(i for i, length in enumerate(moved) if length < 255) + 1
        size = sum(moved[:first])
        pages[number - 1 : number + 1] = [
            (before, lengths + moved[:first], body + rest[:size]),
            (after, moved[first:], rest[size:]),
        ]
        path = tmp_path / "old.ogg"
        path.write_bytes(b"".join(map(ogg_page, pages)))
        _, audio, notices = read(path)
        decoded = np.frombuffer(ffmpeg("-i", path, "-f", "f32le", "-"), np.float32)
        assert (audio.shape[1], notices) == (100_000, [])
        np.testing.assert_allclose(audio[0][-90_000:], decoded[-90_000:], atol=1e-5)

    def test_empty_files_stay_empty(self, tmp_path):
        soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
        assert read(tmp_path / "empty.wav")[1].shape == (1, 0)

    @pytest.mark.parametrize(("name", "at"), [(".au", 8), (".w64", -8)])
    def test_other_containers_with_a_size_of_0(self, made, tmp_path, name, at):
        content = bytearray(made(name).read_bytes())
        if at < 0:
            at = content.index(b"data\xf3\xac") + 16
            struct.pack_into("<Q", content, at, 24)
        else:
            struct.pack_into(">I", content, at, 0)
        path = tmp_path / f"crashed{name}"
        path.write_bytes(content)
        _, audio, notices = read(path)
        assert audio.shape == (1, SAMPLES)
        assert "says that it is empty" in notices[0]

    def test_flac_without_a_length(self, made, tmp_path):
        path = tmp_path / "pipe.flac"
        path.write_bytes(ffmpeg("-i", made(".wav"), "-f", "flac", "-"))
        np.testing.assert_array_equal(read(path)[1], read(made(".wav"))[1])

    @pytest.mark.parametrize(
        "name",
        [
            *(".wav", ".aiff", ".au", ".caf", ".w64", ".flac", ".mp3", ".ogg", ".opus", ".oga", ".wv"),
            *(".mka", ".webm"),
        ],
    )
    def test_a_truncated_file_is_read_to_its_end_with_a_notice(self, made, tmp_path, name):
        content = made(name, *PAGES.get(name, ())).read_bytes()
        path = tmp_path / f"cut{name}"
        path.write_bytes(content[: len(content) * 3 // 5])
        file, audio, notices = read(path)
        assert audio.shape[1] / file.sample_rate_hz == pytest.approx(0.6 * SAMPLES / RATE, rel=0.45)
        assert any("cut off" in notice for notice in notices)

    def test_an_aiff_from_a_pipe_is_not_reported_as_cut_off(self, made, tmp_path):
        content = bytearray(made(".aiff").read_bytes())
        struct.pack_into(">I", content, content.index(b"SSND") + 4, 0x7F000008)
        (tmp_path / "pipe.aiff").write_bytes(content)
        _, audio, notices = read(tmp_path / "pipe.aiff")
        assert (audio.shape[1], notices) == (SAMPLES, [])

    def test_a_truncated_sphere_file_is_read_to_its_end_with_a_notice(self, tmp_path):
        for subtype in ("PCM_16", "ULAW"):
            path = tmp_path / f"{subtype}.sph"
            soundfile.write(path, coded.noise(SAMPLES, 1).T, RATE, format="NIST", subtype=subtype)
            assert read(path)[2] == []
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            _, audio, (notice,) = read(path)
            assert audio.shape[1] == pytest.approx(SAMPLES / 2, abs=1_024)
            assert "cut off: about 1.2 s" in notice or "cut off: about 1.3 s" in notice

    @pytest.mark.parametrize("name", [".mka", ".webm", ".wma"])
    def test_how_much_is_missing_by_the_size_in_the_header(self, made, tmp_path, name):
        content = made(name).read_bytes()
        path = tmp_path / f"cut{name}"
        path.write_bytes(content[: len(content) // 2])
        assert probe(made(name), 0).missing_share == 0
        assert probe(path, 0).missing_share == pytest.approx(1, abs=0.01)

    def test_a_truncated_film_is_read_to_its_end_with_a_notice(self, made, tmp_path):
        picture = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2.5")
        ffmpeg(*picture, "-i", made(".wav"), "-c:v", "mpeg4", "-c:a", "pcm_s16le", tmp_path / "whole.avi")
        content = (tmp_path / "whole.avi").read_bytes()
        (tmp_path / "cut.avi").write_bytes(content[: len(content) * 3 // 5])
        assert read(tmp_path / "whole.avi")[2] == []
        assert any("cut off: about" in notice for notice in read(tmp_path / "cut.avi")[2])

    def test_a_truncated_m4a_is_an_error(self, made, tmp_path):
        path = tmp_path / "cut.m4a"
        path.write_bytes(made(".m4a").read_bytes()[:5_000])
        with pytest.raises(AudioError, match="cannot be read as audio"):
            read(path)


@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0\0\0\0\x0fTIT2\0\0\0\5\0\0\0Talk"])
@pytest.mark.parametrize("count", [1, 2])
def test_mp3_of_a_free_bit_rate(tmp_path, tag, count):
    """Frames of silence as LAME writes them with `--freeformat -b 400`: their size follows from the next one."""
    size = 144 * 400_000 // 44_100
    path = tmp_path / "free.mp3"
    path.write_bytes(tag + (b"\xff\xfb\x00\xc0" + bytes(size - 4)) * 20 * count)
    file, audio, notices = read(path)
    assert (file.sample_rate_hz, file.subtype, notices) == (44_100, "MPEG_LAYER_III", [])
    assert audio.shape[1] == pytest.approx(20 * count * 1_152, abs=1_200)
    assert file.tags == ({"title": "Talk"} if tag else {})


@pytest.mark.parametrize("middle", [b"", b"TAG" + bytes(125)])
def test_joined_flac_of_different_formats(tmp_path, middle):
    parts = []
    for number, (rate, channels, subtype) in enumerate(
        [(16_000, 1, "PCM_16"), (44_100, 2, "PCM_24"), (8_000, 1, "PCM_16")]
    ):
        soundfile.write(tmp_path / f"{number}.flac", coded.noise(rate, channels).T, rate, subtype)
        parts.append((tmp_path / f"{number}.flac").read_bytes())
    path = tmp_path / "joined.flac"
    path.write_bytes(middle.join(parts))
    file, audio, notices = read(path)
    assert (file.sample_rate_hz, file.channels) == (16_000, 1)
    assert audio.shape[1] == pytest.approx(48_000, abs=100)
    np.testing.assert_allclose(audio[:, :16_000], coded.noise(16_000, 1), atol=1e-3)
    assert [notice for notice in notices if "changes to" in notice] == notices


@pytest.mark.parametrize("frames", [0xFFFFFFFF, 0x7FFFFFFF, 0])
def test_a_number_of_frames_that_is_not_known(made, tmp_path, frames):
    content = bytearray(made(".mp3").read_bytes())
    at = max(content.find(b"Xing"), content.find(b"Info"))
    struct.pack_into(">I", content, at + 8, frames)
    path = tmp_path / "unknown.mp3"
    path.write_bytes(content)
    _, audio, notices = read(path)
    assert audio.shape[1] >= SAMPLES
    assert notices == []


def test_the_padding_of_mp3_is_not_reported_as_missing(made):
    path = made(".mp3", "-af", "apad=whole_len=40384", rate=8_000)  # 208 ms of delay and padding
    _, audio, notices = read(path)
    assert (audio.shape[1], notices) == (40_384, [])


@pytest.mark.parametrize("name", [".flac", ".ogg", ".oga", ".opus"])
def test_audio_after_damage_is_in_its_place(made, tmp_path, name):
    source = made(name, *PAGES.get(name, ()))
    whole, audio, _ = read(source)
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path = tmp_path / f"damaged{name}"
    path.write_bytes(content)
    file, damaged, notices = read(path)
    assert "is damaged" in notices[0]
    assert damaged.shape[1] / file.sample_rate_hz == pytest.approx(audio.shape[1] / whole.sample_rate_hz, abs=0.01)
    if file.sample_rate_hz == whole.sample_rate_hz:
        end = slice(-2_000, None)
        assert coded.lag(audio[0, end], damaged[0, end]) == 0


@few(25)
@given(
    name=st.sampled_from(
        [".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus", ".oga", ".wma", ".mka", ".aac", ".ac3", ".caf"]
    ),
    seed=st.integers(0, 1_000),
    kind=st.sampled_from(["cut", "zeros", "bits", "joined"]),
)
@example(".ogg", 1, "zeros")
def test_damage_is_never_silent(made, tmp_path, name, seed, kind):
    draw = random.Random(seed)
    content = bytearray(made(name).read_bytes())
    at = draw.randrange(len(content))
    if kind == "cut":
        del content[at:]
    elif kind == "zeros":
        content[at : at + 100] = bytes(len(content[at : at + 100]))
    elif kind == "bits":
        content[at] ^= 1 << draw.randrange(8)
    else:
        content = content * 2
    path = tmp_path / f"damaged{name}"
    path.write_bytes(content)
    try:
        file, audio, notices = read(path)
    except AudioError:
        return
    assert np.isfinite(audio).all() or file.subtype == "FLOAT"
    if notices:
        return
    try:
        expected = coded.decode(path, file.channels).shape[1]
    except subprocess.CalledProcessError:
        expected = 0
    rate = 48_000 if file.subtype == "OPUS" else file.sample_rate_hz
    assert audio.shape[1] * rate // file.sample_rate_hz >= expected - 1_024


class TestWhatIsNoAudio:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.ffconcat", "ffconcat version 1.0\nfile {secret}\n"),
            ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{secret}\n#EXT-X-ENDLIST\n"),
            ("a.m3u8", "#EXTM3U\n#EXTINF:9,\nfile:{secret}\n"),
            ("a.wav", "hello, world\n" * 100),
            ("a.mp3", "<html>not found</html>" * 100),
            ("a.wav", ""),
        ],
    )
    def test_text_and_playlists(self, made, tmp_path, capfd, name, text):
        path = tmp_path / name
        path.write_text(text.format(secret=made(".wav")))
        with pytest.raises(AudioError):
            read(path)
        assert capfd.readouterr().err == ""

    def test_a_film_without_sound(self, tmp_path):
        path = tmp_path / "silent.mp4"
        ffmpeg("-f", "lavfi", "-i", "color=size=32x32:rate=5:duration=1", path)
        with pytest.raises(AudioError, match="holds no audio"):
            open_audio(path)


def test_tracks(made, tmp_path):
    path = tmp_path / "two.mka"
    ffmpeg("-i", made(".wav"), "-i", made(".wav", channels=2), "-map", "0", "-map", "1", "-c", "flac", path)
    assert [read(path, track)[1].shape for track in (None, 0, 1)] == [(1, SAMPLES), (1, SAMPLES), (2, SAMPLES)]
    file = open_audio(path, 1)
    assert (file.tracks, file.track, file.start_s) == (2, 1, Fraction(0))
    with pytest.raises(AudioError, match="has tracks 0 to 1, not 2"):
        open_audio(path, 2)
    with pytest.raises(AudioError, match="has only track 0, not 1"):
        open_audio(made(".wav"), 1)


def caf(places: int, channels: int) -> bytes:
    """A CAF file of 100 samples, each with the number of its channel in thousands."""
    rows = struct.pack(f">{channels}h", *range(0, 1_000 * channels, 1_000)) * 100
    chunks = {
        b"desc": struct.pack(">d4sIIIII", 48_000, b"lpcm", 0, 2 * channels, 1, channels, 16),
        b"chan": struct.pack(">III", places, 0, 0),
        b"data": bytes(4) + rows,
    }
    return b"caff\0\1\0\0" + b"".join(name + struct.pack(">q", len(data)) + data for name, data in chunks.items())


@pytest.mark.parametrize(
    ("places", "layout", "channels"),
    [
        (121 << 16 | 6, "5.1(side)", [0, 1, 2, 3, 4, 5]),  # MPEG 5.1 A: left, right, centre, LFE, surrounds
        (124 << 16 | 6, "5.1(side)", [1, 2, 0, 5, 3, 4]),  # MPEG 5.1 D: centre, left, right, surrounds, LFE
        (113 << 16 | 3, "3.0", [0, 1, 2]),  # MPEG 3.0 A: left, right, centre
        (114 << 16 | 3, "3.0", [1, 2, 0]),  # MPEG 3.0 B: centre, left, right
    ],
)
def test_channels_in_any_order(tmp_path, places, layout, channels):
    path = tmp_path / "a.caf"
    path.write_bytes(caf(places, len(channels)))
    file, audio, _ = read(path)
    assert file.channel_layout == layout
    np.testing.assert_array_equal(audio[:, 0] * 32_768, 1_000 * np.array(channels))
    form = probe(path, 0)  # as for PCM in QuickTime, which FFmpeg reads
    decoded = np.concatenate(list(decode(path, 0, form)), axis=1)
    np.testing.assert_array_equal(decoded[list(form.order) or slice(None)], audio)


def dsd(kind: str, rate: int, audio: np.ndarray) -> bytes:
    """A DSF or DFF file of one channel, from samples at the rate of its bits."""
    error, bits = 0.0, np.zeros(len(audio), np.uint8)
    for at, sample in enumerate(audio.tolist()):
        error += sample
        bits[at] = error >= 0
        error -= 1 if bits[at] else -1
    if kind == "dsf":
        form = struct.pack("<IIIIIIQII", 1, 0, 1, 1, rate, 1, len(bits), 4_096, 0)
        parts = ((b"fmt ", form), (b"data", np.packbits(bits, bitorder="little").tobytes()))
        body = b"".join(name + struct.pack("<Q", 12 + len(data)) + data for name, data in parts)
        return b"DSD " + struct.pack("<QQQ", 28, 28 + len(body), 0) + body

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack(">Q", len(data)) + data + bytes(len(data) % 2)

    properties = chunk(b"FS  ", struct.pack(">I", rate)) + chunk(b"CHNL", b"\0\1C   ")
    properties += chunk(b"CMPR", b"DSD \x0enot compressed\0")
    body = chunk(b"FVER", b"\1\5\0\0") + chunk(b"PROP", b"SND " + properties)
    return chunk(b"FRM8", b"DSD " + body + chunk(b"DSD ", np.packbits(bits).tobytes()))


@pytest.mark.parametrize("kind", ["dsf", "dff"])
@pytest.mark.parametrize("factor", [64, 128])
def test_dsd_becomes_pcm(tmp_path, identity, kind, factor):
    rate = 44_100 * factor
    samples = 4_096 * 8 * 2 * factor // 64
    tone = 0.4 * np.sin(2 * np.pi * 2_000 * np.arange(samples) / rate)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(dsd(kind, rate, tone))
    file, audio, (notice,) = read(path)
    assert (file.sample_rate_hz, file.channels) == (176_400, 1)
    assert notice.endswith("is DSD: it is converted to PCM of 176,400 Hz")
    assert audio.shape[1] == samples // (factor // 4)
    decoded = np.frombuffer(ffmpeg("-i", path, "-ar", "176400", "-f", "f32le", "-"), np.float32)
    assert len(decoded) == audio.shape[1]
    np.testing.assert_allclose(audio[0], decoded, atol=0.02)
    with pytest.warns(AudioWarning):
        report = identity.denoise_file(path, tmp_path / "out.flac")
    assert report.sample_rate_hz == soundfile.info(tmp_path / "out.flac").samplerate == 176_400
    assert soundfile.info(tmp_path / "out.flac").subtype == "PCM_24"


@pytest.mark.parametrize(
    ("at", "new"), [(2, b"\3\x13"), (4, b"\4"), (5, b"\0"), (6, b"\0"), (7, b"\0"), (8, bytes(4))]
)
def test_a_damaged_adx_file_is_an_error_and_does_not_end_the_process(made, tmp_path, at, new):
    content = bytearray(made(".adx").read_bytes())
    content[at : at + len(new)] = new
    for name in ("a.adx", "a.wav"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match="Invalid data"):
            read(tmp_path / name)


@pytest.mark.parametrize("channels", [9, 16, 27, 33, 64])
def test_planes_of_many_channels(tmp_path, channels):
    """PyAV reads the planes of more than eight channels beyond their end."""
    rows = np.random.default_rng(channels).integers(-30_000, 30_000, (5_000, channels)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", rows, 16_000, "PCM_16")
    ffmpeg("-i", tmp_path / "a.wav", tmp_path / "a.wv")
    for _ in range(5):
        _, audio, notices = read(tmp_path / "a.wv")
        np.testing.assert_array_equal(audio * 32_768, rows.T)
        assert notices == []


def test_a_file_that_changes_is_an_error(made, tmp_path):
    for name in (".wav", ".flac", ".mp3"):
        path = tmp_path / f"changing{name}"
        path.write_bytes(made(name).read_bytes())
        file = open_audio(path)
        path.write_bytes(path.read_bytes()[:-1_000])
        with pytest.raises(AudioError, match="changed while it was read"):
            list(file.blocks())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
@pytest.mark.parametrize("name", [".wav", ".flac", ".mp3"])
def test_fifos(made, tmp_path, identity, name):
    fifo = tmp_path / f"fifo{name}"
    os.mkfifo(fifo)
    feeder = threading.Thread(target=lambda: fifo.write_bytes(made(name).read_bytes()), daemon=True)
    feeder.start()
    report = identity.denoise_file(fifo, tmp_path / "out.wav")
    feeder.join(60)
    assert (report.source, report.duration_s) == (fifo, SAMPLES / RATE)
    assert soundfile.info(tmp_path / "out.wav").frames == SAMPLES


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
@pytest.mark.parametrize(("size", "message"), [(20_000, "is cut off"), (40, "cannot be read as audio")])
def test_messages_name_the_fifo_and_not_its_copy(made, tmp_path, identity, size, message):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    feeder = threading.Thread(target=lambda: fifo.write_bytes(made(".wav").read_bytes()[:size]), daemon=True)
    feeder.start()
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioWarning)
        try:
            said += identity.denoise_file(fifo, tmp_path / "out.wav").warnings
        except AudioError as error:
            said.append(str(error))
    feeder.join(60)
    assert len(said) == 1
    assert said[0].startswith(f"{str(fifo)!r} {message}")
    assert [str(warning.message) for warning in caught] == said * (size > 100)


def test_the_report_has_the_warnings(made, tmp_path, identity):
    content = bytearray(made(".wav").read_bytes())
    struct.pack_into("<I", content, content.index(b"data") + 4, 0)
    path = tmp_path / "crashed.wav"
    path.write_bytes(content)
    with pytest.warns(AudioWarning) as caught:
        report = identity.denoise_file(path, tmp_path / "out.wav")
    assert [str(warning.message) for warning in caught] == list(report.warnings)
    assert len(report.warnings) == 1  # though the file is read more than once
    assert soundfile.info(tmp_path / "out.wav").frames == SAMPLES


@pytest.mark.parametrize("damaged", [range(1), range(2), range(4, 40)])
def test_ogg_without_a_whole_first_page_is_read_or_refused(tmp_path, damaged):
    soundfile.write(tmp_path / "a.ogg", np.zeros(20_000), 16_000, format="OGG")
    content = bytearray((tmp_path / "a.ogg").read_bytes())
    for at in damaged:
        content[at] ^= 0x5A
    (tmp_path / "a.ogg").write_bytes(content)
    with pytest.raises(AudioError, match=r"a\.ogg"):
        list(open_audio(tmp_path / "a.ogg").blocks())
